//! The handshake phase: greeting, option haggling, and in the end an open export.
//! NBD protocol, "Handshake phase".

#![forbid(unsafe_code)]

use std::time::Instant;

use nbd_protocol::constants::{ClientFlags, HandshakeFlags, Opt, Rep};
use nbd_protocol::handshake::{
    ExportNameReply, Greeting, OptionHeader, encode_option_error, encode_option_reply,
};
use nbdkit_api::{debug, quoted};

use super::export::{Export, Features};
use super::input::Input;
use super::options::{self, ExpectOption};
use super::{Connection, During, End};

/// Longest option payload that is read at all, bytes. Beyond, the client is not worth its bandwidth.
const MAX_SKIPPED_OPTION: u32 = 16 << 20;

/// Takes a client to an open export. What it sent beyond the handshake is in the input that comes back.
///
/// # Errors
/// Every other way in which a handshake can end.
pub(crate) fn negotiate<'a>(connection: &'a Connection<'a>) -> Result<(Export, Input), End> {
    let settings = connection.settings;
    settings
        .serialized(|| connection.layer.preconnect(&connection.client, settings.readonly))
        .map_err(|_| End::Refused)?;
    // The clock starts once preconnect has returned (nbdkit(1), --timeout).
    let deadline = settings.timeout.map(|timeout| Instant::now() + timeout);
    let input = Input::new(connection.socket.clone(), deadline);
    let (export, mut input) = if settings.protocol.oldstyle {
        (oldstyle(connection, deadline)?, input)
    } else {
        newstyle(connection, input)?
    };
    input.deadline = None;
    debug!("handshake complete, processing requests with {} threads", settings.threads);
    Ok((export, input))
}

/// The greeting is all there is: one export, no negotiation. NBD protocol, "Oldstyle negotiation".
fn oldstyle(connection: &Connection<'_>, deadline: Option<Instant>) -> Result<Export, End> {
    let export = Export::open(connection, "", Features::default()).map_err(|_| End::Refused)?;
    debug!("oldstyle negotiation: flags: export {:#x}", export.flags);
    connection
        .socket
        .write_all(&Greeting::encode_oldstyle(export.size, export.flags), deadline)
        .during("write greeting")?;
    (connection.on_serving)("");
    Ok(export)
}

fn newstyle<'a>(connection: &'a Connection<'a>, mut input: Input) -> Result<(Export, Input), End> {
    let protocol = connection.settings.protocol;
    let offered = HandshakeFlags::from_bits_truncate(
        (HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES).bits()
            & protocol.mask_handshake as u16,
    );
    debug!("newstyle negotiation: flags: global {:#x}", offered.bits());
    connection
        .socket
        .write_all(&Greeting::encode_newstyle(offered), input.deadline)
        .during("write greeting")?;
    let Some(bytes) = input.take().during("reading initial client flags")? else {
        return Err(End::Done);
    };
    let client = ClientFlags::from_bits_retain(u32::from_be_bytes(bytes));
    debug!("newstyle negotiation: client flags: {:#x}", client.bits());
    if client.bits() & !u32::from(offered.bits()) != 0 {
        return Err(End::Protocol(format!(
            "client requested unexpected flags {:#x}",
            client.bits()
        )));
    }
    let mut state = ExpectOption::new(connection, input, client);
    loop {
        if let Some(export) = state.option()? {
            return Ok((export, state.into_input()));
        }
    }
}

/// What the loop over options needs of the socket.
impl ExpectOption<'_> {
    /// Handles one option; the export once the client has picked one.
    fn option(&mut self) -> Result<Option<Export>, End> {
        let Some(bytes) = self.input.take().during("reading option")? else {
            return Err(End::Done);
        };
        let header = OptionHeader::decode(&bytes)
            .map_err(|malformed| End::Protocol(malformed.to_string()))?;
        let OptionHeader { option, length } = header;
        if !self.fixed && option != Opt::EXPORT_NAME {
            return Err(End::Protocol(format!(
                "{option} from a client that did not negotiate fixed newstyle"
            )));
        }
        if length > nbd_protocol::constants::MAX_OPTION_LENGTH {
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
        // A name of its own, so that the payload can be looked at while replies are written.
        let mut payload = vec![0; length as usize];
        self.input.read_exact(&mut payload).during(format_args!("read: {option}"))?;
        let export = if option == Opt::EXPORT_NAME {
            Some(self.export_name(&payload)?)
        } else {
            options::answer(self, option, &payload)?
        };
        if option == Opt::ABORT {
            // A client need not wait for the acknowledgement, and libnbd does not: that it has gone is no error.
            let _ = self.flush();
            return Err(End::Done);
        }
        self.flush()?;
        Ok(export)
    }

    /// NBD_OPT_EXPORT_NAME: the answer is the export itself; a refusal is the end of the connection.
    fn export_name(&mut self, payload: &[u8]) -> Result<Export, End> {
        if self.needs_tls() {
            return Err(End::Protocol(format!("{}: this server requires TLS", Opt::EXPORT_NAME)));
        }
        if self.extended {
            let option = Opt::EXPORT_NAME;
            return Err(End::Protocol(format!("{option} after extended headers were negotiated")));
        }
        let name = nbd_protocol::handshake::decode_export_name(payload)
            .map_err(|malformed| End::Protocol(format!("{}: {malformed}", Opt::EXPORT_NAME)))?;
        let features = self.features_for(name);
        let export = Export::open(self.connection, name, features).map_err(|_| End::Refused)?;
        debug!("newstyle negotiation: flags: export {:#x}", export.flags);
        ExportNameReply { size: export.size, flags: export.flags }
            .encode(&mut self.out, self.no_zeroes);
        (self.connection.on_serving)(name);
        Ok(export)
    }

    /// Appends a reply to an option.
    pub(crate) fn reply(&mut self, option: Opt, reply: Rep, payload: &[u8]) {
        debug!("replying to {option} with {reply}");
        encode_option_reply(&mut self.out, option, reply, payload);
    }

    /// Appends an error reply with its text.
    pub(crate) fn refuse(&mut self, option: Opt, error: Rep, message: &str) {
        debug!("replying to {option} with {error}: {}", quoted(message));
        encode_option_error(&mut self.out, option, error, message);
    }

    /// Sends what has been appended.
    ///
    /// # Errors
    /// The client is gone or does not read.
    pub(crate) fn flush(&mut self) -> Result<(), End> {
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
