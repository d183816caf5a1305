use super::*;
use nix::sys::socket::getsockopt;
use std::net::TcpListener;
use std::os::fd::AsFd;

fn tcp(host: &str) -> Endpoint {
    Endpoint::Tcp { host: host.to_owned(), port: 7 }
}

#[test]
fn a_name_does_not_lead_to_the_link_or_to_many() {
    for refused in [
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "ff02::1",
        "fe80::1",
        "febf::1",
        "::ffff:169.254.169.254",
        "::ffff:0.0.0.0",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
    ] {
        assert!(!may_be_led_to(refused.parse().unwrap()), "{refused}");
    }
    for allowed in [
        "127.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "198.51.100.7",
        "::1",
        "2001:db8::1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "64:ff9b::c633:6407",
    ] {
        assert!(may_be_led_to(allowed.parse().unwrap()), "{allowed}");
    }
}

#[test]
fn what_the_operator_has_written_is_connected_to_whatever_it_is() {
    for host in ["169.254.169.254", "fe80::1", "255.255.255.255", "::"] {
        let expected = Address::Ip(SocketAddr::new(host.parse().unwrap(), 7));
        assert_eq!(addresses(&tcp(host)), Ok(vec![expected]));
        assert!(!may_wait(&tcp(host)));
    }
    // With an interface, which only the resolver knows the number of.
    let of_link = addresses(&tcp("fe80::1%lo")).unwrap();
    assert!(matches!(of_link[..], [Address::Ip(SocketAddr::V6(it))] if it.scope_id() > 0));
    assert!(may_wait(&tcp("localhost")));
    // Not a literal to us, but to the resolver: a name that leads to what names do not lead to.
    assert_eq!(addresses(&tcp("0")), Err(Failure::Os(Errno::EACCES)));
    assert_eq!(addresses(&tcp("169.254.43518")), Err(Failure::Os(Errno::EACCES)));
}

#[test]
fn the_resolvers_reason_is_passed_on() {
    // A label is 63 bytes at most (RFC 1035), so nobody is asked.
    let Err(Failure::NotResolved(why)) = addresses(&tcp(&"x".repeat(300))) else {
        panic!("resolved")
    };
    assert!(!why.is_empty() && !why.contains("lookup"), "{why}");
    let error = Failure::NotResolved(why.clone()).into_error();
    assert_eq!(error.message(), format!("getaddrinfo: {why}"));
}

#[test]
fn an_attempt_begins_with_the_first_address_that_does_not_fail_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = Address::Ip(listener.local_addr().unwrap());
    let nowhere = || Address::Unix("/no/such/socket".into());
    let all = [nowhere(), there.clone(), nowhere(), there, nowhere()];
    let next = |attempt| begin(&all, attempt).map(|begun| begun.next);
    assert_eq!(next(0), Ok(Some(2)));
    assert_eq!(next(2), Ok(Some(4)));
    assert_eq!(next(4), Err(Failure::Os(Errno::ENOENT)));
    for out_of_range in [5, u32::MAX] {
        assert_eq!(next(out_of_range), Err(Failure::Os(Errno::EADDRNOTAVAIL)));
    }
    assert_eq!(begin(&all[..2], 1).unwrap().next, None);
}

#[test]
fn sockets_of_tcp_send_at_once_and_notice_who_is_gone() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let begun = begin(&[Address::Ip(listener.local_addr().unwrap())], 0).unwrap();
    let fd = begun.fd.as_fd();
    assert_eq!(getsockopt(&fd, sockopt::TcpNoDelay), Ok(true));
    assert_eq!(getsockopt(&fd, sockopt::KeepAlive), Ok(true));
    assert_eq!(getsockopt(&fd, sockopt::TcpKeepIdle), Ok(IDLE));
    assert_eq!(getsockopt(&fd, sockopt::TcpUserTimeout), Ok(UNANSWERED));
}
