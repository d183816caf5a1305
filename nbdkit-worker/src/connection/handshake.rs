//! The handshake phase: greeting, option haggling, and at its end an open export.
//! NBD protocol, "Handshake phase".
//!
//! The states are types, named after what they await: [`AwaitClientFlags`], [`AwaitStartTls`] and
//! [`AwaitOption`]. Only the last has methods that list, describe or open exports. To make one, and
//! to open an export, takes a [`TlsSatisfied`]: proof that TLS is in use or not required.

#![forbid(unsafe_code)]

use std::time::Instant;

use nbd_protocol::constants::{ClientFlags, HandshakeFlags, Opt, Rep};
use nbd_protocol::handshake::Greeting;
use nbdkit_api::debug;

use super::export::{Export, TlsSatisfied};
use super::haggling::{Haggling, ReceivedOption};
use super::input::Input;
use super::negotiated::{Features, Negotiated};
use super::options::{AwaitOption, Next};
use super::{Connection, During, End};

/// Takes a client from its first byte to an open export. Bytes that it sent beyond the handshake
/// are in the input that is returned.
///
/// # Errors
/// Every other way in which a handshake can end.
pub(super) fn negotiate<'a>(
    connection: &'a Connection<'a>,
) -> Result<(Negotiated, Export, Input), End> {
    let settings = connection.settings;
    settings
        .serialized(|| connection.layer.preconnect(&connection.client, settings.readonly))
        .map_err(|_| End::Refused)?;
    // The clock starts once preconnect has returned (nbdkit(1), --timeout).
    let deadline = settings.timeout.map(|timeout| Instant::now() + timeout);
    let input = Input::new(connection.socket.clone(), deadline);
    let (negotiated, export, mut input) = if settings.protocol.oldstyle {
        let (negotiated, export) = oldstyle(connection, deadline)?;
        (negotiated, export, input)
    } else {
        newstyle(connection, input)?
    };
    input.deadline = None;
    debug!("negotiated: {negotiated}");
    debug!("handshake complete, processing requests with {} threads", settings.threads);
    Ok((negotiated, export, input))
}

/// The greeting is all there is: one export, no negotiation. NBD protocol, "Oldstyle negotiation".
fn oldstyle(
    connection: &Connection<'_>,
    deadline: Option<Instant>,
) -> Result<(Negotiated, Export), End> {
    // The command line does not permit oldstyle with --tls=require.
    let satisfied = TlsSatisfied::check(connection).ok_or(End::Refused)?;
    let (export, negotiated) =
        Export::open(connection, "", Features::default(), satisfied).map_err(|_| End::Refused)?;
    debug!("oldstyle negotiation: flags: export {:#x}", negotiated.flags);
    connection
        .socket
        .write_all(&Greeting::encode_oldstyle(negotiated.size, negotiated.flags), deadline)
        .during("write greeting")?;
    (connection.on_serving)(&negotiated.export);
    Ok((negotiated, export))
}

fn newstyle<'a>(
    connection: &'a Connection<'a>,
    input: Input,
) -> Result<(Negotiated, Export, Input), End> {
    let mut state = AwaitClientFlags::greet(connection, input)?.client_flags()?;
    loop {
        state = match state {
            State::StartTls(it) => it.option()?,
            State::Option(it) => match it.option()? {
                Next::Await(it) => State::Option(it),
                Next::Restart(haggling) => State::new(haggling),
                Next::Serve(mut haggling, negotiated, export) => {
                    (connection.on_serving)(&negotiated.export);
                    haggling.flush()?;
                    return Ok((negotiated, *export, haggling.input));
                }
            },
        };
    }
}

/// A client that has been greeted.
struct AwaitClientFlags<'a> {
    connection: &'a Connection<'a>,
    input: Input,
    offered: HandshakeFlags,
}

impl<'a> AwaitClientFlags<'a> {
    /// Sends the greeting. NBD protocol, "Newstyle negotiation".
    fn greet(connection: &'a Connection<'a>, input: Input) -> Result<AwaitClientFlags<'a>, End> {
        let mask = connection.settings.protocol.mask_handshake;
        let offered = HandshakeFlags::from_bits_truncate(
            (HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES).bits() & mask as u16,
        );
        debug!("newstyle negotiation: flags: global {:#x}", offered.bits());
        connection
            .socket
            .write_all(&Greeting::encode_newstyle(offered), input.deadline)
            .during("write greeting")?;
        Ok(AwaitClientFlags { connection, input, offered })
    }

    /// Receives the client's flags, which must be among those offered.
    fn client_flags(mut self) -> Result<State<'a>, End> {
        let Some(bytes) = self.input.take().during("reading initial client flags")? else {
            return Err(End::Done);
        };
        let flags = ClientFlags::from_bits_retain(u32::from_be_bytes(bytes));
        debug!("newstyle negotiation: client flags: {:#x}", flags.bits());
        if flags.bits() & !u32::from(self.offered.bits()) != 0 {
            return Err(End::Protocol(format!(
                "client requested unexpected flags {:#x}",
                flags.bits()
            )));
        }
        Ok(State::new(Haggling::new(self.connection, self.input, flags)))
    }
}

/// A client in option haggling.
enum State<'a> {
    /// TLS is required and not in use.
    StartTls(AwaitStartTls<'a>),
    /// Every option is permitted.
    Option(AwaitOption<'a>),
}

impl<'a> State<'a> {
    /// The state in which haggling begins, and begins again behind STARTTLS: nothing that was
    /// negotiated before holds any more, but for the client's flags. NBD protocol, "TLS support".
    fn new(haggling: Haggling<'a>) -> State<'a> {
        match TlsSatisfied::check(haggling.connection) {
            Some(satisfied) => State::Option(AwaitOption::new(haggling, satisfied)),
            None => State::StartTls(AwaitStartTls { haggling }),
        }
    }
}

/// A client that has to negotiate TLS before anything else (`--tls=require`). It can leave or start
/// TLS; it has no [`TlsSatisfied`] to open an export with.
struct AwaitStartTls<'a> {
    haggling: Haggling<'a>,
}

impl<'a> AwaitStartTls<'a> {
    /// Receives and handles one option.
    fn option(mut self) -> Result<State<'a>, End> {
        let haggling = &mut self.haggling;
        let Some(ReceivedOption { option, payload }) = haggling.receive()? else {
            return Ok(State::StartTls(self));
        };
        match option {
            Opt::ABORT => return Err(haggling.abort()),
            Opt::STARTTLS => {
                if haggling.start_tls(&payload)? {
                    return Ok(State::new(self.haggling));
                }
            }
            // This option has no error reply.
            Opt::EXPORT_NAME => {
                return Err(End::Protocol(format!("{option}: this server requires TLS")));
            }
            _ => haggling.refuse(option, Rep::ERR_TLS_REQD, "this server requires TLS"),
        }
        haggling.flush()?;
        Ok(State::StartTls(self))
    }
}
