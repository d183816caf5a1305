//! Names for a server alone: it runs in a mount namespace where /etc/hosts, resolv.conf and
//! nsswitch.conf are the test's, and a DNS server of the test's answers on an address of loopback.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nbdkit_tests::TempDir;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::Builder;

use crate::may_mount;

/// How long the resolver waits for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(25);

/// What the DNS server says to a name, by its first label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// `short`: the address 127.0.0.1, at once.
    Short,
    /// `long`: the same by TCP; by UDP that it is too long.
    Long,
    /// `silent`: nothing.
    None,
    /// That there is no such name.
    Unknown,
}

/// Files of the resolver, and a DNS server, of a test's own.
pub(crate) struct Files {
    dir: TempDir,
    silent: Arc<AtomicU32>,
}

impl Files {
    /// `None`, and a line that says why, where a test may not do this.
    pub(crate) fn new() -> Option<Files> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !may_mount() {
            eprintln!("SKIPPED: takes root, and the right to mount");
            return None;
        }
        let [high, low] = (std::process::id() as u16).to_be_bytes();
        let last = COUNT.fetch_add(1, Ordering::Relaxed) as u8 + 1;
        let address = Ipv4Addr::new(127, high | 0x80, low, last);
        let udp = UdpSocket::bind((address, 53)).expect("port 53 of an address of our own");
        let tcp = TcpListener::bind((address, 53)).expect("port 53 of an address of our own");
        let silent = Arc::new(AtomicU32::new(0));
        let asked = Arc::clone(&silent);
        std::thread::spawn(move || answer_packets(&udp, &asked));
        std::thread::spawn(move || answer_streams(&tcp));
        let dir = TempDir::new();
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), all).expect("ours");
        let files = Files { dir, silent };
        files.hosts("");
        let seconds = PATIENCE.as_secs();
        // The second is never asked, but its interface is.
        let servers = format!("nameserver {address}\nnameserver fe80::1%lo\n");
        files.put("resolv.conf", &format!("{servers}options timeout:{seconds} attempts:1\n"));
        // The first is a module: there, or not.
        files.put("nsswitch.conf", "hosts: hesiod files dns\n");
        Some(files)
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.dir.join(name), text).expect("written");
    }

    /// Names and addresses, from now on.
    pub(crate) fn hosts(&self, text: &str) {
        self.put("hosts", text);
    }

    /// Has a server use them.
    pub(crate) fn used_by(&self, builder: Builder) -> Builder {
        let dir = self.dir.path().display();
        let mounts: String = ["hosts", "resolv.conf", "nsswitch.conf"]
            .map(|name| format!("mount --bind {dir}/{name} /etc/{name} && "))
            .concat();
        builder.through_shell(&format!(
            r#"exec unshare -m --propagation private sh -c '{mounts} exec "$0" "$@"' "$0" "$@""#
        ))
    }

    /// Waits until somebody has asked for what is not answered, since this was called last.
    pub(crate) fn until_asked(&self, answer: Answer) {
        assert_eq!(answer, Answer::None);
        eventually("a question", || self.silent.swap(0, Ordering::SeqCst) > 0);
    }
}

fn answer_packets(socket: &UdpSocket, silent: &AtomicU32) {
    let mut packet = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut packet) {
        match answer_of(&packet[..length]) {
            Some(Answer::None) => drop(silent.fetch_add(1, Ordering::SeqCst)),
            Some(answer) => drop(socket.send_to(&message(&packet[..length], answer, false), from)),
            None => {}
        }
    }
}

fn answer_streams(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut length = [0; 2];
            while stream.read_exact(&mut length).is_ok() {
                let mut question = vec![0; u16::from_be_bytes(length).into()];
                if stream.read_exact(&mut question).is_err() {
                    return;
                }
                let Some(answer) = answer_of(&question) else { return };
                let message = message(&question, answer, true);
                let length = (message.len() as u16).to_be_bytes();
                let _ = stream.write_all(&[&length[..], &message].concat());
            }
        });
    }
}

/// By the first label of the name that is asked for, behind a header of 12 bytes. RFC 1035, 4.1.
fn answer_of(question: &[u8]) -> Option<Answer> {
    let length = usize::from(*question.get(12)?);
    Some(match question.get(13..13 + length)? {
        b"short" => Answer::Short,
        b"long" => Answer::Long,
        b"silent" => Answer::None,
        _ => Answer::Unknown,
    })
}

fn message(question: &[u8], answer: Answer, whole: bool) -> Vec<u8> {
    const ADDRESS: [u8; 2] = [0, 1];
    // The name ends with an empty label; type and class are four bytes.
    let name = question[12..].iter().position(|byte| *byte == 0).unwrap_or(0);
    let end = (12 + name + 5).min(question.len());
    let is_address = question.get(end - 4..end - 2) == Some(&ADDRESS);
    let truncated = answer == Answer::Long && !whole;
    let has = matches!(answer, Answer::Short | Answer::Long) && is_address && !truncated;
    let flags: [u8; 2] = match answer {
        Answer::Unknown => [0x81, 0x83],
        _ if truncated => [0x83, 0x80],
        _ => [0x81, 0x80],
    };
    let mut message = question[..2].to_vec();
    message.extend(flags);
    message.extend([0, 1, 0, u8::from(has), 0, 0, 0, 0]);
    message.extend(&question[12..end]);
    if has {
        // The name of the question, an address, of the Internet, for a second, four bytes.
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1]);
    }
    message
}
