//! Requests that pass to a plugin which has many of them in flight: see [`Pipeline`].

use super::opened::Opened;
use super::{Backend, Range};
use crate::error::{Result, log_once};
use crate::log;
use crate::pipeline::{Awaited, Pipeline, Ticket};
use crate::types::{DataPath, Direction};

impl Backend {
    /// Whether requests may be queued: the plugin has a pipeline, and no layer sees all requests.
    pub fn is_pipelined(&self) -> bool {
        self.plugin().is_some_and(|(_, pipeline)| pipeline.is_some())
    }

    /// The plugin's layer and its pipeline, if every layer lets some requests pass that it need not
    /// be told of.
    fn plugin(&self) -> Option<(&Opened, Option<&dyn Pipeline>)> {
        let opened = self.fixed()?;
        match opened.data_path(Direction::Read) {
            DataPath::Transparent | DataPath::Shifted(_) | DataPath::PerRequest => {
                opened.next().plugin()
            }
            DataPath::Watched => None,
            DataPath::Opaque => Some((opened, opened.layer.pipeline())),
        }
    }

    /// The plugin's pipeline, if `request` passes all layers, and the request's offset there.
    fn passes_to_pipeline(
        &self,
        direction: Direction,
        request: Range,
    ) -> Option<(&dyn Pipeline, u64)> {
        let opened = self.fixed()?;
        match direction {
            Direction::Read => opened.check_range(request.count, request.offset).ok()?,
            Direction::Write => opened.check_write(request.count, request.offset).ok()?,
        }
        if opened.data_path(direction) == DataPath::Watched {
            return None;
        }
        match self.passes_to(direction, request.count, request.offset) {
            Some(offset) => {
                opened.next().passes_to_pipeline(direction, Range { offset, ..request })
            }
            None => Some((opened.layer.pipeline()?, request.offset)),
        }
    }

    /// Queues a read; `None` if it has to be carried out by `pread`, and nothing was done.
    pub fn queue_read(&self, count: u32, offset: u64) -> Option<Ticket> {
        // Each layer would have to log its line.
        if log::datapath() {
            return None;
        }
        let request = Range { count: count.into(), offset };
        let (pipeline, offset) = self.passes_to_pipeline(Direction::Read, request)?;
        pipeline.queue_read(count, offset)
    }

    /// Queues a write without flags; `None` if it has to be carried out by `pwrite`, and nothing
    /// was done.
    pub fn queue_write(&self, data: &[u8], offset: u64) -> Option<Ticket> {
        if log::datapath() {
            return None;
        }
        let request = Range { count: data.len() as u64, offset };
        let (pipeline, offset) = self.passes_to_pipeline(Direction::Write, request)?;
        pipeline.queue_write(data, offset)
    }

    /// Sends what is queued, as far as there is room for it.
    pub fn send_queued(&self) {
        if let Some((opened, Some(pipeline))) = self.plugin() {
            let _entered = opened.enter();
            pipeline.send();
        }
    }

    /// Calls `done` for each queued request that is done, with the bytes if it was a read; errors
    /// have been logged.
    pub fn collect(&self, mut done: impl FnMut(Ticket, Result<&[u8]>)) {
        if let Some((opened, Some(pipeline))) = self.plugin() {
            let _entered = opened.enter();
            pipeline.collect(&mut |ticket, result| done(ticket, result.map_err(log_once)));
        }
    }

    /// Frees memory that the pipeline keeps for the next requests.
    pub fn shrink_pipeline(&self) {
        if let Some((_, Some(pipeline))) = self.plugin() {
            pipeline.shrink();
        }
    }

    /// What to wait for before [`collect`](Self::collect) may have something, if anything.
    pub fn awaited(&self) -> Option<Awaited<'_>> {
        Some(self.plugin()?.1?.awaited())
    }
}
