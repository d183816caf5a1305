//! Clients that cause many signatures, which a worker that was taken over would need for others'
//! handshakes.

use super::Pki;

/// More than are needed for a line.
const MANY: usize = 110;

#[test]
fn a_peer_with_many_handshakes_that_lead_nowhere_is_reported_once() {
    let Some(pki) = Pki::new() else { return };
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let mut server = pki.server(&["--tls=require", isolation, "memory", "1M"]).start();
        for _ in 0..MANY {
            let mut client = server.connect();
            client.handshake().expect("a greeting");
            // Nothing after TLS.
            let _tls = client.starttls(pki.authority.client_config(None)).expect("TLS");
        }
        let line = server.wait_for_stderr("many signatures or keys");
        assert!(line.contains("warning: TLS:") && line.contains("client pid"), "{line}");
        assert!(line.contains(" 0 of them for clients that were served"), "{line}");
        server.stop();
        let stderr = server.stderr_text_after_end();
        // A minute may end in between, but not two.
        let lines = stderr.matches("many signatures or keys").count();
        assert!((1..=2).contains(&lines), "{stderr}");
    }
}

#[test]
fn clients_that_are_served_are_not_reported() {
    let Some(pki) = Pki::new() else { return };
    let mut server = pki.server(&["--tls=require", "memory", "1M"]).start();
    for _ in 0..MANY {
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        let mut client = client.starttls(pki.authority.client_config(None)).expect("TLS");
        client.go("", &[]).expect("an export");
    }
    server.stop();
    let stderr = server.stderr_text_after_end();
    assert!(!stderr.contains("many signatures"), "{stderr}");
}
