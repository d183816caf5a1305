//! Isolation `shared`: this process serves all clients, each on a thread of its own. For stacks whose state lives
//! in ordinary memory.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use nbdkit_api::Client;
use nbdkit_api::log::error as log_error;
use nbdkit_ipc::{FromTemplate, Received, RecvError, ToTemplate, WorkerExit};
use nix::errno::Errno;

use super::{Service, unexpected, worker};
use crate::connection::{Connection, Socket};
use crate::log::TemplateLink;

/// The clients being served, so that they can be ended.
type Clients = Mutex<HashMap<u64, (Arc<Client>, Socket)>>;

/// Serves clients until the listener says `Quiesce` or is gone, then ends them and waits for their threads.
pub(super) fn run(service: &Service) {
    let Some(link) = &service.link else { return };
    if let Err(error) = service.sandbox.close_worker() {
        return log_error(&error.to_string());
    }
    if service.single {
        return run_single(service, link);
    }
    let clients = Clients::default();
    std::thread::scope(|scope| {
        loop {
            match link.recv() {
                Ok(Received { message: ToTemplate::Serve(serve), fds }) => {
                    let Some(socket) = socket(fds) else {
                        log_error("a client arrived with the wrong number of descriptors");
                        ended(service, serve.connection, WorkerExit::Failed);
                        continue;
                    };
                    let connection = serve.connection;
                    let client = worker::client(&serve, &socket);
                    lock(&clients).insert(connection, (Arc::clone(&client), socket.clone()));
                    let clients = &clients;
                    let thread = std::thread::Builder::new().name("connection".to_owned());
                    let started = thread.spawn_scoped(scope, move || {
                        let exit = serve_one(service, client, socket);
                        lock(clients).remove(&connection);
                        ended(service, connection, exit);
                    });
                    if let Err(error) = started {
                        log_error(&format!("thread: {error}"));
                        lock(clients).remove(&connection);
                        ended(service, connection, WorkerExit::Failed);
                    }
                }
                Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => {}
                Ok(Received { message: ToTemplate::Quiesce, .. }) | Err(RecvError::Closed) => break,
                Ok(other) => {
                    let _ = unexpected(&other.message);
                    break;
                }
                Err(error) => {
                    log_error(&format!("control channel: {error}"));
                    break;
                }
            }
        }
        for (client, socket) in lock(&clients).values() {
            client.disconnect(false);
            socket.stop_reading();
        }
    });
}

/// Serves the only client that there will be (`-s`) on the thread that configured the stack, which some code in C wants to be
/// called by, and lets another wait for the end.
fn run_single(service: &Service, link: &TemplateLink) {
    let (connection, client, socket) = loop {
        match link.recv() {
            Ok(Received { message: ToTemplate::Serve(serve), fds }) => {
                let Some(socket) = socket(fds) else {
                    return log_error("a client arrived with the wrong number of descriptors");
                };
                break (serve.connection, worker::client(&serve, &socket), socket);
            }
            Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => {}
            _ => return,
        }
    };
    std::thread::scope(|scope| {
        let (waiting, reading) = (Arc::clone(&client), socket.clone());
        let thread = std::thread::Builder::new().name("quiesce".to_owned());
        let started = thread.spawn_scoped(scope, move || {
            while let Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) = link.recv() {}
            waiting.disconnect(false);
            reading.stop_reading();
        });
        let exit = match started {
            Ok(_) => serve_one(service, client, socket),
            Err(error) => {
                log_error(&format!("thread: {error}"));
                WorkerExit::Failed
            }
        };
        ended(service, connection, exit);
    });
}

fn lock(clients: &Clients) -> std::sync::MutexGuard<'_, HashMap<u64, (Arc<Client>, Socket)>> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

fn socket(fds: Vec<OwnedFd>) -> Option<Socket> {
    let mut fds = fds.into_iter();
    match (fds.next(), fds.next(), fds.next()) {
        (Some(input), output, None) => Some(Socket::new(input, output)),
        _ => None,
    }
}

fn serve_one(service: &Service, client: Arc<Client>, socket: Socket) -> WorkerExit {
    let (layer, settings) = (&service.layer, &service.settings);
    let on_serving = |_export: &str| {
        #[cfg(debug_assertions)]
        crate::process::call_for_test(_export);
    };
    let connection = Connection { layer, settings, client, socket, on_serving: &on_serving };
    catch_unwind(AssertUnwindSafe(|| connection.serve())).unwrap_or(WorkerExit::Panicked)
}

fn ended(service: &Service, connection: u64, exit: WorkerExit) {
    service.say(&FromTemplate::Exited { connection, exit });
}
