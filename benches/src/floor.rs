//! The floor: the least that a server can do and still answer, as a measure of what the machine allows.
//!
//! A process per connection, forked; one thread; one receive takes all requests that have come, one send carries all
//! their replies. It checks nothing that a client of this benchmark does not do wrong: not a server for the world.

mod fork;
mod serve;

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};

use crate::client::{Address, Stream};
use crate::failure::Failure;

/// What the floor serves.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// A file, by pread and pwrite.
    File(PathBuf),
    /// Zeroes, so many bytes.
    Null(u64),
}

/// Accepts clients for ever.
pub(crate) fn run(address: &Address, content: &Content) -> Result<(), Failure> {
    let (size, file) = match content {
        Content::Null(size) => (*size, None),
        Content::File(path) => {
            let file = File::options().read(true).write(true).open(path);
            let file = file.map_err(|error| Failure::io("open", path.display(), &error))?;
            (file.metadata()?.len(), Some(file))
        }
    };
    let listener = Listener::bind(address)?;
    loop {
        let stream = listener.accept()?;
        match fork::fork()? {
            Some(_) => {
                // Ended children are waited for, so that their CPU time counts as this process's.
                while waitpid(None, Some(WaitPidFlag::WNOHANG))
                    .is_ok_and(|status| status.pid().is_some())
                {}
            }
            None => {
                drop(listener);
                // The client is gone or broken; either way this process has done its work.
                let _ = serve::serve(stream, size, file.as_ref());
                std::process::exit(0);
            }
        }
    }
}

#[derive(Debug)]
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    fn bind(address: &Address) -> Result<Listener, Failure> {
        let bound = match address {
            Address::Unix(path) => UnixListener::bind(path).map(Listener::Unix),
            Address::Tcp(address) => TcpListener::bind(address).map(Listener::Tcp),
        };
        bound.map_err(|error| Failure::io("bind", address, &error))
    }

    fn accept(&self) -> Result<Stream, Failure> {
        Ok(match self {
            Listener::Unix(listener) => Stream::Unix(listener.accept()?.0),
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        })
    }
}

/// Ends with the benchmark that started it, whatever becomes of that.
pub(crate) fn end_with_parent() -> Result<(), Failure> {
    nix::sys::prctl::set_pdeathsig(Some(Signal::SIGTERM))?;
    Ok(())
}
