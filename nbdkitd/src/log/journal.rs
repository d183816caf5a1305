//! The journal of systemd, by its native protocol: a datagram of fields to the socket of journald,
//! or a sealed memfd with them where the datagram would be too long.
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>
//!
//! Every value has its length before it, so that none, whoever has chosen it, can begin another
//! field.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::SocketAddr;

use nbdkit_ipc::messages::Level;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use super::format::Entry;
use crate::connections::client_name;
use crate::datagram::DatagramClient;
use crate::system_error::SystemError;

/// The path of its socket.
const PATH: &str = "/run/systemd/journal/socket";
/// SYSLOG_IDENTIFIER: the name that `journalctl -t` selects by, and that the system log has.
const IDENTIFIER: &str = "nbdkit";

/// Seals of a file that nobody can change any more.
const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// A client of the journal.
pub(super) struct Journal {
    client: DatagramClient,
    address: UnixAddr,
}

impl Journal {
    /// Connects to the journal.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn connect() -> Result<Journal, SystemError> {
        Journal::at(PATH).map_err(SystemError::on("--log=journal", PATH))
    }

    fn at(path: &str) -> io::Result<Journal> {
        let client = DatagramClient::new(SocketAddr::from_pathname(path)?)?;
        client.reconnect()?;
        Ok(Journal { client, address: UnixAddr::new(path)? })
    }

    /// Sends a line. It is lost if the journal does not read.
    pub(super) fn write(&self, entry: Entry<'_>, message: &str) {
        let _ = self.send(&fields(entry, message));
    }

    fn send(&self, fields: &[u8]) -> io::Result<()> {
        match self.client.send(fields) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => self.send_file(fields),
            sent => sent,
        }
    }

    /// Sends fields that are too long for a datagram.
    fn send_file(&self, fields: &[u8]) -> io::Result<()> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut file = File::from(memfd_create(c"nbdkit-log", flags)?);
        file.write_all(fields)?;
        // The journal takes only what cannot be changed any more.
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
        let fds = [file.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let socket = self.client.as_fd().as_raw_fd();
        let send = |address| sendmsg(socket, &[IoSlice::new(&[])], &control, flags, address);
        match send(None) {
            // The journal was restarted.
            Err(Errno::ECONNREFUSED | Errno::ENOTCONN) => send(Some(&self.address))?,
            sent => sent?,
        };
        Ok(())
    }

    /// What a signal handler needs to write a line: the socket, its address, and the fields up to
    /// the text, which ends with the line.
    pub(super) fn raw_output(&self) -> (BorrowedFd<'_>, Option<UnixAddr>, String) {
        let priority = priority(Level::Error);
        let head = format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER={IDENTIFIER}\nMESSAGE=");
        (self.client.as_fd(), Some(self.address), head)
    }
}

/// The priorities of syslog(3).
fn priority(level: Level) -> libc::c_int {
    match level {
        Level::Error => libc::LOG_ERR,
        Level::Warning => libc::LOG_WARNING,
        Level::Notice => libc::LOG_NOTICE,
        Level::Debug => libc::LOG_DEBUG,
    }
}

/// The fields of a line. Those of the client are as it has chosen them: at most the 4096 bytes of
/// an export's name and the bytes of [`MAX_DN`](nbdkit_ipc::messages::MAX_DN).
fn fields(entry: Entry<'_>, message: &str) -> Vec<u8> {
    let Entry { level, speaker, stack } = entry;
    let mut fields = Vec::with_capacity(message.len() + 256);
    let mut add = |name: &str, value: &str| {
        fields.extend_from_slice(name.as_bytes());
        fields.push(b'\n');
        fields.extend_from_slice(&(value.len() as u64).to_le_bytes());
        fields.extend_from_slice(value.as_bytes());
        fields.push(b'\n');
    };
    add("MESSAGE", message);
    add("PRIORITY", &priority(level).to_string());
    add("SYSLOG_IDENTIFIER", IDENTIFIER);
    if !stack.is_empty() {
        add("STACK", stack);
    }
    if speaker.connection != 0 {
        add("CONNECTION", &speaker.connection.to_string());
    }
    let Some(client) = speaker.client else { return fields };
    add("PEER", client_name(client.peer).trim_start_matches("client "));
    if let Some((_, uid, _)) = client.peer.credentials {
        add("UID", &uid.to_string());
    }
    for (name, value) in
        [("EXPORT", client.export), ("TLS_DN", client.tls_dn), ("REASON", client.reason)]
    {
        if let Some(value) = value {
            add(name, value);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Speaker, Subject};
    use nbdkit_ipc::messages::{Peer, PeerAddress};
    use nix::sys::socket::{getsockopt, setsockopt, sockopt};
    use std::collections::BTreeMap;
    use std::io::{IoSliceMut, Read, Seek};
    use std::os::unix::net::UnixDatagram;

    /// What journald makes of the fields.
    fn parsed(mut bytes: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while !bytes.is_empty() {
            let name = bytes.iter().position(|byte| *byte == b'\n').unwrap();
            let (head, rest) = bytes.split_at(name + 1);
            let (length, rest) = rest.split_first_chunk().unwrap();
            let (value, rest) =
                rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            assert_eq!(fields.insert(text(&head[..name]), text(value)), None, "once");
            bytes = rest.strip_prefix(b"\n").unwrap();
        }
        fields
    }

    #[test]
    fn what_a_client_has_chosen_stays_in_its_field() {
        let peer =
            Peer { address: PeerAddress::Unix, credentials: Some((7, 8, 9)), ..Peer::default() };
        let forged = "x\nPRIORITY=0\nMESSAGE=forged\n";
        let client = Subject {
            peer: &peer,
            export: Some(forged),
            tls_dn: Some("CN=a\nUID=0"),
            reason: Some("client left"),
            is_named: true,
        };
        let speaker = Speaker { layer: Some("file"), connection: 3, client: Some(client) };
        let entry = Entry { level: Level::Warning, speaker, stack: "cow file" };
        let expected = [
            ("CONNECTION", "3"),
            ("EXPORT", forged),
            ("MESSAGE", "text"),
            ("PEER", "pid 7 uid 8"),
            ("PRIORITY", "4"),
            ("REASON", "client left"),
            ("STACK", "cow file"),
            ("SYSLOG_IDENTIFIER", "nbdkit"),
            ("TLS_DN", "CN=a\nUID=0"),
            ("UID", "8"),
        ];
        let fields = parsed(&fields(entry, "text"));
        let found: Vec<_> = fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn levels_have_the_priorities_of_syslog() {
        let levels = [Level::Error, Level::Warning, Level::Notice, Level::Debug];
        assert_eq!(levels.map(priority), [3, 4, 5, 7]);
        let entry = Entry { level: Level::Notice, speaker: Speaker::default(), stack: "" };
        let fields = parsed(&fields(entry, "text"));
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        assert_eq!(
            (names, &fields["PRIORITY"][..]),
            (vec!["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"], "5")
        );
    }

    /// A journal of our own.
    fn journal(name: &str) -> (UnixDatagram, String) {
        let path = std::env::temp_dir().join(format!("nbdkitd-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        (UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned())
    }

    /// The next message: a datagram, or what its one descriptor holds.
    fn received(journal: &UnixDatagram) -> (Vec<u8>, bool) {
        let (mut bytes, mut space) = (vec![0; 1 << 20], nix::cmsg_space!([std::os::fd::RawFd; 1]));
        let fd = journal.as_raw_fd();
        let (length, file) = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let message = nix::sys::socket::recvmsg::<()>(
                fd,
                &mut parts,
                Some(&mut space),
                MsgFlags::empty(),
            )
            .unwrap();
            let mut fds = message.cmsgs().unwrap().flat_map(|control| match control {
                nix::sys::socket::ControlMessageOwned::ScmRights(fds) => fds,
                _ => vec![],
            });
            (message.bytes, fds.next())
        };
        bytes.truncate(length);
        let Some(number) = file else { return (bytes, false) };
        // Opened by its number, which takes no unsafe code.
        let mut file = File::open(format!("/proc/self/fd/{number}")).unwrap();
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).unwrap();
        assert_eq!(SealFlag::from_bits_truncate(seals), SEALS);
        nix::unistd::close(number).unwrap();
        assert_eq!(length, 0);
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        (bytes, true)
    }

    #[test]
    fn fields_that_are_too_long_for_a_datagram_are_sent_in_a_sealed_file() {
        let (service, path) = journal("journal-long");
        let journal = Journal::at(&path).unwrap();
        setsockopt(&journal.client, sockopt::SndBuf, &4096).unwrap();
        let limit = getsockopt(&journal.client, sockopt::SndBuf).unwrap();
        for (length, in_file) in [(100, false), (limit * 2, true)] {
            let fields = vec![b'x'; length];
            journal.send(&fields).unwrap();
            assert_eq!(received(&service), (fields, in_file));
        }
        // One that was restarted is found by its path.
        drop(service);
        std::fs::remove_file(&path).unwrap();
        let service = UnixDatagram::bind(&path).unwrap();
        journal.send(&vec![b'y'; limit * 2]).unwrap();
        assert_eq!(received(&service), (vec![b'y'; limit * 2], true));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn without_a_journal_there_is_an_error() {
        let (service, path) = journal("journal-gone");
        drop(service);
        assert!(Journal::at(&path).is_err(), "nobody is there");
        std::fs::remove_file(&path).unwrap();
        let error = Journal::at(&path).err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
