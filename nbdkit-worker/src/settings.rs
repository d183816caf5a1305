//! What every connection of this server has in common, fixed before the first client.

#![forbid(unsafe_code)]

use std::time::Duration;

use nbdkit_api::ThreadModel;
use nbdkit_api::shared::SharedMutex;
use nbdkit_ipc::messages::{Configure, Protocol};

use crate::connection::turns::Turns;
use crate::tls::Tls;

/// The options of the command line about connections.
#[derive(Debug)]
pub(crate) struct Settings {
    /// `-r`.
    pub(crate) readonly: bool,
    /// Most requests of one connection that run at the same time, at least 1.
    pub(crate) threads: usize,
    /// Whether a second connection would have to wait for the end of the first.
    pub(crate) one_client: bool,
    /// What the handshake offers.
    pub(crate) protocol: Protocol,
    /// How long a handshake may take.
    pub(crate) timeout: Option<Duration>,
    /// TLS, unless it is off.
    pub(crate) tls: Option<Tls>,
    /// `--swap`: connections allocate their memory and start their threads before the first
    /// request, and keep them.
    pub(crate) swap: bool,
    /// `--log-connections`: the listener is sent what each client has read and written.
    pub(crate) log_connections: bool,
    /// `--busy-poll`: how long a reader polls for the next request before it sleeps.
    pub(crate) busy_poll: Duration,
    /// Whether everything has to run on one processor: see
    /// [`count_processors`](Self::count_processors).
    pub(crate) one_processor: bool,
    /// Whether calls of the plugin are made one at a time.
    pub(crate) turns: Turns,
    /// The lock around every call into the stack, for NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS.
    all_requests: Option<SharedMutex<0>>,
}

impl Settings {
    /// From the command line and the stack's thread model; without TLS.
    ///
    /// # Errors
    /// No memory for the shared lock.
    pub(crate) fn new(configure: &Configure, model: ThreadModel) -> nbdkit_api::Result<Settings> {
        let all_requests = (model == ThreadModel::SerializeAllRequests)
            .then(|| SharedMutex::new([]))
            .transpose()?;
        let threads =
            if model == ThreadModel::Parallel { configure.threads.max(1) as usize } else { 1 };
        Ok(Settings {
            readonly: configure.readonly,
            threads,
            one_client: model == ThreadModel::SerializeConnections || configure.one_client,
            protocol: configure.protocol,
            timeout: configure.timeout,
            tls: None,
            swap: configure.swap,
            log_connections: configure.log_connections,
            busy_poll: configure.busy_poll,
            one_processor: false,
            turns: Turns::new(),
            all_requests,
        })
    }

    /// Finds out how many processors there are, and what the control group leaves of them, which is
    /// read from half a dozen files.
    pub(crate) fn count_processors(&mut self) {
        let count = std::thread::available_parallelism();
        self.one_processor = count.is_ok_and(|count| count.get() == 1);
    }

    /// Whether a call into the stack may keep all other clients from it.
    pub(crate) fn is_serialized(&self) -> bool {
        self.all_requests.is_some()
    }

    /// Runs a call into the stack as the thread model demands.
    #[inline]
    pub(crate) fn serialized<T>(&self, call: impl FnOnce() -> T) -> T {
        let _locked = self.all_requests.as_ref().map(SharedMutex::lock);
        call()
    }
}
