//! What is loaded from where, and what is said when it is not there. nbdkit-tls(1), "Default TLS
//! behaviour".

use nbdkit_tests::Server;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::run;
use nbdkit_tests::tls::KeyType;
use rustls::ClientConfig;
use std::path::Path;
use std::process::Command;

use super::{DEADLINE, Pki, has, must};

/// Runs the server with a captive command that prints how TLS is, and returns its output and what
/// it said.
fn captive(arguments: &[&str], environment: &[(&str, &Path)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(Binary::ours().path());
    command.args(arguments).args(["-U", "-", "null", "--run", "echo \"tls=$tls $uri\""]);
    let finished = run(command.envs(environment.iter().copied()), DEADLINE);
    (finished.status.code(), finished.stdout, finished.stderr)
}

#[test]
fn certificates_turn_tls_on_and_only_require_changes_the_uri() {
    let Some(pki) = Pki::new() else { return };
    let certificates = format!("--tls-certificates={}", pki.path("server"));
    let (status, text, _) = captive(&[&certificates], &[]);
    assert_eq!(status, Some(0));
    assert!(text.starts_with("tls=1 nbd+unix://"), "{text}");
    let (_, text, _) = captive(&[&certificates, "--tls=require"], &[]);
    assert!(text.starts_with("tls=2 nbds+unix://"), "{text}");
    assert!(
        text.trim_end().ends_with(&format!("&tls-certificates={}", pki.path("server"))),
        "{text}"
    );
    let (_, text, _) = captive(&[&certificates, "--tls=off"], &[]);
    assert!(text.starts_with("tls= nbd+unix://"), "{text}");
}

#[test]
fn without_certificates_require_fails_and_on_warns() {
    let dir = nbdkit_tests::TempDir::new();
    let certificates = format!("--tls-certificates={}", dir.path().display());
    let (status, _, error) = captive(&[&certificates, "--tls=require"], &[]);
    assert_eq!(status, Some(1));
    assert!(error.contains("error: --tls=require but could not load TLS certificates"), "{error}");
    assert!(error.contains("ca-cert.pem: No such file or directory"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    for arguments in [&[certificates.as_str(), "--tls=on"][..], &[&certificates]] {
        let (status, text, error) = captive(arguments, &[]);
        assert_eq!((status, text.split(' ').next()), (Some(0), Some("tls=")), "{error}");
        assert!(error.contains("warning"), "{error}");
    }
}

#[test]
fn files_that_are_no_good_are_errors_that_name_them() {
    let Some(pki) = Pki::new() else { return };
    let server = pki.dir.join("server");
    let certificates = format!("--tls-certificates={}", server.display());
    let other = Pki::new().expect("as before");
    std::fs::copy(other.dir.join("server/server-key.pem"), server.join("server-key.pem"))
        .expect("copied");
    let (status, _, error) = captive(&[&certificates], &[]);
    assert_eq!(status, Some(1));
    assert!(error.contains("the certificate and the key do not match"), "{error}");
    for name in ["server-key.pem", "server-cert.pem", "ca-cert.pem", "ca-crl.pem"] {
        let pki = Pki::new().expect("as before");
        let file = pki.dir.join("server").join(name);
        std::fs::write(&file, "garbage\n").expect("written");
        let certificates = format!("--tls-certificates={}", pki.path("server"));
        let (status, _, error) = captive(&[&certificates], &[]);
        assert_eq!(status, Some(1), "{name}");
        assert!(error.contains(&*file.to_string_lossy()), "{name}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn ordinary_users_have_certificates_at_home() {
    let Some(pki) = Pki::new() else { return };
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: needs root, to become somebody else");
    }
    let home = nbdkit_tests::TempDir::new();
    std::fs::create_dir_all(home.join(".config/pki")).expect("a directory");
    std::fs::rename(pki.dir.join("server"), home.join(".config/pki/nbdkit")).expect("moved");
    must_chown(home.path());
    let nobody = |variable: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        command.arg(Binary::ours().path());
        command.args(["-U", "-", "null", "--run", "echo tls=$tls"]).env("HOME", variable);
        run(&mut command, DEADLINE)
    };
    let finished = nobody(&home.path().to_string_lossy());
    assert_eq!(finished.stdout.trim(), "tls=1", "{}", finished.stderr);
    assert_eq!(nobody("/nonexistent").stdout.trim(), "tls=");
}

fn must_chown(path: &Path) {
    let finished = run(Command::new("chown").args(["-R", "65534:65534"]).arg(path), DEADLINE);
    assert!(finished.status.success(), "{}", finished.stderr);
}

#[test]
fn keys_of_all_kinds_serve() {
    for key in [KeyType::Ecdsa, KeyType::Ed25519, KeyType::Rsa] {
        let Some(pki) = Pki::with(key) else { return };
        let server = pki.server(&["--tls=require", "memory", "1M"]).start();
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        let mut client = client.starttls(pki.authority.client_config(None)).expect("TLS");
        assert!(client.go("", &[]).is_ok(), "{key:?}");
    }
}

/// nbdkit(1), `--tls-priority`: what there is here can be chosen, the rest is refused by name.
#[test]
fn priorities_choose_version_and_cipher() {
    let Some(pki) = Pki::new().filter(|_| has("nbdsh")) else { return };
    for (priority, session) in [
        ("NORMAL:-VERS-TLS1.2", "(TLS1.3)"),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.2", "(TLS1.2)"),
        ("SECURE256:-CHACHA20-POLY1305", "AES_256_GCM_SHA384"),
        ("NONE:+VERS-TLS1.3:+CHACHA20-POLY1305", "(TLS13_CHACHA20_POLY1305_SHA256)"),
    ] {
        let option = format!("--tls-priority={priority}");
        let arguments = [&option, "-v", "-D", "nbdkit.tls.session=1", "memory", "1M"];
        let server = pki.server(&arguments).start();
        must("nbdinfo", &["--size", &pki.uri(&server, "alice")]);
        let line = server.wait_for_stderr("TLS session: ");
        assert!(line.contains(session), "{priority}: {line}");
    }
    // A client that has only what was taken away is not served.
    let server = pki.server(&["--tls-priority=NORMAL:-VERS-TLS1.3", "memory", "1M"]).start();
    let config = |version| pki.authority.client_config_for(None, &[version]);
    assert!(!has_tls(&server, config(&rustls::version::TLS13)));
    assert!(has_tls(&server, config(&rustls::version::TLS12)));
}

/// Whether a client of our own with these versions alone gets to TLS.
fn has_tls(server: &Server, config: ClientConfig) -> bool {
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    client.starttls(config).is_ok()
}

#[test]
fn a_lowest_version_can_be_chosen() {
    use rustls::version::{TLS12, TLS13};
    let Some(pki) = Pki::new() else { return };
    for (option, has_1_2) in [("--tls-min-version=1.2", true), ("--tls-min-version=1.3", false)] {
        for isolation in ["--isolation=connection", "--isolation=shared"] {
            let server = pki.server(&["--tls=require", option, isolation, "memory", "1M"]).start();
            let config = |version| pki.authority.client_config_for(None, &[version]);
            assert!(has_tls(&server, config(&TLS13)), "{option}");
            assert_eq!(has_tls(&server, config(&TLS12)), has_1_2, "{option}");
        }
    }
    for (options, why) in [
        (&["--tls-min-version=1.1"][..], "must be \"1.2\" or \"1.3\""),
        (&["--tls-min-version=1.3", "--tls-priority=NORMAL:-VERS-TLS1.3"], "leaves out TLS 1.3"),
        (&["--tls-crl-expiry=ignore"], "must be \"warn\" or \"enforce\""),
    ] {
        let error = pki.server(options).args(["null"]).try_start().expect_err("refused").stderr;
        assert!(error.contains(why) && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn priorities_that_cannot_be_had_are_refused_by_name() {
    let Some(pki) = Pki::new() else { return };
    for (priority, word) in [
        ("NORMAL:+ARCFOUR-128", "'+ARCFOUR-128'"),
        ("@SYSTEM", "'@SYSTEM'"),
        ("NORMAL:-VERS-ALL", "no version"),
    ] {
        let option = format!("--tls-priority={priority}");
        let error = pki.server(&[&option, "null"]).try_start().expect_err("refused").stderr;
        assert!(error.contains(word) && error.contains("--tls-priority"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn require_and_oldstyle_exclude_each_other() {
    let server = Server::nbdkit(["--tls=require", "-o", "null"]).binary(Binary::ours()).try_start();
    assert!(server.expect_err("refused").stderr.contains("oldstyle"));
}
