//! Clients without a key of their own that keep the server busy: handshakes that are never
//! finished, each of which takes a signature, and what is refused without TLS, each of which is a
//! line in the log.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nbd_protocol::constants::{ClientFlags, Opt};
use nbd_protocol::handshake::encode_option;
use nbdkit_tests::Client;
use nbdkit_tests::tls::KeyType;
use rustls::ClientConnection;

use super::Pki;

/// A ClientHello of a client that trusts our authority.
fn hello(pki: &Pki) -> Vec<u8> {
    let config = Arc::new(pki.authority.client_config(None));
    let mut client =
        ClientConnection::new(config, "localhost".try_into().expect("a name")).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("a ClientHello");
    hello
}

/// Goes as far as to the server's signature, and leaves it at that.
fn half_open(server: SocketAddr, hello: &[u8]) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.read_exact(&mut [0; 18])?;
    let mut bytes = ClientFlags::FIXED_NEWSTYLE.bits().to_be_bytes().to_vec();
    encode_option(&mut bytes, Opt::STARTTLS, b"");
    stream.write_all(&bytes)?;
    stream.read_exact(&mut [0; 20])?;
    stream.write_all(hello)?;
    stream.read_exact(&mut [0; 512])?;
    Ok(stream)
}

/// How long clients of another address take to be served with TLS while `each` handshakes of each
/// of 8 threads are half open, and new ones come.
fn served_among(each: usize) -> (Vec<Duration>, usize) {
    let pki = Pki::with(KeyType::Rsa).expect("the tools");
    let flooded = pki.server(&["--tls=require", "memory", "1M"]).tcp().start();
    let (address, hello) = (flooded.address(), hello(&pki));
    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut times = std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut open = VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    // One that is disconnected for another's sake counts, too.
                    if let Ok(stream) = half_open(address, &hello) {
                        made.fetch_add(1, Ordering::Relaxed);
                        open.push_back(stream);
                    }
                    if open.len() > each {
                        open.pop_front();
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_secs(1));
        let times: Vec<Duration> = (0..20)
            .map(|_| {
                let begin = Instant::now();
                let mut client = honest(address);
                client.handshake().expect("a greeting");
                let config = pki.authority.client_config(None);
                let mut client = client.starttls(config).expect("TLS");
                client.go("", &[]).expect("an export");
                begin.elapsed()
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        times
    });
    times.sort();
    (times, made.load(Ordering::Relaxed))
}

/// A client from another address of this machine than 127.0.0.1; Linux has all of 127.0.0.0/8.
fn honest(server: SocketAddr) -> Client<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
    setsockopt(&fd, sockopt::IpBindAddressNoPort, &true).expect("set");
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 3, 1, 0)).expect("bound");
    let SocketAddr::V4(server) = server else { unreachable!("it listens on IPv4") };
    connect(fd.as_raw_fd(), &SockaddrIn::from(server)).expect("connected");
    Client::new(TcpStream::from(fd))
}

#[test]
fn a_client_gets_tls_while_another_peer_leaves_handshakes_half_open() {
    if !nbdkit_tests::tls::is_possible() {
        return;
    }
    let (times, made) = served_among(4);
    println!("{made} half-open handshakes: served within {times:?}");
    assert!(made > 0);
    assert!(times[times.len() / 2] < Duration::from_secs(5), "{times:?}");
}

/// On a machine that does nothing else: `cargo test --release -p nbdkit-tests --test tls --
/// --ignored --nocapture half_open`.
#[test]
#[ignore = "measures, on a machine that does nothing else"]
fn measured_among_300_half_open_handshakes() {
    let (times, made) = served_among(38);
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{made} half-open handshakes, 300 at a time: served after {median:?}, at most {longest:?}"
    );
    assert!(median < Duration::from_millis(200), "{times:?}");
}

/// Each is refused with a line in the log; all together must not fill it.
#[test]
fn export_names_in_the_clear_do_not_fill_the_log() {
    let Some(pki) = Pki::new() else { return };
    let mut server = pki.server(&["--tls=require", "memory", "1M"]).start();
    let mut option = ClientFlags::FIXED_NEWSTYLE.bits().to_be_bytes().to_vec();
    encode_option(&mut option, Opt::EXPORT_NAME, &[b'x'; 4000]);
    for _ in 0..1000 {
        let mut client = server.connect();
        client.greeting().expect("a greeting");
        client.send_raw(&option).expect("sent");
        let _ = client.expect_close();
    }
    server.stop();
    let log = server.stderr_text_after_end();
    assert!(log.contains("dropped, they came too fast"), "{log}");
    // 400 at once, and 40 each second.
    assert!(log.lines().count() < 900 && log.len() < 512 * 900, "{} bytes", log.len());
}
