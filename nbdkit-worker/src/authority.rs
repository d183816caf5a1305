//! Whom TLS, and who needs the broker, asks for what only the listener has. Used by workers and,
//! with isolation `shared`, by the template.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use nbdkit_ipc::keys::{KeyAnswer, KeyRequest};
use nbdkit_ipc::{FromTemplate, FromWorker, Received, RecvError, StackId, ToWorker};
use nix::errno::Errno;

use crate::log::{TemplateLink, WorkerLink};
use crate::process;

/// Answers for one connection. Waits for the listener, which is quick and trusted.
pub(crate) trait Authority: Send + Sync + fmt::Debug {
    /// Asks; [`KeyAnswer::Denied`] also if the listener is gone.
    fn ask(&self, request: KeyRequest) -> KeyAnswer;
}

/// A worker's: the listener, on the worker's own channel.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) link: Arc<WorkerLink>,
    /// What to do when the listener says anything else, or is gone: [`process::end_client`].
    pub(crate) end: fn(),
    /// Held while an answer is awaited.
    pub(crate) asking: Mutex<()>,
}

impl Listener {
    /// A worker's end of a channel to the broker; `None` if there is none, or the listener is gone.
    pub(crate) fn broker(&self) -> Option<OwnedFd> {
        let (answer, fds) = self.question(&FromWorker::Broker { stack: StackId::ONLY })?;
        matches!(answer, ToWorker::Broker).then_some(())?;
        fds.into_iter().next()
    }

    /// The listener's answer to a question.
    fn question(&self, question: &FromWorker) -> Option<(ToWorker, Vec<OwnedFd>)> {
        let Listener { link, end, asking } = self;
        let _one = asking.lock().unwrap_or_else(PoisonError::into_inner);
        // The answer is no reason to stop.
        let _silent = process::await_message(&**link, *end).ok()?;
        link.send(question, &[]).ok()?;
        loop {
            match link.recv() {
                Ok(Received { message: ToWorker::Quiesce, .. }) => end(),
                Ok(Received { message, fds, .. }) => return Some((message, fds)),
                Err(RecvError::Io(Errno::EINTR)) => {}
                Err(_) => {
                    end();
                    return None;
                }
            }
        }
    }
}

impl Authority for Listener {
    fn ask(&self, request: KeyRequest) -> KeyAnswer {
        match self.question(&FromWorker::Key(request)) {
            Some((ToWorker::Key(answer), _)) => answer,
            _ => KeyAnswer::Denied,
        }
    }
}

/// The connections of a shared template that wait for an answer; `None` when none will come any
/// more.
#[derive(Debug)]
pub(crate) struct Waiting(Mutex<Option<HashMap<u64, mpsc::SyncSender<KeyAnswer>>>>);

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting(Mutex::new(Some(HashMap::new())))
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, mpsc::SyncSender<KeyAnswer>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes on what came for a connection, if it still waits.
    pub(crate) fn answer(&self, connection: u64, answer: KeyAnswer) {
        if let Some(waiting) = self.lock().as_mut().and_then(|all| all.remove(&connection)) {
            let _ = waiting.send(answer);
        }
    }

    /// The link is not listened to any more: who waits is denied.
    pub(crate) fn close(&self) {
        *self.lock() = None;
    }
}

/// A connection of a shared template: the listener, on the channel that all of them share.
#[derive(Debug)]
pub(crate) struct SharedListener {
    pub(crate) link: Arc<TemplateLink>,
    pub(crate) connection: u64,
    pub(crate) waiting: Arc<Waiting>,
}

impl Authority for SharedListener {
    fn ask(&self, request: KeyRequest) -> KeyAnswer {
        let (sender, receiver) = mpsc::sync_channel(1);
        match self.waiting.lock().as_mut() {
            Some(all) => drop(all.insert(self.connection, sender)),
            None => return KeyAnswer::Denied,
        }
        let question = FromTemplate::Key { connection: self.connection, request };
        if self.link.send(&question, &[]).is_err() {
            return KeyAnswer::Denied;
        }
        receiver.recv().unwrap_or(KeyAnswer::Denied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_ipc::Channel;
    use nbdkit_ipc::messages::ToTemplate;
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn request() -> KeyRequest {
        KeyRequest::Psk { identity: b"alice".to_vec() }
    }

    fn ask(link: WorkerLink, end: fn()) -> KeyAnswer {
        Listener { link: Arc::new(link), end, asking: Mutex::new(()) }.ask(request())
    }

    #[test]
    fn a_worker_gets_its_answer_and_that_ends_nothing() {
        let (ours, theirs) = Channel::pair().unwrap();
        let listener = std::thread::spawn(move || {
            let theirs: Channel<ToWorker, FromWorker> = theirs;
            let asked = theirs.recv().unwrap().message;
            theirs.send(&ToWorker::Key(KeyAnswer::Signature(vec![1])), &[]).unwrap();
            (asked, theirs)
        });
        assert_eq!(ask(ours, || panic!("the client is to stay")), KeyAnswer::Signature(vec![1]));
        assert_eq!(listener.join().unwrap().0, FromWorker::Key(request()));
    }

    #[test]
    fn a_worker_that_is_told_to_finish_meanwhile_does() {
        static ENDED: AtomicU32 = AtomicU32::new(0);
        let (ours, theirs) = Channel::<FromWorker, ToWorker>::pair().unwrap();
        theirs.send(&ToWorker::Quiesce, &[]).unwrap();
        theirs.send(&ToWorker::Key(KeyAnswer::Denied), &[]).unwrap();
        let count = || {
            ENDED.fetch_add(1, Ordering::Relaxed);
        };
        assert_eq!(ask(ours, count), KeyAnswer::Denied);
        assert_eq!(ENDED.load(Ordering::Relaxed), 1);
        // What comes right behind the answer is not lost either.
        let (ours, theirs) = Channel::<FromWorker, ToWorker>::pair().unwrap();
        theirs.send(&ToWorker::Key(KeyAnswer::Denied), &[]).unwrap();
        theirs.send(&ToWorker::Quiesce, &[]).unwrap();
        assert_eq!(ask(ours, count), KeyAnswer::Denied);
        assert_eq!(ENDED.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn without_a_listener_the_answer_is_no() {
        let (ours, theirs) = Channel::<FromWorker, ToWorker>::pair().unwrap();
        drop(theirs);
        assert_eq!(ask(ours, || ()), KeyAnswer::Denied);
    }

    #[test]
    fn a_channel_to_the_broker_is_what_came_with_the_answer() {
        let (broker, _kept) = Channel::<ToWorker, FromWorker>::pair().unwrap();
        for fds in [&[broker.as_fd()][..], &[]] {
            let (ours, theirs) = Channel::<FromWorker, ToWorker>::pair().unwrap();
            theirs.send(&ToWorker::Broker, fds).unwrap();
            let listener = Listener {
                link: Arc::new(ours),
                end: || panic!("the client is to stay"),
                asking: Mutex::new(()),
            };
            assert_eq!(listener.broker().is_some(), !fds.is_empty());
            assert_eq!(theirs.recv().unwrap().message, FromWorker::Broker { stack: StackId::ONLY });
        }
    }

    #[test]
    fn connections_of_one_process_get_their_own_answers_and_none_once_it_is_closed() {
        let (ours, theirs) = Channel::<FromTemplate, ToTemplate>::pair().unwrap();
        let (link, waiting) = (Arc::new(ours), Arc::new(Waiting::default()));
        let of = |connection| SharedListener {
            link: Arc::clone(&link),
            connection,
            waiting: Arc::clone(&waiting),
        };
        std::thread::scope(|scope| {
            let asking: Vec<_> = (1..=3)
                .map(|number| {
                    let authority = of(number);
                    scope.spawn(move || authority.ask(request()))
                })
                .collect();
            for _ in 1..=3 {
                assert!(matches!(theirs.recv().unwrap().message, FromTemplate::Key { .. }));
            }
            waiting.answer(2, KeyAnswer::Signature(vec![2]));
            waiting.answer(9, KeyAnswer::Signature(vec![9]));
            waiting.answer(1, KeyAnswer::Signature(vec![1]));
            waiting.close();
            let answers: Vec<_> = asking.into_iter().map(|it| it.join().unwrap()).collect();
            assert_eq!(answers[0], KeyAnswer::Signature(vec![1]));
            assert_eq!(answers[1], KeyAnswer::Signature(vec![2]));
            assert_eq!(answers[2], KeyAnswer::Denied);
        });
        assert_eq!(of(4).ask(request()), KeyAnswer::Denied);
    }
}
