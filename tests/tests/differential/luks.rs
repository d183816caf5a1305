//! The luks filter on disks that qemu-img(1) and cryptsetup(8) made: what clients see of them and
//! write to them, what is refused, and that the key is derived once.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use nbd_protocol::constants::{CommandFlags, Rep};
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::Server;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir, row_name};

use crate::images::{has, image, script, shell};

/// Bytes of the disk.
pub(crate) const SIZE: u64 = 1 << 20;

/// Makes `disk.luks` with these options of qemu-img(1), which measures for seconds how fast the
/// machine is; hence once for each.
pub(crate) fn qemu_img(dir: &TempDir, options: &str) {
    static MADE: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());
    image(dir, SIZE as usize);
    shell(dir, "printf %s secret >passphrase");
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let disk = made.entry(options.to_owned()).or_insert_with(|| {
        shell(
            dir,
            &format!(
                "qemu-img convert -q -f raw -O luks --object secret,id=sec0,file=passphrase \
                 -o key-secret=sec0,iter-time=1,{options} disk disk.luks"
            ),
        );
        std::fs::read(dir.join("disk.luks")).unwrap()
    });
    std::fs::write(dir.join("disk.luks"), disk).unwrap();
}

const ARGUMENTS: [&str; 4] =
    ["--filter=luks", "file", "{dir}/disk.luks", "passphrase=+{dir}/passphrase"];

/// What a disk is and can do.
fn exercise(s: &mut Session) {
    s.open();
    s.read(0, 512);
    s.read(1000, 200_000);
    s.read(SIZE - 512, 512);
    s.read(SIZE - 512, 513);
    s.write(4096, 8192, 0xaa);
    s.ask(&Ask::write(512, [1; 1024]).flags(CommandFlags::FUA));
    s.ask(&Ask::write_zeroes(65_536, 4096));
    s.ask(&Ask::trim(0, 4096));
    s.ask(&Ask::cache(0, 4096));
    s.ask(&Ask::flush());
    s.read(0, 100_000);
    s.block_status(0, SIZE);
    s.disconnect();
    s.connect();
    s.block_sizes("");
}

#[test]
fn luks_disks_of_qemu_img() {
    if !has("qemu-img") {
        return;
    }
    type Setup = (&'static str, fn(&TempDir));
    let disks: [Setup; 4] = [
        ("default", |dir| qemu_img(dir, "cipher-alg=aes-256")),
        ("xts-128", |dir| qemu_img(dir, "cipher-alg=aes-128,hash-alg=sha1,ivgen-alg=plain")),
        ("cbc-plain64", |dir| qemu_img(dir, "cipher-mode=cbc,ivgen-alg=plain64,hash-alg=sha512")),
        ("cbc-plain", |dir| qemu_img(dir, "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=plain")),
    ];
    for_each(&disks, |(name, setup)| {
        Row::new(row_name!(), &ARGUMENTS).variant(name).setup(setup).compare(exercise);
    });
}

#[test]
fn luks_disk_of_cryptsetup() {
    if !has("cryptsetup") {
        return;
    }
    fn setup(dir: &TempDir) {
        // Its passphrase is in the second key slot, and the first one is in use.
        shell(
            dir,
            "printf %s secret >passphrase; printf %s other >other; truncate -s 3M disk.luks
             cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 disk.luks other
             cryptsetup luksAddKey -q --pbkdf-force-iterations 1000 --key-file other disk.luks passphrase",
        );
    }
    Row::new(row_name!(), &ARGUMENTS).setup(setup).compare(|s| {
        // What nobody has written differs from key to key.
        s.open();
        s.ask(&Ask::write_zeroes(0, SIZE));
        s.disconnect();
        exercise(s);
    });
}

/// Modes that Debian's server refuses, and keys that qemu-img(1) cannot make.
#[test]
fn more_modes_of_luks_disks() {
    type Setup = (&'static str, fn(&TempDir));
    let disks: [Setup; 3] = [
        ("qemu-img", |dir| qemu_img(dir, "cipher-mode=ecb")),
        ("qemu-img", |dir| {
            qemu_img(dir, "cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256");
        }),
        ("cryptsetup", |dir| {
            shell(
                dir,
                "printf %s secret >passphrase; truncate -s 3M disk.luks
                 cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 \
                     -c aes-cbc-essiv:sha256 -s 192 disk.luks passphrase",
            );
        }),
    ];
    for_each(&disks, |(maker, setup)| {
        if !has(maker) {
            return;
        }
        let builder = Server::nbdkit(ARGUMENTS);
        setup(builder.dir());
        let server = builder.start();
        let mut client = server.connected("");
        if let Ok(disk) = std::fs::read(server.dir().join("disk")) {
            assert!(client.call(&Ask::read(0, SIZE)).unwrap().data == disk);
        }
        assert!(client.call(&Ask::write(1000, [5; 3000])).unwrap().nbd_error().is_none());
        let mut other = server.connected("");
        assert!(other.call(&Ask::read(1000, 3000)).unwrap().data == [5; 3000]);
    });
}

#[test]
fn luks_disk_that_is_read_only() {
    if !has("qemu-img") {
        return;
    }
    let arguments = [&["-r"], &ARGUMENTS[..]].concat();
    let setup = |dir: &TempDir| qemu_img(dir, "cipher-alg=aes-256");
    Row::new(row_name!(), &arguments).setup(setup).compare(exercise);
}

#[test]
fn parameters_of_luks() {
    let filter_line = |line: &str| {
        let ours =
            ["exit", "stdout: filter", "stdout: passphrase", "stdout: thread_model", "stderr"];
        ours.iter().any(|it| line.starts_with(it)).then(|| line.to_owned())
    };
    for_each(&["--help", "--dump-plugin"], |option| {
        Row::new(row_name!(), &[option, "--filter=luks", "null"])
            .variant(option)
            .normalise(filter_line)
            .compare_command();
    });
    Row::new(row_name!(), &["--filter=luks", "null", "--run", "true"]).compare_command();
}

/// Parts of sectors, too, where Debian's server writes garbage.
#[test]
fn what_clients_write_to_a_luks_disk_is_read_by_qemu_img() {
    if !has("qemu-img") {
        return;
    }
    let builder = Server::nbdkit(ARGUMENTS);
    qemu_img(builder.dir(), "cipher-alg=aes-256");
    let mut expected = std::fs::read(builder.dir().join("disk")).unwrap();
    let mut server = builder.start();
    let mut client = server.connected("");
    for (offset, count) in [(0, 512), (700, 5000), (100_000, 3_u64)] {
        let data = vec![0x77; count as usize];
        expected[offset as usize..][..count as usize].copy_from_slice(&data);
        assert!(client.call(&Ask::write(offset, data)).unwrap().nbd_error().is_none());
    }
    client.disconnect().unwrap();
    assert!(server.stop().success());
    shell(
        server.dir(),
        "qemu-img convert -q --object secret,id=sec0,file=passphrase -O raw \
         --image-opts driver=luks,key-secret=sec0,file.filename=disk.luks decrypted",
    );
    assert!(std::fs::read(server.dir().join("decrypted")).unwrap() == expected);
}

/// Debian's server crashes on each of these.
#[test]
fn luks_disks_that_are_refused() {
    if !has("qemu-img") {
        return;
    }
    for (arguments, why) in [
        (["disk.luks", "passphrase=wrong"], "passphrase is not correct"),
        (["disk", "passphrase=secret"], "does not contain a LUKS header"),
        (["cut", "passphrase=secret"], "payload offset points beyond the end of the disk"),
        (["empty", "passphrase=secret"], "too small to be LUKS-encrypted"),
    ] {
        let [file, passphrase] = arguments;
        let builder =
            Server::nbdkit(["--filter=luks", "file", &format!("{{dir}}/{file}"), passphrase]);
        qemu_img(builder.dir(), "cipher-alg=aes-256");
        shell(builder.dir(), "head -c 1M disk.luks >cut; : >empty");
        let server = builder.start();
        for _ in 0..2 {
            let mut client = server.connect();
            client.handshake().unwrap();
            assert_ne!(client.go("", &[]).unwrap().end.reply, Rep::ACK, "{file}");
        }
        let stderr = server.wait_for_stderr(why);
        assert!(!stderr.contains("secret"), "{stderr}");
    }
}

/// Logs what it is asked to read and write.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in
  get_size) stat -c %s "$dir/disk.luks" ;;
  pread)
    echo "$3" >>"$dir/reads"
    dd if="$dir/disk.luks" iflag=skip_bytes,count_bytes skip="$4" count="$3" status=none ;;
  pwrite) dd of="$dir/disk.luks" oflag=seek_bytes seek="$4" conv=notrunc status=none ;;
  can_write) exit 0 ;;
  thread_model) echo parallel ;;
  *) exit 2 ;;
esac
"#;

#[test]
fn the_key_of_a_luks_disk_is_derived_once_and_clients_see_what_others_write() {
    if !has("qemu-img") {
        return;
    }
    let builder = Server::nbdkit(["--filter=luks", "sh", "{dir}/script", "passphrase=secret"]);
    qemu_img(builder.dir(), "cipher-alg=aes-256");
    script(builder.dir(), SCRIPT);
    let server = builder.start();
    let mut first = server.connected("");
    let mut second = server.connected("");
    assert_eq!(server.workers().len(), 2);
    let reads = std::fs::read_to_string(server.dir().join("reads")).unwrap();
    // The header by the template and by each client, and the material of one key slot.
    let mut reads: Vec<&str> = reads.lines().collect();
    reads.sort_unstable();
    assert_eq!(reads, ["256000", "592", "592", "592"]);
    assert!(first.call(&Ask::write(700, [0x99; 100])).unwrap().nbd_error().is_none());
    assert!(second.call(&Ask::write(800, [0x88; 100])).unwrap().nbd_error().is_none());
    let disk = std::fs::read(server.dir().join("disk")).unwrap();
    let expected = [&disk[512..700], &[0x99; 100], &[0x88; 100], &disk[900..1024]].concat();
    assert!(first.call(&Ask::read(512, 512)).unwrap().data == expected);
}
