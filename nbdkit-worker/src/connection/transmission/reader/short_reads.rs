//! Short reads of a local device: answered from memory, or left to the pool, which begins with them
//! together once there are no more.

#![forbid(unsafe_code)]

use nbd_protocol::constants::Command;
use nbd_protocol::transmission::Request;
use nbdkit_api::Blocking;

use super::super::super::read_groups::UP_TO;
use super::{End, Reader};

impl Reader<'_> {
    /// Whether a request is a read that others like it are begun with and replied to at once.
    pub(super) fn is_grouped(&self, request: &Request, splice_out: Option<usize>) -> bool {
        self.blocking == Blocking::Short
            && request.command == Command::READ
            && request.length <= UP_TO
            && splice_out.is_none()
            && !self.session.connection.settings.is_serialized()
    }

    /// Replies to a read if its data is in memory and the reader should look; false if nothing was
    /// done.
    pub(super) fn attempt_read(
        &mut self,
        request: &Request,
        splice_out: Option<usize>,
    ) -> Result<bool, End> {
        if !self.is_grouped(request, splice_out) {
            return self.read_without_waiting(request, splice_out);
        }
        if !self.attempts.is_due() {
            return Ok(false);
        }
        let found = self.read_without_waiting(request, splice_out)?;
        self.attempts.record(found);
        Ok(found)
    }

    /// Has the pool begin with the reads that were left to it.
    pub(super) fn announce(&mut self) {
        if std::mem::take(&mut self.unannounced)
            && let Some(pool) = &self.session.pool
        {
            pool.announce();
        }
    }
}
