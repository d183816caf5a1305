//! The luks filter on LUKS2 disks. Debian's nbdkit has no LUKS2: the reference is cryptsetup(8),
//! which encrypts, changes and decrypts the disks offline.

use std::process::Command;

use nbd_protocol::constants::{CommandFlags, Rep};
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::{Builder, Server, ours};
use nbdkit_tests::{Ask, TempDir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Bytes of the disk, and of the room for the header behind it.
const SIZE: usize = 3 << 20;
const ROOM: &str = "32M";
const CHEAP: &str = "--pbkdf argon2id --pbkdf-memory 64 --pbkdf-force-iterations 4 \
                     --pbkdf-parallel 2";

fn has_cryptsetup() -> bool {
    let found = std::path::Path::new("/usr/sbin/cryptsetup").exists();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "cryptsetup is not installed");
        eprintln!("SKIPPED: cryptsetup is not installed");
    }
    found
}

fn shell(dir: &TempDir, script: &str) {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(dir.path());
    let output = command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().expect("sh");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {stderr}");
}

fn plain() -> Vec<u8> {
    (0..SIZE).map(|at| (at / 7 % 251 + at / 65_536) as u8).collect()
}

/// Has cryptsetup encrypt a disk in place: `disk`, with the passphrase of the file `passphrase`.
fn encrypt(dir: &TempDir, options: &str) {
    std::fs::write(dir.join("disk"), plain()).expect("written");
    shell(
        dir,
        &format!(
            "printf secret >passphrase; printf other >other; truncate -s +{ROOM} disk
             cryptsetup reencrypt --encrypt -q --type luks2 {options} --reduce-device-size {ROOM} \
                 --key-file passphrase disk"
        ),
    );
}

fn builder(options: &[&str], passphrase: &str) -> Builder {
    let passphrase = format!("passphrase={passphrase}");
    ours(&[options, &["--filter=luks", "file", "{dir}/disk", &passphrase]].concat())
}

fn read_all(server: &Server) -> Vec<u8> {
    let mut client = server.connected("");
    client.call(&Ask::read(0, SIZE as u64)).expect("a reply").data
}

/// Why clients are refused.
fn refusal(server: &Server, why: &str) {
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    assert_ne!(client.go("", &[]).expect("an answer").end.reply, Rep::ACK, "{why}");
    let stderr = server.wait_for_stderr(why);
    assert!(!stderr.contains("secret"), "{stderr}");
}

#[test]
fn what_cryptsetup_encrypts_is_decrypted_and_the_other_way_round() {
    if !has_cryptsetup() {
        return;
    }
    let kinds = [
        format!("{CHEAP} --sector-size 512"),
        format!("{CHEAP} --sector-size 4096 --key-size 256"),
        "--pbkdf argon2i --pbkdf-memory 32 --pbkdf-force-iterations 4 --pbkdf-parallel 1 \
         --cipher aes-cbc-essiv:sha256 --key-size 192 --hash sha512 --sector-size 2048"
            .to_owned(),
        "--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --cipher aes-cbc-plain64 --key-size 256 \
         --hash sha1 --sector-size 1024 --luks2-metadata-size 64k"
            .to_owned(),
    ];
    for (number, options) in kinds.iter().enumerate() {
        let isolation = ["--isolation=connection", "--isolation=shared"][number % 2];
        let builder = builder(&[isolation], "+{dir}/passphrase");
        encrypt(builder.dir(), options);
        let mut server = builder.start();
        let mut expected = plain();
        assert!(read_all(&server) == expected, "{options}");
        let (mut first, mut second) = (server.connected(""), server.connected(""));
        for (offset, count) in [(0, 4096), (700, 5000), (100_000, 3), (65_535, 200_000)] {
            let client = if offset % 3 == 0 { &mut first } else { &mut second };
            let data = vec![0x77; count];
            expected[offset..][..count].copy_from_slice(&data);
            let ask = Ask::write(offset as u64, data).flags(CommandFlags::FUA);
            assert!(client.call(&ask).expect("a reply").nbd_error().is_none());
        }
        expected[400_001..460_000].fill(0);
        let ask = Ask::write_zeroes(400_001, 59_999);
        assert!(first.call(&ask).expect("a reply").nbd_error().is_none());
        assert!(second.call(&Ask::read(0, SIZE as u64)).expect("a reply").data == expected);
        drop((first, second));
        assert!(server.stop().success());
        shell(
            server.dir(),
            "cryptsetup reencrypt --decrypt -q --force-offline-reencrypt --header header \
                 --key-file passphrase disk",
        );
        let decrypted = std::fs::read(server.dir().join("disk")).expect("a disk");
        assert!(decrypted[..SIZE] == expected, "{options}");
    }
}

#[test]
fn luks2_disks_with_several_key_slots() {
    if !has_cryptsetup() {
        return;
    }
    for (change, passphrase, error) in [
        ("", "other", None),
        ("cryptsetup config -q --priority prefer --key-slot 1 disk", "secret", None),
        ("cryptsetup config -q --priority ignore --key-slot 1 disk", "secret", None),
        (
            "cryptsetup config -q --priority ignore --key-slot 1 disk",
            "other",
            Some("could be unlocked (key slot 1 is to be ignored)"),
        ),
        ("cryptsetup luksKillSlot -q --key-file other disk 0", "other", None),
        (
            "cryptsetup luksKillSlot -q --key-file other disk 0",
            "secret",
            Some("passphrase is not correct"),
        ),
        // A new key for all of the disk.
        (
            "cryptsetup reencrypt -q --key-slot 1 --force-offline-reencrypt --pbkdf pbkdf2 \
                 --pbkdf-force-iterations 1000 --key-file other disk",
            "other",
            None,
        ),
        // The first copy of the header is lost, and then the second one.
        ("dd if=/dev/zero of=disk bs=4096 count=1 conv=notrunc", "secret", None),
        ("dd if=/dev/zero of=disk bs=4096 seek=4 count=1 conv=notrunc", "secret", None),
        (
            "printf x | dd of=disk bs=1 seek=4100 conv=notrunc
             dd if=/dev/zero of=disk bs=4096 seek=4 count=1 conv=notrunc",
            "secret",
            Some("both copies are damaged: its checksum differs"),
        ),
        ("truncate -s 1M disk", "secret", Some("payload offset points beyond the end")),
        ("truncate -s 20000 disk", "secret", Some("key slot 1: it points beyond the end")),
        ("truncate -s 15000 disk", "secret", Some("both copies are damaged: its size is wrong")),
    ] {
        let builder = builder(&[], passphrase);
        encrypt(builder.dir(), CHEAP);
        shell(
            builder.dir(),
            &format!(
                "cryptsetup luksAddKey -q --key-slot 1 --pbkdf pbkdf2 \
                     --pbkdf-force-iterations 1000 --key-file passphrase disk other
                 {change}"
            ),
        );
        let server = builder.start();
        match error {
            None => assert!(read_all(&server) == plain(), "{change}"),
            Some(why) => (0..2).for_each(|_| refusal(&server, why)),
        }
    }
}

#[test]
fn luks2_disks_that_are_refused() {
    if !has_cryptsetup() {
        return;
    }
    for (setup, passphrase, why) in [
        (
            "cryptsetup reencrypt -q --init-only --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
                 --force-offline-reencrypt --key-file passphrase disk",
            "secret",
            "the requirement \"online-reencrypt",
        ),
        (
            "cryptsetup luksAddKey -q --unbound --key-size 512 --pbkdf pbkdf2 \
                 --pbkdf-force-iterations 1000 --key-file passphrase disk other
             cryptsetup luksKillSlot -q disk 0",
            "other",
            "key slot 1 belongs to no segment",
        ),
        ("cryptsetup luksErase -q disk", "secret", "no key slot can be opened"),
        (
            "printf '{\"type\":\"fido\",\"keyslots\":[\"0\"]}' | \
                 cryptsetup token import --token-id 0 disk",
            "wrong",
            "key slot 0 is that of a token, \"fido\"",
        ),
    ] {
        let builder = builder(&[], passphrase);
        encrypt(builder.dir(), CHEAP);
        shell(builder.dir(), setup);
        let server = builder.start();
        (0..2).for_each(|_| refusal(&server, why));
    }
}

/// It is there for the template before the first client, and not for those who serve clients.
#[test]
fn the_memory_of_argon2_is_not_that_of_workers() {
    if !has_cryptsetup() {
        return;
    }
    let limit = |builder: Builder| {
        let server = builder.start();
        let client = server.connected("");
        let worker = server.workers()[0];
        let limits = std::fs::read_to_string(format!("/proc/{worker}/limits")).expect("limits");
        let line = limits.lines().find(|line| line.starts_with("Max data size")).expect("a line");
        let limit = line.split_whitespace().nth(3).expect("a limit").parse::<u64>();
        drop(client);
        limit.expect("a number, not unlimited")
    };
    let luks = builder(&[], "secret");
    encrypt(luks.dir(), CHEAP);
    let plain = ours(&["memory", "1M"]);
    // Of the process, which has more or less code and keys.
    assert!(limit(luks).abs_diff(limit(plain)) < 256 << 20);
}

#[test]
fn luks2_disks_that_are_read_only_and_clients_that_are_killed() {
    if !has_cryptsetup() {
        return;
    }
    let builder = builder(&["-r"], "secret");
    encrypt(builder.dir(), CHEAP);
    let server = builder.start();
    let mut client = server.connected("");
    assert!(client.call(&Ask::write(0, [0; 512])).expect("a reply").nbd_error().is_some());
    let mut server = server;
    assert!(read_all(&server) == plain());
    drop(client);
    assert!(server.stop().success());

    // A worker is killed while it writes parts of sectors: others go on.
    let builder = self::builder(&[], "secret");
    encrypt(builder.dir(), &format!("{CHEAP} --sector-size 4096"));
    let server = builder.start();
    let mut killed = server.connected("");
    for _ in 0..50 {
        killed.send(&Ask::write(100, [1; 5000])).expect("sent");
    }
    let worker = server.workers()[0];
    kill(Pid::from_raw(worker), Signal::SIGKILL).expect("killed");
    eventually("the worker has ended", || !server.workers().contains(&worker));
    let mut client = server.connected("");
    let reply = client.call(&Ask::write(200, [2; 100])).expect("a reply");
    assert!(reply.nbd_error().is_none());
    assert!(client.call(&Ask::read(200, 100)).expect("a reply").data == [2; 100]);
    assert!(client.call(&Ask::read(9000, 9000)).expect("a reply").data == plain()[9000..18_000]);
}
