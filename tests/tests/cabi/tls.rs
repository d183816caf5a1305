//! What a plugin in a file learns of its client's TLS, in the one process that serves all clients
//! and in one for each.

use nbdkit_tests::client::Transport;
use nbdkit_tests::tempdir::TempDir;
use nbdkit_tests::tls::{self, Authority, KeyType};
use nbdkit_tests::{Ask, Client, Server};

use crate::support::{beside_the_server, compile};

fn said<T: Transport>(mut client: Client<T>) -> String {
    assert!(client.go("", &[]).expect("an answer").export().is_some());
    let data = client.call(&Ask::read(0, 512)).expect("a reply").data;
    String::from_utf8_lossy(&data).trim_end_matches('\0').to_owned()
}

#[test]
fn a_plugin_learns_whether_there_is_tls_and_who_the_client_is() {
    if !tls::is_possible() {
        return;
    }
    let dir = TempDir::new();
    let authority = Authority::new(&dir.join("ca"), "Test Authority");
    authority.issue_server(&dir.join("server"), KeyType::Ecdsa);
    authority.issue_client(&dir.join("alice"), KeyType::Rsa, "alice", "expiration_days = 30\n");
    let certificates = format!("--tls-certificates={}", dir.join("server").display());
    let (c, rust) = (compile("tls.c", &[]), beside_the_server("libnbdkit_exported_plugin.so"));
    for (isolation, plugin) in [
        ("--isolation=shared", &[&*c][..]),
        ("--isolation=connection", &[&*c]),
        ("--isolation=shared", &[&*rust, "about-tls=true"]),
    ] {
        for peer in [&["--tls=on"][..], &["--tls=on", "--tls-verify-peer"]] {
            let server = Server::nbdkit([isolation, certificates.as_str()])
                .args(plugin.iter().chain(peer))
                .start();
            let connect = || {
                let mut client = server.connect();
                client.handshake().expect("a greeting");
                client
            };
            assert_eq!(said(connect()), "0 <> <>", "{isolation} {plugin:?} {peer:?}");
            let config = authority.client_config(Some(&dir.join("alice")));
            let encrypted = connect().starttls(config).expect("TLS");
            let expected = if peer.len() > 1 {
                "1 <CN=alice,O=Example\\, Inc.,C=US> <CN=Test Authority>"
            } else {
                "1 <> <>"
            };
            assert_eq!(said(encrypted), expected, "{isolation} {plugin:?} {peer:?}");
        }
    }
}
