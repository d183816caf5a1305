//! Pre-shared keys: psktool's file, libnbd and qemu. nbdkit-tls(1), "TLS with Pre-Shared Keys
//! (PSK)".

use std::collections::BTreeSet;
use std::path::Path;

use nbd_protocol::constants::{Opt, Rep};
use nbdkit_tests::binary::Binary;
use nbdkit_tests::server::Builder;
use nbdkit_tests::tls::pre_shared_keys;
use nbdkit_tests::{Server, TempDir};

use super::clients::noise;
use super::memory::{hexadecimal, processes, search, windows};
use super::{has, may, must};

/// A directory with `keys.psk` for alice and bob; `None` if there are no tools.
fn keys() -> Option<TempDir> {
    if !has("psktool") || !has("nbdinfo") {
        return None;
    }
    let dir = TempDir::new();
    pre_shared_keys(&dir.join("keys.psk"), &["alice", "bob"]);
    Some(dir)
}

fn server(keys: &TempDir, arguments: &[&str]) -> Builder {
    let file = format!("--tls-psk={}", keys.join("keys.psk").display());
    Server::nbdkit([file.as_str(), "--tls=require"]).binary(Binary::ours()).args(arguments)
}

fn uri(server: &Server, identity: &str, file: &Path) -> String {
    let socket = server.socket().display();
    format!("nbds+unix://{identity}@/?socket={socket}&tls-psk-file={}", file.display())
}

#[test]
fn libnbd_s_tools_connect_and_copy() {
    let Some(keys) = keys() else { return };
    let file = keys.join("keys.psk");
    let content = noise(32 << 20);
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let server = server(&keys, &[isolation, "memory", "32M"]).start();
        for identity in ["alice", "bob"] {
            let text = must("nbdinfo", &[&uri(&server, identity, &file)]).stdout;
            assert!(text.contains("with TLS"), "{text}");
        }
        let (source, target) = (server.dir().join("source"), server.dir().join("target"));
        std::fs::write(&source, &content).expect("written");
        let uri = uri(&server, "alice", &file);
        must("nbdcopy", &["--requests=16", "--connections=2", &source.to_string_lossy(), &uri]);
        must("nbdcopy", &["--requests=16", "--connections=2", &uri, &target.to_string_lossy()]);
        assert!(std::fs::read(&target).expect("a copy") == content, "{isolation}");
    }
}

/// It takes as long to load as all the rest, and is code that others need not have in their address
/// space.
#[test]
fn only_the_program_for_pre_shared_keys_has_openssl() {
    let Some(keys) = keys() else { return };
    let with = server(&keys, &["--sandbox=off", "null", "1M"]).start();
    let without = Server::nbdkit(["--sandbox=off", "null", "1M"]).binary(Binary::ours()).start();
    for (server, expected) in [(with, true), (without, false)] {
        let (_, template, _) = processes(&server);
        let maps = std::fs::read_to_string(format!("/proc/{template}/maps")).expect("its maps");
        assert_eq!(maps.contains("/libcrypto.so"), expected);
    }
}

#[test]
fn qemu_img_connects_with_tls_1_2_and_1_3() {
    let Some(keys) = keys() else { return };
    if !has("qemu-img") {
        return;
    }
    for (priority, version) in [
        ("NORMAL:-VERS-ALL:+VERS-TLS1.2:+ECDHE-PSK:+DHE-PSK:+PSK", "(TLS1.2)-(ECDHE-PSK"),
        (
            "NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK:+DHE-PSK:+PSK",
            "(TLS1.3)-(TLS_AES_128_GCM_SHA256",
        ),
    ] {
        let server =
            server(&keys, &["-v", "-D", "nbdkit.tls.session=1", "memory", "8M"]).tcp().start();
        let source = keys.join("source").to_string_lossy().into_owned();
        std::fs::write(&source, noise(8 << 20)).expect("written");
        let object = format!(
            "tls-creds-psk,id=tls0,endpoint=client,dir={},username=bob,priority={priority}",
            keys.path().display()
        );
        let image = format!(
            "driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port={},file.tls-creds=tls0",
            server.address().port()
        );
        must(
            "qemu-img",
            &[
                "convert",
                "--object",
                &object,
                "-n",
                "--target-image-opts",
                "-f",
                "raw",
                &source,
                &image,
            ],
        );
        let back = keys.join("back").to_string_lossy().into_owned();
        must(
            "qemu-img",
            &["convert", "--object", &object, "--image-opts", &image, "-O", "raw", &back],
        );
        must("cmp", &[&source, &back]);
        let _ = server.wait_for_stderr(version);
        let _ = server.wait_for_stderr("TLS: PSK username: bob");
    }
}

/// Whoever guesses learns nothing about which names there are.
#[test]
fn unknown_identities_and_wrong_keys_look_alike() {
    let Some(keys) = keys() else { return };
    let server = server(&keys, &["memory", "1M"]).start();
    let other = keys.join("other.psk");
    pre_shared_keys(&other, &["alice", "carol"]);
    let refused = |identity: &str| {
        let finished = may("nbdinfo", &["--size", &uri(&server, identity, &other)]);
        assert!(!finished.status.success(), "{identity}");
        finished.stderr.replace(identity, "X")
    };
    assert_eq!(refused("alice"), refused("carol"));
    assert!(
        may("nbdinfo", &["--size", &uri(&server, "alice", &keys.join("keys.psk"))])
            .status
            .success()
    );
}

#[test]
fn a_worker_has_the_key_of_its_client_and_no_other() {
    let Some(keys) = keys() else { return };
    if !has("nbdsh") || !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: needs root, to read the memory of others");
    }
    let text = std::fs::read_to_string(keys.join("keys.psk")).expect("a file");
    let key = |identity: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(identity)?.strip_prefix(':'));
        let line = line.expect("a key");
        (vec![line.as_bytes().to_vec()], windows(&[hexadecimal(line)]))
    };
    let server = server(&keys, &["memory", "1M"]).start();
    let local = "h.set_uri_allow_local_file(True)";
    let connect = format!("h.connect_uri(\"{}\")", uri(&server, "alice", &keys.join("keys.psk")));
    let mut client = std::process::Command::new("/usr/bin/nbdsh")
        .env("PATH", "/usr/bin:/bin")
        .args(["-c", local, "-c", &connect, "-c", "print(h.pread(512, 0) and 1, flush=True)"])
        .args(["-c", "import sys; sys.stdin.read()"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("nbdsh");
    let mut line = String::new();
    let stdout = client.stdout.take().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("read");
    let (listener, template, workers) = processes(&server);
    let bob = key("bob");
    for pid in workers.iter().copied().chain([template]) {
        assert_eq!(search(pid, &bob.0).0 + search(pid, &bob.1).0, 0, "process {pid}");
    }
    assert_eq!(workers.len(), 1);
    assert!(search(workers[0], &key("alice").1).0 > 0, "the search finds what is there");
    assert_eq!(search(template, &key("alice").1).0, 0);
    assert!(search(listener, &bob.1).0 > 0);
    drop(client.stdin.take());
    client.wait().expect("its end");
}

/// A ClientHello of TLS 1.2 that offers ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256 with P-256: what
/// the server draws at random comes back in clear, before any key is used. RFC 5246, 7.4.1.2.
fn hello_of_tls_1_2() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session; the cipher; no compression.
    body.extend([0, 0, 2, 0xcc, 0xac, 1, 0]);
    // supported_groups, ec_point_formats, renegotiation_info.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0xff, 1, 0, 1, 0];
    body.extend([0, extensions.len() as u8]);
    body.extend(extensions);
    let mut record = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    record.extend(body);
    record
}

/// The template has rehearsed a session, and workers inherit the generator that it has used.
#[test]
fn no_two_workers_draw_the_same_random_numbers() {
    /// RFC 5246, 7.4.
    const SERVER_HELLO: u8 = 2;
    const SERVER_KEY_EXCHANGE: u8 = 12;
    const SERVER_HELLO_DONE: u8 = 14;
    const CLIENTS: usize = 8;
    let Some(keys) = keys() else { return };
    let server = server(&keys, &["null", "1M"]).start();
    let mut drawn = BTreeSet::new();
    for _ in 0..CLIENTS {
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        assert_eq!(client.simple_option(Opt::STARTTLS, &[]).expect("a reply").reply, Rep::ACK);
        client.send_raw(&hello_of_tls_1_2()).expect("sent");
        let mut messages = Vec::new();
        loop {
            let header = client.receive_raw(5).expect("a record");
            assert_eq!(header[0], 22, "a handshake");
            let length = u16::from_be_bytes([header[3], header[4]]).into();
            messages.extend(client.receive_raw(length).expect("its content"));
            if messages.ends_with(&[SERVER_HELLO_DONE, 0, 0, 0]) {
                break;
            }
        }
        let mut rest = &messages[..];
        while let [kind, a, b, c, ..] = *rest {
            let (message, others) = rest[4..].split_at(u32::from_be_bytes([0, a, b, c]) as usize);
            rest = others;
            match kind {
                SERVER_HELLO => assert!(drawn.insert(message[2..34].to_vec()), "its random"),
                SERVER_KEY_EXCHANGE => {
                    let key = &message[message.len() - 65..];
                    assert_eq!(key[0], 4, "a point");
                    assert!(drawn.insert(key.to_vec()), "its ephemeral key");
                }
                _ => {}
            }
        }
    }
    assert_eq!(drawn.len(), 2 * CLIENTS);
}

#[test]
fn a_file_that_is_no_good_is_an_error_that_names_the_line() {
    let dir = TempDir::new();
    std::fs::write(dir.join("keys.psk"), "alice:00ff\nbob\n").expect("written");
    let error = server(&dir, &["null"]).try_start().expect_err("refused").stderr;
    assert!(error.contains("keys.psk:2: expected IDENTITY:KEY"), "{error}");
}
