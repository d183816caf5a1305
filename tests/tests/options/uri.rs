//! `--print-uri`. Since 1.40.

use nbdkit_tests::server::free_port;
use nix::sys::signal::Signal;

use crate::support::{
    Daemon, Foreground, Paths, assert_serves, connect, debian_lacks, launch, nbdkit, pid_in, run,
};

/// The four lines of a URI and its form for a shell.
fn lines(uri: &str, quoted: &str) -> [String; 4] {
    [
        uri.to_owned(),
        format!("Shell-quoted URI: {quoted}"),
        "Command to query the NBD endpoint:".to_owned(),
        format!("  nbdinfo {quoted}"),
    ]
}

#[test]
fn the_uri_of_a_unix_socket_is_printed_and_quoted() {
    if debian_lacks("--print-uri") {
        return;
    }
    for option in ["--print-uri", "--print-url", "--show-uri", "--show-url"] {
        let paths = Paths::new();
        let socket = paths.text("sock");
        let mut server =
            Foreground::nbdkit(["-f", option, "-U", &socket, "-P", &paths.text("pid"), "null"]);
        let uri = format!("nbd+unix://?socket={socket}");
        assert_eq!(server.stdout_lines(4), lines(&uri, &format!("\"{uri}\"")), "{option}");
        // The URI is printed a little before the server is ready to be stopped in good order.
        let _ = pid_in(&paths.path("pid"));
        server.signal(Signal::SIGTERM);
        assert!(server.wait().success());
        assert_eq!(server.stdout_lines(4).len(), 4, "nothing more");
    }
}

#[test]
fn the_uri_of_a_tcp_port_needs_no_quotes() {
    if debian_lacks("--print-uri") {
        return;
    }
    let port = free_port().to_string();
    let server = Foreground::nbdkit(["-f", "--print-uri", "-i", "127.0.0.1", "-p", &port, "null"]);
    let uri = format!("nbd://localhost:{port}");
    assert_eq!(server.stdout_lines(4), lines(&uri, &uri));
}

#[test]
fn the_uri_has_the_export_name_and_odd_characters_in_percents() {
    if debian_lacks("--print-uri") {
        return;
    }
    let paths = Paths::new();
    let socket = paths.text("so ck&x=$1");
    let server = Foreground::nbdkit(["-f", "--print-uri", "-e", "a/b c?#é", "-U", &socket, "null"]);
    let encoded = socket.replace("so ck&x=$1", "so%20ck%26x%3D%241");
    let uri = format!("nbd+unix:///a/b%20c%3F%23%C3%A9?socket={encoded}");
    assert_eq!(server.stdout_lines(4), lines(&uri, &format!("\"{uri}\"")));
}

#[test]
fn a_daemon_prints_its_uri_before_the_command_returns() {
    if debian_lacks("--print-uri") {
        return;
    }
    let paths = Paths::new();
    let socket = paths.text("sock");
    let finished =
        launch(&mut nbdkit(["--print-uri", "-U", &socket, "-P", &paths.text("pid"), "null"]));
    let _daemon = Daemon::of(&paths.path("pid"));
    let uri = format!("nbd+unix://?socket={socket}");
    let expected = lines(&uri, &format!("\"{uri}\""));
    assert_eq!(finished.stdout.lines().collect::<Vec<_>>(), expected);
    assert_serves(&mut connect(&paths.path("sock")));
}

#[test]
fn the_uri_of_a_private_socket_leads_to_it() {
    if debian_lacks("--print-uri") {
        return;
    }
    let server = Foreground::nbdkit(["-f", "--print-uri", "-U", "-", "memory", "1M"]);
    let uri = server.stdout_lines(4).remove(0);
    let socket = uri.strip_prefix("nbd+unix://?socket=").expect("a URI");
    assert_serves(&mut connect(socket.as_ref()));
}

#[test]
fn a_command_still_has_standard_output_after_the_uri() {
    if debian_lacks("--print-uri") {
        return;
    }
    let finished = run(["--print-uri", "-U", "-", "null", "--run", "echo ran"]);
    assert!(finished.status.success(), "{finished:?}");
    let found: Vec<&str> = finished.stdout.lines().collect();
    assert_eq!(found.len(), 5, "{found:?}");
    assert_eq!(found[4], "ran");
}

#[test]
fn there_is_no_uri_for_one_client_on_standard_input() {
    if debian_lacks("--print-uri") {
        return;
    }
    let finished = run(["--print-uri", "-s", "null"]);
    assert!(
        !finished.stdout.contains("nbd:") && !finished.stdout.contains("Command"),
        "{finished:?}"
    );
}
