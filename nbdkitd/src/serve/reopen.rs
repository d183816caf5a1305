//! SIGUSR1: the file of `--log` is opened anew, as logrotate(8) expects after it has renamed it.
//!
//! A confined listener can open no file for writing, and may be a user who could not. The spawner
//! opens it, with the path that it got before the listener confined itself, and sends the
//! descriptor. The listener goes on meanwhile, with the old file.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;

use nbdkit_ipc::log_file;

use super::Server;
use super::context::Context;
use super::slot::Maker;

impl Server {
    /// Begins to open the log file anew.
    pub(super) fn reopen_log(&mut self) {
        let Some(path) = self.context.log().file() else {
            return self.context.log().debug(|| "SIGUSR1: the log is not a file".to_owned());
        };
        match self.slot.maker_mut() {
            Maker::Ourselves => reopened(log_file::open(&path), &self.context),
            Maker::Spawner(spawner) => {
                if let Err(error) = spawner.ask_for_log() {
                    reopened(Err(error), &self.context);
                }
            }
            Maker::Nobody => not_reopened("the spawner has ended", &self.context),
        }
    }
}

/// Uses the new log file, or the old one on if there is none.
pub(super) fn reopened(file: io::Result<File>, context: &Context) {
    match file {
        Ok(file) => context.log().reopened(file),
        Err(error) => not_reopened(&crate::errno_text(&error), context),
    }
}

fn not_reopened(why: &str, context: &Context) {
    let path = context.log().file().unwrap_or_default();
    let path = path.display();
    context
        .log()
        .error(&format!("cannot open the log file {path} anew, the old one is used: {why}"));
}
