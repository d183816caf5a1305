//! Reads that a thread of the pool has taken at once: all are started, then waited for, and their
//! replies leave together.

#![forbid(unsafe_code)]

use std::io;
use std::time::Instant;

use super::super::pool::Job;
use super::super::read_groups::{MOST, ReadGroups};
use super::super::reply::Replies;
use super::Session;

impl Session<'_> {
    /// Carries out short reads, at most [`MOST`], and sends their replies.
    ///
    /// # Errors
    /// The replies could not be sent.
    pub(super) fn read_group(
        &self,
        jobs: &[Job],
        groups: &ReadGroups,
        replies: &mut Replies,
    ) -> io::Result<()> {
        let target = &self.target;
        let read = |job: &Job, replies: &mut Replies| {
            target.execute(&job.request, job.flags, &[], replies);
        };
        // Waiting for the last starts it, too.
        let Some((last, others)) = jobs.split_last() else { return Ok(()) };
        let mut missing = [None; MOST];
        for (job, missing) in others.iter().zip(&mut missing) {
            if !target.read_without_waiting(&job.request, replies) {
                *missing = Some(job);
            }
        }
        let start = Instant::now();
        read(last, replies);
        let first = start.elapsed();
        let mut waited = 0;
        for job in missing.into_iter().flatten() {
            read(job, replies);
            waited += 1;
        }
        groups.record(first, waited, start.elapsed().saturating_sub(first));
        self.sender.send(replies)
    }
}
