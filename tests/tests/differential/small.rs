//! Filters with little in them: nofilter, readonly and rotational.

use nbd_protocol::constants::{NbdError, TransmissionFlags};
use nbdkit_tests::differential::Row;
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, row_name};

use crate::below::{self, ask, open};

#[test]
fn nofilter() {
    below::compare(row_name!(), "", "nofilter", &["null", "1M"], |s| {
        s.open();
        s.read(0, 512);
        s.write(100, 50, 1);
        s.ask(&Ask::write_zeroes(0, 16));
        s.ask(&Ask::trim(512, 128));
        s.ask(&Ask::cache(0, 512));
        s.ask(&Ask::flush());
        s.block_status(0, 65536);
    });
    Row::new(row_name!(), &["--filter=nofilter", "null", "nofilter=1", "--run", "true"])
        .variant("nofilter=1")
        .compare_command();
}

#[test]
fn readonly_filter() {
    let builder = ours(&["--filter=readonly", "file"]);
    let disk = builder.dir().path().join("disk");
    std::fs::write(&disk, [1; 4096]).unwrap();
    let server = builder.arg(&disk).start();
    let mut client = open(&server);
    assert!(client.offers(TransmissionFlags::READ_ONLY));
    assert_eq!(below::read(&mut client, 0, 4096), [1; 4096]);
    assert_eq!(ask(&mut client, &Ask::write(0, [2; 10])), Some(NbdError::Perm));
    assert_eq!(std::fs::read(&disk).unwrap(), [1; 4096]);
}

/// For all clients at once, in processes of their own that are confined.
#[test]
fn readonly_filter_that_is_switched() {
    let builder = ours(&["--filter=readonly", "file"]);
    let (disk, switch) = (builder.dir().path().join("disk"), builder.dir().path().join("switch"));
    std::fs::write(&disk, [1; 4096]).unwrap();
    let file = format!("readonly-file={}", switch.display());
    let server = builder.arg(&disk).arg(file).start();
    let mut clients = [open(&server), open(&server)];
    assert_eq!(server.workers().len(), 2);
    for exists in [false, true, false] {
        if exists {
            std::fs::write(&switch, "").unwrap();
        } else {
            let _ = std::fs::remove_file(&switch);
        }
        for client in &mut clients {
            assert!(!client.offers(TransmissionFlags::READ_ONLY));
            let expected = exists.then_some(NbdError::Perm);
            for request in [Ask::write(0, [2; 10]), Ask::trim(0, 10), Ask::write_zeroes(0, 10)] {
                assert_eq!(ask(client, &request), expected);
            }
            assert_eq!(ask(client, &Ask::flush()), None);
        }
    }
}

#[test]
fn rotational_filter() {
    for (parameter, expected) in
        [("rotational=true", true), ("rotational=false", false), ("size=1M", true)]
    {
        let server = ours(&["--filter=rotational", "null", parameter]).start();
        let client = open(&server);
        assert_eq!(client.offers(TransmissionFlags::ROTATIONAL), expected, "{parameter}");
    }
}
