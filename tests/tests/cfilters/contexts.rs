//! Contexts that filters open, share, put in place and close themselves.

use nbdkit_tests::{Ask, Server};

use crate::support::{compare, compile, connected, exercise, read};

#[test]
fn every_way_to_manage_contexts_is_nbdkits() {
    for way in ["shared", "again", "none"] {
        let way = format!("contexts={way}");
        compare("contexts.c", &[], &["--filter={FILTER}", "memory", "1M", &way], exercise);
    }
}

#[test]
fn a_shared_context_serves_clients_and_a_thread_of_the_filters_at_once() {
    let filter = format!("--filter={}", compile("contexts.c", &[]));
    for way in ["contexts=shared", "contexts=associated"] {
        let mut server = Server::nbdkit(["-v", &filter, "memory", "1M", way]).start();
        let mut clients: Vec<_> = (0..4).map(|_| connected(&server)).collect();
        let reply = clients[0].call(&Ask::write(4096, *b"shared")).expect("a reply");
        assert_eq!(reply.error, None);
        for client in &mut clients {
            assert_eq!(read(client, 4096, 6), b"shared");
        }
        for mut client in clients {
            client.disconnect().expect("gone");
        }
        assert_eq!(read(&mut connected(&server), 4096, 6), b"shared");
        assert!(server.stop().success());
        let stderr = server.stderr_text_after_end();
        assert!(stderr.contains("the thread has read: yes"), "{stderr}");
        // Opened once, whatever the number of clients.
        assert_eq!(stderr.matches("memory: open ").count(), 1, "{stderr}");
        assert_eq!(stderr.matches("memory: finalize").count(), 1, "{stderr}");
        assert_eq!(stderr.matches("memory: close").count(), 1, "{stderr}");
    }
}

#[test]
fn a_context_outside_of_a_connection_must_be_a_shared_one() {
    let filter = format!("--filter={}", compile("contexts.c", &["-DOUTSIDE"]));
    let server = Server::nbdkit([&filter, "memory", "1M", "contexts=shared"]).start();
    let _ = server.wait_for_stderr(
        "nbdkit_next_context_open: no connection in this thread, and the context is not shared",
    );
}

#[test]
fn a_context_that_is_replaced_again_and_again_leaves_nothing_open() {
    let filter = format!("--filter={}", compile("contexts.c", &[]));
    let mut server = Server::nbdkit(["-v", &filter, "memory", "1M", "contexts=again"]).start();
    let mut client = connected(&server);
    for _ in 0..20 {
        assert_eq!(read(&mut client, 0, 4), [0; 4]);
    }
    client.disconnect().expect("gone");
    assert!(server.stop().success());
    let stderr = server.stderr_text_after_end();
    for event in ["memory: open ", "memory: finalize", "memory: close"] {
        assert_eq!(stderr.matches(event).count(), 21, "{event}: {stderr}");
    }
}

#[test]
fn a_filter_that_opens_nothing_below_is_the_disk() {
    let filter = format!("--filter={}", compile("contexts.c", &[]));
    let server = Server::nbdkit([&filter, "memory", "1", "contexts=none"]).start();
    let mut client = connected(&server);
    assert_eq!(client.export().map(|(size, _)| size), Some(65536));
    assert_eq!(read(&mut client, 65532, 4), b"nnnn");
}
