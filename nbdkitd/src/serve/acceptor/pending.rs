//! The admitted client that is to be sent to the template next: its channels are made, and it stays
//! pending until the template takes it.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nbdkit_ipc::StackId;
use nbdkit_ipc::messages::{Isolation, Peer, Serve};
use nix::errno::Errno;

use super::Acceptor;
use crate::parking::Patience;
use crate::serve::context::Context;
use crate::serve::slot::TemplateSlot;
use crate::serve::workers::{WorkerLink, Workers};
use crate::system_error;

/// The client that is to be sent to the template next.
pub(super) struct Pending {
    pub(super) serve: Serve,
    /// What the template gets: the worker's end of its control channel, once it was made; the
    /// client.
    fds: Vec<OwnedFd>,
    /// The listener's end.
    link: Option<WorkerLink>,
}

impl Acceptor {
    /// Makes a client the next connection. [`send_pending`](Self::send_pending) sends it as soon as
    /// the template takes it.
    pub(in crate::serve) fn set_pending(&mut self, peer: Peer, fds: Vec<OwnedFd>) {
        let serve = Serve {
            connection: self.next_connection(),
            stack: StackId::ONLY,
            peer,
            broker: false,
            park_after: self.park_after,
            parked: None,
        };
        self.pending = Some(Pending { serve, fds, link: None });
    }

    /// Sends the pending client to the template, if the template takes it.
    ///
    /// # Errors
    /// What has failed for lack of descriptors or memory: the client stays pending.
    pub(in crate::serve) fn send_pending(
        &mut self,
        slot: &mut TemplateSlot,
        workers: &mut Workers,
        now: Instant,
        context: &Context,
    ) -> Result<(), (&'static str, Errno)> {
        if !slot.is_serving() {
            return Ok(());
        }
        let Some(mut pending) = self.pending.take() else { return Ok(()) };
        match send(&mut pending, slot) {
            Ok(true) => {}
            Ok(false) => {
                self.pending = Some(pending);
                return Ok(());
            }
            Err(failed) => {
                self.pending = Some(pending);
                return Err(failed);
            }
        }
        self.backoff.reset();
        let Pending { serve, mut fds, link } = pending;
        let Serve { connection, peer, broker, park_after, .. } = serve;
        // Behind the worker's ends of its channels. The two of `-s` are of no use to another
        // template.
        let client = fds.pop().filter(|_| link.is_some() && fds.len() == 1 + usize::from(broker));
        // The worker's end of its channel: the channel is to be closed when the worker ends.
        drop(fds);
        let patience = park_after.map(Patience::new).filter(|_| client.is_some());
        workers.add(connection, peer, client, link, patience, now);
        workers.register(connection, context);
        Ok(())
    }
}

/// Makes a pending client's channels, and sends it. False if the template does not take it now, or
/// has ended.
fn send(pending: &mut Pending, slot: &mut TemplateSlot) -> Result<bool, (&'static str, Errno)> {
    let isolation = slot.isolation();
    if isolation == Some(Isolation::Connection) && pending.link.is_none() {
        let (ours, theirs) =
            WorkerLink::pair().map_err(|error| ("socketpair", system_error::number(&error)))?;
        pending.fds.insert(0, theirs.into_fd());
        pending.link = Some(ours);
    }
    if pending.link.is_some()
        && !pending.serve.broker
        && pending.fds.len() < nbdkit_ipc::MAX_FDS
        && let Some(channel) = slot.broker_channel_for(pending.serve.connection)
    {
        pending.serve.broker = true;
        pending.fds.insert(1, channel);
    }
    let fds: Vec<BorrowedFd<'_>> = pending.fds.iter().map(AsFd::as_fd).collect();
    slot.take(&pending.serve, &fds)
}
