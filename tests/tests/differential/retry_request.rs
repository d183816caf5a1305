//! The retry-request filter over the script that the retry filter is tested with.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::ours;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, row_name};

use crate::retry::{calls, fail, fail_each_request_once, setup};

fn compare(name: &str, variant: &str, parameters: &[&str], script: impl Fn(&mut Session)) {
    let start = ["--filter=retry-request", "sh", "{dir}/script", "retry-request-delay=1"];
    let arguments = [&start, parameters].concat();
    Row::new(name, &arguments).variant(variant).setup(setup).compare(script);
}

#[test]
fn every_request_is_retried_on_its_connection() {
    compare(row_name!(), "", &["retry-request-retries=1"], |s| {
        s.open();
        fail_each_request_once(s);
        s.disconnect();
    });
}

#[test]
fn the_last_failure_is_the_clients() {
    for_each(&["0", "1"], |retries| {
        let parameter = format!("retry-request-retries={retries}");
        compare(row_name!(), retries, &[&parameter], |s| {
            s.open();
            fail(s, "pread", &["EINVAL first", "ENOSPC second"]);
            s.read(0, 512);
            calls(s);
            s.read(0, 512);
            s.disconnect();
        });
    });
}

#[test]
fn opening_is_retried_unless_that_is_switched_off() {
    for_each(&["true", "false"], |open| {
        let parameter = format!("retry-request-open={open}");
        compare(row_name!(), open, &[&parameter], |s| {
            fail(s, "open", &["EIO for now"]);
            s.connect();
            s.go("");
            calls(s);
        });
    });
}

#[test]
fn parameters_of_retry_request() {
    for_each(
        &[
            "retry-request-retries=-1",
            "retry-request-retries=1001",
            "retry-request-delay=0",
            "retry-request-open=x",
        ],
        |parameter| {
            let arguments = ["--filter=retry-request", "null", parameter, "--run", "true"];
            Row::new(row_name!(), &arguments).variant(parameter).compare_command();
        },
    );
}

/// A client that waits for a retry keeps no other waiting, and its wait ends when it leaves.
#[test]
fn each_of_two_clients_waits_for_itself_and_no_longer_than_it_is_there() {
    let parameters =
        ["--filter=retry-request", "--filter=error", "memory", "1M", "retry-request-delay=1000"];
    let builder =
        ours(&parameters).arg("error-pread-rate=100%").arg("error-pread-file={dir}/failing");
    let failing = builder.dir().join("failing");
    let mut server = builder.start();
    let (mut one, mut two) = (server.connected(""), server.connected(""));
    std::fs::write(&failing, "").unwrap();
    one.send(&Ask::read(0, 512)).unwrap();
    let _ = server.wait_for_stderr("injecting");
    std::fs::remove_file(&failing).unwrap();
    assert_eq!(two.call(&Ask::read(0, 512)).unwrap().error, None);
    drop(one);
    eventually("the worker has ended", || server.workers().len() == 1);
    drop(two);
    assert!(server.stop().success());
}
