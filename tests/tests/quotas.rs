//! What clients may put into an overlay (`cow-max`, `cow-max-total`, `cow-max-connection`) and into
//! a disk in memory (`allocator=...,max=`): one who is over gets ENOSPC, for that request, and the
//! others go on; and the account is exact however workers end.
#![expect(clippy::expect_used, reason = "a test ends where something goes wrong")]

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd_protocol::constants::{NbdError, Rep};
use nbdkit_tests::client::Failure;
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, Client, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn open(server: &Server, export: &str) -> Client<UnixStream> {
    try_open(server, export).expect("an open export")
}

fn try_open(server: &Server, export: &str) -> Result<Client<UnixStream>, Failure> {
    let mut client = server.connect();
    client.handshake()?;
    client.structured_replies()?;
    client.set_meta_context(export, &["base:allocation"])?;
    assert_eq!(client.go(export, &[])?.end.reply, Rep::ACK);
    Ok(client)
}

fn ask(client: &mut Client<UnixStream>, ask: &Ask) -> Option<NbdError> {
    client.call(ask).expect("a reply").nbd_error()
}

fn write(client: &mut Client<UnixStream>, offset: u64, length: u64, byte: u8) -> Option<NbdError> {
    ask(client, &Ask::write(offset, vec![byte; length as usize]))
}

fn read(client: &mut Client<UnixStream>, offset: u64, length: u64) -> Vec<u8> {
    let reply = client.call(&Ask::read(offset, length)).expect("a reply");
    assert_eq!(reply.error, None);
    reply.data
}

/// Bytes that a file of the template's takes which has this in its name.
fn taken(server: &Server, name: &str) -> u64 {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", server.template())).expect("root may look");
    let paths = fds.map(|fd| fd.expect("an entry").path());
    let mut found = paths.filter(|path| {
        std::fs::read_link(path).is_ok_and(|link| link.to_string_lossy().contains(name))
    });
    let path = found.next().expect("there is such a file");
    std::fs::metadata(path).expect("it is open").blocks() * 512
}

/// For the shell that starts a server: its temporary files are in a file system of its own, which
/// takes memory for what is in them and nothing else.
fn temporary_files_in(mount: &str) -> String {
    format!(
        r#"mkdir {{dir}}/overlays; export TMPDIR={{dir}}/overlays; exec unshare -m sh -c \
           'mount {mount} none "$TMPDIR" && exec "$0" "$@"' "$0" "$@""#
    )
}

const ISOLATIONS: [&str; 2] = ["--isolation=connection", "--isolation=shared"];

#[test]
fn whoever_fills_the_overlay_of_an_export_is_told_so_and_others_go_on() {
    for isolation in ISOLATIONS {
        let server = ours(&[isolation, "--filter=cow", "memory", "64M"])
            .args(["cow-block-size=4k", "cow-max=1M"])
            .start();
        let (mut greedy, mut other) = (open(&server, "a"), open(&server, "a"));
        assert_eq!(write(&mut other, 0, 64 * KIB, 1), None);
        let mut at = MIB;
        while write(&mut greedy, at, 128 * KIB, 2).is_none() {
            at += 128 * KIB;
            assert!(at < 3 * MIB, "{isolation}: no limit");
        }
        // The other half of what there is, and one block.
        assert_eq!(at, MIB + 7 * 128 * KIB, "{isolation}");
        assert_eq!(read(&mut greedy, at, 128 * KIB), vec![0; 128 * KIB as usize]);
        assert_eq!(write(&mut greedy, MIB, 128 * KIB, 3), None, "rewritten");
        assert_eq!(write(&mut other, 0, 64 * KIB, 4), None, "rewritten");
        assert_eq!(write(&mut greedy, at, 64 * KIB, 2), None, "the rest");
        assert_eq!(write(&mut other, 32 * MIB, 1, 5), Some(NbdError::NoSpc));
        assert_eq!(read(&mut other, 0, 64 * KIB), vec![4; 64 * KIB as usize]);
        assert_eq!(ask(&mut other, &Ask::trim(0, 64 * KIB)), None);
        assert_eq!(write(&mut other, 32 * MIB, 1, 5), None, "there is room again");
    }
}

#[test]
fn a_connection_and_all_exports_together_have_limits_too() {
    for isolation in ISOLATIONS {
        let server = ours(&[isolation, "--filter=cow", "memory", "64M"])
            .args(["cow-block-size=4k", "cow-max-connection=64k", "cow-max-total=160k"])
            .start();
        let mut first = open(&server, "a");
        assert_eq!(write(&mut first, 0, 64 * KIB, 1), None);
        assert_eq!(write(&mut first, MIB, 1, 1), Some(NbdError::NoSpc));
        let mut second = open(&server, "b");
        assert_eq!(write(&mut second, 0, 64 * KIB, 1), None);
        let mut third = open(&server, "c");
        assert_eq!(write(&mut third, 0, 36 * KIB, 1), Some(NbdError::NoSpc));
        assert_eq!(write(&mut third, 0, 32 * KIB, 1), None);
        assert_eq!(ask(&mut first, &Ask::trim(0, 8 * KIB)), None);
        assert_eq!(write(&mut third, MIB, 8 * KIB, 1), None);
    }
}

#[test]
fn whoever_fills_a_disk_in_memory_is_told_so_and_others_go_on() {
    let stacks: [(&str, &[&str]); 4] = [
        ("--isolation=connection", &["memory", "64M", "allocator=sparse,max=1M"]),
        ("--isolation=shared", &["memory", "64M", "allocator=sparse,max=1M"]),
        ("--isolation=connection", &["data", "0", "size=64M", "allocator=sparse,max=1M"]),
        ("--isolation=shared", &["memory", "64M", "allocator=zstd,max=1M"]),
    ];
    for (isolation, stack) in stacks {
        let server = ours(&["-v", isolation]).args(stack).start();
        let (mut greedy, mut other) = (open(&server, ""), open(&server, ""));
        let noise: Vec<u8> =
            (0..64 * KIB).map(|n| ((n * n % 65_521) >> 5) as u8 ^ n as u8).collect();
        let noisy = |client: &mut Client<UnixStream>, at: u64, round: u8| {
            let bytes: Vec<u8> = noise.iter().map(|byte| byte.wrapping_mul(round)).collect();
            ask(client, &Ask::write(at, bytes))
        };
        assert_eq!(noisy(&mut other, 0, 3), None);
        let mut at = MIB;
        while noisy(&mut greedy, at, 5).is_none() {
            at += 64 * KIB;
            assert!(at < 40 * MIB, "{stack:?}: no limit");
        }
        // All that is allowed, or what of it compressed pages leave beside what is theirs.
        assert!(at >= MIB + 14 * 64 * KIB, "{stack:?}: {at}");
        assert_eq!(read(&mut greedy, at, 64 * KIB), vec![0; 64 * KIB as usize]);
        assert_eq!(noisy(&mut other, 0, 3), None, "rewritten");
        assert_eq!(noisy(&mut other, 32 * MIB, 7), Some(NbdError::NoSpc));
        assert_eq!(ask(&mut other, &Ask::trim(MIB, MIB)), None);
        assert_eq!(noisy(&mut other, 32 * MIB, 7), None, "there is room again");
        // The next client's line says how much is left.
        let _next = open(&server, "");
        let text = server.wait_for_stderr("allocator: ");
        assert!(text.contains("bytes of memory are in use"), "{text}");
    }
}

/// A number that is different each time, and the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % end
    }
}

/// One client that writes, trims and rewrites until its worker is killed; its blocks are its own.
fn until_killed(server: &Server, size: u64, blocks: std::ops::Range<u64>, seed: u64) {
    // It may be killed before.
    let Ok(mut client) = try_open(server, "") else { return };
    let mut dice = Dice(seed);
    loop {
        let first = blocks.start + dice.below(blocks.end - blocks.start);
        let count = 1 + dice.below(8.min(blocks.end - first));
        // Whole blocks and parts.
        let part = dice.below(2) * 1000;
        let (offset, length) = (first * size + part, count * size - part);
        let request = match dice.below(2) {
            0 => Ask::trim(offset, length),
            _ => Ask::write(offset, vec![seed as u8; length as usize]),
        };
        match client.call(&request) {
            Ok(reply) => {
                assert!(matches!(reply.nbd_error(), None | Some(NbdError::NoSpc)), "{reply:?}");
            }
            Err(Failure::Closed | Failure::Cut) => return,
            Err(other) => panic!("{other}"),
        }
    }
}

/// Kills workers at random moments while they fill and trim a disk of so many blocks of `size`
/// bytes, until none is left.
fn kill_at_random(server: &Server, blocks: u64, size: u64) {
    const CLIENTS: u64 = 3;
    let end = Instant::now() + Duration::from_secs(6);
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            scope.spawn(move || {
                let share = blocks / CLIENTS;
                let mut seed = number + 1;
                while Instant::now() < end {
                    until_killed(server, size, number * share..(number + 1) * share, seed);
                    seed += CLIENTS;
                }
            });
        }
        let mut dice = Dice(99);
        // Those that come last are killed, too.
        while Instant::now() < end + Duration::from_secs(1) {
            std::thread::sleep(Duration::from_micros(2000 + dice.below(20_000)));
            for worker in server.workers() {
                if dice.below(2) == 0 {
                    let _ = kill(Pid::from_raw(worker), Signal::SIGKILL);
                }
            }
        }
        // Until nobody waits for a client any more.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !server.workers().is_empty() {
            assert!(Instant::now() < deadline, "workers stay");
            for worker in server.workers() {
                let _ = kill(Pid::from_raw(worker), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

/// Bytes of data, as the server tells.
fn data(client: &mut Client<UnixStream>, size: u64) -> u64 {
    let (mut at, mut data) = (0, 0);
    while at < size {
        let reply = client.call(&Ask::block_status(at, size - at)).expect("a reply");
        for (length, flags) in reply.extents() {
            data += if flags == 0 { length } else { 0 };
            at += length;
        }
    }
    data
}

/// Writes single blocks of `size` bytes that are not there yet, until there is no room; how many
/// bytes that are.
fn fill(client: &mut Client<UnixStream>, from: u64, end: u64, size: u64) -> u64 {
    let mut at = from;
    while at < end && write(client, at, size, 9).is_none() {
        at += size;
    }
    assert!(at < end, "no limit");
    at - from
}

#[test]
fn the_account_of_an_overlay_is_exact_after_workers_were_killed_at_random() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: to look into the template's files needs root");
        return;
    }
    // So large that most workers are killed while they fill one.
    const BLOCK: u64 = 256 * KIB;
    const MAX: u64 = 100 * BLOCK;
    let server = ours(&["--filter=cow", "memory", "256M"])
        .args(["cow-block-size=256k", "cow-max=25M"])
        .through_shell(&temporary_files_in("-t tmpfs -o size=64M"))
        .start();
    kill_at_random(&server, 256, BLOCK);
    let mut client = open(&server, "");
    // Whoever locks a stripe finds what was left there: one block of each.
    for block in 256..256 + 64 {
        assert_eq!(ask(&mut client, &Ask::trim(block * BLOCK, BLOCK)), None);
    }
    let held = data(&mut client, 64 * MIB);
    assert_eq!(taken(&server, "/overlays/"), held, "what nobody can read takes no room");
    println!("{} blocks when all were killed", held / BLOCK);
    let filled = fill(&mut client, 64 * MIB, 128 * MIB, BLOCK);
    assert_eq!(held + filled, MAX, "no more and no less than allowed");
    assert_eq!(taken(&server, "/overlays/"), MAX);
}

#[test]
fn the_account_of_a_disk_in_memory_is_exact_after_workers_were_killed_at_random() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: to look into the template's files needs root");
        return;
    }
    const PAGE: u64 = 4 * KIB;
    const MAX: u64 = 100 * PAGE;
    let server = ours(&["memory", "4M", "allocator=sparse,max=400k"]).start();
    kill_at_random(&server, 256, PAGE);
    let held = taken(&server, "memfd:memory");
    assert!(held <= MAX, "{held}");
    let mut client = open(&server, "");
    println!("{} pages when all were killed", held / PAGE);
    assert_eq!(held + fill(&mut client, 2 * MIB, 4 * MIB, PAGE), MAX);
    assert_eq!(taken(&server, "memfd:memory"), MAX);
}

#[test]
fn a_full_file_system_is_enospc_for_whoever_needs_more_of_it() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    for on_read in ["false", "true"] {
        let on_read = format!("cow-on-read={on_read}");
        let server = ours(&["--filter=cow", "pattern", "64M", "cow-block-size=4k", &on_read])
            .through_shell(&temporary_files_in("-t tmpfs -o size=1M"))
            .start();
        let (mut greedy, mut other) = (open(&server, ""), open(&server, ""));
        assert_eq!(write(&mut other, 0, 64 * KIB, 1), None);
        let mut at = MIB;
        while write(&mut greedy, at, 64 * KIB, 2).is_none() {
            at += 64 * KIB;
            assert!(at < 4 * MIB, "no limit");
        }
        assert_eq!(write(&mut greedy, at, 64 * KIB, 2), Some(NbdError::NoSpc));
        assert_eq!(write(&mut other, 0, 64 * KIB, 3), None, "what is there is written");
        assert_eq!(read(&mut other, 0, 64 * KIB), vec![3; 64 * KIB as usize]);
        // Also if they were to be kept.
        let far = read(&mut other, 32 * MIB, 64 * KIB);
        assert_eq!(far[..8], (32 * MIB).to_be_bytes());
        assert_eq!(ask(&mut greedy, &Ask::trim(MIB, 512 * KIB)), None);
        assert_eq!(write(&mut greedy, 48 * MIB, 256 * KIB, 2), None, "there is room again");
    }
}

#[test]
fn room_that_the_file_system_does_not_take_back_stays_taken() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    // It cannot punch holes.
    let server = ours(&["--filter=cow", "memory", "64M", "cow-block-size=4k", "cow-max=64k"])
        .through_shell(&temporary_files_in("-t ramfs"))
        .start();
    let mut client = open(&server, "");
    assert_eq!(write(&mut client, 0, 64 * KIB, 1), None);
    assert_eq!(ask(&mut client, &Ask::trim(0, 64 * KIB)), None);
    assert_eq!(read(&mut client, 0, 64 * KIB), vec![0; 64 * KIB as usize]);
    assert_eq!(write(&mut client, MIB, 1, 2), Some(NbdError::NoSpc));
    assert_eq!(write(&mut client, 0, 64 * KIB, 3), None, "those blocks have their room");
    assert_eq!(read(&mut client, 0, 64 * KIB), vec![3; 64 * KIB as usize]);
}
