//! Who is let in with `--tls-verify-peer`, and what filters learn about clients. nbdkit-tls(1),
//! "Issuing and checking client certificates"; nbdkit-ip-filter(1).

use nbdkit_tests::Server;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::tls::{Authority, KeyType};

use super::{Pki, has, may, must};

/// Whether a client with the certificates in the directory `name` gets to an export.
fn admitted(pki: &Pki, server: &Server, name: &str) -> bool {
    may("nbdinfo", &["--size", &pki.uri(server, name)]).status.success()
}

/// Everybody who might try.
fn pki() -> Option<Pki> {
    let pki = Pki::new().filter(|_| has("nbdinfo"))?;
    let dir = |name: &str| pki.dir.join(name);
    std::fs::create_dir(dir("anonymous")).expect("a directory");
    std::fs::copy(dir("ca/ca-cert.pem"), dir("anonymous/ca-cert.pem")).expect("copied");
    let other = Authority::new(&dir("other"), "Other Authority");
    other.issue_client(&dir("stranger"), KeyType::Ed25519, "alice", "expiration_days = 30\n");
    // It trusts our server all the same.
    std::fs::copy(dir("ca/ca-cert.pem"), dir("stranger/ca-cert.pem")).expect("copied");
    let expired =
        "activation_date = \"2020-01-01 00:00:00\"\nexpiration_date = \"2020-02-01 00:00:00\"\n";
    pki.authority.issue_client(&dir("expired"), KeyType::Ed25519, "expired", expired);
    pki.authority.issue_client(
        &dir("mallory"),
        KeyType::Ed25519,
        "mallory",
        "expiration_days = 30\n",
    );
    Some(pki)
}

#[test]
fn only_certificates_of_the_authority_are_let_in() {
    let Some(pki) = pki() else { return };
    let server = pki.server(&["--tls=require", "--tls-verify-peer", "memory", "1M"]).start();
    assert!(admitted(&pki, &server, "alice"));
    assert!(admitted(&pki, &server, "mallory"));
    assert!(!admitted(&pki, &server, "anonymous"));
    let _ = server.wait_for_stderr("TLS: peer sent no certificates");
    assert!(!admitted(&pki, &server, "stranger"));
    // GnuTLS does not show a certificate that is of no use; others may.
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let config = pki.authority.client_config(Some(&pki.dir.join("stranger")));
    // With TLS 1.3 the server's refusal comes after the client's end of the handshake.
    if let Ok(mut client) = client.starttls(config) {
        assert!(client.go("", &[]).is_err());
    }
    let _ = server.wait_for_stderr("UnknownIssuer");
    assert!(!admitted(&pki, &server, "expired"));
    let _ = server.wait_for_stderr("expired");
    assert!(admitted(&pki, &server, "alice"));
}

/// What `openssl x509 -req` makes has no extensions and is of version 1. nbdkit serves with one,
/// and so do we; a client's is refused, with the reason and the remedy.
#[test]
fn certificates_of_version_1_serve_and_are_refused_from_clients_with_the_reason() {
    let Some(pki) = pki() else { return };
    let dir = |name: &str| pki.dir.join(name);
    pki.authority.issue_version_1(&dir("server"), "server");
    pki.authority.issue_version_1(&dir("old"), "client");
    let server = pki.server(&["--tls=require", "--tls-verify-peer", "memory", "1M"]).start();
    assert!(admitted(&pki, &server, "alice"), "the server's is of version 1");
    assert!(!admitted(&pki, &server, "old"));
    let line = server.wait_for_stderr("X.509 version 1");
    assert!(line.contains("-extfile FILE"), "{line}");
    assert!(admitted(&pki, &server, "mallory"));
    // Not asked for, it is as good as any.
    let server = pki.server(&["--tls=require", "memory", "1M"]).start();
    assert!(admitted(&pki, &server, "old"));
}

/// In one process for all as in one for each.
#[test]
fn the_notice_of_a_connection_names_the_certificate() {
    let Some(pki) = pki() else { return };
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let options = ["--tls=require", "--tls-verify-peer", "--log-connections", isolation];
        let server = pki.server(&[&options[..], &["memory", "1M"]].concat()).start();
        assert!(admitted(&pki, &server, "alice"));
        let line = server.wait_for_stderr("connection ended: client left");
        assert!(
            line.contains(r#", export "", certificate "CN=alice,O=Example\, Inc.,C=US"), 0 bytes"#),
            "{line}"
        );
    }
}

#[test]
fn without_verify_peer_everybody_is() {
    let Some(pki) = pki() else { return };
    let server = pki.server(&["--tls=require", "memory", "1M"]).start();
    for name in ["alice", "anonymous", "stranger", "expired"] {
        assert!(admitted(&pki, &server, name), "{name}");
    }
}

#[test]
fn revoked_certificates_are_not_let_in() {
    let Some(pki) = pki() else { return };
    pki.authority.revoke(&pki.dir.join("mallory/client-cert.pem"), &pki.dir.join("server"));
    let server = pki.server(&["--tls=require", "--tls-verify-peer", "memory", "1M"]).start();
    assert!(admitted(&pki, &server, "alice"));
    assert!(!admitted(&pki, &server, "mallory"));
    let _ = server.wait_for_stderr("Revoked");
}

/// GnuTLS, as nbdkit uses it, goes on with a list that is out of date. So do we, but not in
/// silence, and not if we are told.
#[test]
fn a_list_that_is_out_of_date_still_revokes_and_can_be_made_to_refuse_everybody() {
    let Some(pki) = pki() else { return };
    pki.authority.revoke_in_2020(&pki.dir.join("mallory/client-cert.pem"), &pki.dir.join("server"));
    let arguments = ["--tls=require", "--tls-verify-peer", "memory", "1M"];
    for binary in [Some(Binary::ours()), Binary::debian()].into_iter().flatten() {
        let is_ours = binary == Binary::ours();
        let server = pki.server(&arguments).binary(binary).start();
        if is_ours {
            let _ = server.wait_for_stderr(
                "ca-crl.pem: the next list was due at 2021-11-01T00:00:00Z: certificates that were revoked later are let in",
            );
        }
        assert!(admitted(&pki, &server, "alice"));
        assert!(!admitted(&pki, &server, "mallory"));
    }
    let server = pki.server(&["--tls-crl-expiry=enforce"]).args(arguments).start();
    let _ = server.wait_for_stderr("clients of its authority are refused");
    assert!(!admitted(&pki, &server, "alice"));
    let _ = server.wait_for_stderr("certificate revocation list expired");
    // One that is not out of date.
    pki.authority.revoke(&pki.dir.join("mallory/client-cert.pem"), &pki.dir.join("server"));
    let server = pki.server(&["--tls-crl-expiry=enforce"]).args(arguments).start();
    assert!(admitted(&pki, &server, "alice"));
    assert!(!admitted(&pki, &server, "mallory"));
}

#[test]
fn the_ip_filter_knows_names_and_issuers() {
    let Some(pki) = pki() else { return };
    for (rule, alice, mallory) in [
        ("allow=dn:CN=alice,O=Example\\\\, Inc.,C=US", true, false),
        ("allow=dn:cn=ALICE,*", true, false),
        ("allow=issuer-dn:CN=Test*", true, true),
        ("allow=issuer-dn:CN=Other*", false, false),
    ] {
        for isolation in ["--isolation=connection", "--isolation=shared"] {
            let server = pki
                .server(&[
                    isolation,
                    "--tls=require",
                    "--tls-verify-peer",
                    "--filter=ip",
                    "null",
                    "1M",
                ])
                .args([rule, "deny=all"])
                .start();
            assert_eq!(admitted(&pki, &server, "alice"), alice, "{rule}");
            assert_eq!(admitted(&pki, &server, "mallory"), mallory, "{rule}");
        }
    }
}

#[test]
fn clients_without_tls_have_no_name() {
    let Some(pki) = pki() else { return };
    let server = pki
        .server(&["--tls=on", "--tls-verify-peer", "--filter=ip", "null", "1M"])
        .args(["allow=dn:*", "deny=all"])
        .start();
    assert!(admitted(&pki, &server, "alice"));
    let plain = format!("nbd+unix:///?socket={}", server.socket().display());
    assert!(!may("nbdinfo", &["--size", &plain]).status.success());
    assert!(!may("nbdinfo", &["--list", &plain]).stdout.contains("export="), "no list either");
}

#[test]
fn the_session_is_described_on_demand() {
    let Some(pki) = pki() else { return };
    let server = pki
        .server(&["-v", "-D", "nbdkit.tls.session=1", "--tls=require", "--tls-verify-peer", "null"])
        .start();
    must("nbdinfo", &["--size", &pki.uri(&server, "alice")]);
    let line = server.wait_for_stderr("TLS: peer provided a certificate");
    assert!(
        line.contains("subject `CN=alice,O=Example\\, Inc.,C=US', issuer `CN=Test Authority'"),
        "{line}"
    );
    let line = server.wait_for_stderr("TLS session:");
    assert!(line.contains("(TLS1.3)") && line.contains("AES_128_GCM"), "{line}");
}

#[test]
fn the_tls_fallback_filter_tells_clients_apart() {
    let Some(pki) = pki() else { return };
    let server =
        pki.server(&["--tls=on", "--filter=tls-fallback", "memory", "1M", "tlsreadme=hi"]).start();
    let size = |uri: &str| must("nbdinfo", &["--size", uri]).stdout.trim().to_owned();
    assert_eq!(size(&pki.uri(&server, "alice")), "1048576");
    assert_eq!(size(&format!("nbd+unix:///?socket={}", server.socket().display())), "512");
}
