//! What a machine or this version cannot do is refused with one clear line, before anything is served.

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
