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
use crate::authority::{SharedListener, Waiting};
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
    let waiting = Arc::new(Waiting::default());
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
                    let authority = SharedListener {
                        link: Arc::clone(link),
                        connection,
                        waiting: Arc::clone(&waiting),
                    };
                    let thread = std::thread::Builder::new().name("connection".to_owned());
                    let started = thread.spawn_scoped(scope, move || {
                        let exit = serve_one(service, client, socket, authority);
                        lock(clients).remove(&connection);
                        ended(service, connection, exit);
                    });
                    if let Err(error) = started {
                        log_error(&format!("thread: {error}"));
                        lock(clients).remove(&connection);
                        ended(service, connection, WorkerExit::Failed);
                    }
                }
                Ok(Received { message: ToTemplate::Key { connection, answer }, .. }) => {
                    waiting.answer(connection, answer);
                }
                Ok(Received { message: ToTemplate::Disconnect { connection }, .. }) => {
                    // It may have ended by itself.
                    if let Some((_, socket)) = lock(&clients).get(&connection) {
                        socket.cut();
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
        waiting.close();
        for (client, socket) in lock(&clients).values() {
            client.disconnect(false);
            socket.stop_reading();
        }
    });
}

/// Serves the only client that there will be (`-s`) on the thread that configured the stack, which some code in C wants to be
/// called by, and lets another wait for the end.
fn run_single(service: &Service, link: &Arc<TemplateLink>) {
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
    let waiting = Arc::new(Waiting::default());
    let authority =
        SharedListener { link: Arc::clone(link), connection, waiting: Arc::clone(&waiting) };
    std::thread::scope(|scope| {
        let (served, reading) = (Arc::clone(&client), socket.clone());
        let thread = std::thread::Builder::new().name("quiesce".to_owned());
        let started = thread.spawn_scoped(scope, move || {
            loop {
                match link.recv() {
                    Ok(Received { message: ToTemplate::Key { connection, answer }, .. }) => {
                        waiting.answer(connection, answer);
                    }
                    Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => {}
                    _ => break,
                }
            }
            waiting.close();
            served.disconnect(false);
            reading.stop_reading();
        });
        let exit = match started {
            Ok(_) => serve_one(service, client, socket, authority),
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

fn serve_one(
    service: &Service,
    client: Arc<Client>,
    socket: Socket,
    authority: SharedListener,
) -> WorkerExit {
    let (layer, settings) = (&service.layer, &service.settings);
    let number = client.number();
    let on_serving = |export: &str| {
        service.say(&FromTemplate::Serving { connection: number, export: export.to_owned() });
    };
    let authority = Arc::new(authority);
    let connection =
        Connection { layer, settings, client, socket, authority, on_serving: &on_serving };
    catch_unwind(AssertUnwindSafe(|| connection.serve())).unwrap_or(WorkerExit::Panicked)
}

fn ended(service: &Service, connection: u64, exit: WorkerExit) {
    service.say(&FromTemplate::Exited { connection, exit });
}
