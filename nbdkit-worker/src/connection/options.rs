//! The options of fixed newstyle, once TLS is in use or not required. NBD protocol, "Option types".

#![forbid(unsafe_code)]

mod info;
mod meta_context;

use nbd_protocol::constants::{Opt, Rep};
use nbd_protocol::handshake::{ExportNameReply, ServerReply, decode_export_name};
use nbdkit_api::{Exports, debug};

use super::End;
use super::export::{Export, TlsSatisfied};
use super::haggling::{Haggling, ReceivedOption};
use super::negotiated::{Features, Negotiated};

/// The id of `base:allocation` in block status replies.
pub(super) const BASE_ALLOCATION_ID: u32 = 1;

/// Replies gathered before they are sent, bytes: a long list of exports needs no more memory.
const FLUSH_AT: usize = 64 * 1024;

/// What follows an option.
pub(super) enum Next<'a> {
    /// Another option.
    Await(AwaitOption<'a>),
    /// TLS has begun, and haggling begins again.
    Restart(Haggling<'a>),
    /// The transmission phase, once the replies are sent.
    Serve(Haggling<'a>, Negotiated, Box<Export>),
}

/// A client that may negotiate everything and open an export.
pub(super) struct AwaitOption<'a> {
    haggling: Haggling<'a>,
    tls: TlsSatisfied,
    /// Structured replies were negotiated by their own option.
    structured: bool,
    /// Extended headers were negotiated.
    extended: bool,
    /// The export for which `base:allocation` was set.
    meta_context: Option<String>,
}

impl<'a> AwaitOption<'a> {
    pub(super) fn new(haggling: Haggling<'a>, tls: TlsSatisfied) -> AwaitOption<'a> {
        AwaitOption { haggling, tls, structured: false, extended: false, meta_context: None }
    }

    /// Receives and handles one option.
    ///
    /// # Errors
    /// The connection ends.
    pub(super) fn option(mut self) -> Result<Next<'a>, End> {
        let Some(ReceivedOption { option, payload }) = self.haggling.receive()? else {
            return Ok(Next::Await(self));
        };
        let picked = match option {
            Opt::ABORT => return Err(self.haggling.abort()),
            Opt::STARTTLS => {
                if self.start_tls(&payload)? {
                    return Ok(Next::Restart(self.haggling));
                }
                None
            }
            Opt::EXPORT_NAME => Some(self.export_name(&payload)?),
            Opt::INFO | Opt::GO => self.info(option, &payload)?,
            Opt::LIST => {
                self.list(&payload)?;
                None
            }
            Opt::STRUCTURED_REPLY | Opt::EXTENDED_HEADERS => {
                self.reply_form(option, &payload);
                None
            }
            Opt::LIST_META_CONTEXT | Opt::SET_META_CONTEXT => {
                self.meta_context(option, &payload);
                None
            }
            _ => {
                self.haggling.refuse(option, Rep::ERR_UNSUP, "unknown option");
                None
            }
        };
        if let Some((export, negotiated)) = picked {
            return Ok(Next::Serve(self.haggling, negotiated, Box::new(export)));
        }
        self.haggling.flush()?;
        Ok(Next::Await(self))
    }

    /// What holds for transmission if this export is picked: a meta context counts only for the
    /// export for which it was set (NBD protocol, `NBD_OPT_SET_META_CONTEXT`).
    fn features_for(&self, export: &str) -> Features {
        Features {
            structured: self.structured || self.extended,
            extended: self.extended,
            base_allocation: self.meta_context.as_deref() == Some(export),
        }
    }

    /// `NBD_OPT_STARTTLS`; true once TLS is in use.
    fn start_tls(&mut self, payload: &[u8]) -> Result<bool, End> {
        if payload.is_empty() && self.haggling.connection.client.is_tls() {
            self.haggling.refuse(Opt::STARTTLS, Rep::ERR_INVALID, "TLS is already in use");
            return Ok(false);
        }
        self.haggling.start_tls(payload)
    }

    /// `NBD_OPT_EXPORT_NAME`: the reply is the export itself; a refusal ends the connection.
    fn export_name(&mut self, payload: &[u8]) -> Result<(Export, Negotiated), End> {
        let option = Opt::EXPORT_NAME;
        if self.extended {
            return Err(End::Protocol(format!("{option} after extended headers were negotiated")));
        }
        let name = decode_export_name(payload)
            .map_err(|malformed| End::Protocol(format!("{option}: {malformed}")))?;
        let features = self.features_for(name);
        let (export, negotiated) = Export::open(self.haggling.connection, name, features, self.tls)
            .map_err(|_| End::Refused)?;
        debug!("newstyle negotiation: flags: export {:#x}", negotiated.flags);
        let no_zeroes = self.haggling.no_zeroes();
        ExportNameReply { size: negotiated.size, flags: negotiated.flags }
            .encode(self.haggling.unsent(), no_zeroes);
        Ok((export, negotiated))
    }

    /// `NBD_OPT_LIST`.
    fn list(&mut self, payload: &[u8]) -> Result<(), End> {
        let haggling = &mut self.haggling;
        if !payload.is_empty() {
            haggling.refuse(Opt::LIST, Rep::ERR_INVALID, "option takes no data");
            return Ok(());
        }
        let connection = haggling.connection;
        let settings = connection.settings;
        let mut exports = Exports::new();
        let listed = settings.serialized(|| {
            connection.layer.list_exports(&connection.client, settings.readonly, &mut exports)
        });
        if let Err(error) = listed {
            haggling.refuse(Opt::LIST, Rep::ERR_PLATFORM, error.message());
            return Ok(());
        }
        let mut reply = Vec::new();
        for export in &exports {
            reply.clear();
            let description = export.description.as_deref().unwrap_or_default();
            ServerReply { name: &export.name, description }.encode(&mut reply);
            haggling.reply(Opt::LIST, Rep::SERVER, &reply);
            if haggling.unsent().len() >= FLUSH_AT {
                haggling.flush()?;
            }
        }
        haggling.reply(Opt::LIST, Rep::ACK, &[]);
        Ok(())
    }

    /// `NBD_OPT_STRUCTURED_REPLY` and `NBD_OPT_EXTENDED_HEADERS`.
    fn reply_form(&mut self, option: Opt, payload: &[u8]) {
        let haggling = &mut self.haggling;
        let extended = option == Opt::EXTENDED_HEADERS;
        if !payload.is_empty() {
            haggling.refuse(option, Rep::ERR_INVALID, "option takes no data");
        } else if !haggling.connection.settings.protocol.structured_replies {
            haggling.refuse(option, Rep::ERR_UNSUP, "disabled on this server");
        } else if self.extended && !extended {
            let what = "extended headers are already in use";
            haggling.refuse(option, Rep::ERR_EXT_HEADER_REQD, what);
        } else if if extended { self.extended } else { self.structured } {
            haggling.refuse(option, Rep::ERR_INVALID, "already negotiated");
        } else {
            if extended {
                self.extended = true;
            } else {
                self.structured = true;
            }
            haggling.reply(option, Rep::ACK, &[]);
        }
    }
}
