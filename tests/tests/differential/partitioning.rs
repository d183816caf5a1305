//! The partitioning plugin: disks and messages are those of Debian's, but for GUIDs and names, and
//! the tools for partition tables are content with them.

use nbdkit_tests::binary::Binary;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::{Server, ours};
use nbdkit_tests::tools::{disk, run};
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir, row_name};

const MIB: u64 = 1 << 20;

/// Files `a` to `f`, which have 1000, 2000 and so on bytes.
fn files(dir: &TempDir) {
    for (number, name) in (1..).zip(["a", "b", "c", "d", "e", "f"]) {
        std::fs::write(dir.join(name), vec![number; 1000 * usize::from(number)]).unwrap();
    }
    std::fs::write(dir.join("empty"), "").unwrap();
}

/// A disk of `names` by each server.
fn disks(parameters: &[&str], names: &[&str]) -> Option<[Vec<u8>; 2]> {
    let made = |binary: Binary| {
        let server = Server::nbdkit(["partitioning"]).binary(binary);
        files(server.dir());
        let paths: Vec<String> = names
            .iter()
            .map(|name| match name.contains('=') {
                true => (*name).to_owned(),
                false => server.dir().join(name).display().to_string(),
            })
            .collect();
        disk(&server.args(parameters).args(paths).start())
    };
    let Some(debian) = Binary::debian() else {
        assert!(std::env::var_os("CI").is_none(), "CI must have Debian's nbdkit, the oracle");
        eprintln!("SKIPPED: Debian's nbdkit is not installed");
        return None;
    };
    Some([made(debian), made(Binary::ours())])
}

#[test]
fn disks_with_an_mbr_are_debians() {
    for names in [
        &["a"][..],
        &["a", "mbr-id=0x82", "b", "mbr-id=default", "alignment=4096", "c", "mbr-id=7", "d"],
        &["a", "b", "alignment=512", "c", "d", "e"],
        &["alignment=1K", "a", "b", "c", "mbr-id=0x82", "d", "e", "alignment=512K", "f", "a", "b"],
    ] {
        let Some([debian, ours]) = disks(&["partition-type=mbr"], names) else { return };
        assert!(debian == ours, "{names:?}");
    }
}

#[test]
fn disks_with_a_gpt_are_debians_but_for_guids_and_names() {
    let zero = "type-guid=00112233-4455-6677-8899-aabbccddeeff";
    let many = [&["alignment=512"][..], &["a"; 129]].concat();
    for names in [
        &["a"][..],
        &["a", "b", "alignment=512", zero, "c", "type-guid=default", "d", "e", "f"],
        &many,
    ] {
        let Some(mut disks) = disks(&["partition-type=gpt"], names) else { return };
        let count = names.iter().filter(|name| !name.contains('=')).count();
        let entries = count.next_multiple_of(128) * 128;
        for disk in &mut disks {
            let end = disk.len();
            let sectors = end / 512;
            for (header, table) in [(512, 1024), (end - 512, end - 512 - entries)] {
                disk[header + 16..header + 20].fill(0);
                disk[header + 88..header + 92].fill(0);
                for at in (table..table + entries).step_by(128) {
                    disk[at + 16..at + 32].fill(0);
                    disk[at + 56..at + 128].fill(0);
                }
            }
            assert!(sectors > 2048 || count == 129);
        }
        assert!(disks[0] == disks[1], "{count} partitions");
    }
}

#[test]
fn the_kind_of_table_is_debians() {
    for (size, count) in
        [(1_u64 << 20, 4), (1 << 20, 5), (2_199_018_012_160, 1), (2_199_018_012_161, 1)]
    {
        let variant = format!("{count} of {size}");
        let setup: fn(&TempDir) = match size {
            2_199_018_012_160 => |dir| sparse(dir, 2_199_018_012_160),
            2_199_018_012_161 => |dir| sparse(dir, 2_199_018_012_161),
            _ => |dir| sparse(dir, 1 << 20),
        };
        let arguments = [&["-r", "partitioning"][..], &vec!["{dir}/sparse"; count]].concat();
        // Holes of files are reported, which is the row `partitioning_requests`.
        Row::new(row_name!(), &arguments).variant(&variant).setup(setup).compare(|s| {
            s.open();
            s.read(0, 512);
            s.disconnect();
        });
    }
}

fn sparse(dir: &TempDir, size: u64) {
    std::fs::File::create(dir.join("sparse")).unwrap().set_len(size).unwrap();
}

#[test]
fn partitioning_requests() {
    let arguments = ["partitioning", "{dir}/a", "{dir}/b", "alignment=512", "{dir}/c"];
    Row::new(row_name!(), &arguments).setup(files).compare(|s| {
        s.open();
        s.write(MIB, 1000, 8);
        s.write(MIB + 1000, 24, 0);
        s.write(MIB + 990, 40, 0);
        s.write(MIB + 1000, 1, 1);
        s.write(0, 440, 0);
        s.write(440, 72, 1);
        s.write(512, 512, 0);
        s.write(512, 512, 1);
        s.ask(&Ask::flush());
        s.ask(&Ask::cache(0, 4096));
        s.ask(&Ask::trim(MIB, 512));
        s.ask(&Ask::write_zeroes(MIB, 512));
        s.ask(&Ask::write_zeroes(0, 512));
        s.read(MIB - 100, 4096);
        s.read(2 * MIB, 6000);
        s.block_status(0, 4096);
        s.disconnect();
        for name in ["a", "b", "c"] {
            let file = std::fs::read(s.dir().join(name)).unwrap();
            s.note(format!("{name}: {}", nbdkit_tests::transcript::summary(&file)));
        }
    });
}

#[test]
fn partitioning_that_is_read_only() {
    let arguments = ["-r", "partitioning", "{dir}/a"];
    Row::new(row_name!(), &arguments).setup(files).compare(|s: &mut Session| {
        s.open();
        s.write(MIB, 512, 1);
        s.read(MIB, 1024);
        s.disconnect();
    });
}

#[test]
fn partitioning_parameters_that_make_no_sense() {
    for_each(
        &[
            "",
            "file={dir}/none",
            "{dir}/empty",
            "alignment=0",
            "alignment=513",
            "alignment=2M",
            "mbr-id=0x100",
            "mbr-id=-1",
            "type-guid=0FC63DAF84834772-8E79-3D69D8477DE4",
            "partition-type=foo",
            "foo=bar",
        ],
        |parameter| {
            let mut arguments = vec!["-U", "-", "partitioning"];
            arguments.extend(parameter.contains('=').then_some("{dir}/a"));
            arguments.extend((!parameter.is_empty()).then_some(parameter));
            arguments.extend(["{dir}/a"].iter().filter(|_| parameter.starts_with("alignment")));
            arguments.push("--run=exit 0");
            Row::new(row_name!(), &arguments).variant(parameter).setup(files).compare_command();
        },
    );
}

#[test]
fn tools_find_the_partitions() {
    let arguments =
        ["partitioning", "{dir}/a", "{dir}/b", "{dir}/c", "{dir}/d", "{dir}/e", "{dir}/f"];
    for kind in ["mbr", "gpt"] {
        let server = ours(&arguments).arg(format!("partition-type={kind}"));
        files(server.dir());
        let server = server.start();
        let dir = server.dir().path();
        std::fs::write(dir.join("disk"), disk(&server)).unwrap();
        if let Some(text) = run("sfdisk", &["-d", "disk"], dir) {
            let found = text.lines().filter(|line| line.contains("start=")).count();
            assert_eq!(found, if kind == "mbr" { 7 } else { 6 }, "{text}");
            let last = text.lines().find(|line| line.contains("size=          12")).unwrap();
            assert!(last.contains("start=       12288"), "{text}");
        }
        if kind == "gpt"
            && let Some(text) = run("sgdisk", &["-v", "disk"], dir)
        {
            assert!(text.contains("No problems found"), "{text}");
        }
    }
}

#[test]
fn the_partition_filter_takes_off_what_the_plugin_put_around() {
    for (kind, partition, name) in
        [("mbr", 1, "a"), ("mbr", 5, "d"), ("mbr", 7, "f"), ("gpt", 1, "a"), ("gpt", 6, "f")]
    {
        let server = ours(&["--filter=partition", "partitioning"]);
        files(server.dir());
        let server = server.args(["a", "b", "c", "d", "e", "f"].map(|it| format!("{{dir}}/{it}")));
        let parameters = [format!("partition-type={kind}"), format!("partition={partition}")];
        let server = server.args(parameters).start();
        let mut expected = std::fs::read(server.dir().join(name)).unwrap();
        expected.resize(expected.len().next_multiple_of(512), 0);
        assert_eq!(disk(&server), expected, "{kind} {partition}");
    }
}

#[test]
fn two_clients_of_many_files_see_what_the_other_writes() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let server = ours(&[isolation, "partitioning", "alignment=512"]);
        files(server.dir());
        for number in 0..300 {
            std::fs::write(server.dir().join(&format!("n{number}")), [5; 600]).unwrap();
        }
        let server = server.args((0..300).map(|number| format!("{{dir}}/n{number}"))).start();
        let (mut one, mut other) = (server.connected(""), server.connected(""));
        if isolation == "--isolation=connection" {
            assert_eq!(server.workers().len(), 2);
        }
        // The last file, behind 98 sectors of table and two for each other file.
        let last = (98 + 299 * 2) * 512;
        assert_eq!(one.call(&Ask::write(last, vec![9; 600])).unwrap().error, None);
        drop(one);
        let read = other.call(&Ask::read(last - 512, 1536)).unwrap().data;
        assert_eq!(read, [vec![5; 88], vec![0; 424], vec![9; 600], vec![0; 424]].concat());
        assert_eq!(std::fs::read(server.dir().join("n299")).unwrap(), [9; 600]);
    }
}

#[test]
fn a_file_that_shrank_fails_where_it_is_missing() {
    let server = ours(&["partitioning", "{dir}/a", "{dir}/b"]);
    files(server.dir());
    let server = server.start();
    std::fs::write(server.dir().join("a"), [1; 10]).unwrap();
    let mut client = server.connected("");
    let reply = client.call(&Ask::read(MIB, 512)).unwrap();
    assert_eq!(reply.error.map(|it| it.code), Some(5), "EIO");
    assert_eq!(client.call(&Ask::read(2 * MIB, 2000)).unwrap().data, [2; 2000]);
}

#[test]
fn holes_of_files_are_holes_of_the_disk() {
    let server = ours(&["partitioning", "{dir}/sparse", "{dir}/a"]);
    files(server.dir());
    sparse(server.dir(), 8 * MIB);
    let server = server.start();
    let mut session = Session::new(server.socket(), server.dir().path());
    session.open();
    session.block_status(0, 9 * MIB + 1024);
    session.disconnect();
    let found = session.into_lines().into_iter().find(|line| line.contains("BLOCK_STATUS"));
    let expected = "512:data 9436672:hole,zero 1024:data";
    assert!(found.as_ref().is_some_and(|line| line.ends_with(expected)), "{found:?}");
}
