//! Log records on their way to the listener, which alone writes the log.

#![forbid(unsafe_code)]

use std::sync::{Arc, RwLock};

use nbdkit_api::log::{Level, Speaker};
use nbdkit_ipc::messages::{
    self, FromTemplate, FromWorker, LogRecord, MAX_LOG_TEXT, ToTemplate, ToWorker,
};
use nbdkit_ipc::{Channel, FromBrokerLink, FromWatcher, ToBrokerLink};

/// The template's end of its link to the listener.
pub(crate) type TemplateLink = Channel<FromTemplate, ToTemplate>;
/// A worker's end of its own.
pub(crate) type WorkerLink = Channel<FromWorker, ToWorker>;

/// A broker's end of its link to the listener.
pub(crate) type BrokerLink = Channel<FromBrokerLink, ToBrokerLink>;

/// A watcher's end of its channel to the template, which sends nothing.
pub(crate) type WatcherLink = Channel<FromWatcher, ()>;

/// Where this process's records go.
enum Link {
    None,
    Template(Arc<TemplateLink>),
    Worker(Arc<WorkerLink>),
    Broker(Arc<BrokerLink>),
    Watcher(Arc<WatcherLink>),
}

static LINK: RwLock<Link> = RwLock::new(Link::None);

/// Sends what plugins, filters and the server log to the listener by `link` from now on.
pub(crate) fn use_template(link: Arc<TemplateLink>, verbose: bool) {
    set(Link::Template(link));
    nbdkit_api::log::install(verbose, Box::new(send));
    std::panic::set_hook(Box::new(|panic| {
        nbdkit_api::log::error(&format!("panic: {panic}").replace('\n', " "));
    }));
}

/// After a fork: the worker's own channel instead of the template's.
pub(crate) fn use_worker(link: Arc<WorkerLink>) {
    set(Link::Worker(link));
}

/// After a fork: the broker's.
pub(crate) fn use_broker(link: Arc<BrokerLink>) {
    set(Link::Broker(link));
}

/// After a fork: the watcher's.
pub(crate) fn use_watcher(link: Arc<WatcherLink>) {
    set(Link::Watcher(link));
}

fn set(link: Link) {
    *LINK.write().unwrap_or_else(std::sync::PoisonError::into_inner) = link;
}

fn send(level: Level, speaker: Speaker, text: &str) {
    let record = LogRecord {
        level: match level {
            Level::Error => messages::Level::Error,
            Level::Warning => messages::Level::Warning,
            Level::Notice => messages::Level::Notice,
            Level::Debug => messages::Level::Debug,
        },
        layer: speaker.layer.map(str::to_owned),
        connection: speaker.connection,
        text: cut(text).to_owned(),
    };
    // A log that cannot be sent has nobody to complain to.
    match &*LINK.read().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Link::None => {}
        Link::Template(link) => drop(link.send(&FromTemplate::Log(record), &[])),
        Link::Worker(link) => drop(link.send(&FromWorker::Log(record), &[])),
        Link::Broker(link) => drop(link.send(&FromBrokerLink::Log(record), &[])),
        Link::Watcher(link) => drop(link.send(&FromWatcher::Log(record), &[])),
    }
}

/// Asks the listener to stop the server (`nbdkit_shutdown`).
pub(crate) fn request_shutdown() {
    match &*LINK.read().unwrap_or_else(std::sync::PoisonError::into_inner) {
        // A broker runs nothing that could ask for it, and a watcher has its template ask.
        Link::None | Link::Broker(_) | Link::Watcher(_) => {}
        Link::Template(link) => drop(link.send(&FromTemplate::Shutdown, &[])),
        Link::Worker(link) => drop(link.send(&FromWorker::Shutdown, &[])),
    }
}

/// The longest prefix of whole characters that a record may carry.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_LOG_TEXT)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = "\u{e9}".repeat(MAX_LOG_TEXT);
        assert_eq!(cut(&text).len(), MAX_LOG_TEXT);
        let text = format!("x{text}");
        assert_eq!(cut(&text).len(), MAX_LOG_TEXT - 1);
        assert_eq!(cut("short"), "short");
    }
}
