//! The control channel between the listener, the template and the workers: typed messages over Unix
//! SOCK_SEQPACKET, one message per packet, descriptors attached to the messages that carry them.
//!
//! There is one enum per direction and link ([`messages`]), an end of a channel that can only send
//! one and receive the other ([`Channel`]), and a table of the messages that each phase permits
//! ([`phase`]). Received messages are checked here for size, form and descriptors; the receiver
//! checks what they mean.

#![deny(unsafe_code)]

mod channel;
mod codec;
pub mod der;
pub mod ids;
mod inherit;
pub mod keys;
pub mod log_file;
pub mod messages;
pub mod oom;
pub mod phase;
pub mod private;
pub mod process;
pub mod program;
pub mod refusal;
pub mod status;
pub mod strays;
pub mod title;
pub mod x509;

pub use channel::{Channel, Received, RecvError, release_packet};
pub use ids::{KeyId, StackId};
pub use inherit::inherited;
pub use messages::broker::{FromBroker, FromBrokerLink, ToBroker, ToBrokerLink};
pub use messages::spawner::{FromSpawner, SpawnerSetup, ToSpawner};
pub use messages::watcher::FromWatcher;
pub use messages::{FromTemplate, FromWorker, ToTemplate, ToWorker};
pub use status::WorkerExit;

/// Version of the messages. Raised whenever their bytes change; the golden bytes in the tests of
/// [`messages`] notice. 1: the first. 2: `Refused`, and the sandbox in `Configure`. 3: TLS
/// (`TlsPiece`, `Key` on all links, `Configure::tls`), `Serving` and `Disconnect` of the template,
/// the spawner. 4: `Level` of a log record, the spawner as a program of its own,
/// `Sandbox::Programs`, `Configure::allowed`, `Configured::programs`; the broker. 5: what the
/// spawner removes in the end (`SpawnerSetup::private`), the broker's `Connect`. 6: `StackId` and
/// `KeyId`. 7: watchers. 8: `Totals`, `Configure::log_connections`, who a client is by TLS
/// (`tls_dn`), the log file that the spawner opens (`OpenLog`), the spawner's `Hello`. 9:
/// `Configure::busy_poll`, `WorkerExit::Disconnected`. 10: parking (`Park`, `Serve::park_after`,
/// `Serve::parked`, `WorkerExit::Parked`).
pub const VERSION: u32 = 10;

/// Identifies the build: all programs of a server must come from the same one. The number is a hash
/// of what the programs are made of; see build.rs of this crate.
pub const BUILD: &str =
    concat!("nbdkitd ", env!("CARGO_PKG_VERSION"), " build ", env!("NBDKIT_BUILD"));

/// Largest packet, bytes. The longest message is a parameter, which the kernel's limit on one
/// command line argument (128 KiB) bounds.
pub const MAX_PACKET: usize = 160 * 1024;

/// Most descriptors that a message carries.
pub const MAX_FDS: usize = 3;
