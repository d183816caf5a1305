//! What the template may say when: the table that the listener holds every message against.
//! Anything else ends the template with a log line that names the message.

#![forbid(unsafe_code)]

use crate::messages::FromTemplate;

/// How far the template has come, named after what it owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its first message.
    ExpectHello,
    /// The end of configuration.
    ExpectConfigured,
    /// Nothing: it waits for `EnterService`.
    Configured,
    /// Readiness for clients.
    ExpectReady,
    /// Nothing: it serves.
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
        FromTemplate::Serving { .. } => "Serving",
    }
}

impl Phase {
    /// The phase after `message`; `None` if it may not be said now.
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
                | FromTemplate::Serving { .. },
                Serving,
            ) => Some(self),
            (FromTemplate::Refused { .. }, ExpectReady | Serving) => Some(self),
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
                | FromTemplate::Serving { .. },
                _,
            ) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Hello;

    #[test]
    fn out_of_phase_messages_are_refused() {
        let forked = FromTemplate::Forked { connection: 1, pid: 2 };
        assert_eq!(Phase::ExpectHello.after(&forked), None);
        assert_eq!(Phase::ExpectConfigured.after(&forked), None);
        assert_eq!(Phase::Serving.after(&forked), Some(Phase::Serving));
        let serving = FromTemplate::Serving { connection: 1, export: String::new() };
        assert_eq!(Phase::ExpectReady.after(&serving), None);
        assert_eq!(Phase::Serving.after(&serving), Some(Phase::Serving));
        assert_eq!(Phase::Serving.after(&FromTemplate::Ready), None);
        assert_eq!(Phase::Serving.after(&FromTemplate::Hello(Hello::ours())), None);
        assert_eq!(
            Phase::ExpectHello.after(&FromTemplate::Hello(Hello::ours())),
            Some(Phase::ExpectConfigured)
        );
    }
}
