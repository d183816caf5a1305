//! What the sandbox must not refuse, and how a worker that just breaks is reported.

use nbdkit_tests::red_team::attack;

use crate::bystander::{Bystander, Work};
use crate::server;

#[test]
fn an_allocation_a_thread_and_a_log_line_are_legal() {
    let server = server(&["redteam"]).start();
    assert_eq!(attack(&server, "allocate=67108864").as_deref(), Some("ok 67108864"));
    assert_eq!(attack(&server, "thread").as_deref(), Some("ok 7"));
    assert_eq!(attack(&server, "log=a line").as_deref(), Some("ok"));
    let line = server.wait_for_stderr("a line");
    assert!(line.contains("redteam[") && line.ends_with("error: a line"), "{line}");
    assert!(!server.stderr_text().contains("the sandbox refused"));
}

#[test]
fn a_worker_that_breaks_is_reported_as_what_it_was() {
    let server = server(&["redteam"]).start();
    let bystander = Bystander::start(&server, "workers that break", Work::Writes(0));
    for (way, line) in [
        ("panic=a test", "worker panicked"),
        ("abort", "worker killed by signal 6"),
        ("fault", "worker killed by signal 11"),
        ("overflow-stack", "worker killed by signal 6"),
    ] {
        let before = server.stderr_text().matches(line).count();
        assert_eq!(attack(&server, way), None, "{way}");
        nbdkit_tests::processes::eventually(way, || {
            server.stderr_text().matches(line).count() > before
        });
    }
    let _ = server.wait_for_stderr("panic: ");
    bystander.finish();
    assert!(!server.stderr_text().contains("the sandbox refused"), "{}", server.stderr_text());
}
