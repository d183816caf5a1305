//! Attacks on what clients share: a worker fills every shared word with garbage while others work.
//! The disk may be damaged, requests may fail, and new clients may be refused; nobody crashes,
//! hangs, or takes the server with it.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd_protocol::constants::Rep;
use nbdkit_tests::red_team::attack;
use nbdkit_tests::{Ask, Client, Server};

use crate::server;

/// Longer than this is a hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for all that there is; the answers are not looked at, only that there are some.
fn work(client: &mut Client<UnixStream>) -> bool {
    let asks = [
        Ask::write(0, vec![7; 8192]),
        Ask::read(0, 65536),
        Ask::write(65536, vec![8; 512]),
        Ask::read(65000, 4096),
        Ask::flush(),
    ];
    asks.iter().all(|ask| {
        let begin = Instant::now();
        let answered = client.call(ask).is_ok();
        assert!(begin.elapsed() < PATIENCE, "{ask:?} took {:?}", begin.elapsed());
        answered
    })
}

fn client(server: &Server) -> Option<Client<UnixStream>> {
    let mut client = server.connect();
    client.transport().set_read_timeout(Some(PATIENCE)).expect("set");
    let begin = Instant::now();
    let opened = client.handshake().is_ok()
        && client.go("", &[]).is_ok_and(|answer| answer.end.reply == Rep::ACK);
    assert!(begin.elapsed() < PATIENCE, "a new client waits for {:?}", begin.elapsed());
    opened.then_some(client)
}

fn scribbled(arguments: &[&str]) {
    for pattern in ["ones", "zeroes", "noise"] {
        let mut server = server(arguments).start();
        let mut others: Vec<_> = (0..3).map(|_| client(&server).expect("served")).collect();
        assert!(others.iter_mut().all(work), "before the attack all is well");
        let outcome = attack(&server, &format!("scribble={pattern}"));
        let mut answered = 0;
        for _ in 0..20 {
            answered += others.iter_mut().map(work).filter(|ok| *ok).count();
        }
        let new = (0..5).filter_map(|_| client(&server)).count();
        println!(
            "{arguments:?} {pattern}: {outcome:?}, {answered} of 60 rounds, {new} of 5 new clients"
        );
        // Through a damaged overlay the attacker reads another's bytes, or has no export any more.
        let outcome = outcome.expect("it lives");
        assert!(
            !outcome.starts_with("errno") && outcome != "unknown",
            "there was something to fill"
        );
        drop(others);
        let begin = Instant::now();
        assert!(server.stop().code().is_some(), "it ends by itself");
        assert!(begin.elapsed() < PATIENCE, "and soon: {:?}", begin.elapsed());
        let log = server.stderr_text_after_end();
        for bad in ["panic", "killed by signal", "refused system call"] {
            assert!(!log.contains(bad), "{pattern}: {log}");
        }
    }
}

#[test]
fn garbage_in_the_words_of_cow_crashes_nobody() {
    scribbled(&["--filter=cow", "redteam"]);
}

#[test]
fn garbage_in_the_words_of_limit_crashes_nobody() {
    scribbled(&["--filter=limit", "redteam", "limit=1000"]);
}

#[test]
fn garbage_in_the_words_of_stats_crashes_nobody() {
    scribbled(&["--filter=stats", "redteam", "statsfile={dir}/stats"]);
}

#[test]
fn garbage_in_the_lock_of_all_requests_crashes_nobody() {
    scribbled(&["redteam", "serialize=true"]);
}

#[test]
fn garbage_in_the_words_of_many_filters_crashes_nobody() {
    let filters = ["--filter=exitlast", "--filter=error", "--filter=delay", "--filter=cow"];
    scribbled(&[&filters[..], &["redteam", "serialize=true", "error-rate=0%"]].concat());
}
