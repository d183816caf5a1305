//! How long an honest newcomer waits for its greeting while others connect from many addresses, say
//! nothing, and connect again as soon as they are disconnected.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nbdkit_tests::Server;
use nbdkit_tests::server::ours;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, recv, setsockopt, socket, sockopt,
};

/// A connection from an address of this machine, under way; Linux has all of 127.0.0.0/8.
fn connect_from(address: Ipv4Addr, server: SocketAddr, flags: SockFlag) -> Option<OwnedFd> {
    let fd =
        socket(AddressFamily::Inet, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None).ok()?;
    let _ = setsockopt(&fd, sockopt::IpBindAddressNoPort, &true);
    bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, 0))).ok()?;
    let SocketAddr::V4(server) = server else { return None };
    match connect(fd.as_raw_fd(), &SockaddrIn::from(server)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Some(fd),
        Err(_) => None,
    }
}

/// Keeps `each` silent connections from each of `addresses` addresses, until it is told to stop.
/// How many were disconnected.
fn say_nothing(server: SocketAddr, addresses: u8, each: usize, stop: &AtomicBool) -> u64 {
    let all = (0..each).flat_map(|_| 1..=addresses).map(|last| Ipv4Addr::new(127, 0, 1, last));
    let mut silent: Vec<(Ipv4Addr, Option<OwnedFd>)> = all.map(|address| (address, None)).collect();
    let mut ended = 0;
    while !stop.load(Ordering::Relaxed) {
        for (address, connection) in &mut silent {
            if connection.is_none() {
                *connection = connect_from(*address, server, SockFlag::SOCK_NONBLOCK);
            }
        }
        // Whoever was greeted is not polled for that again and again: it is read.
        let ready: Vec<bool> = {
            let polled = silent.iter().filter_map(|(_, connection)| connection.as_ref());
            let events = PollFlags::POLLIN;
            let mut fds: Vec<PollFd<'_>> =
                polled.map(|fd| PollFd::new(std::os::fd::AsFd::as_fd(fd), events)).collect();
            let _ = poll(&mut fds, PollTimeout::from(20u8));
            fds.iter().map(|fd| fd.any() == Some(true)).collect()
        };
        let mut ready = ready.into_iter();
        for (_, connection) in silent.iter_mut().filter(|(_, it)| it.is_some()) {
            if ready.next() == Some(true)
                && let Some(fd) = connection
            {
                match recv(fd.as_raw_fd(), &mut [0; 64], nix::sys::socket::MsgFlags::MSG_DONTWAIT) {
                    Ok(1..) | Err(Errno::EAGAIN) => {}
                    Ok(0) | Err(_) => {
                        *connection = None;
                        ended += 1;
                    }
                }
            }
        }
    }
    ended
}

/// How long newcomers, one after the other from an address of its own, wait for the greeting.
fn newcomers(server: SocketAddr, count: usize) -> Vec<Duration> {
    let mut times: Vec<Duration> = (0..count)
        .map(|number| {
            std::thread::sleep(Duration::from_millis(50));
            let address = Ipv4Addr::new(127, 0, 2, 1 + u8::try_from(number % 200).expect("small"));
            let begin = Instant::now();
            let fd = connect_from(address, server, SockFlag::empty()).expect("a connection");
            let mut client = std::net::TcpStream::from(fd);
            client.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
            let greeted = client.read_exact(&mut [0; 18]);
            assert!(greeted.is_ok(), "a newcomer waited for {:?}: {greeted:?}", begin.elapsed());
            begin.elapsed()
        })
        .collect();
    times.sort();
    times
}

fn newcomers_among(addresses: u8, each: usize, most: Duration) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
    // Ours to be connected to from several addresses.
    let server: Server = ours(&["memory", "1M"]).tcp().start();
    let address = server.address();
    let stop = AtomicBool::new(false);
    let (times, ended) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| say_nothing(address, addresses, each, &stop));
        std::thread::sleep(Duration::from_secs(1));
        let times = newcomers(address, 30);
        stop.store(true, Ordering::Relaxed);
        (times, flood.join().expect("it has ended"))
    });
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{addresses} addresses with {each} silent connections each ({ended} disconnected): a newcomer is greeted after {median:?}, at most {longest:?}"
    );
    assert!(median < most, "{times:?}");
}

/// A machine that does other things, too. The numbers that count are those of `measured_newcomers`.
const GENEROUS: Duration = Duration::from_secs(2);

#[test]
fn a_newcomer_is_greeted_while_64_addresses_keep_32_silent_connections_each() {
    newcomers_among(64, 32, GENEROUS);
}

#[test]
fn a_newcomer_is_greeted_while_16_addresses_keep_64_silent_connections_each() {
    newcomers_among(16, 64, GENEROUS);
}

#[test]
fn a_newcomer_is_greeted_while_4_addresses_keep_300_silent_connections_each() {
    newcomers_among(4, 300, GENEROUS);
}

#[test]
fn a_newcomer_is_greeted_while_one_address_keeps_6000_silent_connections() {
    newcomers_among(1, 6000, GENEROUS);
}

/// On a machine that does nothing else: `cargo test --release -p nbdkit-tests --test hostile --
/// --ignored --nocapture newcomers`.
#[test]
#[ignore = "measures, on a machine that does nothing else"]
fn measured_newcomers_wait_for_less_than_200_milliseconds() {
    for (addresses, each) in [(64, 32), (16, 64), (4, 300), (1, 6000)] {
        newcomers_among(addresses, each, Duration::from_millis(200));
    }
}
