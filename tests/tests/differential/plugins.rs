//! Built-in plugins, one behaviour at a time.

use std::os::unix::fs::symlink;

use nbd_protocol::constants::{CommandFlags, TransmissionFlags};
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir};

const MIB: u64 = 1 << 20;

/// What every writable disk is asked: nothing here depends on its contents.
fn exercise(s: &mut Session) {
    s.open();
    s.read(0, 512);
    s.write(0, 512, 0xaa);
    s.read(0, 1024);
    s.ask(&Ask::write_zeroes(256, 512));
    let fast = Ask::write_zeroes(0, 64).flags(CommandFlags::FAST_ZERO);
    s.ask_if(TransmissionFlags::SEND_FAST_ZERO, &fast);
    s.ask(&Ask::trim(0, 128));
    s.ask(&Ask::cache(0, 512));
    s.ask(&Ask::flush());
    s.ask(&Ask::write(512, [1; 16]).flags(CommandFlags::FUA));
    s.read(0, 1024);
    s.block_status(0, 4096);
    s.disconnect();
}

#[test]
fn memory() {
    Row::new(row_name!(), &["memory", "1M"]).compare(exercise);
}

/// Which parts of a disk in memory are data, zeroes and holes after every kind of request.
#[test]
fn memory_maps() {
    const PAGE: u64 = 32 << 10;
    for_each(&["sparse", "malloc", "zstd"], |allocator| {
        let argument = format!("allocator={allocator}");
        // Not a multiple of the page.
        Row::new(row_name!(), &["memory", "1000001", &argument]).variant(allocator).compare(|s| {
            s.connect();
            s.structured_replies();
            s.set_meta_context("", &["base:allocation"]);
            s.go("");
            let size = 1_000_001;
            let mut ask = |ask: &Ask| {
                s.ask(ask);
                s.block_status(0, size);
                s.block_status(40_000, size - 40_000);
            };
            // Something stays for ever: the map of an empty zstd array crashes Debian's.
            ask(&Ask::write(10, [1]));
            ask(&Ask::write(40_000, [1]));
            ask(&Ask::write(4 * PAGE, vec![0; PAGE as usize]));
            ask(&Ask::write(6 * PAGE + 1, vec![0; 2 * PAGE as usize]));
            ask(&Ask::write(8 * PAGE, vec![5; 4 * PAGE as usize]));
            ask(&Ask::write(9 * PAGE, vec![0; PAGE as usize]));
            ask(&Ask::trim(10 * PAGE, PAGE));
            ask(&Ask::trim(11 * PAGE, 100));
            ask(&Ask::write_zeroes(8 * PAGE, PAGE));
            ask(&Ask::write_zeroes(11 * PAGE + 5, 10).flags(CommandFlags::NO_HOLE));
            ask(&Ask::write_zeroes(11 * PAGE, PAGE).flags(CommandFlags::NO_HOLE));
            ask(&Ask::write(size - 1, [1]));
            ask(&Ask::trim(PAGE, size - PAGE));
            s.read(0, size);
            s.disconnect();
        });
    });
}

#[test]
fn data_maps() {
    for_each(
        &[
            "1 @0x8000 0*70000 2",
            "@40000 0 1 0",
            "(0x55)*40000 @0x40000 (0 0)*10",
            "@0x8000 (1)*32768 @0x20000 (0)*32768 @0x40000 1",
        ],
        |data| {
            let data = format!("data={data}");
            Row::new(row_name!(), &["data", &data, "size=1M"]).variant(&data).compare(|s| {
                s.connect();
                s.structured_replies();
                s.set_meta_context("", &["base:allocation"]);
                s.go("");
                s.block_status(0, 1 << 20);
                s.write(50_000, 1, 0);
                s.block_status(0, 1 << 20);
                s.disconnect();
            });
        },
    );
}

/// A zero by itself is stored by nbdkit, as are those of files and scripts; several are not.
#[test]
fn data_map_of_a_zero_by_itself() {
    Row::new(row_name!(), &["data", "data=@40000 0", "size=1M"]).compare(|s| {
        s.connect();
        s.structured_replies();
        s.set_meta_context("", &["base:allocation"]);
        s.go("");
        s.block_status(0, 1 << 20);
        s.disconnect();
    });
}

#[test]
fn memory_of_the_largest_size() {
    Row::new(row_name!(), &["memory", "9223372036854775807"]).compare(|s| {
        s.open();
        s.write((1 << 62) + 5, 512, 3);
        s.read(1 << 62, 1024);
        s.read((1 << 63) - 2, 1);
        s.read((1 << 63) - 2, 2);
        s.disconnect();
    });
}

#[test]
fn memory_allocators() {
    for_each(&["sparse", "malloc"], |allocator| {
        let argument = format!("allocator={allocator}");
        Row::new(row_name!(), &["memory", "1M", &argument]).variant(allocator).compare(|s| {
            s.open();
            s.write(0, 65536, 5);
            s.read(0, 65536);
            s.ask(&Ask::trim(0, 65536));
            s.read(0, 65536);
            s.disconnect();
        });
    });
}

#[test]
fn block_sizes_of_every_plugin() {
    for_each(
        &[
            &["memory", "1M"][..],
            &["null", "1M"],
            &["full", "1M"],
            &["pattern", "1M"],
            &["data", "1"],
            &["info"],
            &["random", "1M"],
            &["zero"],
            &["--filter=cow", "null", "1M"],
            &["--filter=offset", "null", "1M"],
        ],
        |arguments| {
            Row::new(row_name!(), arguments).variant(&arguments.join(" ")).compare(|s| {
                s.connect();
                s.block_sizes("");
                s.disconnect();
            });
        },
    );
}

#[test]
fn null() {
    Row::new(row_name!(), &["null", "1M"]).compare(exercise);
}

#[test]
fn null_without_a_size() {
    Row::new(row_name!(), &["null"]).compare(|s| {
        s.open();
        s.read(0, 1);
        s.disconnect();
    });
}

#[test]
fn zero() {
    Row::new(row_name!(), &["zero"]).compare(|s| {
        s.open();
        s.read(0, 0);
        s.read(0, 1);
        s.write(0, 1, 1);
        s.ask(&Ask::flush());
        s.disconnect();
    });
}

#[test]
fn full() {
    Row::new(row_name!(), &["full", "1M"]).compare(exercise);
}

#[test]
fn pattern() {
    Row::new(row_name!(), &["pattern", "1M"]).compare(|s| {
        s.open();
        s.read(0, 16);
        s.read(3, 9);
        s.read(0x0001_0000 - 4, 4096);
        s.read(MIB - 5, 5);
        // Writes must repeat the pattern.
        s.ask(&Ask::write(0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8]));
        s.write(0, 16, 1);
        s.ask(&Ask::trim(0, 512));
        s.ask(&Ask::write_zeroes(0, 8));
        s.ask(&Ask::write_zeroes(8, 8));
        s.block_status(0, MIB);
        s.disconnect();
    });
}

#[test]
fn pattern_of_the_largest_size() {
    Row::new(row_name!(), &["pattern", "9223372036854775807"]).compare(|s| {
        s.open();
        s.read((1 << 63) - 17, 16);
        s.disconnect();
    });
}

/// The data plugin's language, an expression at a time.
#[test]
fn data_expressions() {
    for_each(
        &[
            "1 2 3",
            "0x55 0xaa 0377 255",
            "@0x100 1 @512 2",
            "( 0x55 0xAA )*8",
            "( 1 2 ( 3 4 )*2 )*2 5",
            "\"Hello\\n\\x01\"",
            "\"a\"*3 \"b\"",
            "1 @+10 2 @-1 3",
            "@^8 1 @^8 2",
            "le16:0x1234 be16:0x1234 le32:1 be32:1 le64:1 be64:1",
            "1 2 -> \\a ( \\a \\a )*2",
            "( 1 2 3 4 ) -> \\x \\x[1:3] \\x",
            "$hello*2",
            "0*1000 @0x8000 1",
            "# comment\n 1 # another\n 2",
        ],
        |expression| {
            let argument = format!("data={expression}");
            Row::new(row_name!(), &["data", &argument, "hello=\"hi\""])
                .variant(expression)
                .compare(|s| {
                    s.open();
                    s.step("the first 1024 bytes", |client| {
                        let size = client.export().map_or(0, |(size, _)| size);
                        client.call(&Ask::read(0, size.min(1024)))
                    });
                    s.block_status(0, 1);
                    s.disconnect();
                });
        },
    );
}

#[test]
fn data_that_is_written() {
    Row::new(row_name!(), &["data", "size=1M", "data=1 2 3 @65536 4"]).compare(exercise);
}

#[test]
fn data_from_base64_and_raw() {
    for_each(&["base64=aGVsbG8gd29ybGQ=", "raw=hello world"], |argument| {
        Row::new(row_name!(), &["data", argument]).variant(argument).compare(|s| {
            s.open();
            s.read(0, 11);
            s.disconnect();
        });
    });
}

#[test]
fn data_that_is_no_data() {
    for_each(&["data=( 1 2", "data=256", "data=frob", "base64=!!!", "data=1 )"], |argument| {
        let arguments = ["data", argument];
        Row::new(row_name!(), &arguments)
            .variant(argument)
            .normalise(exit_status_only)
            .compare_command();
    });
}

/// Messages of the data plugin's parser are its own.
fn exit_status_only(line: &str) -> Option<String> {
    line.starts_with("exit").then(|| line.to_owned())
}

#[test]
fn info_of_the_export_name() {
    Row::new(row_name!(), &["info"]).compare(|s| {
        s.open_export("hello");
        s.read(0, 5);
        s.write(0, 1, 1);
        s.disconnect();
        s.open_export("");
        s.disconnect();
    });
}

#[test]
fn info_of_the_base64_export_name() {
    Row::new(row_name!(), &["info", "mode=base64exportname"]).compare(|s| {
        s.open_export("aGVsbG8gd29ybGQ=");
        s.read(0, 11);
        s.disconnect();
        s.open_export("!!!");
    });
}

#[test]
fn random_with_a_seed() {
    Row::new(row_name!(), &["random", "1M", "seed=42"]).compare(|s| {
        s.open();
        // The bytes are each server's own; that they stay the same is not.
        s.step("reads the same bytes twice", |client| {
            let first = client.call(&Ask::read(100, 1000))?.data;
            let second = client.call(&Ask::read(100, 1000))?.data;
            Ok(first == second && first.iter().any(|byte| *byte != first[0]))
        });
        s.step("takes back what it gave", |client| {
            let data = client.call(&Ask::read(0, 4096))?.data;
            client.call(&Ask::write(0, data))
        });
        s.ask(&Ask::write(0, vec![0; 4096]));
        s.block_status(0, MIB);
        s.disconnect();
    });
}

fn three_files(dir: &TempDir) {
    for (name, value, length) in [("a", 1, 1000), ("b", 2, 24), ("c", 3, 3072)] {
        std::fs::write(dir.join(name), vec![value; length]).unwrap();
    }
}

#[test]
fn split() {
    let arguments = ["split", "{dir}/a", "{dir}/b", "{dir}/c"];
    Row::new(row_name!(), &arguments).setup(three_files).compare(|s| {
        s.open();
        s.read(0, 4096);
        s.read(990, 100);
        s.write(999, 30, 7);
        s.ask(&Ask::flush());
        s.ask(&Ask::trim(0, 512));
        s.ask(&Ask::write_zeroes(1000, 10));
        s.read(990, 50);
        s.read(4096, 1);
        s.disconnect();
        for name in ["a", "b", "c"] {
            let length = std::fs::metadata(s.dir().join(name)).unwrap().len();
            s.note(format!("{name}: {length} bytes"));
        }
    });
}

#[test]
fn split_without_files() {
    Row::new(row_name!(), &["-U", "-", "split", "--run=exit 0"]).compare_command();
}

fn sparse_disk(dir: &TempDir) {
    let disk = std::fs::File::create(dir.join("disk")).unwrap();
    disk.set_len(MIB).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &[9; 65536], 131_072).unwrap();
}

#[test]
fn file() {
    Row::new(row_name!(), &["file", "{dir}/disk"]).setup(sparse_disk).compare(|s| {
        exercise(s);
        s.open();
        s.block_status(65536, MIB - 65536);
        s.write(262_144, 65536, 1);
        s.ask(&Ask::trim(131_072, 65536));
        s.ask(&Ask::write_zeroes(262_144, 65536));
        s.block_status(65536, MIB - 65536);
        s.read(0, MIB);
        s.disconnect();
        let length = std::fs::metadata(s.dir().join("disk")).unwrap().len();
        s.note(format!("{length} bytes"));
    });
}

#[test]
fn file_that_is_read_only() {
    Row::new(row_name!(), &["-r", "file", "{dir}/disk"]).setup(sparse_disk).compare(exercise);
}

#[test]
fn file_of_an_odd_size() {
    let setup = |dir: &TempDir| std::fs::write(dir.join("odd"), [1; 1001]).unwrap();
    Row::new(row_name!(), &["file", "{dir}/odd"]).setup(setup).compare(|s| {
        s.open();
        s.read(0, 1001);
        s.read(1000, 1);
        s.read(1000, 2);
        s.write(1000, 1, 2);
        s.write(1001, 1, 2);
        s.read(990, 11);
        s.disconnect();
    });
}

#[test]
fn file_that_is_missing() {
    Row::new(row_name!(), &["file", "{dir}/missing"]).compare_command();
}

#[test]
fn file_without_a_name() {
    Row::new(row_name!(), &["file"]).compare_command();
}

#[test]
fn file_from_a_directory() {
    let setup = |dir: &TempDir| {
        std::fs::create_dir(dir.join("disks")).unwrap();
        std::fs::write(dir.join("disks/one"), [1; 512]).unwrap();
        std::fs::write(dir.join("disks/two"), [2; 1024]).unwrap();
        std::fs::write(dir.join("secret"), [3; 512]).unwrap();
        symlink("../secret", dir.join("disks/link")).unwrap();
        std::fs::create_dir(dir.join("disks/sub")).unwrap();
    };
    Row::new(row_name!(), &["file", "dir={dir}/disks"]).setup(setup).compare(|s| {
        s.connect();
        s.step("LIST, sorted", |client| {
            let mut answer = client.list()?;
            answer.exports.sort();
            Ok(answer)
        });
        for export in ["one", "two", "link", "missing", "", "../secret", "sub", ".", "sub/../one"] {
            s.connect();
            s.go(export);
            s.read(0, 512);
            s.disconnect();
        }
        // Once a bad export is refused, another may be asked for.
        s.connect();
        s.info("missing");
        s.go("one");
        s.disconnect();
        s.connect();
        s.export_name("missing");
    });
}
