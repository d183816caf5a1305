//! The qcow2dec filter on images that qemu-img made. Debian's nbdkit has no such filter.

use std::process::Command;
use std::sync::LazyLock;

use nbd_protocol::constants::{CommandFlags, Rep};
use nbdkit_tests::server::{Server, ours};
use nbdkit_tests::{Ask, TempDir};

/// Bytes of the disk: no multiple of any cluster.
const SIZE: usize = 2_500_096;

/// Zeroes, what can be compressed, and what cannot, in turns.
static DISK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let byte = |at: usize| match at / 300_000 % 3 {
        0 => random(),
        1 => 0,
        _ => (at / 9 % 50) as u8,
    };
    (0..SIZE).map(byte).collect()
});

/// Writes the disk to `disk`, and an image of it made with `options` to `image`. Without qemu-img,
/// prints that, and returns false.
fn made(dir: &TempDir, options: &[&str]) -> bool {
    std::fs::write(dir.join("disk"), &*DISK).expect("written");
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "qcow2"]).args(options).args(["disk", "image"]);
    match command.current_dir(dir.path()).status() {
        Ok(status) => assert!(status.success(), "{options:?}"),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "CI must have qemu-img: {error}");
            eprintln!("SKIPPED: qemu-img: {error}");
            return false;
        }
    }
    true
}

/// Reads all of the disk by requests of `part` bytes.
fn read_all(server: &Server, part: usize) -> Vec<u8> {
    let mut client = server.connected("");
    let asks = (0..SIZE).step_by(part);
    asks.flat_map(|at| {
        let reply = client.call(&Ask::read(at as u64, part.min(SIZE - at) as u64));
        reply.expect("a reply").data
    })
    .collect()
}

#[test]
fn disks_in_images_of_each_kind() {
    let kinds: &[&[&str]] = &[
        &["-o", "compat=0.10"],
        &["-o", "compat=0.10", "-c"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=512", "-c"],
        &["-o", "cluster_size=2M"],
        &["-o", "cluster_size=2M", "-c"],
        &["-c"],
        &["-o", "compression_type=zstd", "-c"],
        &["-o", "compression_type=zstd,cluster_size=2M", "-c"],
        &["-o", "preallocation=metadata"],
        &["-o", "lazy_refcounts=on,refcount_bits=1", "-S", "0"],
    ];
    for (number, options) in kinds.iter().enumerate() {
        let isolation = ["--isolation=connection", "--isolation=shared"][number % 2];
        let builder = ours(&[isolation, "--filter=qcow2dec", "file", "{dir}/image"]);
        if !made(builder.dir(), options) {
            return;
        }
        let server = builder.start();
        assert!(read_all(&server, 777_777) == *DISK, "{options:?}");
        assert!(read_all(&server, 1 << 16) == *DISK, "{options:?}");
    }
}

#[test]
fn holes_of_the_image_are_holes_of_the_disk() {
    let builder = ours(&["--filter=qcow2dec", "file", "{dir}/image"]);
    if !made(builder.dir(), &[]) {
        return;
    }
    let server = builder.start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    client.structured_replies().expect("a reply");
    client.set_meta_context("", &["base:allocation"]).expect("a reply");
    client.go("", &[]).expect("a reply");
    let mut expected: Vec<(u64, u64)> = Vec::new();
    for cluster in DISK.chunks(1 << 16) {
        let (length, flags) = (cluster.len() as u64, holes(cluster));
        match expected.last_mut() {
            Some(last) if last.1 == flags => last.0 += length,
            _ => expected.push((length, flags)),
        }
    }
    assert!(expected.len() > 5);
    let map = client.call(&Ask::block_status(0, SIZE as u64)).expect("a reply");
    assert_eq!(map.extents(), expected);
    let one = Ask::block_status(0, SIZE as u64).flags(CommandFlags::REQ_ONE);
    assert_eq!(client.call(&one).expect("a reply").extents(), expected[..1]);
}

/// The flags of a cluster's extent: NBD_STATE_HOLE and NBD_STATE_ZERO, or none.
fn holes(cluster: &[u8]) -> u64 {
    if cluster.iter().all(|byte| *byte == 0) { 3 } else { 0 }
}

#[test]
fn images_with_a_backing_file_are_refused_and_the_server_goes_on() {
    let builder = ours(&["--filter=qcow2dec", "file", "{dir}/image"]);
    if !made(builder.dir(), &[]) {
        return;
    }
    let server = builder.start();
    let image = std::fs::read(server.dir().join("image")).expect("an image");
    let backed = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "disk", "image"])
        .current_dir(server.dir().path())
        .status();
    assert!(backed.expect("qemu-img").success());
    let mut refused = server.connect();
    refused.handshake().expect("a greeting");
    assert_ne!(refused.go("", &[]).expect("a reply").end.reply, Rep::ACK);
    assert!(server.wait_for_stderr("backing file").contains("qcow2dec: "));
    std::fs::write(server.dir().join("image"), image).expect("written");
    assert!(read_all(&server, 1 << 20) == *DISK);
}
