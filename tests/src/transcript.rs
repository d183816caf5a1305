//! What a client learned from a server, one line per operation, in words that two servers can be
//! compared by.
//!
//! Left out on purpose: cookies, context ids, messages for people, how a reply was cut into chunks.

use std::fmt::{Display, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nbd_protocol::constants::{ClientFlags, InfoType, Opt, TransmissionFlags};
use nbd_protocol::handshake::{ExportNameReply, Greeting};

use crate::client::{Ask, Client, Failure, Result};

/// Bytes as runs, `00*512 ff*4`, or, if there are many runs, as a length and a checksum.
#[must_use]
pub fn summary(bytes: &[u8]) -> String {
    const MOST_RUNS: usize = 16;
    let mut runs: Vec<(u8, usize)> = Vec::new();
    for byte in bytes {
        match runs.last_mut() {
            Some((value, count)) if value == byte => *count += 1,
            _ => runs.push((*byte, 1)),
        }
        if runs.len() > MOST_RUNS {
            break;
        }
    }
    if runs.len() > MOST_RUNS {
        return format!("{} bytes {:016x}", bytes.len(), fnv1a(bytes));
    }
    let mut text = String::new();
    for (at, (value, count)) in runs.iter().enumerate() {
        let space = if at == 0 { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{space}{value:02x}*{count}");
    }
    text
}

/// FNV-1a, 64 bits: enough to tell two buffers apart in a test.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A client whose operations write a transcript. When an operation fails, the line says how, and
/// the connection is over until the next [`connect`](Session::connect).
#[derive(Debug)]
pub struct Session {
    socket: PathBuf,
    dir: PathBuf,
    client: Option<Client<UnixStream>>,
    lines: Vec<String>,
}

impl Session {
    /// A session with the server on this Unix socket, whose files are in `dir`; not connected yet.
    #[must_use]
    pub fn new(socket: &Path, dir: &Path) -> Session {
        Session { socket: socket.to_owned(), dir: dir.to_owned(), client: None, lines: Vec::new() }
    }

    /// The lines so far.
    #[must_use]
    pub fn into_lines(self) -> Vec<String> {
        self.lines
    }

    /// The server's private directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds a line of the script's own.
    pub fn note(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    /// Does something with the client and writes down what came of it.
    pub fn step<A: Display>(
        &mut self,
        what: &str,
        step: impl FnOnce(&mut Client<UnixStream>) -> Result<A>,
    ) {
        let Some(client) = &mut self.client else {
            self.lines.push(format!("{what} -> not connected"));
            return;
        };
        match step(client) {
            Ok(answer) => self.lines.push(format!("{what} -> {answer}")),
            Err(failure) => {
                self.lines.push(format!("{what} -> {failure}"));
                self.client = None;
            }
        }
    }

    fn fresh(&mut self) {
        self.client = match UnixStream::connect(&self.socket) {
            Ok(stream) => Some(Client::new(stream)),
            Err(error) => {
                self.lines.push(format!("connect -> {}", Failure::from(error)));
                None
            }
        };
    }

    /// Connects and completes the fixed newstyle greeting.
    pub fn connect(&mut self) {
        self.fresh();
        self.step("newstyle", |client| {
            client.handshake().map(|flags| format!("flags={:#x}", flags.bits()))
        });
    }

    /// Connects and answers the greeting with these flags, right or wrong.
    pub fn connect_with_flags(&mut self, flags: u32) {
        self.fresh();
        self.step(&format!("newstyle flags={flags:#x}"), |client| {
            client.greeting()?;
            client.send_client_flags(ClientFlags::from_bits_retain(flags))?;
            Ok("sent")
        });
    }

    /// Connects to an oldstyle server; transmission begins at once.
    pub fn connect_oldstyle(&mut self) {
        self.fresh();
        self.step("oldstyle", |client| {
            Ok(match client.greeting()? {
                Greeting::Oldstyle { size, flags } => {
                    format!("size={size} flags={:#x}", flags.bits())
                }
                Greeting::Newstyle { flags } => format!("newstyle flags={:#x}", flags.bits()),
            })
        });
    }

    /// Connects, asks for structured replies and `base:allocation`, and opens the default export.
    pub fn open(&mut self) {
        self.open_export("");
    }

    /// As [`open`](Self::open), for an export.
    pub fn open_export(&mut self, export: &str) {
        self.connect();
        self.structured_replies();
        self.set_meta_context(export, &["base:allocation"]);
        self.go(export);
    }

    /// `NBD_OPT_STRUCTURED_REPLY`.
    pub fn structured_replies(&mut self) {
        self.step("STRUCTURED_REPLY", Client::structured_replies);
    }

    /// `NBD_OPT_LIST`.
    pub fn list(&mut self) {
        self.step("LIST", Client::list);
    }

    /// `NBD_OPT_INFO` with every question but that for block sizes.
    pub fn info(&mut self, export: &str) {
        self.step(&format!("INFO {export:?}"), |client| client.info(export, &NAMES));
    }

    /// `NBD_OPT_INFO` with the question for block sizes.
    pub fn block_sizes(&mut self, export: &str) {
        self.step(&format!("BLOCK_SIZE {export:?}"), |client| {
            client.info(export, &[InfoType::BLOCK_SIZE])
        });
    }

    /// `NBD_OPT_GO` with every question but that for block sizes.
    pub fn go(&mut self, export: &str) {
        self.step(&format!("GO {export:?}"), |client| client.go(export, &NAMES));
    }

    /// `NBD_OPT_EXPORT_NAME`.
    pub fn export_name(&mut self, export: &str) {
        self.step(&format!("EXPORT_NAME {export:?}"), |client| {
            let ExportNameReply { size, flags } = client.export_name(export)?;
            Ok(format!("size={size} flags={:#x}", flags.bits()))
        });
    }

    /// `NBD_OPT_SET_META_CONTEXT`.
    pub fn set_meta_context(&mut self, export: &str, queries: &[&str]) {
        self.step(&format!("SET_META_CONTEXT {export:?} {queries:?}"), |client| {
            client.set_meta_context(export, queries)
        });
    }

    /// `NBD_OPT_LIST_META_CONTEXT`.
    pub fn list_meta_context(&mut self, export: &str, queries: &[&str]) {
        self.step(&format!("LIST_META_CONTEXT {export:?} {queries:?}"), |client| {
            client.list_meta_context(export, queries)
        });
    }

    /// Any option with any payload, and every reply to it.
    pub fn option(&mut self, option: Opt, payload: &[u8]) {
        self.step(&format!("{option} {}", summary(payload)), |client| {
            let replies = client.option(option, payload)?;
            let texts: Vec<String> = replies.iter().map(ToString::to_string).collect();
            Ok(texts.join(" "))
        });
    }

    /// A request and its reply.
    pub fn ask(&mut self, ask: &Ask) {
        self.step(&describe(ask), |client| client.call(ask));
    }

    /// A request that is only made if the server offered it.
    pub fn ask_if(&mut self, offered: TransmissionFlags, ask: &Ask) {
        match &self.client {
            Some(client) if !client.offers(offered) => {
                self.lines.push(format!("{} -> not offered", describe(ask)));
            }
            _ => self.ask(ask),
        }
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, length: u64) {
        self.ask(&Ask::read(offset, length));
    }

    /// Writes `length` bytes of one value.
    pub fn write(&mut self, offset: u64, length: usize, value: u8) {
        self.ask(&Ask::write(offset, vec![value; length]));
    }

    /// Asks for block status.
    pub fn block_status(&mut self, offset: u64, length: u64) {
        self.ask(&Ask::block_status(offset, length));
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, what: &str, bytes: &[u8]) {
        self.step(what, |client| client.send_raw(bytes).map(|()| "sent"));
    }

    /// Notes whether the server closes the connection.
    pub fn expect_close(&mut self) {
        self.step("then", |client| client.expect_close().map(|()| "closed"));
        self.client = None;
    }

    /// Says goodbye and waits for the server to close.
    pub fn disconnect(&mut self) {
        self.step("DISC", |client| {
            client.disconnect()?;
            client.expect_close().map(|()| "closed")
        });
        self.client = None;
    }
}

/// What is asked about every export. Block sizes are not among it, because later nbdkits advertise
/// more of them than the oracle: they have rows of their own.
const NAMES: [InfoType; 2] = [InfoType::NAME, InfoType::DESCRIPTION];

/// `READ 0+512`, with flags if there are any.
fn describe(ask: &Ask) -> String {
    let name = ask.command.to_string();
    let name = name.trim_start_matches("NBD_CMD_");
    let Ask { offset, length, payload, flags, .. } = ask;
    let mut text = format!("{name} {offset}+{length}");
    // Writing to a String cannot fail.
    if !payload.is_empty() {
        let _ = write!(text, " {}", summary(payload));
    }
    if !flags.is_empty() {
        let _ = write!(text, " flags={:#x}", flags.bits());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_runs_are_shown_and_many_are_hashed() {
        assert_eq!(summary(&[]), "");
        assert_eq!(summary(&[[0; 3].as_slice(), &[255; 2]].concat()), "00*3 ff*2");
        let many: Vec<u8> = (0..=255).collect();
        assert_eq!(summary(&many), format!("256 bytes {:016x}", fnv1a(&many)));
        assert_ne!(summary(&many), summary(&many[1..]));
    }

    #[test]
    fn fnv1a_has_its_published_values() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
