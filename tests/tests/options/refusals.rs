//! What a machine or this version cannot do is refused with one clear line, before anything is
//! served.

use nbdkit_tests::Server;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, bind, socket};
use std::os::fd::AsRawFd;

use crate::support::{assert_refused, debian_lacks, run};

/// Whether a socket of AF_VSOCK can be bound here.
fn has_vsock() -> bool {
    let any = VsockAddr::new(u32::MAX, u32::MAX);
    socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .is_ok_and(|fd| bind(fd.as_raw_fd(), &any).is_ok())
}

#[test]
fn vsock_is_served_where_there_is_vsock_and_refused_elsewhere() {
    // A number that no service of the host has.
    let port = "2863311530";
    if has_vsock() {
        let mut server =
            Server::nbdkit(["--vsock", "-p", port, "null"]).without_unix_socket().start();
        assert!(server.stop().success());
        assert_eq!(server.stderr_text_after_end(), "");
    } else {
        assert_refused(["-f", "--vsock", "-p", port, "null"], &["vsock"]);
    }
}

#[test]
fn a_vsock_port_that_is_no_number_of_32_bits_is_refused() {
    for port in ["4294967296", "-5", "abc", ""] {
        assert_refused(["-f", "--vsock", "-p", port, "null"], &["port"]);
    }
}

#[test]
fn an_selinux_label_needs_selinux() {
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("SKIPPED: this machine has SELinux");
        return;
    }
    let label = "--selinux-label=system_u:object_r:svirt_socket_t:s0";
    assert_refused(["-f", "-U", "-", label, "null"], &["selinux-label"]);
    assert_refused(["-f", "-i", "127.0.0.1", "-p", "0", label, "null"], &["selinux-label"]);
}

#[test]
fn tls_is_off_by_default_and_can_be_turned_off() {
    for option in ["--tls=off", "--tls=0", "--tls=no", "--tls=false"] {
        let finished = run(["-U", "-", option, "null", "--run", "exit 3"]);
        assert_eq!(finished.status.code(), Some(3), "{option}: {finished:?}");
    }
}

#[test]
fn tls_that_cannot_be_had_is_refused() {
    assert_refused(["-f", "-U", "-", "--tls=require", "null"], &["TLS"]);
    let none = "--tls-certificates=/nonexistent";
    assert_refused(["-f", "-U", "-", "--tls=require", none, "null"], &["TLS"]);
    assert_refused(
        ["-f", "-U", "-", "--tls-psk=/nonexistent/keys", "null"],
        &["/nonexistent/keys"],
    );
}

#[test]
fn tls_values_that_are_none_are_refused() {
    for value in ["", "foo", "2", " off"] {
        let option = format!("--tls={value}");
        assert_refused(["-f", "-U", "-", &option, "null"], &["could not decipher boolean"]);
    }
}

#[test]
fn sandboxes_that_are_none_are_refused() {
    if debian_lacks("--sandbox") {
        return;
    }
    // What they do is seen in tests/sandbox.rs.
    for sandbox in ["strict", "compat", "off"] {
        let option = format!("--sandbox={sandbox}");
        let finished = run(["-U", "-", &option, "null", "--run", "exit 3"]);
        assert_eq!(finished.status.code(), Some(3), "{finished:?}");
    }
    assert_refused(["-f", "-U", "-", "--sandbox=frob", "null"], &["sandbox"]);
}

#[test]
fn isolations_that_are_none_are_refused() {
    if debian_lacks("--isolation") {
        return;
    }
    for value in ["", "frob", "SHARED"] {
        let option = format!("--isolation={value}");
        assert_refused(["-f", "-U", "-", &option, "null"], &["isolation"]);
    }
}

/// What programs that start the server look for in its messages.
#[test]
fn messages_have_the_words_that_programs_look_for() {
    let delay = "delay-open: could not parse number: \"10secs\"";
    assert_refused(["--filter=delay", "null", "delay-open=10secs", "--run=true"], &[delay]);
    assert_refused(["-t", "x", "null"], &["threads: "]);
    if debian_lacks("fd= and dirfd=") {
        return;
    }
    let fd = std::fs::File::open("/dev/null").unwrap();
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let number = fd.as_raw_fd();
    for (parameter, words) in [
        (format!("fd={number}"), "fd is not regular or block device"),
        (format!("dirfd={number}"), "dirfd is not a directory"),
    ] {
        assert_refused(["file", &parameter, "--run=true"], &[words]);
    }
    let both = &["file= and dir= cannot be used at the same time", "can only appear once"];
    assert_refused(["file", "/dev/null", "dir=/", "--run=true"], both);
}

#[test]
fn what_is_no_number_is_not_called_an_empty_string() {
    if debian_lacks("a message that tells the two apart") {
        return;
    }
    for (arguments, words) in [
        (&["-t", "x", "null"][..], "threads: could not parse number: \"x\": not a number"),
        (&["--filter=limit", "null", "limit=x"], "limit: could not parse number: \"x\""),
        (&["-t", "", "null"], "threads: empty string where we expected a number"),
        (&["-p", "99999", "null"], "port: 99999 is out of range: TCP ports end at 65535"),
    ] {
        assert_refused(arguments, &[words]);
    }
}

#[test]
fn names_that_nothing_has_are_answered_with_the_nearest() {
    if debian_lacks("suggestions") {
        return;
    }
    let manual = "Use 'nbdkit --help' or read the nbdkit(1) manual page for documentation.";
    assert_refused(["memmory", "1M"], &["cannot open plugin 'memmory'", "mean 'memory'?", manual]);
    assert_refused(["--filter=ofset", "null"], &["cannot open filter 'ofset'", "mean 'offset'?"]);
    assert_refused(["nosuchplugin"], &["the plugins here are ", " memory, ", " zero.", manual]);
    let refused = run(["--filter=nosuchfilter", "null"]);
    assert!(refused.stderr.contains("the filters here are "), "{refused:?}");
    assert!(!refused.stderr.contains("package"), "{refused:?}");
}

#[test]
fn nothing_is_printed_about_a_stack_that_cannot_be_loaded() {
    for option in ["--version", "--help", "--dump-plugin"] {
        for arguments in [&["--filter=nosuch", "null"][..], &["nosuch"]] {
            let finished = run([&[option], arguments].concat());
            assert_eq!((finished.status.code(), &*finished.stdout), (Some(1), ""), "{finished:?}");
            assert!(finished.stderr.contains("'nosuch'"), "{finished:?}");
        }
    }
}
