//! `NBD_OPT_INFO` and `NBD_OPT_GO`: what an export is, and with GO the transition to transmission.

#![forbid(unsafe_code)]

use nbd_protocol::constants::{InfoType, Opt, Rep};
use nbd_protocol::handshake::{BlockSizes, Info, InfoRequest};
use nbdkit_api::{debug, quoted};

use super::super::End;
use super::super::export::Export;
use super::super::negotiated::Negotiated;
use super::AwaitOption;

impl AwaitOption<'_> {
    /// Replies to the option; the open export if it was a successful GO.
    ///
    /// # Errors
    /// A layer failed to finalize the export: the connection ends.
    pub(super) fn info(
        &mut self,
        option: Opt,
        payload: &[u8],
    ) -> Result<Option<(Export, Negotiated)>, End> {
        let request = match InfoRequest::decode(payload) {
            Ok(request) => request,
            Err(malformed) => {
                self.haggling.refuse(option, Rep::ERR_INVALID, &malformed.to_string());
                return Ok(None);
            }
        };
        let name = request.name;
        debug!("newstyle negotiation: {option}: client requested export '{}'", quoted(name));
        let connection = self.haggling.connection;
        let features = self.features_for(name);
        let opened = Export::open(connection, name, features, self.tls).and_then(
            |(export, mut negotiated)| match self.describe(
                &request,
                option,
                &export,
                &mut negotiated,
            ) {
                Ok(()) => Ok((export, negotiated)),
                Err(error) => export.close(connection).and(Err(error)),
            },
        );
        let (export, negotiated) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.haggling.refuse(option, Rep::ERR_UNKNOWN, error.message());
                return Ok(None);
            }
        };
        debug!("newstyle negotiation: flags: export {:#x}", negotiated.flags);
        self.haggling.reply(option, Rep::ACK, &[]);
        if option == Opt::GO {
            return Ok(Some((export, negotiated)));
        }
        export.close(connection).map_err(|_| End::Refused)?;
        Ok(None)
    }

    /// The `NBD_REP_INFO` replies about an open export: size and flags always, the rest if the
    /// client asked for it.
    fn describe(
        &mut self,
        request: &InfoRequest<'_>,
        option: Opt,
        export: &Export,
        negotiated: &mut Negotiated,
    ) -> nbdkit_api::Result<()> {
        let connection = self.haggling.connection;
        let settings = connection.settings;
        let mut send = |info: Info<'_>| {
            let mut payload = Vec::new();
            info.encode(&mut payload);
            self.haggling.reply(option, Rep::INFO, &payload);
        };
        // The stack is asked what can fail before anything is sent.
        let canonical = if request.wants(InfoType::NAME) && request.name.is_empty() {
            settings.serialized(|| {
                connection.layer.default_export(&connection.client, settings.readonly)
            })?
        } else {
            None
        };
        let block_size = settings.serialized(|| export.backend.block_size())?;
        send(Info::Export { size: negotiated.size, flags: negotiated.flags });
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
            negotiated.block_size = Some(block_size);
        }
        Ok(())
    }
}
