//! The options of fixed newstyle and what we answer. NBD protocol, "Option types".

#![forbid(unsafe_code)]

use nbd_protocol::constants::{BASE_ALLOCATION, ClientFlags, InfoType, Opt, Rep};
use nbd_protocol::handshake::{
    BlockSizes, Info, InfoRequest, MetaContextReply, MetaContextRequest, ServerReply,
};
use nbdkit_api::{Exports, debug, quoted};

use super::export::{Export, Features};
use super::input::Input;
use super::{Connection, End, tls};

/// The id of `base:allocation` in block status replies.
pub(crate) const BASE_ALLOCATION_ID: u32 = 1;

/// Replies gathered before they are sent, so that a long list needs no memory to match.
const FLUSH_AT: usize = 64 * 1024;

/// A client in option haggling: what it has negotiated so far.
pub(crate) struct ExpectOption<'a> {
    pub(super) connection: &'a Connection<'a>,
    pub(super) input: Input,
    /// Replies not yet sent.
    pub(super) out: Vec<u8>,
    /// Both sides speak fixed newstyle.
    pub(super) fixed: bool,
    /// The reply to NBD_OPT_EXPORT_NAME goes without padding.
    pub(super) no_zeroes: bool,
    structured: bool,
    /// Extended headers are in use.
    pub(super) extended: bool,
    /// The export for which `base:allocation` was set.
    meta_context: Option<String>,
}

impl<'a> ExpectOption<'a> {
    pub(super) fn new(
        connection: &'a Connection<'a>,
        input: Input,
        flags: ClientFlags,
    ) -> ExpectOption<'a> {
        ExpectOption {
            connection,
            input,
            out: Vec::new(),
            fixed: flags.contains(ClientFlags::FIXED_NEWSTYLE),
            no_zeroes: flags.contains(ClientFlags::NO_ZEROES),
            structured: false,
            extended: false,
            meta_context: None,
        }
    }

    pub(super) fn into_input(self) -> Input {
        self.input
    }

    /// Whether the client has to negotiate TLS before anything else.
    pub(super) fn needs_tls(&self) -> bool {
        let required = self.connection.settings.tls.as_ref().is_some_and(|tls| tls.require);
        required && !self.connection.client.is_tls()
    }

    /// What holds for transmission if this export is picked: a meta context counts only for the export for which
    /// it was set (NBD protocol, NBD_OPT_SET_META_CONTEXT).
    pub(super) fn features_for(&self, export: &str) -> Features {
        Features {
            structured: self.structured || self.extended,
            extended: self.extended,
            base_allocation: self.meta_context.as_deref() == Some(export),
        }
    }
}

/// Answers an option other than EXPORT_NAME by appending replies. `Some` if it was a successful NBD_OPT_GO.
///
/// # Errors
/// The connection is over.
pub(super) fn answer(
    state: &mut ExpectOption<'_>,
    option: Opt,
    payload: &[u8],
) -> Result<Option<Export>, End> {
    if state.needs_tls() && !matches!(option, Opt::ABORT | Opt::STARTTLS) {
        state.refuse(option, Rep::ERR_TLS_REQD, "this server requires TLS");
        return Ok(None);
    }
    match option {
        Opt::ABORT => state.reply(option, Rep::ACK, &[]),
        Opt::LIST => list(state, payload)?,
        Opt::STARTTLS => starttls(state, payload)?,
        Opt::INFO | Opt::GO => return info(state, option, payload),
        Opt::STRUCTURED_REPLY | Opt::EXTENDED_HEADERS => upgrade(state, option, payload),
        Opt::LIST_META_CONTEXT | Opt::SET_META_CONTEXT => meta_context(state, option, payload),
        _ => state.refuse(option, Rep::ERR_UNSUP, "unknown option"),
    }
    Ok(None)
}

/// NBD_OPT_STARTTLS. After it nothing holds that was said before, but for the client's flags, which TLS does not change.
/// NBD protocol, "TLS support".
fn starttls(state: &mut ExpectOption<'_>, payload: &[u8]) -> Result<(), End> {
    let option = Opt::STARTTLS;
    if !payload.is_empty() {
        state.refuse(option, Rep::ERR_INVALID, "option takes no data");
    } else if state.connection.settings.tls.is_none() {
        state.refuse(option, Rep::ERR_POLICY, "TLS is not enabled on this server");
    } else if state.connection.client.is_tls() {
        state.refuse(option, Rep::ERR_INVALID, "TLS is already in use");
    } else if !state.input.available().is_empty() {
        // The client has to wait for the answer; what is here already was put in the clear by who knows whom.
        return Err(End::Protocol(format!("{option}: the client sent more without waiting")));
    } else {
        state.reply(option, Rep::ACK, &[]);
        state.flush()?;
        tls::start(state.connection, state.input.deadline)?;
        state.structured = false;
        state.extended = false;
        state.meta_context = None;
    }
    Ok(())
}

fn list(state: &mut ExpectOption<'_>, payload: &[u8]) -> Result<(), End> {
    if !payload.is_empty() {
        state.refuse(Opt::LIST, Rep::ERR_INVALID, "option takes no data");
        return Ok(());
    }
    let connection = state.connection;
    let settings = connection.settings;
    let mut exports = Exports::new();
    let listed = settings.serialized(|| {
        connection.layer.list_exports(&connection.client, settings.readonly, &mut exports)
    });
    if let Err(error) = listed {
        state.refuse(Opt::LIST, Rep::ERR_PLATFORM, error.message());
        return Ok(());
    }
    let mut reply = Vec::new();
    for export in &exports {
        reply.clear();
        let description = export.description.as_deref().unwrap_or_default();
        ServerReply { name: &export.name, description }.encode(&mut reply);
        state.reply(Opt::LIST, Rep::SERVER, &reply);
        if state.out.len() >= FLUSH_AT {
            state.flush()?;
        }
    }
    state.reply(Opt::LIST, Rep::ACK, &[]);
    Ok(())
}

/// NBD_OPT_STRUCTURED_REPLY and NBD_OPT_EXTENDED_HEADERS.
fn upgrade(state: &mut ExpectOption<'_>, option: Opt, payload: &[u8]) {
    let extended = option == Opt::EXTENDED_HEADERS;
    if !payload.is_empty() {
        state.refuse(option, Rep::ERR_INVALID, "option takes no data");
    } else if !state.connection.settings.protocol.structured_replies {
        state.refuse(option, Rep::ERR_UNSUP, "disabled on this server");
    } else if state.extended && !extended {
        state.refuse(option, Rep::ERR_EXT_HEADER_REQD, "extended headers are already in use");
    } else if if extended { state.extended } else { state.structured } {
        state.refuse(option, Rep::ERR_INVALID, "already negotiated");
    } else {
        if extended {
            state.extended = true;
        } else {
            state.structured = true;
        }
        state.reply(option, Rep::ACK, &[]);
    }
}

fn info(state: &mut ExpectOption<'_>, option: Opt, payload: &[u8]) -> Result<Option<Export>, End> {
    let request = match InfoRequest::decode(payload) {
        Ok(request) => request,
        Err(malformed) => {
            state.refuse(option, Rep::ERR_INVALID, &malformed.to_string());
            return Ok(None);
        }
    };
    let name = request.name;
    debug!("newstyle negotiation: {option}: client requested export '{}'", quoted(name));
    let connection = state.connection;
    let opened = Export::open(connection, name, state.features_for(name)).and_then(|export| {
        match facts(state, &request, option, &export) {
            Ok(()) => Ok(export),
            Err(error) => export.close(connection).and(Err(error)),
        }
    });
    let export = match opened {
        Ok(export) => export,
        Err(error) => {
            state.refuse(option, Rep::ERR_UNKNOWN, error.message());
            return Ok(None);
        }
    };
    debug!("newstyle negotiation: flags: export {:#x}", export.flags);
    state.reply(option, Rep::ACK, &[]);
    if option == Opt::GO {
        (connection.on_serving)(name);
        return Ok(Some(export));
    }
    export.close(connection).map_err(|_| End::Refused)?;
    Ok(None)
}

/// The NBD_REP_INFO replies about an open export: its size and flags always, the rest as asked for.
fn facts(
    state: &mut ExpectOption<'_>,
    request: &InfoRequest<'_>,
    option: Opt,
    export: &Export,
) -> nbdkit_api::Result<()> {
    let connection = state.connection;
    let settings = connection.settings;
    let mut send = |info: Info<'_>| {
        let mut payload = Vec::new();
        info.encode(&mut payload);
        state.reply(option, Rep::INFO, &payload);
    };
    // What can fail is asked for before anything is sent.
    let canonical = if request.wants(InfoType::NAME) && request.name.is_empty() {
        settings
            .serialized(|| connection.layer.default_export(&connection.client, settings.readonly))?
    } else {
        None
    };
    let block_size = settings.serialized(|| export.backend.block_size())?;
    send(Info::Export { size: export.size, flags: export.flags });
    if request.wants(InfoType::NAME) {
        send(Info::Name(canonical.as_deref().unwrap_or(request.name)));
    }
    if request.wants(InfoType::DESCRIPTION)
        && let Some(text) = settings.serialized(|| export.backend.export_description())
    {
        send(Info::Description(&text));
    }
    if request.wants(InfoType::BLOCK_SIZE) && !block_size.is_unspecified() {
        send(Info::BlockSize(BlockSizes {
            minimum: block_size.minimum,
            preferred: block_size.preferred,
            maximum: block_size.maximum,
        }));
    }
    Ok(())
}

/// NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT: `base:allocation` is what there is.
fn meta_context(state: &mut ExpectOption<'_>, option: Opt, payload: &[u8]) {
    let set = option == Opt::SET_META_CONTEXT;
    if set {
        // Whatever comes of it, an earlier choice is gone.
        state.meta_context = None;
    }
    if !state.connection.settings.protocol.meta_contexts {
        state.refuse(option, Rep::ERR_UNSUP, "meta contexts are disabled on this server");
        return;
    }
    let request = match MetaContextRequest::decode(payload) {
        Ok(request) => request,
        Err(malformed) => {
            state.refuse(option, Rep::ERR_INVALID, &malformed.to_string());
            return;
        }
    };
    if set && !(state.structured || state.extended) {
        state.refuse(option, Rep::ERR_INVALID, "structured replies must be negotiated first");
        return;
    }
    let name = BASE_ALLOCATION.as_bytes();
    let wanted = if set {
        request.queries.clone().any(|query| query == name)
    } else {
        // No query at all, and the bare namespace, ask for all that there is.
        request.queries.len() == 0
            || request.queries.clone().any(|query| query == name || query == b"base:")
    };
    if wanted {
        let id = if set { BASE_ALLOCATION_ID } else { 0 };
        let mut reply = Vec::new();
        MetaContextReply { id, name: BASE_ALLOCATION }.encode(&mut reply);
        state.reply(option, Rep::META_CONTEXT, &reply);
        if set {
            state.meta_context = Some(request.export.to_owned());
        }
    }
    state.reply(option, Rep::ACK, &[]);
}
