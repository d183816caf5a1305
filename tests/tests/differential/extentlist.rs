//! The extentlist filter: block status from a file.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, TempDir, row_name};

const SIZE: u64 = 10 << 20;

/// The lists, each in a file of its number; both servers refuse the last two.
const LISTS: [&str; 8] = [
    "",
    "0 1M\n1M 9M hole,zero\n",
    "0 1M\n",
    "5M 1M 1\n0 1M 2\n2M 1M hole\n",
    "0 1M\n1M 20M zero\n",
    "512 512 zero,hole,zero\n1K 1K 0\n",
    "0 2M\n1M 2M\n",
    "0\n",
];

fn setup(dir: &TempDir) {
    for (number, list) in LISTS.iter().enumerate() {
        std::fs::write(dir.join(&format!("list{number}")), list).unwrap();
    }
}

#[test]
fn extents_from_a_list() {
    for_each(&[0, 1, 2, 3, 4, 5], |number| {
        let parameter = format!("extentlist={{dir}}/list{number}");
        let arguments = ["--filter=extentlist", "memory", "10M", &parameter];
        let variant = number.to_string();
        Row::new(row_name!(), &arguments).variant(&variant).setup(setup).compare(|s| {
            s.open();
            s.block_status(0, SIZE);
            s.block_status(512, 1024);
            s.block_status(SIZE - 512, 512);
            s.write(0, 4096, 7);
            s.read(0, 8192);
            s.block_status(0, SIZE);
            s.disconnect();
        });
    });
}

#[test]
fn lists_that_stop_the_start() {
    let status = |line: &str| line.starts_with("exit").then(|| line.to_owned());
    for_each(&["list6", "list7", "absent"], |name| {
        let parameter = format!("extentlist={{dir}}/{name}");
        let arguments = ["--filter=extentlist", "null", &parameter, "--run", "true"];
        let row = Row::new(row_name!(), &arguments).variant(name).setup(setup);
        row.normalise(status).compare_command();
    });
    let alone = ["--filter=extentlist", "null", "--run", "true"];
    Row::new(row_name!(), &alone).compare_command();
    let twice = [&alone[..], &["extentlist=/dev/null", "extentlist=/dev/null"]].concat();
    Row::new(row_name!(), &twice).variant("twice").compare_command();
}

/// The file is read at the start, once for all: it may be gone when clients come.
#[test]
fn two_clients_in_two_processes_have_one_list() {
    let builder = ours(&["--filter=extentlist", "memory", "10M", "extentlist={dir}/list3"]);
    setup(builder.dir());
    let list = builder.dir().join("list3");
    let mut server = builder.start();
    std::fs::remove_file(list).unwrap();
    for _ in 0..2 {
        let mut client = server.connect();
        client.handshake().unwrap();
        client.structured_replies().unwrap();
        client.set_meta_context("", &["base:allocation"]).unwrap();
        assert!(client.go("", &[]).unwrap().export().is_some());
        let reply = client.call(&Ask::block_status(0, 3 << 20)).unwrap();
        assert_eq!(reply.extents(), [(1 << 20, 2), (1 << 20, 3), (1 << 20, 1)]);
        client.disconnect().unwrap();
    }
    assert!(server.stop().success());
}
