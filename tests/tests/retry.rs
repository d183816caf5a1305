//! The retry filter when a disk cannot be opened at first. Debian's nbdkit is of a version that
//! does not try again then.

use std::time::Instant;

use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, Server, TempDir};

/// A disk that is there once the file `there` is.
fn server(dir: &TempDir, parameters: &[&str]) -> Server {
    let there = dir.join("there");
    let open = format!(
        "open=test -e {0} || {{ echo EIO not yet >&2; touch {0}.asked; exit 1; }}",
        there.display()
    );
    let arguments = [
        &["--filter=retry", "eval", "-v", "get_size=echo 1M", "pread=head -c $3 /dev/zero"],
        &[open.as_str()][..],
        parameters,
    ];
    ours(&arguments.concat()).start()
}

#[test]
fn a_disk_that_is_not_there_at_first_is_tried_again() {
    let dir = TempDir::new();
    let server = server(&dir, &["retries=1000", "retry-delay=20ms", "retry-exponential=no"]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            eventually("it was asked for", || dir.join("there.asked").exists());
            std::fs::write(dir.join("there"), "").expect("a file");
        });
        let mut client = server.connected("");
        assert_eq!(client.call(&Ask::read(0, 512)).expect("a reply").error, None);
    });
    assert!(server.wait_for_stderr("retry 1: waiting").contains("waiting 0.02 seconds"));
}

#[test]
fn a_disk_that_does_not_come_is_given_up_and_a_client_that_goes_is_not_waited_for() {
    let dir = TempDir::new();
    let few = server(&dir, &["retries=2", "retry-delay=1ms"]);
    let mut client = few.connect();
    client.handshake().expect("a greeting");
    assert!(client.go("", &[]).expect("a reply").end.reply.is_error());
    assert_eq!(few.stderr_text().matches("seconds before retrying").count(), 2);
    let long = server(&dir, &["retry-delay=1000"]);
    let mut client = long.connect();
    client.handshake().expect("a greeting");
    client.send_option(nbd_protocol::constants::Opt::GO, &[0; 6]).expect("sent");
    let _ = long.wait_for_stderr("waiting 1000 seconds");
    drop(client);
    let start = Instant::now();
    eventually("the worker ends", || long.workers().is_empty());
    assert!(start.elapsed().as_secs() < 100);
}
