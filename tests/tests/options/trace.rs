//! `-v`: every request leaves one debug line in each layer, the outermost first, by whatever way
//! its bytes went.

use nbdkit_tests::{Ask, Server, TempDir};

use crate::support::open;

const MIB: u64 = 1 << 20;
/// What the offset filter adds.
const SHIFT: u64 = 4096;

/// Requests of all sizes, from those that are copied to those that leave by splice.
const SIZES: [u64; 7] = [512, 32 << 10, 128 << 10, 256 << 10, MIB, 2 * MIB, 3 * MIB + 512];

/// The lines about requests of this kind: layer, count and offset.
fn requests(stderr: &str, kind: &str) -> Vec<(String, u64, u64)> {
    let number = |text: &str, key: &str| {
        let digits = text.split_once(key).unwrap().1.split(' ').next().unwrap();
        digits.parse().unwrap()
    };
    stderr
        .lines()
        .filter_map(|line| {
            let (_, said) = line.split_once(" debug: ")?;
            let (layer, rest) = said.split_once(": ")?;
            let rest = rest.strip_prefix(kind)?.strip_prefix(' ')?;
            Some((layer.to_owned(), number(rest, "count="), number(rest, "offset=")))
        })
        .collect()
}

/// What [`requests`] finds where each of these requests went through both layers once.
fn once_each(asked: &[(u64, u64)]) -> Vec<(String, u64, u64)> {
    let layers = |&(count, offset): &(u64, u64)| {
        [("offset", offset), ("file", offset + SHIFT)]
            .map(|(layer, offset)| (layer.to_owned(), count, offset))
    };
    asked.iter().flat_map(layers).collect()
}

/// A server of a file of 8 MiB, every other of whose mebibytes is a hole, below the offset filter;
/// `ask` is its client.
fn served(ask: impl FnOnce(&Server)) -> String {
    let dir = TempDir::new();
    let file = std::fs::File::create(dir.path().join("disk")).unwrap();
    file.set_len(8 * MIB).unwrap();
    for data in (0..8).step_by(2) {
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; MIB as usize], data * MIB)
            .unwrap();
    }
    let disk = dir.path().join("disk").display().to_string();
    let shift = format!("offset={SHIFT}");
    let mut server = Server::nbdkit(["-v", "--filter=offset", "file", &disk, &shift]).start();
    ask(&server);
    server.stop();
    server.stderr_text_after_end()
}

#[test]
fn every_read_is_logged_once_in_each_layer() {
    for structured in [false, true] {
        let asked: Vec<(u64, u64)> = SIZES.iter().map(|&count| (count, MIB + 100)).collect();
        let stderr = served(|server| {
            let mut client = server.connect();
            client.handshake().unwrap();
            if structured {
                client.structured_replies().unwrap();
            }
            client.go("", &[]).unwrap();
            for &(count, offset) in &asked {
                assert_eq!(client.call(&Ask::read(offset, count)).unwrap().error, None);
            }
            client.disconnect().unwrap();
            client.expect_close().unwrap();
        });
        assert_eq!(requests(&stderr, "pread"), once_each(&asked), "structured: {structured}");
        assert_eq!(requests(&stderr, "extents"), [], "a client asked for no map");
    }
}

#[test]
fn every_write_is_logged_once_in_each_layer() {
    let asked: Vec<(u64, u64)> = SIZES.iter().map(|&count| (count, MIB + 100)).collect();
    let stderr = served(|server| {
        let mut client = server.connect();
        open(&mut client);
        for &(count, offset) in &asked {
            let ask = Ask::write(offset, vec![1; count as usize]);
            assert_eq!(client.call(&ask).unwrap().error, None);
        }
        client.disconnect().unwrap();
        client.expect_close().unwrap();
    });
    assert_eq!(requests(&stderr, "pwrite"), once_each(&asked));
}
