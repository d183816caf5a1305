//! A worker: what a fork of the template does for its one client.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use nbdkit_api::client::Client;
use nbdkit_api::paths::parking;
use nbdkit_ipc::messages::{self, MAX_DN, ParkedState, Serve};
use nbdkit_ipc::{Channel, FromWorker, StackId, WorkerExit, title};

use super::Service;
use crate::authority::Listener;
use crate::broker::ask;
use crate::connection::{Activity, Connection, Counters, Parked, Parking, Socket};
use crate::log::TemplateLink;
use crate::{log, privileges, process};

/// Serves the client that came with `serve` and returns the exit status. `template_link` is the
/// template's own, on which a worker sends nothing. `fds`: control channel, channel to the broker
/// if `serve.broker` is set, client's socket, client's output if that is another.
pub(super) fn run(
    service: &Service,
    template_link: Option<Arc<TemplateLink>>,
    serve: &Serve,
    fds: Vec<OwnedFd>,
) -> i32 {
    let mut fds = fds.into_iter();
    let channel = fds.next();
    let broker = serve.broker.then(|| fds.next()).flatten();
    let (Some(channel), Some(input), output, None) = (channel, fds.next(), fds.next(), fds.next())
    else {
        nbdkit_api::error!("a client arrived with the wrong number of descriptors");
        return WorkerExit::Failed.code();
    };
    let link = Arc::new(Channel::from_fd(channel));
    // From here on everything goes to our own channel, and the template's is closed.
    process::set_channel(&*link, true);
    log::use_worker(Arc::clone(&link));
    drop(template_link);
    let activity = Arc::<Activity>::default();
    if let Err(errno) = process::end_client_on_message(&*link, &input, Arc::clone(&activity)) {
        nbdkit_api::error!("fcntl: {}", nbdkit_api::strerror(errno));
        return WorkerExit::Failed.code();
    }
    // What top(1) and ps(1) show as the command, with and without its arguments.
    let _ = nix::sys::prctl::set_name(c"nbdkit:worker");
    entitle(&serve.peer.address, None);
    if service.swap {
        process::touch_stack();
        // Locks are not inherited by fork. This also ends copy-on-write with the template: the
        // kernel populates writable private mappings as if they were written to. mlock(2), "Notes".
        if let Err(error) = privileges::lock_memory() {
            nbdkit_api::error!("{error}");
            return WorkerExit::Failed.code();
        }
    }
    if let Err(error) = service.sandbox.close_worker() {
        nbdkit_api::error!("{error}");
        return WorkerExit::Failed.code();
    }
    let listener =
        Listener { link: Arc::clone(&link), end: process::end_client, asking: Mutex::new(()) };
    let listener = Arc::new(listener);
    if service.broker.is_some() {
        ask::ask_by(Arc::clone(&listener), broker);
    }
    let socket = Socket::new(input, output);
    let client = client(serve, &socket);
    let parked = match serve.parked.as_ref().map(ParkedState::decode::<Parked>) {
        Some(None) => {
            nbdkit_api::error!("what was parked is no state of a connection");
            return WorkerExit::Failed.code();
        }
        parked => parked.flatten(),
    };
    let park_after = serve.park_after;
    if park_after.is_some() || parked.is_some() {
        parking::note_files(parked.as_ref().and_then(Parked::file));
    }
    let told = Arc::clone(&client);
    let tell = |export: &str| {
        entitle(&serve.peer.address, Some(export));
        let (stack, export, tls_dn) = (StackId::ONLY, export.to_owned(), tls_dn(&told));
        let _ = link.send(&FromWorker::Serving { stack, export, tls_dn }, &[]);
    };
    let totals = Counters::default();
    let park = |parked: &Parked| {
        let Some(state) = ParkedState::of(parked) else { return false };
        let totals = totals.totals();
        link.send(&FromWorker::Park { state, totals }, &[]).is_ok()
    };
    let connection = Connection {
        layer: &service.layer,
        settings: &service.settings,
        client,
        socket,
        authority: listener,
        on_serving: &tell,
        totals: &totals,
        activity,
        parking: park_after.map(|after| Parking { after, park: &park }),
    };
    let served = catch_unwind(AssertUnwindSafe(|| match &parked {
        None => connection.serve(),
        Some(parked) => {
            entitle(&serve.peer.address, Some(parked.export()));
            connection.resume(parked)
        }
    }));
    let exit = served.unwrap_or(WorkerExit::Panicked);
    if service.settings.log_connections && exit != WorkerExit::Parked {
        let _ = link.send(&FromWorker::Totals(totals.totals()), &[]);
    }
    exit.code()
}

/// Shows whose worker this is, and as soon as that is known, for which export. A function of its
/// own, so that the frame of a worker that waits for its client does not have what this needs.
#[inline(never)]
fn entitle(address: &messages::PeerAddress, export: Option<&str>) {
    let address = match address {
        messages::PeerAddress::Inet(address) => address.ip().to_string(),
        other => other.to_string(),
    };
    let export = export.map_or(String::new(), |name| format!(" export={}", title::name(name)));
    title::set(&format!("worker {address}{export}"));
}

/// The subject of a client's certificate, if it has shown one, as the listener takes it.
pub(super) fn tls_dn(client: &Client) -> Option<String> {
    let dn = &client.tls()?.dn;
    (!dn.is_empty()).then(|| dn[..dn.floor_char_boundary(MAX_DN)].to_owned())
}

/// The client that came with `serve`.
pub(super) fn client(serve: &Serve, socket: &Socket) -> Arc<Client> {
    let cut = socket.clone();
    let input = Some(Arc::clone(socket.input()));
    Client::new(serve.connection, serve.peer.clone(), input, Box::new(move || cut.cut()))
}
