//! The parameters, and what they may be together. nbdkit-nbd-plugin(1).

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Mutex;

use nbdkit_api::{Endpoint, Error, Result, Value, parse};

use super::haggle::TlsMode;
use super::tls::{Options, Tls};
use super::upstream::{Place, Upstream, inherited};
use super::uri::{self, PORT, Uri};

/// Longest path of a socket, bytes. unix(7).
const MAX_SOCKET_PATH: usize = 107;

/// The parameters as they were given.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    uri: Option<Uri>,
    socket: Option<PathBuf>,
    hostname: Option<String>,
    port: Option<String>,
    vsock: Option<u32>,
    command: Option<OsString>,
    args: Vec<OsString>,
    socket_fd: Option<i32>,
    pub(super) export: Option<String>,
    dynamic_export: bool,
    retry: u32,
    shared: bool,
    tls: Option<TlsMode>,
    tls_options: Options,
}

/// What is checked of them before anything is opened.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) target: Target,
    /// The export that is opened, unless clients choose.
    pub(super) export: String,
    /// Clients choose.
    pub(super) dynamic: bool,
    pub(super) shared: bool,
    retry: u32,
    mode: TlsMode,
    tls: Options,
}

/// Where the upstream server is.
#[derive(Debug)]
pub(super) enum Target {
    Endpoint(Endpoint),
    Fd(i32),
    Command(OsString, Vec<OsString>),
}

fn absolute(path: &OsStr) -> Result<PathBuf> {
    Value::new(path).absolute_path()
}

/// The absolute path of a socket.
fn socket(path: &OsStr) -> Result<PathBuf> {
    if path.is_empty() {
        return Err(Error::msg("cannot convert null or empty path to an absolute path"));
    }
    let path = absolute(path)?;
    if path.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
        return Err(Error::msg("socket file name too large"));
    }
    Ok(path)
}

impl Parameters {
    /// Takes one.
    ///
    /// # Errors
    /// Unknown key or bad value.
    pub(super) fn take(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "uri" => self.uri = Some(uri::parse(value.str()?)?),
            "socket" => self.socket = Some(socket(value.as_os_str())?),
            "hostname" => self.hostname = Some(value.str()?.to_owned()),
            "port" => self.port = Some(value.str()?.to_owned()),
            "vsock" | "cid" => self.vsock = Some(value.integer("vsock_cid")?),
            "command" => self.command = Some(value.to_os_string()),
            "arg" => self.args.push(value.to_os_string()),
            "socket-fd" => self.socket_fd = Some(value.integer(key)?),
            "export" => self.export = Some(value.str()?.to_owned()),
            "dynamic-export" => self.dynamic_export = value.boolean()?,
            "retry" => self.retry = value.integer(key)?,
            "shared" => self.shared = value.boolean()?,
            "tls" => {
                self.tls = Some(match value.str()? {
                    "require" | "required" | "force" => TlsMode::Require,
                    _ if value.boolean()? => TlsMode::On,
                    _ => TlsMode::Off,
                });
            }
            "tls-certificates" => self.tls_options.certificates = Some(value.absolute_path()?),
            "tls-verify" => self.tls_options.verify = Some(value.boolean()?),
            "tls-username" => self.tls_options.username = Some(value.str()?.to_owned()),
            "tls-psk" => self.tls_options.psk = Some(value.absolute_path()?),
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    /// Checks what they are together.
    ///
    /// # Errors
    /// One line: something is missing or contradictory.
    pub(super) fn check(&mut self) -> Result<Checked> {
        let given = [
            self.socket.is_some(),
            self.hostname.is_some(),
            self.vsock.is_some(),
            self.command.is_some(),
            self.socket_fd.is_some(),
            self.uri.is_some(),
        ];
        match given.iter().filter(|given| **given).count() {
            0 => {
                return Err(Error::msg(
                    "exactly one of ‘socket’, ‘hostname’, ‘vsock’, ‘command’, ‘socket-fd’ and \
                     ‘uri’ parameters must be specified",
                ));
            }
            1 => {}
            _ => {
                return Err(Error::msg(
                    "cannot mix Unix ‘socket’, TCP ‘hostname’/‘port’, ‘vsock’, ‘command’, \
                     ‘socket-fd’ and ‘uri’ parameters",
                ));
            }
        }
        if self.port.is_some() && self.hostname.is_none() && self.vsock.is_none() {
            return Err(Error::msg(
                "‘port’ parameter should only be used with ‘hostname’ or ‘vsock’",
            ));
        }
        if !self.args.is_empty() && self.command.is_none() {
            return Err(Error::msg("‘arg’ parameter should only be used with ‘command’"));
        }
        let mut tls = std::mem::take(&mut self.tls_options);
        let mut required = false;
        let mut of_uri = None;
        let target = match self.uri.take() {
            Some(uri) => {
                required = uri.tls;
                of_uri = Some(uri.export.clone());
                Target::Endpoint(from_uri(uri, &mut tls)?)
            }
            None => self.target()?,
        };
        let shared = self.shared || !matches!(target, Target::Endpoint(_));
        if shared && self.dynamic_export {
            return Err(Error::msg("cannot use 'dynamic-export' with shared connection"));
        }
        if self.export.is_some() && self.dynamic_export {
            return Err(Error::msg("cannot mix 'dynamic-export' with explicit export name"));
        }
        let export = of_uri.or_else(|| self.export.clone()).unwrap_or_default();
        if export.len() > nbdkit_api::exports::MAX_STRING {
            return Err(Error::msg("export name too long"));
        }
        if let (None, Target::Endpoint(Endpoint::Tcp { host, .. })) = (&tls.hostname, &target) {
            // A literal address of IPv6 may have a zone, which certificates have not.
            let host = host.split_once('%').map_or(host.as_str(), |(address, _)| address);
            tls.hostname = Some(host.to_owned());
        }
        let usual = if tls.any() { TlsMode::On } else { TlsMode::Off };
        let mode = if required { TlsMode::Require } else { self.tls.unwrap_or(usual) };
        let (dynamic, retry) = (self.dynamic_export, self.retry);
        Ok(Checked { target, export, dynamic, shared, retry, mode, tls })
    }

    fn target(&mut self) -> Result<Target> {
        if let Some(path) = self.socket.take() {
            return Endpoint::unix(path).map(Target::Endpoint);
        }
        let port = self.port.take();
        if let Some(host) = self.hostname.take() {
            let port = port.unwrap_or_else(|| PORT.to_string());
            return Endpoint::tcp(host, &port).map(Target::Endpoint);
        }
        if let Some(cid) = self.vsock {
            let port = port.map_or(Ok(u32::from(PORT)), |port| parse::integer("port", &port))?;
            return Ok(Target::Endpoint(Endpoint::Vsock { cid, port }));
        }
        match (self.command.take(), self.socket_fd) {
            (Some(program), _) => Ok(Target::Command(program, std::mem::take(&mut self.args))),
            (None, Some(fd)) => Ok(Target::Fd(fd)),
            (None, None) => Err(Error::msg("there is no upstream server")),
        }
    }
}

/// Where a URI leads; what it says about TLS counts for more than the parameters.
fn from_uri(uri: Uri, tls: &mut Options) -> Result<Endpoint> {
    let path = |path: &Option<OsString>| path.as_deref().map(absolute).transpose();
    tls.certificates = path(&uri.certificates)?.or(tls.certificates.take());
    tls.psk = path(&uri.psk)?.or(tls.psk.take());
    tls.verify = uri.verify.or(tls.verify);
    tls.username = uri.username.or(tls.username.take());
    tls.hostname = uri.hostname;
    match uri.place {
        uri::Place::Tcp(host, port) => Endpoint::tcp(host, &port.to_string()),
        uri::Place::Unix(path) if path.as_bytes().first() == Some(&0) => {
            Err(Error::msg("NBD URI: sockets in the abstract namespace are not supported"))
        }
        uri::Place::Unix(path) => Endpoint::unix(socket(&path)?),
        uri::Place::Vsock(cid, port) => Ok(Endpoint::Vsock { cid, port }),
    }
}

impl Checked {
    /// Opens what can be opened now.
    ///
    /// # Errors
    /// One line: a file or a descriptor cannot be used.
    pub(super) fn upstream(&self) -> Result<Upstream> {
        let place = match &self.target {
            Target::Endpoint(endpoint) => Place::Endpoint(endpoint.clone()),
            Target::Fd(number) => Place::Fd(Mutex::new(Some(inherited(*number)?))),
            Target::Command(program, args) => Place::Command {
                program: program.clone(),
                args: args.clone(),
                sockets: Mutex::default(),
            },
        };
        let tls = match self.mode {
            TlsMode::Off => None,
            TlsMode::On | TlsMode::Require => Some(Tls::new(&self.tls)?),
        };
        Ok(Upstream {
            place,
            retry: self.retry,
            mode: self.mode,
            tls,
            shared: Mutex::default(),
            program: Mutex::default(),
        })
    }
}

#[cfg(test)]
mod tests;
