//! The cache filter: what clients read and what reaches the disk, in each mode; that all clients
//! have one cache; and what is left when a client is killed or there is no space.

use nbd_protocol::constants::{CommandFlags, TransmissionFlags};
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::ours;
use nbdkit_tests::transcript::{Session, summary};
use nbdkit_tests::{Ask, Server, TempDir, row_name};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::below::{self, open};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 1 << 16;
const MODES: [&str; 3] = ["cache=writeback", "cache=writethrough", "cache=unsafe"];

fn disk(dir: &TempDir) {
    let bytes: Vec<u8> = (0..MIB).map(|i| (i / 512 % 251) as u8).collect();
    std::fs::write(dir.path().join("disk"), bytes).unwrap();
}

/// What is on the disk now.
fn note_disk(s: &mut Session) {
    let bytes = std::fs::read(s.dir().join("disk")).unwrap();
    s.note(format!("disk: {}", summary(&bytes)));
}

#[test]
fn cache_modes() {
    for_each(&MODES, |mode| {
        let arguments = ["--filter=cache", "file", "{dir}/disk", mode];
        Row::new(row_name!(), &arguments).variant(mode).setup(disk).compare(|s| {
            s.open();
            s.read(100, 70_000);
            s.write(50, 100, 1);
            s.write(65_500, 100, 2);
            s.write(131_072, 65_536, 3);
            s.read(0, 200_000);
            note_disk(s);
            s.ask(&Ask::write_zeroes(60_000, 80_000));
            let no_hole = Ask::write_zeroes(300_000, 10).flags(CommandFlags::NO_HOLE);
            s.ask(&no_hole);
            let fast = Ask::write_zeroes(0, 65_536).flags(CommandFlags::FAST_ZERO);
            s.ask_if(TransmissionFlags::SEND_FAST_ZERO, &fast);
            s.ask(&Ask::cache(400_000, 70_000));
            s.read(400_000, 70_000);
            note_disk(s);
            s.ask(&Ask::write(500_000, [4; 100]).flags(CommandFlags::FUA));
            note_disk(s);
            s.ask(&Ask::flush());
            note_disk(s);
            s.write(MIB - 1, 1, 5);
            s.read(MIB - 10, 10);
            s.ask(&Ask::flush());
            note_disk(s);
            s.block_status(0, MIB);
            s.disconnect();
        });
    });
}

/// Answers to questions about what it can do come from the file `can` beside it.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in
  get_size) echo 1M ;;
  can_write) ;;
  can_fua) test -e "$dir/can" && echo native || echo none ;;
  can_cache) echo none ;;
  can_flush | can_multi_conn | can_trim | can_zero | can_extents | can_fast_zero) test -e "$dir/can" || exit 3 ;;
  pread) head -c "$3" /dev/zero ;;
  pwrite) cat >/dev/null ;;
  flush | trim | zero) ;;
  *) exit 2 ;;
esac
"#;

fn script(dir: &TempDir) {
    let path = dir.path().join("script");
    std::fs::write(&path, SCRIPT).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, executable).unwrap();
}

fn capable_script(dir: &TempDir) {
    script(dir);
    std::fs::write(dir.path().join("can"), "").unwrap();
}

#[test]
fn cache_capabilities() {
    for_each(&MODES, |mode| {
        for setup in [script, capable_script] {
            for readonly in [&[][..], &["-r"]] {
                let arguments = [readonly, &["--filter=cache", "sh", "{dir}/script", mode]];
                let arguments = arguments.concat();
                Row::new(row_name!(), &arguments).variant(mode).setup(setup).compare(|s| {
                    s.connect();
                    s.info("");
                    s.block_sizes("");
                    s.disconnect();
                });
            }
        }
    });
}

#[test]
fn cache_block_sizes() {
    for_each(&["4k", "64k", "1M", "32M"], |size| {
        let size = format!("cache-min-block-size={size}");
        let arguments = ["--filter=cache", "null", "1M", &size];
        Row::new(row_name!(), &arguments).variant(&size).compare(|s| {
            s.connect();
            s.block_sizes("");
            s.disconnect();
        });
    });
}

#[test]
fn cache_parameters() {
    let parameters: [&[&str]; 20] = [
        &["cache=foo"],
        &["cache-min-block-size=5000"],
        &["cache-min-block-size=2048"],
        &["cache-min-block-size=1G"],
        &["cache-min-block-size=4G"],
        &["cache-max-size=0"],
        &["cache-max-size=1023k"],
        &["cache-max-size=1M"],
        &["cache-max-size=1M", "cache-min-block-size=2M"],
        &["cache-high-threshold=0"],
        &["cache-low-threshold=0"],
        &["cache-low-threshold=-1"],
        &["cache-max-size=1M", "cache-high-threshold=50"],
        &["cache-max-size=1M", "cache-high-threshold=50", "cache-low-threshold=50"],
        &["cache-max-size=1M", "cache-high-threshold=500", "cache-low-threshold=50"],
        &["cache-high-threshold=50", "cache-low-threshold=60"],
        &["cache-on-read=foo"],
        &["cache-on-read=true"],
        &["cache-on-read=/nonexistent"],
        &["cache-on-write=true"],
    ];
    for_each(&parameters, |parameters| {
        let arguments = [&["--filter=cache", "memory", "1M"], parameters, &["--run", "true"]];
        Row::new(row_name!(), &arguments.concat()).variant(&parameters.join(" ")).compare_command();
    });
}

/// Our server with a disk of 1 MiB in a file.
fn server(parameters: &[&str]) -> Server {
    let builder = ours(&["--filter=cache", "file"]);
    disk(builder.dir());
    let path = builder.dir().path().join("disk");
    builder.arg(path).args(parameters).start()
}

fn on_disk(server: &Server, offset: u64, length: u64) -> Vec<u8> {
    let bytes = std::fs::read(server.dir().path().join("disk")).unwrap();
    bytes[offset as usize..(offset + length) as usize].to_vec()
}

/// Processes of their own.
#[test]
fn clients_have_one_cache_and_a_flush_writes_what_all_have_written() {
    let server = server(&[]);
    let (mut one, mut other) = (open(&server), open(&server));
    assert_eq!(server.workers().len(), 2);
    below::write(&mut one, 1000, 10, 1);
    assert_eq!(below::read(&mut other, 1000, 10), [1; 10]);
    below::write(&mut other, 1010, 10, 2);
    assert_eq!(below::read(&mut one, 1000, 20), [[1; 10], [2; 10]].concat());
    assert_eq!(below::extents(&mut one, 0, 2 * BLOCK), [(2 * BLOCK, 0)]);
    assert_eq!(on_disk(&server, 1000, 20), [1; 20].map(|_| (1000 / 512) as u8));
    assert_eq!(below::ask(&mut other, &Ask::flush()), None);
    assert_eq!(on_disk(&server, 1000, 20), [[1; 10], [2; 10]].concat());
}

/// nbdkit 1.32.5 loses 52 of 64 blocks.
#[test]
fn a_cache_smaller_than_what_is_written_loses_nothing() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let builder = ours(&[isolation, "--filter=cache", "file", "cache-max-size=1M"]);
        let disk = builder.dir().path().join("disk");
        std::fs::write(&disk, vec![0; 4 << 20]).unwrap();
        let server = builder.arg(&disk).start();
        let mut clients = [open(&server), open(&server)];
        for block in 0..64 {
            below::write(
                &mut clients[block as usize % 2],
                block * BLOCK,
                BLOCK as usize,
                block as u8 + 1,
            );
        }
        let expected: Vec<u8> = (1..=64).flat_map(|byte| [byte; BLOCK as usize]).collect();
        for block in 0..64 {
            let data = below::read(&mut clients[block as usize / 2 % 2], block * BLOCK, BLOCK);
            assert!(data == expected[(block * BLOCK) as usize..][..BLOCK as usize], "{block}");
        }
        assert_eq!(below::ask(&mut clients[0], &Ask::flush()), None);
        assert!(std::fs::read(&disk).unwrap() == expected, "{isolation}");
    }
}

#[test]
fn a_killed_client_leaves_what_it_wrote_to_the_others() {
    let server = server(&[]);
    let mut dying = open(&server);
    let [worker] = server.workers()[..] else { panic!("{:?}", server.workers()) };
    below::write(&mut dying, 1000, 10, 1);
    assert_eq!(below::ask(&mut dying, &Ask::flush()), None);
    assert_eq!(on_disk(&server, 1000, 10), [1; 10], "what was flushed");
    below::write(&mut dying, 2000, 10, 2);
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    eventually("the worker has ended", || !server.workers().contains(&worker));
    assert_ne!(on_disk(&server, 2000, 10), [2; 10]);
    let mut client = open(&server);
    assert_eq!(below::read(&mut client, 2000, 10), [2; 10]);
    // Its leaving is enough.
    client.disconnect().unwrap();
    eventually("what was written is on the disk", || on_disk(&server, 2000, 10) == [2; 10]);
}

#[test]
fn what_killed_clients_have_left_is_written_when_the_server_stops() {
    let mut server = server(&[]);
    let mut dying = open(&server);
    let [worker] = server.workers()[..] else { panic!("{:?}", server.workers()) };
    below::write(&mut dying, 2000, 10, 2);
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    eventually("the worker has ended", || !server.workers().contains(&worker));
    server.stop();
    assert_eq!(on_disk(&server, 2000, 10), [2; 10]);
}

/// Kills workers at random while they write, evict and flush: what was flushed is there.
#[test]
fn workers_that_are_killed_at_random_lose_nothing_that_was_flushed() {
    let server = server(&["cache-max-size=1M", "cache-min-block-size=4k"]);
    for round in 0..30_u8 {
        let mut dying = open(&server);
        let worker = *server.workers().last().unwrap();
        below::write(&mut dying, 0, 200_000, round + 1);
        assert_eq!(below::ask(&mut dying, &Ask::flush()), None);
        // It is killed in the middle of these, of which the first must not be lost by the others.
        for at in 0..40 {
            dying.send(&Ask::write(300_000 + at * 5000, [round; 4000])).unwrap();
        }
        std::thread::sleep(std::time::Duration::from_micros(u64::from(round) * 100));
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        assert!(on_disk(&server, 0, 200_000) == vec![round + 1; 200_000], "round {round}");
        let mut client = open(&server);
        assert!(below::read(&mut client, 0, 200_000) == vec![round + 1; 200_000]);
        below::write(&mut client, 300_000, 200_000, 9);
        assert_eq!(below::ask(&mut client, &Ask::flush()), None);
        assert!(on_disk(&server, 300_000, 200_000) == vec![9; 200_000], "round {round}");
    }
}

#[test]
fn a_full_file_system_slows_the_cache_down_and_nothing_else() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: to mount a file system needs root");
        return;
    }
    let script = r#"mkdir {dir}/caches; export TMPDIR={dir}/caches; exec unshare -m sh -c \
        'mount -t tmpfs -o size=256k none "$TMPDIR" && exec "$0" "$@"' "$0" "$@""#;
    let builder = ours(&["--filter=cache", "file"]);
    disk(builder.dir());
    let path = builder.dir().path().join("disk");
    let server = builder.arg(path).through_shell(script).start();
    let (mut one, mut other) = (open(&server), open(&server));
    for block in 0..16 {
        let client = if block % 2 == 0 { &mut one } else { &mut other };
        below::write(client, block * BLOCK, BLOCK as usize, block as u8 + 1);
    }
    let expected: Vec<u8> = (1..=16).flat_map(|byte| [byte; BLOCK as usize]).collect();
    assert!(below::read(&mut other, 0, MIB) == expected);
    assert_eq!(below::ask(&mut one, &Ask::flush()), None);
    assert!(on_disk(&server, 0, MIB) == expected);
}

#[test]
fn reads_are_cached_while_a_file_exists() {
    let builder = ours(&["--filter=cache", "file"]);
    disk(builder.dir());
    let (path, switch) = (builder.dir().path().join("disk"), builder.dir().path().join("switch"));
    let on_read = format!("cache-on-read={}", switch.display());
    let server = builder.arg(&path).arg(on_read).start();
    let mut client = open(&server);
    let change = |byte: u8| std::fs::write(&path, vec![byte; MIB as usize]).unwrap();
    change(1);
    assert_eq!(below::read(&mut client, 0, 10), [1; 10]);
    std::fs::write(&switch, "").unwrap();
    change(2);
    assert_eq!(below::read(&mut client, 0, 10), [2; 10]);
    change(3);
    assert_eq!(below::read(&mut client, 0, 10), [2; 10]);
    assert_eq!(below::read(&mut client, BLOCK, 10), [3; 10]);
}
