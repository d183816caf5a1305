//! A worker's whole session in this process: a client's bytes in, the server's bytes out. Files in
//! memory stand for the socket, so nothing waits and nothing depends on time.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Once;
use std::time::Duration;

use nbdkit_ipc::WorkerExit;
use nbdkit_ipc::messages::{Allowed, Applies, Configure, Parameter, Protocol, Purpose};
use nbdkit_tests::client::Transport;
use nbdkit_worker::fuzz::Server;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// A configuration for a stack, with everything on offer.
#[must_use]
pub fn configuration(filters: &[&str], plugin: &str) -> Configure {
    Configure {
        stack: nbdkit_ipc::StackId::ONLY,
        purpose: Purpose::Serve,
        filters: filters.iter().map(Into::into).collect(),
        plugin: plugin.into(),
        verbose: true,
        debug_flags: Vec::new(),
        readonly: false,
        // With one thread replies come in the order of the requests.
        threads: 1,
        protocol: Protocol {
            mask_handshake: u32::MAX,
            meta_contexts: true,
            oldstyle: false,
            structured_replies: true,
        },
        timeout: None,
        stdio_safe: false,
        swap: false,
        isolation: None,
        sandbox: None,
        tls: None,
        introduction: String::new(),
        one_client: false,
        allowed: Allowed::default(),
        log_connections: false,
        busy_poll: Duration::ZERO,
    }
}

/// `key=value`.
#[must_use]
pub fn parameter(key: &str, value: &str) -> Parameter {
    Parameter { key: Some(key.to_owned()), value: value.into(), applies: Applies::Always }
}

/// A stack that must be possible.
///
/// # Panics
/// If it is not.
#[must_use]
pub fn server(configure: &Configure, parameters: &[(&str, &str)]) -> Server {
    let parameters: Vec<_> = parameters.iter().map(|(key, value)| parameter(key, value)).collect();
    Server::new(configure, &parameters).expect("the stack is possible")
}

/// Serves a client that sends `bytes` and then nothing more; how it ended and what was replied.
///
/// # Panics
/// If the server does; without memory.
#[must_use]
pub fn serve(server: &Server, bytes: &[u8]) -> (WorkerExit, Vec<u8>) {
    // Lines are made, as with -v, and thrown away.
    static LOG: Once = Once::new();
    LOG.call_once(|| nbdkit_api::log::install(true, Box::new(|_, _, _| {})));
    let (mut input, output) = (memory("client"), memory("replies"));
    input.write_all(bytes).and_then(|()| input.rewind()).expect("memory");
    let replies = output.try_clone().expect("a descriptor");
    let exit = server.serve(OwnedFd::from(input), OwnedFd::from(output));
    let length = replies.metadata().expect("a file has a length").len();
    let mut bytes = vec![0; length as usize];
    replies.read_exact_at(&mut bytes, 0).expect("as long as it is");
    (exit, bytes)
}

fn memory(name: &str) -> File {
    File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).expect("memory"))
}

/// What a server has replied, for a client that makes the same requests once more and checks.
#[derive(Debug)]
pub struct Replay<'a>(pub &'a [u8]);

impl Read for Replay<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Replay<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Replay<'_> {
    fn set_timeout(&self, _: Duration) -> io::Result<()> {
        Ok(())
    }

    fn half_close(&self) -> io::Result<()> {
        Ok(())
    }
}
