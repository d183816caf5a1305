//! Images, made by the programs that users make them with or by hand.

use std::io::Write;
use std::process::{Command, Stdio};

/// Two Zstandard frames and their seek table.
pub(crate) fn seekable() -> Vec<u8> {
    let frame = made_by("zstd", &["-cq"]);
    let mut file = frame.repeat(2);
    let numbers = [0x184d_2a5e, 25, frame.len() as u32, 2500, frame.len() as u32, 2500, 2];
    file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    file.push(0);
    file.extend(0x8f92_eab1_u32.to_le_bytes());
    file
}

/// A LUKS1 header whose slots are in use, and a disk; nobody knows the passphrase.
pub(crate) fn luks(mode: &str, key_size: u8) -> Vec<u8> {
    let mut image = vec![0; 8192];
    let mut put = |at: usize, bytes: &[u8]| image[at..][..bytes.len()].copy_from_slice(bytes);
    put(0, b"LUKS\xba\xbe\x00\x01aes");
    put(40, mode.as_bytes());
    put(72, b"sha256");
    put(104, &[0, 0, 0, 8, 0, 0, 0, key_size]);
    put(164, &[0, 0, 0, 2]);
    for slot in 0..8 {
        put(208 + slot * 48, &[0x00, 0xac, 0x71, 0xf3, 0, 0, 0, 3]);
        put(208 + slot * 48 + 40, &[0, 0, 0, 2, 0, 0, 0, 30]);
    }
    image
}

/// Some bytes, which can be compressed.
fn sample() -> Vec<u8> {
    (0..2500_u32).map(|at| (at % 600 / 7 + at / 800) as u8).collect()
}

/// What qemu-img makes of the sample.
pub(crate) fn qcow2(options: &[&str]) -> Vec<u8> {
    let directory = std::env::temp_dir().join(format!("seeds-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    std::fs::write(directory.join("disk"), sample()).expect("written");
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "qcow2"]).args(options).args(["disk", "image"]);
    let status = command.current_dir(&directory).status().expect("qemu-img");
    assert!(status.success(), "qemu-img {options:?}");
    let image = std::fs::read(directory.join("image")).expect("an image");
    std::fs::remove_dir_all(&directory).expect("removed");
    image
}

/// What a program makes of the sample.
pub(crate) fn made_by(program: &str, arguments: &[&str]) -> Vec<u8> {
    let input = sample();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    // Less than a pipe holds.
    child.stdin.take().expect("a pipe").write_all(&input).expect("written");
    let output = child.wait_with_output().expect("output");
    assert!(output.status.success(), "{program} {arguments:?}");
    output.stdout
}
