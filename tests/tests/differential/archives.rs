//! Images in partitions, partitions in archives: stacks of the filters that find and decode.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::ours;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir, row_name};

use crate::images::{has, shell};
use crate::luks::{SIZE, qemu_img};

/// Where the partition of a disk begins, sectors.
const START: usize = 64;

/// Makes `hdd`, whose first partition is the file `content`.
fn partitioned(dir: &TempDir, content: &str) {
    let content = std::fs::read(dir.join(content)).unwrap();
    let sectors = content.len().div_ceil(512);
    let mut disk = vec![0; (START + sectors) * 512];
    disk[START * 512..][..content.len()].copy_from_slice(&content);
    disk[450] = 0x83;
    disk[454..458].copy_from_slice(&(START as u32).to_le_bytes());
    disk[458..462].copy_from_slice(&(sectors as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(dir.join("hdd"), disk).unwrap();
}

fn setup(dir: &TempDir) {
    qemu_img(dir, "cipher-alg=aes-256");
    shell(dir, "tar -cf disk.tar disk; gzip -k disk.tar; xz -k --block-size=65536 disk");
    partitioned(dir, "disk.luks");
    shell(dir, "mv hdd hdd.luks");
    partitioned(dir, "disk");
    shell(dir, "tar -cf hdd.tar passphrase hdd; xz -k --block-size=65536 hdd.tar");
}

const STACKS: [&[&str]; 5] = [
    &["--filter=partition", "--filter=tar", "--filter=xz", "hdd.tar.xz", "tar-entry=hdd"],
    &["--filter=tar", "--filter=gzip", "disk.tar.gz", "tar-entry=disk"],
    &["--filter=luks", "--filter=partition", "hdd.luks", "passphrase=secret"],
    &["--filter=cow", "--filter=xz", "disk.xz"],
    &["--filter=cow", "--filter=luks", "--filter=partition", "hdd.luks", "passphrase=secret"],
];

/// A command line: filters, the file plugin, parameters.
fn arguments(options: &[&str], stack: &[&str]) -> Vec<String> {
    let (filters, others): (Vec<&str>, _) = stack.iter().partition(|it| it.starts_with("--"));
    let file = format!("{{dir}}/{}", others[0]);
    let mut all: Vec<String> = options.iter().chain(&filters).map(|it| (*it).to_owned()).collect();
    all.extend(["file".to_owned(), file]);
    all.extend(others[1..].iter().map(|it| (*it).to_owned()));
    if filters.contains(&"--filter=partition") {
        all.push("partition=1".to_owned());
    }
    all
}

fn exercise(s: &mut Session) {
    s.open();
    s.read(0, SIZE);
    s.read(65_530, 20);
    s.write(4096, 8192, 0xaa);
    s.ask(&Ask::flush());
    s.read(0, 100_000);
    s.read(SIZE - 512, 513);
    s.disconnect();
}

#[test]
fn images_in_partitions_and_archives() {
    if !["qemu-img", "tar", "gzip", "xz"].into_iter().all(has) {
        return;
    }
    for_each(&STACKS, |stack| {
        for options in [&[][..], &["-r"]] {
            let arguments = arguments(options, stack);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let variant = [options, &[stack[0], stack[1]]].concat().join(" ");
            Row::new(row_name!(), &arguments).variant(&variant).setup(setup).compare(exercise);
        }
    });
}

#[test]
fn images_in_partitions_and_archives_for_clients_in_one_process() {
    if !["qemu-img", "tar", "gzip", "xz"].into_iter().all(has) {
        return;
    }
    for_each(&STACKS, |stack| {
        let arguments = arguments(&["--isolation=shared"], stack);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let builder = ours(&arguments);
        setup(builder.dir());
        let server = builder.start();
        let disk = std::fs::read(server.dir().join("disk")).unwrap();
        let mut clients = [server.connected(""), server.connected("")];
        for client in &mut clients {
            assert!(client.call(&Ask::read(0, SIZE)).unwrap().data == disk);
        }
        drop(clients);
        assert!(server.connected("").call(&Ask::read(512, 512)).unwrap().data == disk[512..1024]);
    });
}
