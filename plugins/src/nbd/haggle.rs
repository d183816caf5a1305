//! The client's side of the handshake: greeting, options, and what they bring to light about an
//! export. NBD protocol, "Handshake".
//!
//! Runs where a client is served, on bytes of the upstream server, which are hostile: replies, and
//! lists of them, are bounded, and what a correct server never sends ends the connection. The bytes
//! come from a [`Stream`], so that tests and the fuzz target need no socket.

#![forbid(unsafe_code)]

use nbd_protocol::Malformed;
use nbd_protocol::constants::{
    BASE_ALLOCATION, ClientFlags, HandshakeFlags, InfoType, Opt, RESERVED_ZEROES, Rep,
    TransmissionFlags,
};
use nbd_protocol::handshake::{
    BlockSizes, ExportNameReply, Greeting, Info, InfoRequest, MetaContextReply, MetaContextRequest,
    NEWSTYLE_GREETING_LENGTH, OLDSTYLE_GREETING_LENGTH, OptionReplyHeader, ServerReply,
    encode_option, error_message,
};
use nbdkit_api::exports::MAX_EXPORTS;
use nbdkit_api::{Errno, Error, Result, debug, quoted};

/// Longest payload of a reply to an option: a name and a description of the greatest length fit.
const MAX_REPLY: u32 = 16 * 1024;
/// Most bytes of names and descriptions in a list.
const MAX_LIST: usize = 16 << 20;
/// Most replies to one option, besides the exports of a list.
const MAX_REPLIES: usize = 64;

/// Bytes from and to an upstream server that is being haggled with.
pub(super) trait Stream {
    /// Fills `buf`.
    ///
    /// # Errors
    /// The connection's.
    fn read_exact(&mut self, buf: &mut [u8]) -> Result<()>;

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// The connection's.
    fn write_all(&mut self, bytes: &[u8]) -> Result<()>;

    /// Shakes hands for TLS; from then on bytes are encrypted.
    ///
    /// # Errors
    /// The library's, the connection's.
    fn start_tls(&mut self) -> Result<()>;
}

/// `tls=`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsMode {
    /// Never asked for.
    Off,
    /// Asked for; without it if the server has none.
    On,
    /// Not without it.
    Require,
}

/// The form of an upstream server's replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Simple,
    Structured,
    Extended,
}

/// What is known of an export that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Bytes.
    pub(super) size: u64,
    pub(super) flags: TransmissionFlags,
    pub(super) form: Form,
    /// The number of the context `base:allocation`, if it was granted.
    pub(super) context: Option<u32>,
    pub(super) block_sizes: Option<BlockSizes>,
    pub(super) description: Option<String>,
}

/// An export in the list of an upstream server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) description: String,
}

/// How an option ended.
enum Answer {
    Granted,
    Refused(Rep, String),
}

/// A server that answers options, or one that is past them.
pub(super) enum Greeted<'a, S> {
    Newstyle(Haggling<'a, S>),
    Oldstyle(Facts),
}

/// The phase in which options are exchanged.
pub(super) struct Haggling<'a, S> {
    stream: &'a mut S,
    /// The server answers options other than NBD_OPT_EXPORT_NAME.
    fixed: bool,
    no_zeroes: bool,
}

/// A violation of the protocol by the upstream server.
pub(super) fn violation(why: impl std::fmt::Display) -> Error {
    Error::new(Errno::EIO, format!("the NBD server violates the protocol: {why}"))
}

fn malformed(why: Malformed) -> Error {
    violation(why)
}

/// Reads the greeting and, from a newstyle server, gets as far as TLS.
///
/// # Errors
/// It is no NBD server; `tls` cannot be had.
pub(super) fn greet<S: Stream>(stream: &mut S, tls: TlsMode) -> Result<Greeted<'_, S>> {
    let mut bytes = [0; OLDSTYLE_GREETING_LENGTH];
    let (start, rest) = bytes.split_at_mut(16);
    stream.read_exact(start)?;
    let start: [u8; 16] = start.try_into().unwrap_or_default();
    let length = Greeting::length(&start).map_err(|_| {
        Error::new(Errno::EIO, "handshake: the server is not an NBD server: bad magic")
    })?;
    stream.read_exact(&mut rest[..length - 16])?;
    let mut newstyle = [0; NEWSTYLE_GREETING_LENGTH];
    newstyle.copy_from_slice(&bytes[..NEWSTYLE_GREETING_LENGTH]);
    let greeting = match length {
        NEWSTYLE_GREETING_LENGTH => Greeting::decode_newstyle(&newstyle),
        _ => Greeting::decode_oldstyle(&bytes),
    };
    match greeting.map_err(malformed)? {
        Greeting::Oldstyle { size, flags } => {
            if tls == TlsMode::Require {
                return Err(no_tls("it speaks the oldstyle protocol"));
            }
            debug!("handshake: oldstyle server");
            Ok(Greeted::Oldstyle(facts(size, flags)?))
        }
        Greeting::Newstyle { flags } => {
            let fixed = flags.contains(HandshakeFlags::FIXED_NEWSTYLE);
            let no_zeroes = flags.contains(HandshakeFlags::NO_ZEROES);
            let mut ours = ClientFlags::empty();
            ours.set(ClientFlags::FIXED_NEWSTYLE, fixed);
            ours.set(ClientFlags::NO_ZEROES, no_zeroes);
            stream.write_all(&ours.bits().to_be_bytes())?;
            let mut haggling = Haggling { stream, fixed, no_zeroes };
            haggling.begin_tls(tls)?;
            Ok(Greeted::Newstyle(haggling))
        }
    }
}

fn no_tls(why: impl std::fmt::Display) -> Error {
    Error::new(
        Errno::EIO,
        format!("handshake: server refused TLS, but tls=require or the URI demands it: {why}"),
    )
}

/// What is known without asking. An export's size is at most that of a file.
fn facts(size: u64, flags: TransmissionFlags) -> Result<Facts> {
    if i64::try_from(size).is_err() {
        return Err(violation(format_args!("export size {size}")));
    }
    // Without the bit that is always set, the others mean nothing.
    let known = flags.contains(TransmissionFlags::HAS_FLAGS);
    Ok(Facts {
        size,
        flags: if known { flags } else { TransmissionFlags::empty() },
        form: Form::Simple,
        context: None,
        block_sizes: None,
        description: None,
    })
}

/// The error of an option that was refused.
fn refused(option: Opt, rep: Rep, message: &str) -> Error {
    let (errno, what) = match rep {
        Rep::ERR_UNKNOWN => (Errno::ENOENT, "no such export"),
        Rep::ERR_POLICY => (Errno::EACCES, "server policy prevents it"),
        Rep::ERR_TLS_REQD => (Errno::EACCES, "server requires TLS encryption first"),
        Rep::ERR_SHUTDOWN => (Errno::ESHUTDOWN, "server is shutting down"),
        Rep::ERR_UNSUP => (Errno::EOPNOTSUPP, "server does not support it"),
        Rep::ERR_BLOCK_SIZE_REQD => (Errno::EINVAL, "server requires block sizes to be obeyed"),
        _ => (Errno::EIO, "server replied with an error"),
    };
    let number = if rep.name().is_some() { String::new() } else { format!(" ({:#x})", rep.0) };
    let message = match message {
        "" => String::new(),
        text => format!(": {}", quoted(text)),
    };
    Error::new(errno, format!("handshake: {option}: {what}{number}{message}"))
}

impl<S: Stream> Haggling<'_, S> {
    fn begin_tls(&mut self, tls: TlsMode) -> Result<()> {
        if tls == TlsMode::Off {
            return Ok(());
        }
        if self.fixed {
            match self.ask(Opt::STARTTLS, &[])? {
                Answer::Granted => return self.stream.start_tls(),
                Answer::Refused(rep, message) if tls == TlsMode::Require => {
                    return Err(no_tls(refused(Opt::STARTTLS, rep, &message)));
                }
                Answer::Refused(..) => {}
            }
        } else if tls == TlsMode::Require {
            return Err(no_tls("it does not speak the fixed newstyle protocol"));
        }
        debug!("handshake: server has no TLS, continuing without");
        Ok(())
    }

    /// Sends an option and takes its replies: `info` gets each that is neither the last nor an
    /// error, and may refuse it.
    fn exchange(
        &mut self,
        option: Opt,
        payload: &[u8],
        most: usize,
        mut info: impl FnMut(Rep, &[u8]) -> Result<()>,
    ) -> Result<Answer> {
        let mut request = Vec::with_capacity(16 + payload.len());
        encode_option(&mut request, option, payload);
        self.stream.write_all(&request)?;
        for _ in 0..=most {
            let mut header = [0; OptionReplyHeader::LENGTH];
            self.stream.read_exact(&mut header)?;
            let header = OptionReplyHeader::decode(&header).map_err(malformed)?;
            if header.option != option {
                return Err(violation(format_args!("{option}: reply to {}", header.option)));
            }
            if header.length > MAX_REPLY {
                let length = header.length;
                return Err(violation(format_args!("{option}: reply of {length} bytes")));
            }
            let mut payload = vec![0; header.length as usize];
            self.stream.read_exact(&mut payload)?;
            match header.reply {
                Rep::ACK if payload.is_empty() => return Ok(Answer::Granted),
                Rep::ACK => return Err(violation(format_args!("{option}: NBD_REP_ACK with data"))),
                // The text is for the log alone.
                rep if rep.is_error() => {
                    let text = error_message(&payload).unwrap_or_default().to_owned();
                    debug!("handshake: {option}: {rep}: {}", quoted(&text));
                    return Ok(Answer::Refused(rep, text));
                }
                rep => info(rep, &payload)?,
            }
        }
        Err(violation(format_args!("{option}: more than {most} replies")))
    }

    /// An option whose only reply is yes or no.
    fn ask(&mut self, option: Opt, payload: &[u8]) -> Result<Answer> {
        self.exchange(option, payload, 0, |rep, _| {
            Err(violation(format_args!("{option}: unexpected {rep}")))
        })
    }

    /// Opens an export; transmission follows.
    ///
    /// # Errors
    /// ENOENT: there is none of the name; other refusals; violations.
    pub(super) fn go(mut self, name: &str) -> Result<Facts> {
        if !self.fixed {
            return self.export_name(name);
        }
        let form = self.ask_for_form()?;
        let context = match form {
            Form::Simple => None,
            Form::Structured | Form::Extended => self.set_context(name)?,
        };
        let mut found = Found::default();
        let facts = match self.info(Opt::GO, name, &mut found)? {
            Answer::Granted => {
                let (size, flags) = found
                    .export
                    .ok_or_else(|| violation("NBD_OPT_GO: NBD_REP_ACK without NBD_INFO_EXPORT"))?;
                facts(size, flags)?
            }
            Answer::Refused(Rep::ERR_UNSUP, _) => self.export_name(name)?,
            Answer::Refused(rep, message) => return Err(refused(Opt::GO, rep, &message)),
        };
        let Found { block_sizes, description, .. } = found;
        Ok(Facts { form, context, block_sizes, description, ..facts })
    }

    /// The best form of replies that the server has.
    fn ask_for_form(&mut self) -> Result<Form> {
        for (option, form) in
            [(Opt::EXTENDED_HEADERS, Form::Extended), (Opt::STRUCTURED_REPLY, Form::Structured)]
        {
            match self.ask(option, &[])? {
                Answer::Granted => return Ok(form),
                Answer::Refused(rep @ Rep::ERR_TLS_REQD, message) => {
                    return Err(refused(option, rep, &message));
                }
                Answer::Refused(..) => {}
            }
        }
        Ok(Form::Simple)
    }

    /// Asks for `base:allocation`; its number, if the server has it.
    fn set_context(&mut self, name: &str) -> Result<Option<u32>> {
        let mut payload = Vec::new();
        MetaContextRequest::encode(&mut payload, name, &[BASE_ALLOCATION]);
        let mut context = None;
        let answer =
            self.exchange(Opt::SET_META_CONTEXT, &payload, MAX_REPLIES, |rep, payload| {
                if rep != Rep::META_CONTEXT {
                    return Err(violation(format_args!(
                        "NBD_OPT_SET_META_CONTEXT: unexpected {rep}"
                    )));
                }
                let reply = MetaContextReply::decode(payload).map_err(malformed)?;
                if reply.name != BASE_ALLOCATION || context.replace(reply.id).is_some() {
                    return Err(violation(
                        "NBD_OPT_SET_META_CONTEXT: a context that was not asked for",
                    ));
                }
                Ok(())
            })?;
        Ok(context.filter(|_| matches!(answer, Answer::Granted)))
    }

    /// NBD_OPT_INFO or NBD_OPT_GO.
    fn info(&mut self, option: Opt, name: &str, found: &mut Found) -> Result<Answer> {
        let mut payload = Vec::new();
        let wanted = [InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE];
        InfoRequest::encode(&mut payload, name, &wanted);
        self.exchange(option, &payload, MAX_REPLIES, |rep, payload| {
            if rep != Rep::INFO {
                return Err(violation(format_args!("{option}: unexpected {rep}")));
            }
            match Info::decode(payload).map_err(malformed)? {
                Info::Export { size, flags } => found.export = Some((size, flags)),
                Info::Name(name) => found.name = Some(name.to_owned()),
                Info::Description(text) => found.description = Some(text.to_owned()),
                Info::BlockSize(sizes) => found.block_sizes = Some(sizes),
                Info::Unknown { .. } => {}
            }
            Ok(())
        })
    }

    /// NBD_OPT_EXPORT_NAME, which has no reply for errors: the server disconnects.
    fn export_name(&mut self, name: &str) -> Result<Facts> {
        let mut request = Vec::new();
        encode_option(&mut request, Opt::EXPORT_NAME, name.as_bytes());
        self.stream.write_all(&request)?;
        let mut reply = [0; ExportNameReply::LENGTH];
        self.stream
            .read_exact(&mut reply)
            .map_err(|error| error.context(format_args!("export '{}'", quoted(name))))?;
        if !self.no_zeroes {
            self.stream.read_exact(&mut [0; RESERVED_ZEROES])?;
        }
        let ExportNameReply { size, flags } = ExportNameReply::decode(&reply);
        facts(size, flags)
    }

    /// The canonical name of the export `""`; `None` if the server does not tell.
    ///
    /// # Errors
    /// Violations.
    pub(super) fn default_name(mut self) -> Result<Option<String>> {
        let mut found = Found::default();
        if self.fixed && matches!(self.info(Opt::INFO, "", &mut found)?, Answer::Granted) {
            self.abort();
            return Ok(found.name);
        }
        self.abort();
        Ok(None)
    }

    /// The exports that the server lists, or as many of them as this server may list.
    ///
    /// # Errors
    /// The server does not list them; violations.
    pub(super) fn list(mut self) -> Result<Vec<Listed>> {
        let (mut exports, mut bytes) = (Vec::new(), 0);
        if !self.fixed {
            return Err(refused(Opt::LIST, Rep::ERR_UNSUP, ""));
        }
        let answer = self.exchange(Opt::LIST, &[], MAX_EXPORTS, |rep, payload| {
            if rep != Rep::SERVER {
                return Err(violation(format_args!("NBD_OPT_LIST: unexpected {rep}")));
            }
            bytes += payload.len();
            if bytes > MAX_LIST {
                return Err(violation("NBD_OPT_LIST: too many bytes"));
            }
            let ServerReply { name, description } =
                ServerReply::decode(payload).map_err(malformed)?;
            exports.push(Listed { name: name.to_owned(), description: description.to_owned() });
            Ok(())
        })?;
        match answer {
            Answer::Granted => {
                self.abort();
                Ok(exports)
            }
            Answer::Refused(rep, message) => Err(refused(Opt::LIST, rep, &message)),
        }
    }

    /// Says goodbye. Nobody waits for the reply.
    fn abort(&mut self) {
        if self.fixed {
            let mut request = Vec::new();
            encode_option(&mut request, Opt::ABORT, &[]);
            let _ = self.stream.write_all(&request);
        }
    }
}

/// What information replies have told.
#[derive(Debug, Default)]
struct Found {
    export: Option<(u64, TransmissionFlags)>,
    name: Option<String>,
    description: Option<String>,
    block_sizes: Option<BlockSizes>,
}

#[cfg(test)]
mod tests;
