//! Carries out one valid request against the stack and appends its reply.

#![forbid(unsafe_code)]

mod block_status;
mod known_data;
mod read;
mod unflushed;

use nbd_protocol::constants::Command;
use nbd_protocol::transmission::Request;
use nbdkit_api::{Backend, Errno, Error, Flags, Result};

use super::negotiated::Features;
use super::reply::Replies;
use super::totals::Counters;
use crate::settings::Settings;
pub(crate) use known_data::KnownData;
pub(crate) use unflushed::Unflushed;

/// The stack that requests are carried out against, and the form of its replies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) settings: &'a Settings,
    pub(crate) features: Features,
    /// Export size, bytes.
    pub(crate) size: u64,
    pub(crate) known_data: &'a KnownData,
    pub(crate) totals: &'a Counters,
    pub(crate) unflushed: &'a Unflushed,
}

impl Target<'_> {
    /// Carries out a valid request; `payload` is a write's data. Appends exactly one reply, of one
    /// or more chunks.
    pub(crate) fn execute(
        &self,
        request: &Request,
        flags: Flags,
        payload: &[u8],
        replies: &mut Replies,
    ) {
        let result = self.settings.serialized(|| self.call(request, flags, payload, replies));
        if let Err(error) = result {
            self.totals.failed(request);
            replies.error(request, self.features, &error);
        }
    }

    /// Calls the backend's method for the command and appends the reply, unless it fails.
    fn call(
        &self,
        request: &Request,
        flags: Flags,
        payload: &[u8],
        replies: &mut Replies,
    ) -> Result<()> {
        let Request { command, offset, length, .. } = *request;
        match command {
            Command::READ => return self.read(request, replies),
            Command::BLOCK_STATUS => return self.block_status(request, flags, payload, replies),
            Command::WRITE => {
                let result = self.backend.pwrite(payload, offset, flags);
                self.unflushed.written(flags);
                result?;
            }
            Command::FLUSH => self.unflushed.flush(|| self.backend.flush())?,
            Command::TRIM | Command::WRITE_ZEROES => {
                let result = match command {
                    Command::TRIM => self.backend.trim(length, offset, flags),
                    _ => self.backend.zero(length, offset, flags),
                };
                self.known_data.forget();
                self.unflushed.written(flags);
                result?;
            }
            Command::CACHE => self.backend.cache(length, offset)?,
            // Rules::check() has rejected every other command.
            _ => return Err(Error::silent(Errno::EINVAL)),
        }
        replies.success(request, self.features);
        Ok(())
    }
}
