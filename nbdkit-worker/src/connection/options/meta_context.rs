//! `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`: there is one, `base:allocation`.

#![forbid(unsafe_code)]

use nbd_protocol::constants::{BASE_ALLOCATION, Opt, Rep};
use nbd_protocol::handshake::{MetaContextReply, MetaContextRequest};

use super::{AwaitOption, BASE_ALLOCATION_ID};

impl AwaitOption<'_> {
    /// Replies to the option, and sets the context if the client wants it.
    pub(super) fn meta_context(&mut self, option: Opt, payload: &[u8]) {
        let set = option == Opt::SET_META_CONTEXT;
        if set {
            // An earlier choice does not hold any more, even if this one fails.
            self.meta_context = None;
        }
        let haggling = &mut self.haggling;
        if !haggling.connection.settings.protocol.meta_contexts {
            let what = "meta contexts are disabled on this server";
            haggling.refuse(option, Rep::ERR_UNSUP, what);
            return;
        }
        let request = match MetaContextRequest::decode(payload) {
            Ok(request) => request,
            Err(malformed) => {
                haggling.refuse(option, Rep::ERR_INVALID, &malformed.to_string());
                return;
            }
        };
        if set && !(self.structured || self.extended) {
            let what = "structured replies must be negotiated first";
            haggling.refuse(option, Rep::ERR_INVALID, what);
            return;
        }
        let name = BASE_ALLOCATION.as_bytes();
        let wanted = if set {
            request.queries.clone().any(|query| query == name)
        } else {
            // No query at all, and the bare namespace, ask for every context.
            request.queries.len() == 0
                || request.queries.clone().any(|query| query == name || query == b"base:")
        };
        if wanted {
            let id = if set { BASE_ALLOCATION_ID } else { 0 };
            let mut reply = Vec::new();
            MetaContextReply { id, name: BASE_ALLOCATION }.encode(&mut reply);
            haggling.reply(option, Rep::META_CONTEXT, &reply);
            if set {
                self.meta_context = Some(request.export.to_owned());
            }
        }
        haggling.reply(option, Rep::ACK, &[]);
    }
}
