//! The ext2 filter: one process for those who write and one for each reader, what e2fsck(8) says
//! afterwards, and damaged file systems. `differential/ext2.rs` compares with Debian's.
#![expect(clippy::unwrap_used, reason = "a file that cannot be prepared is a failed test")]

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use nbd_protocol::constants::{CommandFlags, NbdError, Rep};
use nbdkit_tests::binary::Binary;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::{Builder, Server, ours};
use nbdkit_tests::{Ask, Client};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Bytes of the file `/data`, which is none.
const SIZE: u64 = 4 << 20;

/// Runs a shell script in a directory, and returns its output.
fn shell(dir: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A server of the file system `fs`, which `make` makes of the directory `tree`.
fn server(make: &str, arguments: &[&str]) -> Builder {
    let filter = format!("--filter={}", Binary::ours().filter("ext2"));
    let builder = ours(&[&[filter.as_str(), "file"], arguments].concat());
    let tree = "mkdir tree; truncate -s 4M tree/data; printf hello >tree/small
        seq 100000 >tree/numbers";
    shell(builder.dir().path(), &format!("{tree}\n{make}"));
    builder
}

const EXT4: &str = "mke2fs -q -t ext4 -d tree fs 16M";

fn call(client: &mut Client<UnixStream>, ask: &Ask) -> Vec<u8> {
    let reply = client.call(ask).unwrap();
    assert_eq!(reply.error, None);
    reply.data
}

/// What e2fsck(8) and debugfs(8) make of the file system, which is consistent.
fn contents(dir: &Path) -> Vec<u8> {
    shell(dir, "e2fsck -fn fs; debugfs -R 'dump /data data' fs");
    std::fs::read(dir.join("data")).unwrap()
}

#[test]
fn clients_that_may_write_share_a_file_system_in_one_process() {
    for make in [EXT4, "mke2fs -q -t ext2 -b 1024 -d tree fs 16M"] {
        let mut server = server(make, &["{dir}/fs", "ext2file=/data", "-v"]).start();
        let mut clients = [(); 3].map(|()| server.connected(""));
        assert!(server.workers().is_empty());
        let _ = server.wait_for_stderr("sandbox=strict");
        let mut expected = vec![0; SIZE as usize];
        // They take turns in blocks that nobody has allocated yet.
        for turn in 0..60_u64 {
            let offset = turn * 69_001;
            let bytes = vec![turn as u8 + 1; 30_000];
            expected[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            call(&mut clients[turn as usize % 3], &Ask::write(offset, bytes.clone()));
            assert!(call(&mut clients[turn as usize % 2], &Ask::read(offset, 30_000)) == bytes);
        }
        // One is gone without a word.
        let [first, mut second, third] = clients;
        drop(first);
        call(&mut second, &Ask::flush());
        assert!(contents(server.dir().path()) == expected, "flushed");
        call(&mut second, &Ask::write(SIZE - 10, "0123456789").flags(CommandFlags::FUA));
        expected[SIZE as usize - 10..].copy_from_slice(b"0123456789");
        assert!(contents(server.dir().path()) == expected, "with FUA");
        call(&mut second, &Ask::write(5, "unflushed"));
        expected[5..14].copy_from_slice(b"unflushed");
        drop((second, third));
        // The file system was closed with its last client: another one opens it.
        assert!(call(&mut server.connected(""), &Ask::read(0, SIZE)) == expected);
        assert!(server.stop().success());
        assert!(contents(server.dir().path()) == expected, "closed");
    }
}

#[test]
fn isolation_follows_from_whether_clients_may_write() {
    let arguments = ["{dir}/fs", "ext2file=/small"];
    let refused = server(EXT4, &[&arguments[..], &["--isolation=connection"]].concat());
    let refused = refused.try_start().expect_err("a file system has one writer");
    assert!(refused.stderr.contains("--isolation=connection"), "{}", refused.stderr);
    for (isolation, workers) in [("--isolation=connection", 2), ("--isolation=shared", 0)] {
        let reading = server(EXT4, &[&arguments[..], &["-r", isolation]].concat()).start();
        let mut clients = [(); 2].map(|()| reading.connected(""));
        assert_eq!(reading.workers().len(), workers);
        for client in &mut clients {
            assert_eq!(call(client, &Ask::read(0, 5)), b"hello");
            let reply = client.call(&Ask::write(0, "x")).unwrap();
            assert_eq!(reply.nbd_error(), Some(NbdError::Perm));
        }
    }
}

#[test]
fn a_reader_that_is_killed_takes_no_other_with_it() {
    let server = server(EXT4, &["-r", "{dir}/fs", "ext2file=exportname"]).start();
    let mut first = server.connected("small");
    let doomed = server.workers()[0];
    let mut second = server.connected("/numbers");
    kill(Pid::from_raw(doomed), Signal::SIGKILL).unwrap();
    assert!(first.call(&Ask::read(0, 5)).is_err());
    assert_eq!(call(&mut second, &Ask::read(0, 4)), b"1\n2\n");
    assert_eq!(call(&mut server.connected("small"), &Ask::read(0, 5)), b"hello");
}

#[test]
fn what_was_flushed_survives_the_death_of_the_process_that_all_writers_share() {
    let server = server(EXT4, &["{dir}/fs", "ext2file=/data"]).start();
    let mut client = server.connected("");
    call(&mut client, &Ask::write(1 << 20, vec![7; 200_000]));
    call(&mut client, &Ask::flush());
    call(&mut client, &Ask::write(2 << 20, vec![8; 200_000]));
    let template = server.template();
    kill(Pid::from_raw(template), Signal::SIGKILL).unwrap();
    assert!(client.call(&Ask::read(0, 5)).is_err());
    eventually("there is another template", || server.template() != template);
    let mut client = server.connected("");
    assert!(call(&mut client, &Ask::read(1 << 20, 200_000)) == [7; 200_000]);
    call(&mut client, &Ask::write(3 << 20, vec![9; 1000]));
}

#[test]
fn a_full_file_system_is_an_error_of_the_write() {
    let make = "mke2fs -q -t ext4 -O ^has_journal -d tree fs 2M";
    let mut server = server(make, &["{dir}/fs", "ext2file=/data"]).start();
    let mut client = server.connected("");
    let errors: Vec<_> = (0..SIZE / 65536)
        .filter_map(|n| client.call(&Ask::write(n * 65536, vec![1; 65536])).unwrap().nbd_error())
        .collect();
    assert!(errors.len() > 10 && errors.iter().all(|e| *e == NbdError::NoSpc), "{errors:?}");
    client.disconnect().unwrap();
    assert!(server.stop().success());
    assert_eq!(contents(server.dir().path())[..65536], [1; 65536]);
}

#[test]
fn nothing_is_written_where_the_journal_has_to_be_replayed() {
    let make = format!("{EXT4}; debugfs -w -R 'feature needs_recovery' fs; cp fs before");
    let mut server = server(&make, &["{dir}/fs", "ext2file=/small"]).start();
    let mut client = server.connected("");
    assert_eq!(call(&mut client, &Ask::read(0, 5)), b"hello");
    let reply = client.call(&Ask::write(0, "x")).unwrap();
    assert_eq!(reply.nbd_error(), Some(NbdError::Perm));
    let _ = server.wait_for_stderr("the journal of the file system has to be replayed");
    client.disconnect().unwrap();
    assert!(server.stop().success());
    shell(server.dir().path(), "cmp fs before");
}

#[test]
fn a_file_in_its_inode_is_zeroes_beyond_what_is_there_and_there_are_no_extents() {
    let make = "mke2fs -q -t ext4 -O inline_data -d tree fs 16M; cp fs before";
    let mut server = server(make, &["{dir}/fs", "ext2file=/data"]).start();
    let mut client = server.connect();
    client.handshake().unwrap();
    client.structured_replies().unwrap();
    client.set_meta_context("", &["base:allocation"]).unwrap();
    client.go("", &[]).unwrap();
    assert!(call(&mut client, &Ask::read(0, SIZE)) == vec![0; SIZE as usize]);
    let status = client.call(&Ask::block_status(0, SIZE)).unwrap();
    assert_eq!(status.extents(), [(SIZE, 0)]);
    // The library crashes.
    let reply = client.call(&Ask::write(1 << 20, "there")).unwrap();
    assert_eq!(reply.nbd_error(), Some(NbdError::Perm));
    let _ = server.wait_for_stderr("/data: the file is kept in its inode");
    client.disconnect().unwrap();
    assert!(server.stop().success());
    shell(server.dir().path(), "cmp fs before");
}

#[test]
fn damaged_file_systems_are_refused_or_read_and_nobody_else_suffers() {
    // Each client opens an image of its own, by the name of the export.
    let make = format!("{EXT4}; cp fs good");
    let builder = server(&make, &["-r", "dir={dir}", "ext2file=/numbers"]);
    let dir = builder.dir().path().to_owned();
    let good = std::fs::read(dir.join("good")).unwrap();
    // The superblock, group descriptors, bitmaps, the first inodes, and where directories and
    // extents are: bytes of the first half megabyte that are not zero.
    let used: Vec<usize> = (1024..512 << 10).filter(|at| good[*at] != 0).collect();
    let damaged: Vec<String> = (0..150)
        .map(|number| {
            let mut image = good.clone();
            for part in 0..=number % 3 {
                let at = used[(number * 7919 + part * 104_729) % used.len()];
                image[at] ^= [0xff, 0x80, 0x01, 0x10][number % 4];
            }
            image.truncate(if number % 10 == 0 { 1000 + number * 9000 } else { image.len() });
            let name = format!("bad{number}");
            std::fs::write(dir.join(&name), image).unwrap();
            name
        })
        .collect();
    let mut absurd = good;
    // 2^32 - 1 blocks: groups whose descriptors the disk could not hold.
    absurd[1028..1032].fill(0xff);
    std::fs::write(dir.join("absurd"), absurd).unwrap();
    let server = builder.start();
    let mut opened = 0;
    for name in &damaged {
        let mut client = server.connect();
        client.handshake().unwrap();
        let Ok(answer) = client.go(name, &[]) else { continue };
        if answer.end.reply != Rep::ACK {
            continue;
        }
        opened += 1;
        let (size, _) = client.export().unwrap();
        let _ = client.call(&Ask::read(0, size.min(600_000)));
    }
    assert!(opened > 20 && opened < damaged.len(), "{opened}");
    assert_eq!(call(&mut server.connected("good"), &Ask::read(0, 4)), b"1\n2\n");
    let mut client = server.connect();
    client.handshake().unwrap();
    assert_ne!(client.go("absurd", &[]).unwrap().end.reply, Rep::ACK);
    let _ = server.wait_for_stderr("groups of blocks are more than the disk can have");
}

#[test]
fn a_disk_that_is_shorter_than_a_superblock_is_refused() {
    let make = format!("{EXT4}; head -c 1500 fs >short; mv short fs");
    let server: Server = server(&make, &["{dir}/fs", "ext2file=/small"]).start();
    let mut client = server.connect();
    client.handshake().unwrap();
    assert_ne!(client.go("", &[]).unwrap().end.reply, Rep::ACK);
    let _ = server.wait_for_stderr("open: Attempt to read block from filesystem resulted in short");
}
