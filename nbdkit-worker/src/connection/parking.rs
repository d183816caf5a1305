//! Parking: a client that is idle gives up its worker, and gets another with its next request.
//!
//! What the next worker has to know is [`Parked`]. It comes from a process that has parsed a
//! client's bytes: nothing follows from it that the client could not have negotiated itself, and
//! without TLS where that is required, no export is opened.

#![forbid(unsafe_code)]

use std::time::Duration;

use nbdkit_api::debug;
use nbdkit_api::paths::parking::{self, FileId, OpenFiles};
use serde::{Deserialize, Serialize};

use super::export::{Export, TlsSatisfied};
use super::input::Input;
use super::negotiated::Negotiated;
use super::{Connection, End};

/// A client that has no worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parked {
    pub(super) negotiated: Negotiated,
    /// The file that its last worker had open: device, number and time of birth.
    file: Option<(u64, u64, Option<u64>)>,
}

impl Parked {
    /// Of a connection whose export was closed.
    fn new(negotiated: &Negotiated, file: Option<FileId>) -> Parked {
        let file = file.map(|id| (id.device, id.inode, id.birth));
        Parked { negotiated: negotiated.clone(), file }
    }

    /// The file that its last worker had open, if any.
    pub(crate) fn file(&self) -> Option<FileId> {
        self.file.map(|(device, inode, birth)| FileId { device, inode, birth })
    }

    /// The export's name as the client asked for it.
    pub(crate) fn export(&self) -> &str {
        &self.negotiated.export
    }
}

/// How a connection whose stack can be closed and opened again is parked.
pub(crate) struct Parking<'a> {
    /// How long its client has to be idle.
    pub(crate) after: Duration,
    /// Hands it to the listener; false if that has ended.
    pub(crate) park: &'a (dyn Fn(&Parked) -> bool + Sync),
}

impl Parking<'_> {
    /// Whether what the connection has open can be opened again.
    pub(super) fn is_possible(&self) -> bool {
        parking::open_files() != OpenFiles::Others
    }

    /// Parks a connection whose export was closed.
    pub(super) fn park(&self, negotiated: &Negotiated) -> Result<(), End> {
        let file = match parking::open_files() {
            OpenFiles::One(id) => Some(id),
            OpenFiles::None | OpenFiles::Others => None,
        };
        debug!("the client is idle: parked");
        match (self.park)(&Parked::new(negotiated, file)) {
            true => Ok(()),
            false => Err(End::Broken("parking: the listener has ended".to_owned())),
        }
    }
}

/// Opens the export of a client that was parked again. It has to be what was negotiated.
///
/// # Errors
/// It is not, or it cannot be opened.
pub(super) fn resume<'a>(
    connection: &'a Connection<'a>,
    parked: &Parked,
) -> Result<(Negotiated, Export, Input), End> {
    let negotiated = parked.negotiated.clone();
    let satisfied = TlsSatisfied::check(connection).ok_or(End::Refused)?;
    let Negotiated { export, features, .. } = &negotiated;
    let (export, now) =
        Export::open(connection, export, *features, satisfied).map_err(|_| End::Refused)?;
    if !negotiated.still_holds(&now) {
        nbdkit_api::error!(
            "the export has changed while its client was idle: {now}, not {negotiated}"
        );
        let _ = export.close(connection);
        return Err(End::Refused);
    }
    debug!("the client was parked, processing requests again");
    Ok((negotiated, export, Input::new(connection.socket.clone(), None)))
}
