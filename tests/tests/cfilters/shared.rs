//! One address space: who serves when a filter in C is in the stack, what a crash does, and many
//! clients at once.

use std::time::Instant;

use nbdkit_tests::workout::stress;
use nbdkit_tests::{Ask, Server};

use crate::support::{DEADLINE, compile, connected, debian_plugin, read, served_again};

#[test]
fn a_filter_in_c_on_a_builtin_plugin_is_served_by_one_process_with_the_compat_sandbox() {
    let filter = format!("--filter={}", compile("every.c", &[]));
    for (isolation, processes) in [(None, 0), (Some("--isolation=connection"), 2)] {
        let arguments = isolation.into_iter().chain(["-v", &*filter, "null", "1M"]);
        let server = Server::nbdkit(arguments).start();
        let _clients = [connected(&server), connected(&server)];
        assert_eq!(server.workers().len(), processes, "{isolation:?}");
        let line = server.wait_for_stderr("sandbox=compat");
        assert!(line.contains("does not declare what it needs"), "{line}");
    }
    let server = Server::nbdkit(["null", "1M"]).start();
    let _client = connected(&server);
    assert_eq!(server.workers().len(), 1);
    assert!(!server.stderr_text().contains("compat"));
}

#[test]
fn a_crash_is_reported_and_clients_can_come_again() {
    let filter = format!("--filter={}", compile("crash.c", &[]));
    for isolation in ["--isolation=shared", "--isolation=connection"] {
        let mut server = Server::nbdkit([isolation, &filter, "null", "1M"]).start();
        let mut client = connected(&server);
        assert_eq!(read(&mut client, 0, 512), [0; 512]);
        assert!(client.call(&Ask::read(512, 512)).is_err());
        // The log names signals by name or by number.
        let end = Instant::now() + DEADLINE;
        while !server.stderr_text().lines().any(|l| l.contains("SIGABRT") || l.contains("signal 6"))
        {
            assert!(Instant::now() < end, "{isolation}: {}", server.stderr_text());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        served_again(&server);
        assert!(server.stop().success());
    }
}

#[test]
fn eight_clients_64_deep_with_filters_in_c_of_both_ages_and_builtin_ones() {
    let shift = format!("--filter={}", compile("shift.c", &[]));
    let old = format!("--filter={}", compile("old.c", &[]));
    let contexts = format!("--filter={}", compile("contexts.c", &[]));
    stress(&[&shift, "memory", "4M", "shift=64K"]);
    stress(&[
        "--filter=offset",
        &shift,
        "--filter=cow",
        &old,
        "memory",
        "4M",
        "shift=4K",
        "offset=4K",
    ]);
    for way in ["contexts=shared", "contexts=associated", "contexts=again"] {
        stress(&[&contexts, &shift, "memory", "4M", way]);
    }
}

#[test]
fn a_filter_in_c_on_a_plugin_in_c() {
    let Some(plugin) = debian_plugin("memory") else { return };
    let shift = format!("--filter={}", compile("shift.c", &[]));
    stress(&[&shift, &plugin, "4M", "shift=64K"]);
}
