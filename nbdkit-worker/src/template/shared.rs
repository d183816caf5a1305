//! Isolation `shared`: this process serves all clients, each on a thread of its own. For stacks
//! whose state lives in ordinary memory.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nbdkit_api::log::error as log_error;
use nbdkit_api::{Client, client, programs, strerror};
use nbdkit_ipc::messages::Serve;
use nbdkit_ipc::{FromTemplate, Received, RecvError, StackId, ToTemplate, WorkerExit};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read, write};

use super::orphaned::Deadline;
use super::{Service, unexpected, worker};
use crate::authority::{SharedListener, Waiting};
use crate::connection::activity::LOOK;
use crate::connection::{Activity, Connection, Counters, Socket};
use crate::log::TemplateLink;
use crate::process;

/// The clients being served, so that they can be ended.
type Clients = Mutex<HashMap<u64, Served>>;

/// A client that is being served.
#[derive(Clone)]
struct Served {
    client: Arc<Client>,
    socket: Socket,
    activity: Arc<Activity>,
    /// Nothing more is read from it.
    is_done: bool,
}

impl Served {
    fn new(serve: &Serve, socket: Socket) -> Served {
        let client = worker::client(serve, &socket);
        Served { client, socket, activity: Arc::default(), is_done: false }
    }

    /// Reads nothing more from the client once it is quiet. To be called every [`LOOK`] when the
    /// server stops.
    fn look(&mut self) {
        if self.is_done {
            return;
        }
        if self.activity.is_quiet() {
            self.is_done = true;
            self.socket.stop_reading();
        } else if self.activity.is_refused() {
            // All that are not quiet were looked at as often.
            client::set_stopping();
        }
    }
}

/// Serves clients until the listener sends `Quiesce` or ends, then ends them and waits for their
/// threads.
pub(super) fn run(service: &mut Service) {
    let Some(link) = service.link.clone() else { return };
    if let Err(error) = service.sandbox.close_worker() {
        return log_error(&error.to_string());
    }
    let watchers = service.watchers.take().unwrap_or_default();
    let serve = || match service.single {
        true => run_single(service, &link),
        false => run_all(service, &link),
    };
    service.watchers = Some(watchers.handled_while(&link, serve));
}

/// Serves them on threads.
fn run_all(service: &Service, link: &Arc<TemplateLink>) {
    // Each thread that has served a client writes a byte.
    let (over, end_of_thread) = match pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) {
        Ok(pipe) => pipe,
        Err(errno) => return log_error(&format!("pipe: {}", strerror(errno))),
    };
    let clients = Clients::default();
    let waiting = Arc::new(Waiting::default());
    std::thread::scope(|scope| {
        loop {
            match link.recv() {
                Ok(Received { message: ToTemplate::Serve(serve), lost: true, .. })
                    if serve.stack == StackId::ONLY =>
                {
                    service.has_no_room(serve.connection);
                }
                Ok(Received { message: ToTemplate::Serve(serve), fds, .. })
                    if serve.stack == StackId::ONLY =>
                {
                    let Some(socket) = socket(fds) else {
                        log_error("a client arrived with the wrong number of descriptors");
                        ended(service, serve.connection, WorkerExit::Failed);
                        continue;
                    };
                    let connection = serve.connection;
                    let served = Served::new(&serve, socket);
                    lock(&clients).insert(connection, served.clone());
                    let (clients, end_of_thread) = (&clients, &end_of_thread);
                    let authority = SharedListener {
                        link: Arc::clone(link),
                        connection,
                        waiting: Arc::clone(&waiting),
                    };
                    let thread = std::thread::Builder::new().name("connection".to_owned());
                    let started = thread.spawn_scoped(scope, move || {
                        let exit = serve_one(service, served, authority);
                        lock(clients).remove(&connection);
                        programs::forget(connection);
                        ended(service, connection, exit);
                        let _ = write(end_of_thread, &[0]);
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
                    give_up(&clients, connection);
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
        wait(service, link, &clients, &over);
    });
}

/// Ends a client at once, with the programs that run for it, unless it has ended by itself.
fn give_up(clients: &Clients, connection: u64) {
    if let Some(served) = lock(clients).get(&connection) {
        served.socket.cut();
        programs::give_up(connection);
    }
}

/// Waits until all clients have ended, and gives up those that the listener is tired of. If the
/// listener has been killed there is nobody else to end one that waits for the stack: then all, at
/// once if that may be a script, and the process if that does not help.
fn wait(service: &Service, link: &TemplateLink, clients: &Clients, over: &OwnedFd) {
    let mut listener_lives = true;
    let mut deadline: Option<Deadline> = None;
    let mut given_up = false;
    let give_up_all = || {
        let all: Vec<u64> = lock(clients).keys().copied().collect();
        all.into_iter().for_each(|connection| give_up(clients, connection));
    };
    let mut looked = Instant::now();
    while !lock(clients).is_empty() {
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            lock(clients).values_mut().for_each(Served::look);
        }
        let mut fds = vec![PollFd::new(over.as_fd(), PollFlags::POLLIN)];
        if listener_lives {
            fds.push(PollFd::new(link.as_fd(), PollFlags::POLLIN));
        }
        let is_done = lock(clients).values().all(|served| served.is_done);
        let patience = if is_done { Deadline::left(deadline) } else { look_again() };
        if !matches!(poll(&mut fds, patience), Ok(_) | Err(Errno::EINTR)) {
            return;
        }
        if deadline.is_some_and(Deadline::has_passed) {
            if given_up {
                process::exit_now(WorkerExit::Failed.code());
            }
            give_up_all();
            (given_up, deadline) = (true, Some(Deadline::new()));
        }
        let _ = read(over, &mut [0; 64]);
        while listener_lives {
            match link.try_recv() {
                Ok(Received { message: ToTemplate::Disconnect { connection }, .. }) => {
                    give_up(clients, connection);
                }
                // Clients and keys come too late.
                Ok(_) => {}
                Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => break,
                Err(_) => {
                    listener_lives = false;
                    deadline = Some(Deadline::new());
                    if service.strays.is_some() {
                        give_up_all();
                    }
                }
            }
        }
    }
}

/// Serves the only client that there will be (`-s`) on the thread that configured the stack, which
/// some code in C wants to be called by, and lets another wait for the end.
fn run_single(service: &Service, link: &Arc<TemplateLink>) {
    let (connection, served) = loop {
        match link.recv() {
            Ok(Received { message: ToTemplate::Serve(serve), fds, .. })
                if serve.stack == StackId::ONLY =>
            {
                let Some(socket) = socket(fds) else {
                    return log_error("a client arrived with the wrong number of descriptors");
                };
                break (serve.connection, Served::new(&serve, socket));
            }
            Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => {}
            _ => return,
        }
    };
    let waiting = Arc::new(Waiting::default());
    let authority =
        SharedListener { link: Arc::clone(link), connection, waiting: Arc::clone(&waiting) };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (mut ending, over) = (served.clone(), &over);
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
            let is_over = || {
                ending.look();
                over.load(Ordering::Relaxed)
            };
            let Some(listener_lives) = listener_is_tired(service, link, is_over) else { return };
            ending.socket.cut();
            programs::give_up(connection);
            if !listener_lives && !is_over_in_time(|| over.load(Ordering::Relaxed)) {
                process::exit_now(WorkerExit::Failed.code());
            }
        });
        let exit = match started {
            Ok(_) => serve_one(service, served, authority),
            Err(error) => {
                log_error(&format!("thread: {error}"));
                WorkerExit::Failed
            }
        };
        over.store(true, Ordering::Relaxed);
        ended(service, connection, exit);
    });
}

/// [`LOOK`] for poll(2).
fn look_again() -> PollTimeout {
    PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO)
}

/// Waits, after `Quiesce`, until the client has ended (`is_over`: `None`) or is to be ended: the
/// listener sends so (true), or is gone (false).
fn listener_is_tired(
    service: &Service,
    link: &TemplateLink,
    mut is_over: impl FnMut() -> bool,
) -> Option<bool> {
    while !is_over() {
        let _ = poll(&mut [PollFd::new(link.as_fd(), PollFlags::POLLIN)], look_again());
        match link.try_recv() {
            Ok(Received { message: ToTemplate::Disconnect { .. }, .. }) => return Some(true),
            Ok(_) | Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => {}
            // A client that may wait for a script is not waited for.
            Err(_) if service.strays.is_some() => return Some(false),
            Err(_) => return (!is_over_in_time(is_over)).then_some(false),
        }
    }
    None
}

/// Waits for a while until the client has ended, if it does.
fn is_over_in_time(mut is_over: impl FnMut() -> bool) -> bool {
    let deadline = Deadline::new();
    while !is_over() {
        if deadline.has_passed() {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}

fn lock(clients: &Clients) -> std::sync::MutexGuard<'_, HashMap<u64, Served>> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

fn socket(fds: Vec<OwnedFd>) -> Option<Socket> {
    let mut fds = fds.into_iter();
    match (fds.next(), fds.next(), fds.next()) {
        (Some(input), output, None) => Some(Socket::new(input, output)),
        _ => None,
    }
}

fn serve_one(service: &Service, served: Served, authority: SharedListener) -> WorkerExit {
    let Served { client, socket, activity, .. } = served;
    let (layer, settings) = (&service.layer, &service.settings);
    let number = client.number();
    let told = Arc::clone(&client);
    let on_serving = |export: &str| {
        service.send(&FromTemplate::Serving {
            connection: number,
            stack: StackId::ONLY,
            export: export.to_owned(),
            tls_dn: worker::tls_dn(&told),
        });
    };
    let authority = Arc::new(authority);
    let (on_serving, totals, parking) = (&on_serving, &Counters::default(), None);
    let connection = Connection {
        layer,
        settings,
        client,
        socket,
        authority,
        on_serving,
        totals,
        activity,
        parking,
    };
    let served = catch_unwind(AssertUnwindSafe(|| connection.serve()));
    if settings.log_connections {
        let totals = connection.totals.totals();
        service.send(&FromTemplate::Totals { connection: number, totals });
    }
    served.unwrap_or(WorkerExit::Panicked)
}

fn ended(service: &Service, connection: u64, exit: WorkerExit) {
    service.send(&FromTemplate::Exited { connection, exit });
}
