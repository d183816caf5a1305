//! Images for the rows of filters that decode some, made by the programs that users make them with.

use std::process::{Command, Stdio};

use nbd_protocol::constants::Rep;
use nbdkit_tests::server::Server;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir};

/// Whether a program is installed; prints which is not.
///
/// # Panics
/// If it is not and `CI` is set.
pub(crate) fn has(program: &str) -> bool {
    let run = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if run.is_ok() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "CI must have {program}");
    eprintln!("SKIPPED: {program} is not installed");
    false
}

/// The bytes of the disk that images are made of, in the file `disk`: some that can be compressed,
/// some that cannot, and zeroes.
pub(crate) fn image(dir: &TempDir, size: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let byte = |at: usize| match at / 5000 % 4 {
        0 => random(),
        1 => 0,
        _ => (at / 7 % 50) as u8,
    };
    let bytes: Vec<u8> = (0..size).map(byte).collect();
    std::fs::write(dir.join("disk"), &bytes).unwrap();
    bytes
}

/// Requests to a disk of `size` bytes that a filter decompresses.
pub(crate) fn exercise(s: &mut Session, size: u64) {
    s.open();
    s.read(0, 512);
    s.read(65_000, 200_000);
    s.read(size - 512, 512);
    s.read(size - 512, 513);
    s.write(0, 512, 1);
    s.ask(&Ask::cache(0, 65536));
    s.ask(&Ask::flush());
    s.block_status(0, size);
    s.disconnect();
}

/// Writes the executable file `script`.
pub(crate) fn script(dir: &TempDir, text: &str) {
    let path = dir.join("script");
    std::fs::write(&path, text).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, executable).unwrap();
}

/// Runs a shell script in the directory.
///
/// # Panics
/// If it fails.
pub(crate) fn shell(dir: &TempDir, script: &str) {
    let status = Command::new("sh").args(["-ec", script]).current_dir(dir.path()).status();
    assert!(status.unwrap().success(), "{script}");
}

/// Logs what it is asked to read of the file `image`.
const LOGGING: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in
  get_size) stat -c %s "$dir/image" ;;
  pread)
    echo "$4" >>"$dir/reads"
    dd if="$dir/image" iflag=skip_bytes,count_bytes skip="$4" count="$3" status=none ;;
  thread_model) echo parallel ;;
  *) exit 2 ;;
esac
"#;

/// A filter of which Debian has none: two clients, in processes of their own, see the disk that the
/// script `make` has made the file `image` of, `disk`; the second one finds what the first one has
/// made, and reads the image only so many times before it reads the disk. And damaged images are
/// refused.
pub(crate) fn clients_share(filter: &str, make: &str, second_reads: usize) {
    clients_share_with(filter, &[], make, second_reads);
}

/// The same with more arguments.
pub(crate) fn clients_share_with(
    filter: &str,
    arguments: &[&str],
    make: &str,
    second_reads: usize,
) {
    const SIZE: usize = 1_000_000;
    let filter = format!("--filter={filter}");
    let builder = Server::nbdkit([&filter, "sh", "{dir}/script"]).args(arguments);
    let disk = image(builder.dir(), SIZE);
    shell(builder.dir(), make);
    script(builder.dir(), LOGGING);
    let server = builder.start();
    let reads = server.dir().join("reads");
    let mut first = server.connected("");
    assert_eq!(first.export().unwrap().0, SIZE as u64);
    std::fs::remove_file(&reads).expect("the first client reads the image");
    let mut second = server.connected("");
    let processes = if arguments.contains(&"--isolation=shared") { 0 } else { 2 };
    assert_eq!(server.workers().len(), processes);
    let read = std::fs::read_to_string(&reads).unwrap_or_default();
    assert_eq!(read.lines().count(), second_reads, "the second client has read at {read:?}");
    for (count, offset) in [(512, 0), (300_000, 100_001), (512, SIZE - 512)] {
        for client in [&mut first, &mut second] {
            let reply = client.call(&Ask::read(offset as u64, count as u64)).unwrap();
            assert!(reply.data == disk[offset..][..count], "{count} bytes at {offset}");
            assert!(client.call(&Ask::write(0, [1])).unwrap().nbd_error().is_some());
        }
    }
    for damage in ["head -c 20000 image >bad", ": >bad", "cp disk bad"] {
        let builder = Server::nbdkit([&filter, "file", "{dir}/bad"]).args(arguments);
        image(builder.dir(), SIZE);
        shell(builder.dir(), make);
        shell(builder.dir(), damage);
        let server = builder.start();
        let mut client = server.connect();
        client.handshake().unwrap();
        assert_ne!(client.go("", &[]).unwrap().end.reply, Rep::ACK, "{damage}");
    }
}
