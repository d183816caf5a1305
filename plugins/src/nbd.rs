//! nbdkit-nbd-plugin(1): passes everything on to another NBD server.
//!
//! The template reads parameters and credentials. Each client's worker connects to the upstream
//! server by way of the broker; with `shared=true` the process that serves all clients does so
//! once. Bytes of the upstream server are hostile: what decodes them is without sockets, and
//! fuzzed.
//!
//! - `parameters`, `uri`: what was asked for
//! - `upstream`, `command`: connecting; `socket`, `tls`, `session`: the connection
//! - `haggle`: options; `link`, `table`, `decode`, `coverage`: requests and replies
//! - `connection`: what the server calls

#![forbid(unsafe_code)]

mod command;
mod connection;
mod coverage;
mod decode;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod haggle;
mod link;
mod parameters;
mod session;
mod socket;
mod table;
mod tls;
mod upstream;
mod uri;

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

use nbdkit_api::{
    Blocking, Client, Connection, Endpoint, Error, Exports, Isolation, Needs, Open, Plugin, Result,
    Value, debug,
};

use self::connection::Handle;
use self::parameters::{Checked, Parameters, Target};
pub use self::session::Session;
pub use self::tls::{MakeSession, use_pre_shared_keys};
use self::upstream::Upstream;

/// The plugin: where the upstream server is.
#[derive(Default)]
pub struct Nbd {
    parameters: Parameters,
    checked: Option<Checked>,
    upstream: Option<Upstream>,
}

impl Nbd {
    fn checked(&self) -> Result<&Checked> {
        self.checked.as_ref().ok_or_else(|| Error::msg("nbd: not configured"))
    }

    fn upstream(&self) -> Result<&Upstream> {
        self.upstream.as_ref().ok_or_else(|| Error::msg("nbd: not configured"))
    }

    fn is_shared(&self) -> bool {
        self.checked.as_ref().is_some_and(|checked| checked.shared)
    }
}

impl Plugin for Nbd {
    fn name(&self) -> &str {
        "nbd"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "longname",
            "dump_plugin",
            "config",
            "config_complete",
            "config_help",
            "after_fork",
            "list_exports",
            "default_export",
            "open",
            "export_description",
            "get_size",
            "block_size",
            "can_write",
            "can_flush",
            "is_rotational",
            "can_trim",
            "can_zero",
            "can_fast_zero",
            "can_extents",
            "can_fua",
            "can_multi_conn",
            "can_cache",
            "pread",
            "pwrite",
            "flush",
            "trim",
            "zero",
            "extents",
            "cache",
        ]
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit nbd plugin")
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("uri")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "[uri=]<URI>            URI of an NBD socket to connect to.\n\
             socket=<SOCKNAME>      The Unix socket to connect to.\n\
             hostname=<HOST>        The hostname for the TCP socket to connect to.\n\
             port=<PORT>            TCP/VSOCK port or service name to use (default 10809).\n\
             vsock=<CID>            The cid for the VSOCK socket to connect to.\n\
             command=<COMMAND>      Command to run.\n\
             arg=<ARG>              Parameters for command.\n\
             socket-fd=<FD>         Socket file descriptor to connect to.\n\
             export=<NAME>          Export name to connect to (default \"\").\n\
             dynamic-export=<BOOL>  True to enable export name pass-through.\n\
             retry=<N>              Retry connection up to N seconds (default 0).\n\
             shared=<BOOL>          True to share one server connection among all clients,\n\
             \x20                      rather than a connection per client (default false).\n\
             tls=<MODE>             How to use TLS; one of 'off', 'on', or 'require'.\n\
             tls-certificates=<DIR> Directory containing files for X.509 certificates.\n\
             tls-verify=<BOOL>      True (default for X.509) to validate server.\n\
             tls-username=<NAME>    User name of the pre-shared key.\n\
             tls-psk=<FILE>         File containing Pre-Shared Key for TLS.",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        self.parameters.take(key, value)
    }

    fn config_complete(&mut self) -> Result<()> {
        let checked = self.parameters.check()?;
        self.upstream = Some(checked.upstream()?);
        self.checked = Some(checked);
        Ok(())
    }

    fn after_fork(&self) -> Result<()> {
        self.upstream()?.prepare()
    }

    fn warm_up(&self) -> Result<()> {
        match &self.upstream()?.tls {
            // Has the library read what it reads once.
            Some(tls) => tls.session().map(drop),
            None => Ok(()),
        }
    }

    fn in_service(&self) -> Result<()> {
        let checked = self.checked()?;
        if checked.shared {
            self.upstream()?.shared(&checked.export)?;
        }
        Ok(())
    }

    fn unload(&self) {
        if let Some(upstream) = &self.upstream {
            upstream.close();
        }
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for feature in ["tls", "uri", "vsock", "dynamic_list"] {
            writeln!(out, "libnbd_{feature}=1")?;
        }
        Ok(())
    }

    fn needs(&self, _readonly: bool) -> Needs {
        match self.checked.as_ref().map(|checked| &checked.target) {
            Some(Target::Endpoint(endpoint)) => Needs::nothing().connect_to(endpoint.clone()),
            Some(Target::Command(..)) => Needs::nothing().programs(),
            Some(Target::Fd(_)) | None => Needs::nothing(),
        }
    }

    fn isolation(&self) -> Isolation {
        if self.is_shared() { Isolation::Shared } else { Isolation::Connection }
    }

    /// Another process cannot take over in the middle of a connection that was inherited.
    fn keeps_state(&self) -> bool {
        self.checked.as_ref().is_some_and(|checked| matches!(checked.target, Target::Fd(_)))
    }

    fn list_exports(
        &self,
        client: &Arc<Client>,
        _readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        if !self.checked()?.dynamic {
            exports.use_default();
            return Ok(());
        }
        for export in self.upstream()?.list(client)? {
            let description = Some(export.description).filter(|text| !text.is_empty());
            exports.add(export.name, description)?;
        }
        Ok(())
    }

    fn default_export(&self, client: &Arc<Client>, _readonly: bool) -> Result<Option<String>> {
        let checked = self.checked()?;
        if !checked.dynamic {
            return Ok(Some(self.parameters.export.clone().unwrap_or_default()));
        }
        // A server that has no default export will say so when it is opened.
        let name = self.upstream()?.default_name(client).unwrap_or_else(|why| {
            debug!("default export: {why}");
            None
        });
        Ok(Some(name.unwrap_or_default()))
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        let (checked, upstream) = (self.checked()?, self.upstream()?);
        let link = if checked.shared {
            upstream.shared(&checked.export)?
        } else {
            let export = if checked.dynamic { open.export } else { &checked.export };
            Arc::new(upstream.open(open.client.map(|client| &**client), export)?)
        };
        // One request at a time is passed on without a hand-off, unless a network is between.
        let blocking = match &checked.target {
            Target::Endpoint(Endpoint::Tcp { host, .. }) if !is_this_machine(host) => {
                Blocking::Long
            }
            Target::Endpoint(_) | Target::Fd(_) | Target::Command(..) => Blocking::Peer,
        };
        Ok(Box::new(Handle { link, client: open.client.cloned(), blocking }))
    }
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}
