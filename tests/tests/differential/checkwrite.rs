//! The checkwrite filter: writes that match the disk and those that do not.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, TempDir, row_name};

use crate::filters::capabilities;

const DATA: &str = "data=@512 ( 1 2 3 4 )*128 @1048575 0";

#[test]
fn writes_that_match_and_writes_that_do_not() {
    Row::new(row_name!(), &["--filter=checkwrite", "data", DATA]).compare(|s| {
        s.open();
        s.write(0, 512, 0);
        s.write(1, 512, 0);
        s.ask(&Ask::write(512, [1, 2, 3, 4].repeat(128)));
        s.ask(&Ask::write(508, [0, 0, 0, 0, 1, 2, 3, 4]));
        s.ask(&Ask::write(508, [0, 0, 0, 0, 1, 2, 3, 5]));
        s.ask(&Ask::write_zeroes(0, 512));
        s.ask(&Ask::write_zeroes(0, 513));
        s.ask(&Ask::write_zeroes(1023, 65_536));
        s.ask(&Ask::write_zeroes(1024, 1 << 19));
        s.ask(&Ask::trim(1024, 1 << 19));
        s.ask(&Ask::trim(1000, 1 << 19));
        s.ask(&Ask::flush());
        s.read(500, 600);
        s.block_status(0, 32_768);
        s.disconnect();
    });
}

#[test]
fn capabilities_of_plugins_behind_checkwrite() {
    for_each(&["memory", "null", "zero"], |plugin| {
        let all = ["--filter=checkwrite", plugin, "1M"];
        let arguments = if plugin == "zero" { &all[..2] } else { &all[..] };
        Row::new(row_name!(), arguments).variant(plugin).compare(capabilities);
    });
}

/// Two clients compare with one file, which neither could write to.
#[test]
fn the_file_of_two_clients_stays_as_it_is() {
    let dir = TempDir::new();
    let path = dir.join("disk");
    std::fs::write(&path, [7; 8192]).unwrap();
    let argument = path.display().to_string();
    let mut server = ours(&["--filter=checkwrite", "file", &argument]).start();
    for mut client in [server.connected(""), server.connected("")] {
        assert_eq!(client.call(&Ask::write(100, [7; 5000])).unwrap().error, None);
        assert!(client.call(&Ask::write(100, [8; 5000])).unwrap().error.is_some());
        assert!(client.call(&Ask::trim(0, 4096)).unwrap().error.is_some());
    }
    assert_eq!(std::fs::read(&path).unwrap(), [7; 8192]);
    assert!(server.stop().success());
}
