//! The vhd plugin with images of qemu-img(1), two clients in two processes, and with one process
//! for all. Debian's nbdkit has no such plugin.

use std::process::Command;

use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, TempDir};

const SIZE: usize = 5 << 20;

fn disk() -> Vec<u8> {
    let data = |at: usize| !(100_000..SIZE - 4096).contains(&at);
    (0..SIZE).map(|at| if data(at) { (at % 253) as u8 + 1 } else { 0 }).collect()
}

/// An image of the disk.
fn image(dir: &TempDir, kind: &str) -> String {
    let [raw, vhd] = ["raw", "vhd"].map(|name| dir.join(name).display().to_string());
    std::fs::write(&raw, disk()).expect("a disk");
    let options = format!("subformat={kind},force_size=on");
    let arguments = ["convert", "-f", "raw", "-O", "vpc", "-o", &options, &raw, &vhd];
    let status = Command::new("qemu-img").args(arguments).status().expect("qemu-img");
    assert!(status.success());
    vhd
}

#[test]
fn two_clients_read_the_disk_that_qemu_img_has_put_into_an_image() {
    for kind in ["dynamic", "fixed"] {
        let dir = TempDir::new();
        let path = image(&dir, kind);
        for isolation in ["--isolation=connection", "--isolation=shared"] {
            let server = ours(&[isolation, "-r", "vhd", &path]).start();
            let mut clients = [server.connected(""), server.connected("")];
            for client in &mut clients {
                let reply = client.call(&Ask::read(0, SIZE as u64)).expect("a reply");
                assert!(reply.data == disk(), "{kind} {isolation}");
                let reply = client.call(&Ask::write(0, vec![1; 512])).expect("a reply");
                assert!(reply.error.is_some(), "the image is read only");
            }
        }
    }
}

#[test]
fn what_is_no_image_stops_the_start() {
    let dir = TempDir::new();
    let path = dir.join("none");
    std::fs::write(&path, vec![0; 4096]).expect("a file");
    let path = path.display().to_string();
    for (arguments, expected) in [
        (&["vhd", &*path][..], "none: bad VHD image: there is no footer"),
        (&["vhd"], "you must supply the file=<FILENAME> parameter"),
        (&["vhd", "/nonexistent"], "/nonexistent: No such file or directory"),
    ] {
        let finished = ours(arguments).try_start().expect_err("refused");
        assert!(finished.stderr.contains(expected), "{}", finished.stderr);
        assert_eq!((finished.stderr.lines().count(), finished.status.code()), (1, Some(1)));
    }
}
