//! Filters over TLS: what they make of data reaches clients as it does in plaintext. Ways around
//! copies, which differ with TLS, must not go around a filter.

use std::process::Command;

use nbd_protocol::constants::TransmissionFlags;
use nbdkit_tests::{Ask, TempDir};

use super::{Pki, has};

/// Bytes of the disk.
const SIZE: usize = 1 << 20;
/// Where the partition begins, bytes.
const START: usize = 64 * 512;

fn disk() -> Vec<u8> {
    (0..SIZE).map(|at| (at / 11 % 253 + at / 4096) as u8).collect()
}

/// Makes the files that the servers serve.
fn setup(dir: &TempDir) {
    std::fs::write(dir.join("disk"), disk()).expect("written");
    let mut partitioned = vec![0; START];
    partitioned[450] = 0x83;
    partitioned[454..458].copy_from_slice(&((START / 512) as u32).to_le_bytes());
    partitioned[458..462].copy_from_slice(&((SIZE / 512) as u32).to_le_bytes());
    partitioned[510..512].copy_from_slice(&[0x55, 0xaa]);
    partitioned.extend(disk());
    std::fs::write(dir.join("hdd"), partitioned).expect("written");
    let script = "
        tar -cf disk.tar disk; gzip -k disk; xz -k --block-size=65536 disk
        printf secret >passphrase; cp disk disk.luks; truncate -s +32M disk.luks
        cryptsetup reencrypt --encrypt -q --type luks2 --pbkdf pbkdf2 \
            --pbkdf-force-iterations 1000 --reduce-device-size 32M --key-file passphrase disk.luks";
    let mut shell = Command::new("sh");
    shell.args(["-ec", script]).current_dir(dir.path());
    let output = shell.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().expect("sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A filter, the file, parameters, and whether clients may write.
const FILTERS: [(&str, &str, &[&str], bool); 9] = [
    ("luks", "disk.luks", &["passphrase=secret"], true),
    ("xz", "disk.xz", &[], false),
    ("gzip", "disk.gz", &[], false),
    ("cache", "disk", &["cache-on-read=true"], true),
    ("cache", "disk", &["cache=writethrough"], true),
    ("cow", "disk", &[], true),
    ("partition", "hdd", &["partition=1"], true),
    ("tar", "disk.tar", &["tar-entry=disk"], true),
    ("blocksize", "disk", &["minblock=4096", "maxdata=64k"], true),
];

#[test]
fn what_filters_serve_is_the_same_over_tls() {
    let Some(pki) = Pki::new() else { return };
    if !["cryptsetup", "gzip", "tar", "xz"].into_iter().all(has) {
        return;
    }
    for (filter, file, parameters, writable) in FILTERS {
        for isolation in ["--isolation=connection", "--isolation=shared"] {
            let filter_option = format!("--filter={filter}");
            let path = format!("{{dir}}/{file}");
            let arguments = ["--tls=require", isolation, &filter_option, "file", &path];
            let builder = pki.server(&[&arguments, parameters].concat());
            setup(builder.dir());
            let server = builder.start();
            let connected = || {
                let mut client = server.connect();
                client.handshake().expect("a greeting");
                let mut client = client.starttls(pki.authority.client_config(None)).expect("TLS");
                client.structured_replies().expect("a reply");
                client.go("", &[]).expect("an export");
                client
            };
            let mut expected = disk();
            let mut clients = [connected(), connected()];
            for client in &mut clients {
                for (offset, count) in
                    [(0, SIZE), (0, 512), (4096, 4096), (1000, 3), (65_000, 300_001), (4095, 2)]
                {
                    let reply = client.call(&Ask::read(offset as u64, count as u64));
                    let data = reply.expect("a reply").data;
                    assert!(data == expected[offset..][..count], "{filter}: {count} at {offset}");
                }
            }
            if !writable {
                let reply = clients[0].call(&Ask::write(0, [1; 512])).expect("a reply");
                assert!(reply.nbd_error().is_some(), "{filter} is read-only");
                continue;
            }
            for (offset, count) in [(0, 512), (5000, 70_000), (131_072, 262_144), (700_001, 3)] {
                let data: Vec<u8> = (0..count).map(|at| (at * 7 + offset) as u8).collect();
                expected[offset..][..count].copy_from_slice(&data);
                let reply = clients[0].call(&Ask::write(offset as u64, data)).expect("a reply");
                assert!(reply.nbd_error().is_none(), "{filter}: {count} at {offset}");
            }
            // As in nbdkit, there are no such requests with the cow filter.
            if clients[0].offers(TransmissionFlags::SEND_WRITE_ZEROES) {
                expected[300_000..310_000].fill(0);
                let reply = clients[0].call(&Ask::write_zeroes(300_000, 10_000));
                assert!(reply.expect("a reply").nbd_error().is_none(), "{filter}");
            }
            clients[0].call(&Ask::flush()).expect("a reply");
            for client in &mut clients {
                let data = client.call(&Ask::read(0, SIZE as u64)).expect("a reply").data;
                assert!(data == expected, "{filter}");
            }
        }
    }
}
