//! The messages that template and workers may send in each phase. The listener checks every message
//! against these tables. Any other message is a protocol violation: the sender is killed, with a
//! log line that names the message.

#![forbid(unsafe_code)]

use crate::messages::{FromTemplate, FromWorker};

/// A template's phase, named after the message that the listener expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `Hello`.
    ExpectHello,
    /// `Configured`, or `Failed`.
    ExpectConfigured,
    /// None: the template waits for `EnterService`.
    Configured,
    /// `Ready`, or `Failed`.
    ExpectReady,
    /// None: the template serves.
    Serving,
}

/// The name of a message, for log lines.
pub fn name(message: &FromTemplate) -> &'static str {
    match message {
        FromTemplate::Hello(_) => "Hello",
        FromTemplate::Configured(_) => "Configured",
        FromTemplate::Failed => "Failed",
        FromTemplate::Log(_) => "Log",
        FromTemplate::Ready => "Ready",
        FromTemplate::Forked { .. } => "Forked",
        FromTemplate::Exited { .. } => "Exited",
        FromTemplate::Shutdown => "Shutdown",
        FromTemplate::Refused { .. } => "Refused",
        FromTemplate::Key { .. } => "Key",
        FromTemplate::Serving { .. } => "Serving",
        FromTemplate::Broker { .. } => "Broker",
        FromTemplate::Totals { .. } => "Totals",
    }
}

/// Checks the stack and the key that a message of the template names.
///
/// # Errors
/// The violation, for the log.
pub fn check_ids(message: &FromTemplate) -> Result<(), &'static str> {
    match message {
        FromTemplate::Configured(configured) => configured.stack.check(),
        FromTemplate::Serving { stack, .. } | FromTemplate::Broker { stack, .. } => stack.check(),
        FromTemplate::Key { request, .. } => request.check_id(),
        FromTemplate::Hello(_)
        | FromTemplate::Failed
        | FromTemplate::Log(_)
        | FromTemplate::Ready
        | FromTemplate::Forked { .. }
        | FromTemplate::Exited { .. }
        | FromTemplate::Shutdown
        | FromTemplate::Refused { .. }
        | FromTemplate::Totals { .. } => Ok(()),
    }
}

/// Checks the stack and the key that a message of a worker names.
///
/// # Errors
/// The violation, for the log.
pub fn check_worker_ids(message: &FromWorker) -> Result<(), &'static str> {
    match message {
        FromWorker::Serving { stack, .. } | FromWorker::Broker { stack } => stack.check(),
        FromWorker::Key(request) => request.check_id(),
        FromWorker::Log(_)
        | FromWorker::Shutdown
        | FromWorker::Refused { .. }
        | FromWorker::Totals(_)
        | FromWorker::Park { .. } => Ok(()),
    }
}

impl Phase {
    /// The phase after `message`; `None` if it is not permitted in this phase.
    pub fn after(self, message: &FromTemplate) -> Option<Phase> {
        use Phase::{Configured, ExpectConfigured, ExpectHello, ExpectReady, Serving};
        match (message, self) {
            (FromTemplate::Hello(_), ExpectHello) => Some(ExpectConfigured),
            (FromTemplate::Configured(_), ExpectConfigured) => Some(Configured),
            (FromTemplate::Ready, ExpectReady) => Some(Serving),
            (FromTemplate::Failed, ExpectConfigured | ExpectReady) => Some(self),
            (FromTemplate::Log(_), ExpectConfigured | Configured | ExpectReady | Serving) => {
                Some(self)
            }
            (FromTemplate::Shutdown, ExpectConfigured | Configured | ExpectReady | Serving) => {
                Some(self)
            }
            (
                FromTemplate::Forked { .. }
                | FromTemplate::Exited { .. }
                | FromTemplate::Key { .. }
                | FromTemplate::Serving { .. }
                | FromTemplate::Totals { .. },
                Serving,
            ) => Some(self),
            (FromTemplate::Refused { .. }, ExpectReady | Serving) => Some(self),
            (FromTemplate::Broker { .. }, ExpectReady) => Some(self),
            (
                FromTemplate::Hello(_)
                | FromTemplate::Configured(_)
                | FromTemplate::Ready
                | FromTemplate::Failed
                | FromTemplate::Log(_)
                | FromTemplate::Shutdown
                | FromTemplate::Forked { .. }
                | FromTemplate::Exited { .. }
                | FromTemplate::Refused { .. }
                | FromTemplate::Key { .. }
                | FromTemplate::Serving { .. }
                | FromTemplate::Broker { .. }
                | FromTemplate::Totals { .. },
                _,
            ) => None,
        }
    }
}

/// The phase of a worker, or of a connection in a shared template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WorkerPhase {
    /// In the handshake, before a request for a key.
    #[default]
    Handshake,
    /// In the handshake, after it.
    Keyed,
    /// In transmission.
    Serving,
    /// At its end, after `Totals` or `Park`.
    Ended,
    /// At its end, after `Refused`.
    Refused,
}

/// The name of a worker's message, for log lines.
pub fn worker_message(message: &FromWorker) -> &'static str {
    match message {
        FromWorker::Log(_) => "Log",
        FromWorker::Shutdown => "Shutdown",
        FromWorker::Serving { .. } => "Serving",
        FromWorker::Refused { .. } => "Refused",
        FromWorker::Key(_) => "Key",
        FromWorker::Broker { .. } => "Broker",
        FromWorker::Totals(_) => "Totals",
        FromWorker::Park { .. } => "Park",
    }
}

impl WorkerPhase {
    /// The phase after `message`; `None` if it is not permitted in this phase.
    pub fn after(self, message: &FromWorker) -> Option<WorkerPhase> {
        use WorkerPhase::{Ended, Handshake, Keyed, Refused, Serving};
        match (message, self) {
            (FromWorker::Key(_), Handshake) => Some(Keyed),
            (FromWorker::Serving { .. }, Handshake | Keyed) => Some(Serving),
            (FromWorker::Totals(_), Handshake | Keyed | Serving) => Some(Ended),
            (FromWorker::Park { .. }, Serving) => Some(Ended),
            (FromWorker::Refused { .. }, Handshake | Keyed | Serving | Ended) => Some(Refused),
            // At any time: another thread may send these between `Refused` and the end.
            (FromWorker::Log(_) | FromWorker::Shutdown, _) => Some(self),
            // `Brokers` counts how often.
            (FromWorker::Broker { .. }, Handshake | Keyed | Serving) => Some(self),
            (
                FromWorker::Key(_)
                | FromWorker::Serving { .. }
                | FromWorker::Refused { .. }
                | FromWorker::Broker { .. }
                | FromWorker::Totals(_)
                | FromWorker::Park { .. },
                _,
            ) => None,
        }
    }
}

/// How often a worker has asked for a channel to the broker. Once is usual; again if the broker was
/// replaced, or closed the channel because there were too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Brokers(u8);

impl Brokers {
    /// The most that one connection may have.
    pub const MOST: u8 = 8;

    /// The count after one more; `None` if there were as many as there may be.
    pub fn after_one_more(self) -> Option<Brokers> {
        (self.0 < Self::MOST).then(|| Brokers(self.0 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{KeyId, StackId};
    use crate::keys::KeyRequest;
    use crate::messages::{Configured, Hello, Isolation, ParkedState, Totals};

    #[test]
    fn out_of_phase_messages_are_refused() {
        let forked = FromTemplate::Forked { connection: 1, pid: 2 };
        assert_eq!(Phase::ExpectHello.after(&forked), None);
        assert_eq!(Phase::ExpectConfigured.after(&forked), None);
        assert_eq!(Phase::Serving.after(&forked), Some(Phase::Serving));
        let serving = FromTemplate::Serving {
            connection: 1,
            stack: StackId::ONLY,
            export: String::new(),
            tls_dn: None,
        };
        assert_eq!(Phase::ExpectReady.after(&serving), None);
        assert_eq!(Phase::Serving.after(&serving), Some(Phase::Serving));
        assert_eq!(Phase::Serving.after(&FromTemplate::Ready), None);
        assert_eq!(Phase::Serving.after(&FromTemplate::Hello(Hello::ours())), None);
        assert_eq!(
            Phase::ExpectHello.after(&FromTemplate::Hello(Hello::ours())),
            Some(Phase::ExpectConfigured)
        );
    }

    #[test]
    fn a_key_is_requested_once_and_before_transmission() {
        let key = FromWorker::Key(KeyRequest::Psk { identity: vec![] });
        let serving =
            FromWorker::Serving { stack: StackId::ONLY, export: String::new(), tls_dn: None };
        let keyed = WorkerPhase::default().after(&key);
        assert_eq!(keyed, Some(WorkerPhase::Keyed));
        assert_eq!(keyed.and_then(|phase| phase.after(&key)), None);
        assert_eq!(keyed.and_then(|phase| phase.after(&serving)), Some(WorkerPhase::Serving));
        assert_eq!(WorkerPhase::default().after(&serving), Some(WorkerPhase::Serving));
        assert_eq!(WorkerPhase::Serving.after(&key), None);
        assert_eq!(WorkerPhase::Serving.after(&serving), None);
    }

    #[test]
    fn a_broker_comes_before_ready_and_is_requested_eight_times() {
        let broker = FromTemplate::Broker { stack: StackId::ONLY, pid: 2, always: true };
        assert_eq!(Phase::ExpectReady.after(&broker), Some(Phase::ExpectReady));
        assert_eq!(Phase::Configured.after(&broker), None);
        assert_eq!(Phase::Serving.after(&broker), None);
        let wanted = FromWorker::Broker { stack: StackId::ONLY };
        for phase in [WorkerPhase::Handshake, WorkerPhase::Keyed, WorkerPhase::Serving] {
            assert_eq!(phase.after(&wanted), Some(phase));
        }
        assert_eq!(WorkerPhase::Refused.after(&wanted), None);
        let mut brokers = Brokers::default();
        for _ in 0..Brokers::MOST {
            brokers = brokers.after_one_more().unwrap();
        }
        assert_eq!(brokers.after_one_more(), None);
    }

    #[test]
    fn a_stack_or_key_that_does_not_exist_is_refused() {
        let sign = |id| KeyRequest::Sign { key: KeyId(id), scheme: 0, message: vec![] };
        let export = String::new;
        for id in [0, 1, u32::MAX] {
            let stack = StackId(id);
            let configured = Configured {
                stack,
                one_client: false,
                isolation: Isolation::Connection,
                replaceable: true,
                may_shutdown: false,
                programs: false,
                undeclared: false,
                can_park: true,
            };
            for message in [
                FromTemplate::Configured(configured),
                FromTemplate::Serving { connection: 1, stack, export: export(), tls_dn: None },
                FromTemplate::Broker { stack, pid: 2, always: true },
                FromTemplate::Key { connection: 1, request: sign(id) },
            ] {
                assert_eq!(check_ids(&message).is_ok(), id == 0, "{message:?}");
            }
            for message in [
                FromWorker::Serving { stack, export: export(), tls_dn: None },
                FromWorker::Broker { stack },
                FromWorker::Key(sign(id)),
            ] {
                assert_eq!(check_worker_ids(&message).is_ok(), id == 0, "{message:?}");
            }
        }
    }

    #[test]
    fn nothing_but_log_and_shutdown_follows_refused() {
        let refused = FromWorker::Refused { syscall: 1 };
        assert_eq!(WorkerPhase::Serving.after(&refused), Some(WorkerPhase::Refused));
        assert_eq!(WorkerPhase::Refused.after(&refused), None);
        let serving =
            FromWorker::Serving { stack: StackId::ONLY, export: String::new(), tls_dn: None };
        assert_eq!(WorkerPhase::Refused.after(&serving), None);
    }

    #[test]
    fn a_client_is_parked_once_and_in_transmission() {
        let state = ParkedState::of(&()).unwrap();
        let park = FromWorker::Park { state, totals: Totals::default() };
        use WorkerPhase::{Ended, Handshake, Keyed, Refused, Serving};
        assert_eq!(Serving.after(&park), Some(Ended));
        for phase in [Handshake, Keyed, Ended, Refused] {
            assert_eq!(phase.after(&park), None, "{phase:?}");
        }
    }

    #[test]
    fn totals_come_once_and_at_the_end() {
        let totals = FromWorker::Totals(Totals::default());
        for phase in [WorkerPhase::Handshake, WorkerPhase::Keyed, WorkerPhase::Serving] {
            assert_eq!(phase.after(&totals), Some(WorkerPhase::Ended));
        }
        let serving =
            FromWorker::Serving { stack: StackId::ONLY, export: String::new(), tls_dn: None };
        let broker = FromWorker::Broker { stack: StackId::ONLY };
        for message in [&totals, &serving, &broker] {
            assert_eq!(WorkerPhase::Ended.after(message), None);
        }
        assert_eq!(WorkerPhase::Refused.after(&totals), None);
        let shared = FromTemplate::Totals { connection: 1, totals: Totals::default() };
        assert_eq!(Phase::ExpectReady.after(&shared), None);
        assert_eq!(Phase::Serving.after(&shared), Some(Phase::Serving));
    }
}
