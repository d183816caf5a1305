//! The gzip filter on files that gzip(1) made: what clients see of them, what is refused, and that
//! one client expands a file for all.

use std::process::Command;

use nbd_protocol::constants::Rep;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::Server;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir, row_name};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::images::{exercise, has, image, script};

/// Bytes of the disk.
const SIZE: u64 = 1_000_000;

fn setup(dir: &TempDir) {
    image(dir, SIZE as usize);
    let made = "gzip <disk >disk.gz; head -c 20000 disk.gz >cut.gz; : >empty.gz; gzip <empty.gz >nothing.gz
        cat disk.gz disk.gz >two.gz; (cat disk.gz; head -c 1000 /dev/zero) >padded.gz";
    let shell = Command::new("sh").args(["-ec", made]).current_dir(dir.path()).status();
    assert!(shell.unwrap().success());
}

/// A row for the file `file`, unless gzip(1) is missing.
fn compare(name: &str, file: &str, script: impl Fn(&mut Session)) {
    if !has("gzip") {
        return;
    }
    let arguments = ["--filter=gzip", "file", &format!("{{dir}}/{file}")];
    Row::new(name, &arguments).variant(file).setup(setup).compare(script);
}

#[test]
fn disk_in_a_gzip_file() {
    for_each(&["disk.gz", "padded.gz"], |file| {
        compare(row_name!(), file, |s| exercise(s, SIZE));
    });
}

#[test]
fn gzip_members_one_after_the_other() {
    compare(row_name!(), "two.gz", |s| {
        s.open();
        s.read(SIZE - 1000, 1000);
        s.disconnect();
    });
}

#[test]
fn gzip_files_that_are_refused() {
    for_each(&["disk", "cut.gz", "empty.gz"], |file| {
        compare(row_name!(), file, |s| {
            s.connect();
            s.structured_replies();
            s.go("");
        });
    });
}

#[test]
fn parameters_of_gzip() {
    let filter_line = |line: &str| {
        let ours = ["exit", "stdout: filter", "stdout: gzip-", "stdout: thread_model", "stderr"];
        ours.iter().any(|it| line.starts_with(it)).then(|| line.to_owned())
    };
    for_each(&["--help", "--dump-plugin"], |option| {
        Row::new(row_name!(), &[option, "--filter=gzip", "null"])
            .variant(option)
            .normalise(filter_line)
            .compare_command();
    });
}

/// Logs what it is asked to read. While there is a file `block`, it does not answer from the second
/// request on.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in
  get_size) stat -c %s "$dir/disk.gz" ;;
  pread)
    echo "$4" >>"$dir/reads"
    while [ "$4" -gt 0 ] && [ -e "$dir/block" ]; do sleep 0.01; done
    dd if="$dir/disk.gz" iflag=skip_bytes,count_bytes skip="$4" count="$3" status=none ;;
  export_description) echo "of the script" ;;
  thread_model) echo parallel ;;
  *) exit 2 ;;
esac
"#;

fn setup_script(dir: &TempDir) {
    setup(dir);
    script(dir, SCRIPT);
}

#[test]
fn gzip_file_whose_size_changes() {
    if !has("gzip") {
        return;
    }
    let arguments = ["--filter=gzip", "sh", "{dir}/script"];
    Row::new(row_name!(), &arguments).setup(setup_script).compare(|s| {
        s.connect();
        s.info("");
        s.open();
        s.read(1000, 5000);
        s.disconnect();
        std::fs::copy(s.dir().join("two.gz"), s.dir().join("disk.gz")).unwrap();
        s.connect();
        s.go("");
    });
}

fn reads(server: &Server) -> String {
    std::fs::read_to_string(server.dir().join("reads")).unwrap_or_default()
}

#[test]
fn a_gzip_file_is_expanded_once_for_all_clients() {
    if !has("gzip") {
        return;
    }
    let builder = Server::nbdkit(["--filter=gzip", "sh", "{dir}/script"]);
    setup_script(builder.dir());
    let server = builder.start();
    let _first = server.connected("");
    let all = reads(&server);
    assert!(!all.is_empty());
    let mut second = server.connected("");
    assert_eq!(server.workers().len(), 2);
    let disk = std::fs::read(server.dir().join("disk")).unwrap();
    let reply = second.call(&Ask::read(123_456, 5000)).unwrap();
    assert!(reply.data == disk[123_456..][..5000]);
    assert_eq!(reads(&server), all, "the second client reads the file again");
}

#[test]
fn a_client_that_dies_while_it_expands_a_file_is_replaced_by_one_that_waits() {
    for filter in ["bzip2", "gzip"] {
        if has("gzip") && has(filter) {
            dies_while_it_expands(filter);
        }
    }
}

fn dies_while_it_expands(filter: &str) {
    let builder = Server::nbdkit([&*format!("--filter={filter}"), "sh", "{dir}/script"]);
    setup_script(builder.dir());
    // More than is read at a time.
    let grow = format!(
        "head -c {SIZE} /dev/urandom >disk; cat disk disk disk disk | {filter} -1 >disk.gz
        : >block"
    );
    let shell = Command::new("sh").args(["-ec", &grow]).current_dir(builder.dir().path()).status();
    assert!(shell.unwrap().success());
    let server = builder.start();
    let open = || {
        let mut client = server.connect();
        client.handshake().unwrap();
        assert_eq!(client.go("", &[]).unwrap().end.reply, Rep::ACK);
        client
    };
    std::thread::scope(|scope| {
        let doomed = scope.spawn(|| {
            let mut client = server.connect();
            client.handshake().unwrap();
            client.go("", &[]).unwrap_err()
        });
        eventually("the first client reads", || reads(&server).lines().count() >= 2);
        let first = server.workers()[0];
        let second = scope.spawn(open);
        eventually("there is a second client", || server.workers().len() == 2);
        kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
        doomed.join().unwrap();
        std::fs::remove_file(server.dir().join("block")).unwrap();
        let mut second = second.join().unwrap();
        let disk = std::fs::read(server.dir().join("disk")).unwrap();
        let reply = second.call(&Ask::read(3 * SIZE + 123_456, 5000)).unwrap();
        assert!(reply.data == disk[123_456..][..5000]);
    });
}

/// Mounts 2 MiB of tmpfs where nobody else sees it.
const SMALL_DISK: &str = r#"exec unshare -m sh -c 'mkdir "{dir}/small" &&
    mount -t tmpfs -o size=2m none "{dir}/small" && exec "$0" "$@"' "$0" "$@""#;

#[test]
fn a_gzip_file_that_does_not_fit_is_read_from_points_or_an_error_of_its_clients() {
    if !has("gzip") || !nix::unistd::geteuid().is_root() {
        return println!("SKIPPED: needs gzip, and root to mount a small file system");
    }
    let builder = Server::nbdkit(["--filter=gzip", "file", "dir={dir}"]);
    setup(builder.dir());
    // Windows of 32 KiB for each MiB of what cannot be compressed: 2 MiB hold those of the first
    // and not those of the second.
    let grow = "head -c 8M /dev/urandom >random; gzip -1 <random >large.gz
        for i in 1 2 3 4 5 6 7 8 9 10; do cat random; done | gzip -1 >huge.gz";
    let shell = Command::new("sh").args(["-ec", grow]).current_dir(builder.dir().path()).status();
    assert!(shell.unwrap().success());
    let tmp = builder.dir().join("small");
    let server = builder.through_shell(SMALL_DISK).env("TMPDIR", tmp).start();
    let random = std::fs::read(server.dir().join("random")).unwrap();
    for _ in 0..2 {
        let mut client = server.connect();
        client.handshake().unwrap();
        let refused = client.go("huge.gz", &[]).unwrap().end.reply;
        assert_ne!(refused, Rep::ACK);
        let _ = server.wait_for_stderr("No space left on device");
        // The space is free again, for others.
        let mut other = server.connected("large.gz");
        let reply = other.call(&Ask::read(7_000_000, 5000)).unwrap();
        assert!(reply.data == random[7_000_000..][..5000]);
    }
}

#[test]
fn clients_share_the_index_of_a_gzip_file_that_is_not_expanded() {
    if !has("gzip") {
        return;
    }
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let arguments = ["--filter=gzip", "sh", "{dir}/script", "gzip-max-expand=0", isolation];
        let builder = Server::nbdkit(arguments);
        setup_script(builder.dir());
        let grow = "for i in 1 2 3 4 5 6; do cat disk; done | gzip -1 >disk.gz";
        let shell =
            Command::new("sh").args(["-ec", grow]).current_dir(builder.dir().path()).status();
        assert!(shell.unwrap().success());
        let disk = std::fs::read(builder.dir().join("disk")).unwrap();
        let server = builder.start();
        let mut first = server.connected("");
        let all = reads(&server).lines().count();
        let mut second = server.connected("");
        assert_eq!(reads(&server).lines().count(), all, "the second client reads the file again");
        for (client, offset) in [(&mut first, 123_456), (&mut second, 987_654)] {
            for member in [5, 0, 3] {
                let reply = client.call(&Ask::read(member * SIZE + offset, 5000)).unwrap();
                assert!(reply.data == disk[offset as usize..][..5000]);
            }
        }
        assert!(reads(&server).lines().count() > all, "nothing is read from the file");
    }
}
