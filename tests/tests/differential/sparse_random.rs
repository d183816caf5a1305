//! The sparse-random plugin: Debian's disks have other runs and bytes, so what is compared are
//! disks that are all hole or all data, parameters, and a program that copies a disk to itself.

use std::process::Command;

use nbd_protocol::constants::{CommandFlags, TransmissionFlags};
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::ours;
use nbdkit_tests::tools::{disk, run};
use nbdkit_tests::{Ask, row_name};

#[test]
fn sparse_random_disks_of_one_kind() {
    for_each(&["percent=0", "percent=100"], |percent| {
        let arguments = ["sparse-random", "1000001", percent, "random-content=true"];
        Row::new(row_name!(), &arguments).variant(percent).compare(|s| {
            s.open();
            s.write(0, 4096, 0);
            s.write(100, 5000, 1);
            s.ask(&Ask::trim(4096, 4096));
            s.ask(&Ask::write_zeroes(1, 4096));
            let fast = Ask::write_zeroes(0, 64).flags(CommandFlags::FAST_ZERO);
            s.ask_if(TransmissionFlags::SEND_FAST_ZERO, &fast);
            s.ask(&Ask::flush());
            s.ask(&Ask::cache(0, 4096));
            s.block_status(0, 1_000_001);
            s.read(1_000_001, 1);
            s.disconnect();
        });
    });
}

#[test]
fn sparse_random_parameters() {
    for_each(
        &[
            "percent=101",
            "percent=-1",
            "percent=x",
            "percent=1.5",
            "runlength=0",
            "runlength=1",
            "seed=-1",
            "seed=99999999999",
            "seed=0x10",
            "random-content=x",
            "foo=1",
        ],
        |parameter| {
            let arguments = ["-U", "-", "sparse-random", "1M", parameter, "--run=exit 0"];
            Row::new(row_name!(), &arguments).variant(parameter).compare_command();
        },
    );
}

#[test]
fn two_clients_see_one_disk_and_a_seed_gives_the_same_again() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let start = |more: &[&str]| {
            let arguments = [isolation, "sparse-random", "4M", "percent=50", "runlength=64K"];
            ours(&[&arguments, more].concat()).start()
        };
        let server = start(&[]);
        let (mut one, mut other) = (server.connected(""), server.connected(""));
        if isolation == "--isolation=connection" {
            assert_eq!(server.workers().len(), 2);
        }
        let read = one.call(&Ask::read(0, 4 << 20)).unwrap().data;
        assert!(other.call(&Ask::read(0, 4 << 20)).unwrap().data == read);
        assert_eq!(other.call(&Ask::write(0, read)).unwrap().error, None);
        let again =
            [start(&["seed=5"]), start(&["seed=5"]), start(&["seed=6"])].map(|it| disk(&it));
        assert!(again[0] == again[1] && again[0] != again[2]);
    }
}

#[test]
fn a_disk_is_copied_to_itself() {
    for content in ["false", "true"] {
        let content = format!("random-content={content}");
        let server = ours(&["sparse-random", "1G", "runlength=1M", &content]).start();
        let uri = format!("nbd+unix:///?socket={}", server.socket().display());
        if run("nbdcopy", &[&uri, &uri], server.dir().path()).is_none() {
            return;
        }
        // A disk that is another one is not.
        let other = ours(&["sparse-random", "1G", "runlength=1M", &content, "percent=30"]).start();
        let other = format!("nbd+unix:///?socket={}", other.socket().display());
        let copied = Command::new("nbdcopy").args([&uri, &other]).output().unwrap();
        assert!(!copied.status.success());
    }
}
