//! Rules and rates that may change, or that clients share by address or export: the ip filter's
//! files, and address-rate and export-rate of the rate filter.

use std::time::{Duration, Instant};

use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, Server, TempDir};

fn is_admitted(server: &Server) -> bool {
    server.connect().greeting().is_ok()
}

#[test]
fn a_file_of_rules_is_read_for_each_client() {
    let dir = TempDir::new();
    let [allow, deny] = ["allow", "deny"].map(|name| dir.join(name));
    let set = |path: &std::path::Path, rules: &str| {
        let new = path.with_extension("new");
        std::fs::write(&new, rules).expect("a file");
        std::fs::rename(&new, path).expect("replaced");
    };
    set(&allow, "");
    set(&deny, "");
    let parameters =
        [format!("allow-file={}", allow.display()), format!("deny-file={}", deny.display())];
    let arguments = [&["--filter=ip", "null"], &parameters.each_ref().map(String::as_str)[..]];
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let server = ours(&[&[isolation], &arguments.concat()[..]].concat()).start();
        assert!(is_admitted(&server));
        set(&deny, "# nobody\nall\n");
        assert!(!is_admitted(&server));
        set(&allow, "127.0.0.1,anyunix");
        assert!(is_admitted(&server));
        set(&allow, "any thing");
        assert!(!is_admitted(&server));
        let log = server.wait_for_stderr("allow-file: ");
        assert!(log.contains(&format!("{}:1: ", allow.display())), "{log}");
        std::fs::remove_file(&allow).expect("removed");
        assert!(!is_admitted(&server));
        set(&allow, "anyunix");
        assert!(is_admitted(&server));
        // Rules about certificates are judged when an export is opened.
        set(&allow, "dn:*");
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        assert!(client.go("", &[]).expect("a reply").end.reply.is_error());
        set(&deny, "");
        server.connected("").disconnect().expect("goodbye");
        // And a client that was greeted while there were such rules is judged when there are none.
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        set(&allow, "");
        set(&deny, "all");
        assert!(client.go("", &[]).expect("a reply").end.reply.is_error());
        set(&deny, "");
    }
}

#[test]
fn a_file_that_makes_no_sense_stops_the_start() {
    let dir = TempDir::new();
    let path = dir.join("rules");
    for (text, expected) in
        [(&b"all\n1.2.3.4/99\n"[..], "rules:2: "), (b"\xff", "rules:1: not UTF-8")]
    {
        std::fs::write(&path, text).expect("a file");
        let parameter = format!("deny-file={}", path.display());
        let finished = ours(&["--filter=ip", "null", &parameter]).try_start();
        let finished = finished.expect_err("refused");
        assert!(finished.stderr.contains(expected), "{}", finished.stderr);
        assert_eq!((finished.stderr.lines().count(), finished.status.code()), (1, Some(1)));
    }
    let finished = ours(&["--filter=ip", "null", "allow-file=/nonexistent"]).try_start();
    assert!(finished.expect_err("refused").stderr.contains("/nonexistent: No such file"));
}

/// How long clients of these exports take for a read each, one after the other.
fn takes(rate: &str, exports: &[&str]) -> Duration {
    // 10000 bytes are a second of this rate.
    let server = ours(&["--filter=rate", "null", "1M", rate, "burstiness=0"]).start();
    let start = Instant::now();
    for export in exports {
        let mut client = server.connected(export);
        assert_eq!(client.call(&Ask::read(0, 5000)).expect("a reply").error, None);
    }
    start.elapsed()
}

#[test]
fn clients_of_an_address_or_an_export_share_its_rate() {
    assert!(takes("address-rate=80000", &["a", "b"]) >= Duration::from_secs(1));
    assert!(takes("export-rate=80000", &["a", "a"]) >= Duration::from_secs(1));
}

#[test]
fn clients_of_several_exports_do_not_wait_for_each_other() {
    // 5000 bytes are 100 seconds of this rate, of which a burst of as much is not waited for.
    let arguments = ["--filter=rate", "null", "1M", "export-rate=400", "burstiness=100"];
    let server = ours(&arguments).start();
    for export in ["a", "b", "c"] {
        let mut client = server.connected(export);
        assert_eq!(client.call(&Ask::read(0, 5000)).expect("a reply").error, None);
    }
}
