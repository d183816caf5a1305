//! TLS to upstream servers: with certificates and with pre-shared keys, and who is not believed.

use std::path::Path;

use nbdkit_tests::server::{Server, ours};
use nbdkit_tests::tls::{Authority, KeyType, is_possible, pre_shared_keys};
use nbdkit_tests::workout::stress;
use nbdkit_tests::{Ask, TempDir};

use super::socket;

/// An upstream server over TCP with a certificate for localhost and 127.0.0.1.
fn upstream(pki: &Path, more: &[&str]) -> Server {
    let pki = format!("--tls-certificates={}", pki.display());
    ours(&["--tls=require", &pki]).args(more).args(["pattern", "1M"]).tcp().start()
}

/// Whether a client gets as far as reading, or the line that the log has.
fn reads(parameters: &[String]) -> Result<(), String> {
    let server = ours(&["nbd"]).args(parameters).try_start().map_err(|it| it.stderr)?;
    let mut client = server.connect();
    client.handshake().unwrap();
    if client.go("", &[]).unwrap().end.reply.is_error() {
        return Err(server.wait_for_stderr("error: "));
    }
    assert_eq!(client.call(&Ask::read(8, 8)).unwrap().data, 8_u64.to_be_bytes());
    Ok(())
}

#[test]
fn a_server_is_believed_if_its_certificate_is_by_the_authority_and_about_the_host() {
    if !is_possible() {
        return;
    }
    let dir = TempDir::new();
    let (pki, other) = (dir.join("pki"), dir.join("other"));
    Authority::new(&pki, "authority").issue_server(&pki, KeyType::Ecdsa);
    let _stranger = Authority::new(&other, "stranger");
    let upstream = upstream(&pki, &[]);
    let port = upstream.address().port();
    let certificates = |dir: &Path| format!("tls-certificates={}", dir.display());
    let at = |host: &str| [format!("hostname={host}"), format!("port={port}")];
    for (parameters, expected) in [
        ([&at("localhost")[..], &[certificates(&pki)]].concat(), ""),
        ([&at("127.0.0.1")[..], &[certificates(&pki), "tls=require".to_owned()]].concat(), ""),
        (vec![format!("nbds://localhost:{port}?tls-certificates={}", pki.display())], ""),
        ([&at("127.0.0.1")[..], &[certificates(&other)]].concat(), "UnknownIssuer"),
        (
            [&at("127.0.0.1")[..], &[certificates(&other), "tls-verify=false".to_owned()]].concat(),
            "",
        ),
        (
            vec![format!(
                "nbds://127.0.0.1:{port}?tls-hostname=elsewhere&tls-certificates={}",
                pki.display()
            )],
            "not valid for name",
        ),
        (at("localhost").to_vec(), "requires TLS"),
        ([&at("localhost")[..], &[certificates(&dir.join("none"))]].concat(), "ca-cert.pem"),
    ] {
        match reads(&parameters) {
            Ok(()) => assert_eq!(expected, "", "{parameters:?}"),
            Err(line) => {
                assert!(!expected.is_empty() && line.contains(expected), "{parameters:?}: {line}");
            }
        }
    }
}

#[test]
fn a_server_may_ask_for_a_certificate_of_the_client() {
    if !is_possible() {
        return;
    }
    let dir = TempDir::new();
    let (pki, client) = (dir.join("pki"), dir.join("client"));
    let authority = Authority::new(&pki, "authority");
    authority.issue_server(&pki, KeyType::Ecdsa);
    authority.issue_client(&client, KeyType::Rsa, "client", "");
    let upstream = upstream(&pki, &["--tls-verify-peer"]);
    let uri = |dir: &Path| {
        let port = upstream.address().port();
        vec![format!("nbds://localhost:{port}?tls-certificates={}", dir.display())]
    };
    assert_eq!(reads(&uri(&client)), Ok(()));
    assert!(reads(&uri(&pki)).is_err(), "there is no client-cert.pem");
}

#[test]
fn a_server_without_tls_is_taken_unless_tls_is_required() {
    if !is_possible() {
        return;
    }
    let dir = TempDir::new();
    let _authority = Authority::new(dir.path(), "authority");
    let certificates = format!("tls-certificates={}", dir.path().display());
    for style in [&["pattern", "1M"][..], &["-o", "pattern", "1M"]] {
        let upstream = ours(style).start();
        let parameters = vec![socket(&upstream), certificates.clone()];
        assert_eq!(reads(&parameters), Ok(()));
        let required = [&parameters[..], &["tls=require".to_owned()]].concat();
        assert!(reads(&required).unwrap_err().contains("server refused TLS"));
    }
}

#[test]
fn many_encrypted_requests_at_once() {
    if !is_possible() {
        return;
    }
    let dir = TempDir::new();
    Authority::new(dir.path(), "authority").issue_server(dir.path(), KeyType::Ecdsa);
    let pki = format!("--tls-certificates={}", dir.path().display());
    let certificates = format!("tls-certificates={}", dir.path().display());
    let upstream = ours(&["--tls=require", &pki, "memory", "64M"]).start();
    stress(&["nbd", &socket(&upstream), &certificates]);
    stress(&["nbd", &socket(&upstream), &certificates, "shared=true"]);
}

#[test]
fn pre_shared_keys_in_place_of_certificates() {
    if !Path::new("/usr/bin/psktool").exists() {
        eprintln!("SKIPPED: psktool (gnutls-bin) is not installed");
        return;
    }
    let dir = TempDir::new();
    let (keys, other) = (dir.join("keys"), dir.join("other"));
    pre_shared_keys(&keys, &["alice", "bob"]);
    pre_shared_keys(&other, &["alice"]);
    let psk = format!("--tls-psk={}", keys.display());
    let upstream = ours(&["--tls=require", &psk, "pattern", "1M"]).start();
    let with = |file: &Path, name: &str| {
        reads(&[
            socket(&upstream),
            format!("tls-psk={}", file.display()),
            format!("tls-username={name}"),
        ])
    };
    assert_eq!(with(&keys, "alice"), Ok(()));
    assert_eq!(with(&keys, "bob"), Ok(()));
    assert!(with(&other, "alice").is_err(), "the wrong key");
    assert!(with(&keys, "carol").unwrap_err().contains("there is no key for the user name carol"));
    let uri = format!(
        "nbds+unix://bob@/?socket={}&tls-psk-file={}",
        upstream.socket().display(),
        keys.display()
    );
    assert_eq!(reads(&[uri]), Ok(()));
    // Both ends of this server may have keys, which are not the same.
    let both = format!("tls-psk={}", keys.display());
    let upstream = ours(&["--tls=require", &psk, "memory", "64M"]).start();
    stress(&["nbd", &socket(&upstream), &both, "tls-username=alice"]);
}
