//! The partition filter: partitions of disks that Debian's partitioning plugin makes, of a disk
//! with logical partitions, and of disks whose tables make no sense.

use std::path::Path;
use std::process::Command;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::ours;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir, row_name};

const SECTOR: usize = 512;

/// Writes an MBR or EBR at a sector: entries of type, start and count.
fn write_mbr(disk: &mut [u8], sector: usize, entries: &[(u8, u32, u32)]) {
    let record = &mut disk[sector * SECTOR..][..SECTOR];
    for (entry, (kind, start, count)) in record[446..].chunks_exact_mut(16).zip(entries) {
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&count.to_le_bytes());
    }
    record[510..].copy_from_slice(&[0x55, 0xaa]);
}

/// Sectors of the disk with logical partitions.
const COUNT: usize = 256;

/// Each sector holds its number; partition 1 is at 8, the logical ones follow their EBRs at 64, 96
/// and 128.
fn logical(dir: &TempDir) {
    let mut disk: Vec<u8> = (0..COUNT).flat_map(|n| [n as u8; SECTOR]).collect();
    disk[SECTOR..][..8].fill(0);
    write_mbr(&mut disk, 0, &[(0x83, 8, 8), (0x05, 64, 192), (0, 16, 8), (0x83, 250, 8)]);
    write_mbr(&mut disk, 64, &[(0x83, 2, 10), (0x05, 32, 32)]);
    write_mbr(&mut disk, 96, &[(0x83, 2, 20), (0x05, 64, 32)]);
    write_mbr(&mut disk, 128, &[(0x83, 2, 30), (0x05, 32, 32)]);
    std::fs::write(dir.join("disk"), disk).unwrap();
}

/// Disks of six partitions of unequal size with a GPT, and of four with an MBR.
fn partitioned(dir: &TempDir) {
    let files: Vec<_> = (1..=6)
        .map(|number: u8| {
            let path = dir.join(&format!("part{number}"));
            std::fs::write(&path, vec![number; 10_000 * usize::from(number)]).unwrap();
            path
        })
        .collect();
    let Some(debian) = Binary::debian() else { return };
    for (kind, count) in [("gpt", 6), ("mbr", 4)] {
        let status = Command::new(debian.path())
            .args(["-U", "-", "partitioning", &format!("partition-type={kind}")])
            .args(&files[..count])
            .args(["--run", &format!("nbdcopy \"$uri\" {}", dir.join(kind).display())])
            .status();
        assert!(status.unwrap().success());
    }
}

fn requests(s: &mut Session) {
    s.open();
    s.read(0, 512);
    s.read(9728, 512);
    s.read(10_240, 512);
    s.write(512, 512, 0xaa);
    s.ask(&Ask::write_zeroes(1024, 512));
    s.read(0, 4096);
    s.block_status(0, 4096);
    s.disconnect();
}

fn row(name: &str, disk: &str, number: u32, setup: fn(&TempDir)) {
    let (path, parameter) = (format!("{{dir}}/{disk}"), format!("partition={number}"));
    let arguments = ["--filter=partition", "file", &path, &parameter];
    Row::new(name, &arguments).variant(&format!("{disk} {number}")).setup(setup).compare(requests);
}

#[test]
fn partitions_of_debians_disks() {
    for_each(
        &[("gpt", 1), ("gpt", 6), ("gpt", 7), ("gpt", 129), ("mbr", 1), ("mbr", 4)],
        |(d, n)| {
            row(row_name!(), d, n, partitioned);
        },
    );
}

#[test]
fn primary_and_logical_partitions() {
    for_each(&[1, 2, 3, 4, 5, 6, 7, 8, 9], |number| row(row_name!(), "disk", number, logical));
}

#[test]
fn disks_without_a_partition_table() {
    for_each(&[0, 511, 1023, 1024], |size| {
        let (size, name) = (format!("size={size}"), size.to_string());
        let arguments = ["--filter=partition", "memory", &size, "partition=1"];
        Row::new(row_name!(), &arguments).variant(&name).compare(|s| {
            s.connect();
            s.go("");
        });
    });
}

/// Fields of the GPT that Debian's server refuses, too: where, and what they are changed to.
#[test]
fn tables_that_make_no_sense() {
    for_each(&[(592, u32::MAX), (596, 64), (596, 0), (592, 0), (1064, u32::MAX)], |(at, value)| {
        let name = format!("{at}={value}");
        let change = format!(
            "printf '{}' | dd of=\"$0\" bs=1 seek={at} conv=notrunc status=none",
            value.to_le_bytes().map(|byte| format!("\\{byte:03o}")).concat()
        );
        let arguments = ["--filter=partition", "file", "{dir}/gpt", "partition=1"];
        Row::new(row_name!(), &arguments).variant(&name).setup(partitioned).compare(|s| {
            let path = s.dir().join("gpt");
            assert!(
                Command::new("sh").args(["-c", &change]).arg(&path).status().unwrap().success()
            );
            s.connect();
            s.go("");
        });
    });
}

#[test]
fn parameters_of_partition() {
    for_each(
        &["", "partition=0", "partition=-1", "partition=1", "partition=99999999999"],
        |text| {
            let all = ["--filter=partition", "null", "1M", "--run", "true", text];
            let arguments = if text.is_empty() { &all[..5] } else { &all[..] };
            Row::new(row_name!(), arguments).variant(text).compare_command();
        },
    );
}

/// A client sees what a client in another process writes, also the table, which is read for each
/// connection.
#[test]
fn two_clients_in_two_processes_have_the_same_partition() {
    let dir = TempDir::new();
    logical(&dir);
    let disk = dir.join("disk");
    let argument = |path: &Path| path.display().to_string();
    let mut server = ours(&["--filter=partition", "file", &argument(&disk), "partition=5"]).start();
    let (mut one, mut two) = (server.connected(""), server.connected(""));
    assert_eq!(one.call(&Ask::write(512, [7; 512])).unwrap().error, None);
    assert_eq!(two.call(&Ask::read(0, 1024)).unwrap().data, [[66; 512], [7; 512]].concat());
    let mut bytes = std::fs::read(&disk).unwrap();
    write_mbr(&mut bytes, 64, &[(0x83, 3, 10)]);
    std::fs::write(&disk, bytes).unwrap();
    let mut three = server.connected("");
    assert_eq!(three.call(&Ask::read(0, 512)).unwrap().data, [7; 512]);
    assert_eq!(two.call(&Ask::read(0, 512)).unwrap().data, [66; 512]);
    drop((one, two, three));
    assert!(server.stop().success());
}
