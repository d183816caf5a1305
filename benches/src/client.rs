//! One connection of the load generator: the handshake. What follows, requests and replies, is in
//! `load` and `replies`.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nbd_protocol::constants::{
    BASE_ALLOCATION, ClientFlags, Command, CommandFlags, InfoType, Opt, Rep,
};
use nbd_protocol::handshake::{
    Greeting, Info, InfoRequest, MetaContextReply, MetaContextRequest, NEWSTYLE_GREETING_LENGTH,
    OptionReplyHeader, encode_option, error_message,
};

use nbd_protocol::transmission::Request;

use crate::failure::Failure;
use crate::replies::Replies;

/// A server that does not answer for this long has failed.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The longest option reply that is read: none here should come near.
const MAX_OPTION_REPLY: u32 = 64 * 1024;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => path.display().fmt(f),
            Address::Tcp(address) => address.fmt(f),
        }
    }
}

/// A connected socket, blocking.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Connects; nothing is sent or read yet.
    pub(crate) fn connect(address: &Address) -> io::Result<Stream> {
        Ok(match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                Stream::Unix(stream)
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                Stream::Tcp(stream)
            }
        })
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    /// As read(2), but a signal does not end it: with a timeout it would even if none is handled
    /// (signal(7)).
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = match self {
                Stream::Unix(stream) => stream.read(buf),
                Stream::Tcp(stream) => stream.read(buf),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(buf),
            Stream::Tcp(stream) => stream.write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write_vectored(bufs),
            Stream::Tcp(stream) => stream.write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What to ask for in the handshake.
#[derive(Clone, Debug)]
pub(crate) struct Wishes {
    /// The export's name.
    pub(crate) export: String,
    /// `NBD_OPT_STRUCTURED_REPLY`, as QEMU's client and libnbd do.
    pub(crate) structured: bool,
    /// The `base:allocation` context; needs structured replies.
    pub(crate) block_status: bool,
}

/// A connection in the transmission phase.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: Stream,
    /// Export size in bytes.
    pub(crate) size: u64,
    /// The id of `base:allocation`, if it was asked for and given.
    pub(crate) context: Option<u32>,
}

impl Client {
    /// Connects and goes through the handshake, one option at a time as clients do.
    pub(crate) fn connect(address: &Address, wishes: &Wishes) -> Result<Client, Failure> {
        let stream = Stream::connect(address)?;
        Client::handshake(stream, wishes)
    }

    /// Reads until one more reply is complete: for callers with one request in flight.
    pub(crate) fn wait(&mut self, replies: &mut Replies, buf: &mut [u8]) -> Result<(), Failure> {
        let mut done = Vec::new();
        while done.is_empty() {
            let length = self.stream.read(buf)?;
            if length == 0 {
                return Err(Failure::Wrong("the server closed the connection".to_owned()));
            }
            replies.feed(&buf[..length], &mut done)?;
        }
        Ok(())
    }

    /// Sends one request.
    pub(crate) fn send(
        &mut self,
        command: Command,
        offset: u64,
        length: u64,
    ) -> Result<(), Failure> {
        let request = Request { flags: CommandFlags::empty(), command, cookie: 0, offset, length };
        Ok(self.stream.write_all(&request.encode())?)
    }

    /// Connects and waits for the server's greeting, which is all that an encrypted connection has
    /// in the clear.
    pub(crate) fn greeted(address: &Address) -> Result<(), Failure> {
        read_greeting(&mut Stream::connect(address)?)
    }

    /// Connects, asks for the names of all exports, and ends option haggling. Returns how many
    /// there are.
    pub(crate) fn list(address: &Address) -> Result<u64, Failure> {
        // Replies are short and many.
        let mut stream = BufReader::with_capacity(1 << 16, Stream::connect(address)?);
        let mut out = begin(&mut stream)?;
        encode_option(&mut out, Opt::LIST, &[]);
        stream.get_mut().write_all(&out)?;
        let mut exports = 0;
        let refusal = read_replies(&mut stream, |reply, _| {
            exports += u64::from(reply == Rep::SERVER);
            Ok(())
        })?;
        if let Some(refusal) = refusal {
            return Err(Failure::Unavailable(format!("NBD_OPT_LIST: {refusal}")));
        }
        out.clear();
        encode_option(&mut out, Opt::ABORT, &[]);
        stream.get_mut().write_all(&out)?;
        Ok(exports)
    }

    /// The handshake alone, on a socket that is connected.
    pub(crate) fn handshake(mut stream: Stream, wishes: &Wishes) -> Result<Client, Failure> {
        let mut out = begin(&mut stream)?;
        if wishes.structured {
            encode_option(&mut out, Opt::STRUCTURED_REPLY, &[]);
            stream.write_all(&out)?;
            out.clear();
            // Refused is an answer too: simple replies then.
            read_replies(&mut stream, |_, _| Ok(()))?;
        }
        let mut context = None;
        if wishes.block_status {
            let mut payload = Vec::new();
            MetaContextRequest::encode(&mut payload, &wishes.export, &[BASE_ALLOCATION]);
            encode_option(&mut out, Opt::SET_META_CONTEXT, &payload);
            stream.write_all(&out)?;
            out.clear();
            read_replies(&mut stream, |reply, payload| {
                if reply == Rep::META_CONTEXT {
                    context = Some(MetaContextReply::decode(payload)?.id);
                }
                Ok(())
            })?;
        }
        let mut payload = Vec::new();
        InfoRequest::encode(&mut payload, &wishes.export, &[InfoType::BLOCK_SIZE]);
        encode_option(&mut out, Opt::GO, &payload);
        stream.write_all(&out)?;
        let mut export = None;
        let refusal = read_replies(&mut stream, |reply, payload| {
            if reply == Rep::INFO
                && let Info::Export { size, .. } = Info::decode(payload)?
            {
                export = Some(size);
            }
            Ok(())
        })?;
        if let Some(refusal) = refusal {
            return Err(Failure::Unavailable(format!("NBD_OPT_GO: {refusal}")));
        }
        let size = export
            .ok_or_else(|| Failure::Wrong("NBD_OPT_GO: no NBD_INFO_EXPORT came".to_owned()))?;
        Ok(Client { stream, size, context })
    }
}

fn read_greeting(stream: &mut impl Read) -> Result<(), Failure> {
    let mut greeting = [0; NEWSTYLE_GREETING_LENGTH];
    stream.read_exact(&mut greeting)?;
    Greeting::decode_newstyle(&greeting)?;
    Ok(())
}

/// Waits for the greeting; the flags with which the client answers, to be sent with an option.
fn begin(stream: &mut impl Read) -> Result<Vec<u8>, Failure> {
    read_greeting(stream)?;
    let flags = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
    Ok(flags.bits().to_be_bytes().to_vec())
}

/// Reads replies to one option up to the last. The text of an error reply is returned.
fn read_replies(
    stream: &mut impl Read,
    mut each: impl FnMut(Rep, &[u8]) -> Result<(), Failure>,
) -> Result<Option<String>, Failure> {
    loop {
        let mut header = [0; OptionReplyHeader::LENGTH];
        stream.read_exact(&mut header)?;
        let header = OptionReplyHeader::decode(&header)?;
        if header.length > MAX_OPTION_REPLY {
            let length = header.length;
            return Err(Failure::Wrong(format!("option reply: {length} bytes of payload")));
        }
        let mut payload = vec![0; usize::try_from(header.length).unwrap_or(0)];
        stream.read_exact(&mut payload)?;
        if header.reply.is_error() {
            let message = error_message(&payload).unwrap_or("");
            return Ok(Some(format!("{}: {message}", header.reply)));
        }
        if header.reply == Rep::ACK {
            return Ok(None);
        }
        each(header.reply, &payload)?;
    }
}
