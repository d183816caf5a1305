//! The ddrescue filter: reads of what was rescued and of what was not.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, TempDir, row_name};

const MAPS: [&str; 4] = [
    "# c\n0x0 +\n0x0 0x2000 +\n0x2000 0x1000 -\n0x3000 0xFD000 +\n",
    "0x0 + 1\n0x0 0x100000 ?\n",
    "",
    "0x0 +\n0x0 0x4000 +\n0x6000 0x1000 *\n0x7000 0x1000 /\n0x8000 0x1 +\n",
];

fn setup(dir: &TempDir) {
    for (number, map) in MAPS.iter().enumerate() {
        std::fs::write(dir.join(&format!("map{number}")), map).unwrap();
    }
}

#[test]
fn reads_of_rescued_and_of_lost_blocks() {
    for_each(&[0, 1, 2, 3], |number| {
        let parameter = format!("ddrescue-mapfile={{dir}}/map{number}");
        let arguments = ["--filter=ddrescue", "memory", "1M", &parameter];
        let variant = number.to_string();
        Row::new(row_name!(), &arguments).variant(&variant).setup(setup).compare(|s| {
            s.open();
            for (offset, count) in [(0, 512), (8000, 192), (8000, 193), (8192, 1), (12_287, 2)] {
                s.read(offset, count);
            }
            for (offset, count) in [(12_288, 4096), (0, 65_536), (32_768, 1), (32_768, 2)] {
                s.read(offset, count);
            }
            s.read((1 << 20) - 512, 512);
            s.write(0, 512, 1);
            s.block_status(0, 65_536);
            s.disconnect();
        });
    });
}

#[test]
fn a_map_file_that_is_not_there() {
    let status = |line: &str| line.starts_with("exit").then(|| line.to_owned());
    let arguments = ["--filter=ddrescue", "null", "ddrescue-mapfile=/absent", "--run", "true"];
    Row::new(row_name!(), &arguments).normalise(status).compare_command();
}

/// The map is read at the start, once for all: the file may be gone when clients come.
#[test]
fn two_clients_in_two_processes_have_one_map() {
    let builder = ours(&["--filter=ddrescue", "pattern", "1M", "ddrescue-mapfile={dir}/map0"]);
    setup(builder.dir());
    let map = builder.dir().join("map0");
    let mut server = builder.start();
    std::fs::remove_file(map).unwrap();
    for mut client in [server.connected(""), server.connected("")] {
        assert_eq!(client.call(&Ask::read(0, 8192)).unwrap().error, None);
        assert!(client.call(&Ask::read(8000, 512)).unwrap().error.is_some());
        client.disconnect().unwrap();
    }
    assert!(server.stop().success());
}
