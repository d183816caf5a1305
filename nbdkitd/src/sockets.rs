//! The listening sockets, of any family: opened here, or passed by a service manager.
//!
//! They are opened once, after the plugin's `get_ready` as in nbdkit, by the user that started the
//! server. Nothing is read from clients here.

#![forbid(unsafe_code)]

mod activation;
mod keepalive;
mod label;
mod peer;
mod tcp;
mod tuning;
mod unix;
mod vsock;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;

pub(crate) use activation::{ActivationError, adopt};
pub(crate) use keepalive::keep_alive;
use label::{LabelError, SocketLabel};
pub(crate) use peer::peer;
use tcp::TcpError;
use thiserror::Error;
pub(crate) use tuning::tune;
pub(crate) use unix::PrivateDirectory;
use vsock::VsockError;

use crate::cli::command_line::ServiceMode;
use crate::log::Log;
use crate::made::MadeFile;
use crate::system_error::SystemError;

/// The listening sockets, and what was created for them.
pub(crate) struct Listening {
    /// Listening and non-blocking. Empty with `-s`.
    pub(crate) sockets: Vec<OwnedFd>,
    /// The TCP port, where the kernel chose it.
    pub(crate) port: Option<u16>,
    /// Of `-U -`. Removed when dropped.
    pub(crate) directory: Option<PrivateDirectory>,
    /// The socket of `-U`.
    pub(crate) made: Option<MadeFile>,
}

impl Listening {
    fn on(sockets: Vec<OwnedFd>) -> Listening {
        Listening { sockets, port: None, directory: None, made: None }
    }
}

/// Why there are no listening sockets.
#[derive(Debug, Error)]
pub(crate) enum ListenError {
    /// A Unix socket, or the directory for it.
    #[error(transparent)]
    Unix(#[from] SystemError),
    /// `--vsock`.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// TCP.
    #[error(transparent)]
    Tcp(#[from] TcpError),
    /// `--selinux-label`.
    #[error(transparent)]
    Label(#[from] LabelError),
}

/// Opens the sockets for `mode`, or takes those that were `adopted`.
///
/// # Errors
/// No socket could be opened, or not with the label.
pub(crate) fn open(
    mode: &ServiceMode,
    adopted: Vec<OwnedFd>,
    label: Option<&OsStr>,
    log: &Log,
) -> Result<Listening, ListenError> {
    let label = label.map(SocketLabel::set).transpose()?;
    let listening = match mode {
        ServiceMode::SocketActivation { count } => {
            log.debug(|| format!("using socket activation, nr_socks = {count}"));
            Listening::on(adopted)
        }
        ServiceMode::Stdin => Listening::on(Vec::new()),
        ServiceMode::Unix(path) => {
            let socket = unix::listen(path)?;
            log.debug(|| format!("bound to unix socket {}", path.display()));
            Listening { made: MadeFile::at(path), ..Listening::on(vec![socket]) }
        }
        ServiceMode::UnixPrivate => {
            let directory = PrivateDirectory::new()?;
            let socket = unix::listen_in(&directory)?;
            log.debug(|| format!("bound to unix socket {}", directory.socket().display()));
            Listening { directory: Some(directory), ..Listening::on(vec![socket]) }
        }
        ServiceMode::Vsock { port } => Listening::on(vec![vsock::listen(*port, log)?]),
        ServiceMode::Tcp { address, port, family } => {
            tcp::listen(address.as_deref(), port.as_ref(), *family, log)?
        }
    };
    if let Err(error) = label.map(SocketLabel::reset).transpose() {
        listening.made.into_iter().for_each(MadeFile::remove);
        return Err(error.into());
    }
    Ok(listening)
}
