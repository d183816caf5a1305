//! The indexed-gzip filter: servers one after the other with one index file, clients that share the
//! index, and files that cannot be written. Debian's nbdkit has no such filter.
#![expect(clippy::unwrap_used, reason = "a file that cannot be prepared is a failed test")]

use std::path::Path;
use std::process::Command;

use nbd_protocol::constants::Rep;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::{Builder, Server, ours};
use nbdkit_tests::{Ask, TempDir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Runs a shell script in a directory.
fn shell(dir: &Path, script: &str) {
    let status = Command::new("sh").args(["-ec", script]).current_dir(dir).status();
    assert!(status.unwrap().success(), "{script}");
}

/// Logs what it is asked to read. While there is a file `block`, it does not answer behind the
/// first 64 KiB.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in
  get_size) stat -c %s "$dir/disk.gz" ;;
  pread)
    echo "$3 $4" >>"$dir/reads"
    while [ "$4" -gt 65536 ] && [ -e "$dir/block" ]; do sleep 0.01; done
    dd if="$dir/disk.gz" iflag=skip_bytes,count_bytes skip="$4" count="$3" status=none ;;
  thread_model) echo parallel ;;
  *) exit 2 ;;
esac
"#;

/// 3 MB that gzip(1) makes about 2 MB of.
fn prepare(dir: &TempDir) {
    std::fs::write(dir.join("script"), SCRIPT).unwrap();
    shell(
        dir.path(),
        "chmod +x script; (seq 100000; head -c 2000000 /dev/urandom; seq 100000) >disk
         head -c 3000000 disk >cut; mv cut disk; gzip <disk >disk.gz; mkdir kept",
    );
}

const INDEX: &str = "gzip-index-path={dir}/kept/index";

fn builder(dir: &TempDir, arguments: &[&str]) -> Builder {
    let fill = |text: &&str| text.replace("{dir}", &dir.path().to_string_lossy());
    let all = [&["--filter=indexed-gzip", "sh", "{dir}/script", INDEX], arguments].concat();
    let all: Vec<String> = all.iter().map(fill).collect();
    ours(&all.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Bytes of the image that were read since the last time.
fn bytes_read(dir: &TempDir) -> u64 {
    let log = std::fs::read_to_string(dir.join("reads")).unwrap_or_default();
    std::fs::write(dir.join("reads"), "").unwrap();
    log.lines().map(|line| line.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

fn index(dir: &TempDir) -> Vec<u8> {
    std::fs::read(dir.join("kept/index")).unwrap()
}

/// Whether the first client of the server waits until the image is decompressed; it and another
/// one see what is in it.
fn is_made(server: &Server, dir: &TempDir) -> bool {
    let disk = std::fs::read(dir.join("disk")).unwrap();
    let compressed = std::fs::metadata(dir.join("disk.gz")).unwrap().len();
    bytes_read(dir);
    let mut first = server.connected("");
    let made = bytes_read(dir) >= compressed;
    let mut second = server.connected("");
    assert!(bytes_read(dir) <= 4 * 65536, "the second client reads the image");
    for client in [&mut first, &mut second] {
        for offset in [2_900_000, 123_456, 1_400_000] {
            let reply = client.call(&Ask::read(offset, 100_000)).unwrap();
            assert!(reply.data == disk[offset as usize..][..100_000], "at {offset}");
        }
        let reply = client.call(&Ask::write(0, vec![1; 512])).unwrap();
        assert_eq!(reply.error.map(|it| it.code), Some(1), "EPERM");
    }
    made
}

#[test]
fn the_next_server_decompresses_nothing_in_advance() {
    for arguments in [&["--isolation=connection"][..], &["--isolation=shared"], &["-r"]] {
        let dir = TempDir::new();
        prepare(&dir);
        let server = builder(&dir, arguments).start();
        assert!(is_made(&server, &dir), "{arguments:?}");
        drop(server);
        let bytes = index(&dir);
        let server = builder(&dir, arguments).start();
        assert!(!is_made(&server, &dir), "{arguments:?}");
        drop(server);
        assert!(index(&dir) == bytes);
    }
}

#[test]
fn what_is_wrong_with_an_index_is_one_line() {
    let dir = TempDir::new();
    prepare(&dir);
    assert!(is_made(&builder(&dir, &[]).start(), &dir));
    let whole = index(&dir);
    let mut flipped = whole.clone();
    flipped[5000] ^= 4;
    let mut other = whole.clone();
    other[16] ^= 1;
    for (bytes, why) in [
        (&whole[..whole.len() / 2], "it has another length than it should have"),
        (&whole[..50], "read: "),
        (&flipped, "its sum is wrong"),
        (&other, "its header is damaged"),
    ] {
        std::fs::write(dir.join("kept/index"), bytes).unwrap();
        let mut server = builder(&dir, &[]).start();
        assert!(is_made(&server, &dir), "{why}");
        server.stop();
        let log = server.stderr_text_after_end();
        let lines = log.lines().filter(|line| line.contains("index: ")).count();
        assert_eq!(lines, 1, "{log}");
        assert!(log.contains(why) && log.contains("made anew"), "{log}");
        assert!(index(&dir) == whole, "{why}");
    }
    // Of another image.
    shell(dir.path(), "gzip -1 <disk >disk.gz");
    let mut server = builder(&dir, &[]).start();
    assert!(is_made(&server, &dir));
    server.stop();
    let log = server.stderr_text_after_end();
    assert!(log.contains("index: it is the index of another image: the index is made anew"));
}

/// Mounts the directory of the index so that nothing is written there, where nobody else sees it.
const READ_ONLY: &str = r#"exec unshare -m sh -c 'mount --bind "$1/kept" "$1/kept" &&
    mount -o remount,ro,bind "$1/kept" && shift && exec "$@"' sh "DIR" "$0" "$@""#;

#[test]
fn an_index_that_may_only_be_read_is_used_and_not_written() {
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIPPED: needs root to mount a directory read-only");
    }
    let dir = TempDir::new();
    prepare(&dir);
    let script = READ_ONLY.replace("DIR", &dir.path().to_string_lossy());
    let refused = builder(&dir, &[]).through_shell(&script).try_start().expect_err("refused");
    assert!(refused.stderr.contains("Read-only file system"), "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().count(), 1);
    assert!(is_made(&builder(&dir, &[]).start(), &dir));
    let start = || builder(&dir, &["-v"]).through_shell(&script).start();
    let server = start();
    let _ = server.wait_for_stderr("read-only: an index is not written");
    assert!(!is_made(&server, &dir));
    drop(server);
    let damaged = &index(&dir)[..5000];
    std::fs::write(dir.join("kept/index"), damaged).unwrap();
    let server = start();
    assert!(is_made(&server, &dir));
    drop(server);
    assert_eq!(index(&dir), damaged);
}

/// 64 KiB of tmpfs for the index, where nobody else sees it.
const SMALL: &str = r#"exec unshare -m sh -c 'mount -t tmpfs -o size=64k none "$1/kept" &&
    shift && exec "$@"' sh "DIR" "$0" "$@""#;

#[test]
fn clients_are_served_where_there_is_no_space_for_the_index() {
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIPPED: needs root to mount a small file system");
    }
    let dir = TempDir::new();
    prepare(&dir);
    let script = SMALL.replace("DIR", &dir.path().to_string_lossy());
    let server = builder(&dir, &[]).through_shell(&script).start();
    assert!(is_made(&server, &dir));
    let log = server.wait_for_stderr("the index is not kept");
    assert!(log.contains("No space left on device"), "{log}");
}

#[test]
fn a_client_that_dies_while_it_makes_the_index_is_replaced_by_one_that_waits() {
    let dir = TempDir::new();
    prepare(&dir);
    std::fs::write(dir.join("block"), "").unwrap();
    let server = builder(&dir, &[]).start();
    let open = || {
        let mut client = server.connect();
        client.handshake().unwrap();
        client.go("", &[]).map(|it| it.end.reply)
    };
    let reads = || std::fs::read_to_string(dir.join("reads")).unwrap_or_default();
    std::thread::scope(|scope| {
        let doomed = scope.spawn(open);
        eventually("the first client reads", || reads().lines().count() >= 2);
        let first = server.workers()[0];
        let second = scope.spawn(open);
        eventually("there is a second client", || server.workers().len() == 2);
        kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
        doomed.join().unwrap().unwrap_err();
        std::fs::remove_file(dir.join("block")).unwrap();
        assert_eq!(second.join().unwrap().unwrap(), Rep::ACK);
    });
    drop(server);
    assert!(!is_made(&builder(&dir, &[]).start(), &dir));
}

/// The server that is killed leaves nothing, or what is not taken for an index, or the index.
#[test]
fn an_index_that_a_killed_server_was_making_is_made_anew() {
    let dir = TempDir::new();
    prepare(&dir);
    std::fs::write(dir.join("block"), "").unwrap();
    let mut server = builder(&dir, &[]).start();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut client = server.connect();
            client.handshake().unwrap();
            client.go("", &[]).map(|it| it.end.reply)
        });
        let reads = || std::fs::read_to_string(dir.join("reads")).unwrap_or_default();
        eventually("the client reads", || reads().lines().count() >= 2);
        kill(Pid::from_raw(server.workers()[0]), Signal::SIGKILL).unwrap();
        client.join().unwrap().unwrap_err();
    });
    server.stop();
    assert!(index(&dir).is_empty());
    std::fs::remove_file(dir.join("block")).unwrap();
    assert!(is_made(&builder(&dir, &[]).start(), &dir));
    // As between the first header and the last one.
    let whole = index(&dir);
    let unfinished = [b"NBDgzidx\x01\0\0\0\0\0\0\0", &whole[16..whole.len() / 2]].concat();
    std::fs::write(dir.join("kept/index"), unfinished).unwrap();
    assert!(is_made(&builder(&dir, &[]).start(), &dir));
    assert!(index(&dir) == whole);
}

#[test]
fn the_image_itself_is_not_overwritten() {
    let dir = TempDir::new();
    prepare(&dir);
    let image = std::fs::read(dir.join("disk.gz")).unwrap();
    let path = dir.join("disk.gz");
    let path = path.to_str().unwrap();
    let parameter = format!("gzip-index-path={path}");
    let finished = ours(&["--filter=indexed-gzip", "file", path, &parameter]).try_start();
    let finished = finished.expect_err("refused");
    assert!(finished.stderr.contains("the file is not an index, and is not overwritten"));
    assert_eq!((finished.stderr.lines().count(), finished.status.code()), (1, Some(1)));
    assert!(std::fs::read(dir.join("disk.gz")).unwrap() == image);
}

#[test]
fn another_image_of_the_same_server_cannot_be_opened() {
    let dir = TempDir::new();
    prepare(&dir);
    shell(dir.path(), "mkdir images; cp disk.gz images/one; seq 9 | gzip >images/two");
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (images, index) =
        (format!("dir={}", path("images")), format!("gzip-index-path={}", path("index")));
    let server = ours(&["--filter=indexed-gzip", "file", &images, &index]).start();
    let _one = server.connected("one");
    let mut client = server.connect();
    client.handshake().unwrap();
    assert_ne!(client.go("two", &[]).unwrap().end.reply, Rep::ACK);
    let _ = server.wait_for_stderr("one server serves one image");
}
