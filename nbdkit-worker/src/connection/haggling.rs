//! What all states of option haggling share: the socket, the client's flags and the framing of
//! options and replies. NBD protocol, "Fixed newstyle negotiation".

#![forbid(unsafe_code)]

use nbd_protocol::constants::{ClientFlags, MAX_OPTION_LENGTH, Opt, Rep};
use nbd_protocol::handshake::{OptionHeader, encode_option_error, encode_option_reply};
use nbdkit_api::{debug, quoted};

use super::input::Input;
use super::{Connection, During, End, tls};

/// Longest option payload that is read and discarded, bytes. A longer one ends the connection.
const MAX_SKIPPED_OPTION: u32 = 16 << 20;

/// A client that haggles options.
pub(super) struct Haggling<'a> {
    pub(super) connection: &'a Connection<'a>,
    pub(super) input: Input,
    /// Replies not yet sent.
    out: Vec<u8>,
    /// The client's flags, which are among those offered. TLS does not change them.
    flags: ClientFlags,
}

/// An option with its payload, of at most [`MAX_OPTION_LENGTH`] bytes.
pub(super) struct ReceivedOption {
    pub(super) option: Opt,
    pub(super) payload: Vec<u8>,
}

impl<'a> Haggling<'a> {
    pub(super) fn new(
        connection: &'a Connection<'a>,
        input: Input,
        flags: ClientFlags,
    ) -> Haggling<'a> {
        Haggling { connection, input, out: Vec::new(), flags }
    }

    /// Whether the reply to `NBD_OPT_EXPORT_NAME` goes without padding.
    pub(super) fn no_zeroes(&self) -> bool {
        self.flags.contains(ClientFlags::NO_ZEROES)
    }

    /// Receives the next option; `None` if it was too long and was refused.
    ///
    /// # Errors
    /// The client violated the protocol, left or timed out.
    pub(super) fn receive(&mut self) -> Result<Option<ReceivedOption>, End> {
        let Some(bytes) = self.input.take().during("reading option")? else {
            return Err(End::Done);
        };
        let header = OptionHeader::decode(&bytes)
            .map_err(|malformed| End::Protocol(malformed.to_string()))?;
        let OptionHeader { option, length } = header;
        if !self.flags.contains(ClientFlags::FIXED_NEWSTYLE) && option != Opt::EXPORT_NAME {
            return Err(End::Protocol(format!(
                "{option} from a client that did not negotiate fixed newstyle"
            )));
        }
        if length > MAX_OPTION_LENGTH {
            if length > MAX_SKIPPED_OPTION || option == Opt::EXPORT_NAME {
                return Err(End::Protocol(format!(
                    "{option}: client option data too long ({length})"
                )));
            }
            self.input.skip(length.into()).during(format_args!("read: {option}"))?;
            self.refuse(option, Rep::ERR_TOO_BIG, "option data too long");
            self.flush()?;
            return Ok(None);
        }
        let mut payload = vec![0; length as usize];
        self.input.read_exact(&mut payload).during(format_args!("read: {option}"))?;
        Ok(Some(ReceivedOption { option, payload }))
    }

    /// `NBD_OPT_ABORT`: acknowledges it; the end of the connection.
    pub(super) fn abort(&mut self) -> End {
        self.reply(Opt::ABORT, Rep::ACK, &[]);
        // A client need not wait for the acknowledgement, and libnbd does not: that it is gone is
        // no error.
        let _ = self.flush();
        End::Done
    }

    /// `NBD_OPT_STARTTLS` before TLS is in use; true once it is. NBD protocol, "TLS support".
    ///
    /// # Errors
    /// The client violated the protocol, left or timed out; the TLS handshake failed.
    pub(super) fn start_tls(&mut self, payload: &[u8]) -> Result<bool, End> {
        let option = Opt::STARTTLS;
        if !payload.is_empty() {
            self.refuse(option, Rep::ERR_INVALID, "option takes no data");
            return Ok(false);
        }
        if self.connection.settings.tls.is_none() {
            self.refuse(option, Rep::ERR_POLICY, "TLS is not enabled on this server");
            return Ok(false);
        }
        if !self.input.available().is_empty() {
            // The client has to wait for the reply: plaintext behind the option may be an
            // attacker's.
            return Err(End::Protocol(format!("{option}: the client sent more without waiting")));
        }
        self.reply(option, Rep::ACK, &[]);
        self.flush()?;
        tls::start(self.connection, self.input.deadline)?;
        Ok(true)
    }

    /// Appends a reply to an option.
    pub(super) fn reply(&mut self, option: Opt, reply: Rep, payload: &[u8]) {
        debug!("replying to {option} with {reply}");
        encode_option_reply(&mut self.out, option, reply, payload);
    }

    /// Appends an error reply with its text.
    pub(super) fn refuse(&mut self, option: Opt, error: Rep, message: &str) {
        debug!("replying to {option} with {error}: {}", quoted(message));
        encode_option_error(&mut self.out, option, error, message);
    }

    /// Replies not yet sent, to append what is not an option reply.
    pub(super) fn unsent(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Sends the replies.
    ///
    /// # Errors
    /// The client is gone or does not read.
    pub(super) fn flush(&mut self) -> Result<(), End> {
        if !self.out.is_empty() {
            self.connection
                .socket
                .write_all(&self.out, self.input.deadline)
                .during("write reply to option")?;
            self.out.clear();
        }
        Ok(())
    }
}
