//! The broker's end is the test's.

use super::*;
use nbdkit_api::endpoints::{Broker, Endpoint, Failure};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

type BrokersEnd = Channel<FromBroker, ToBroker>;

const PATIENT: Duration = Duration::from_secs(20);

fn wait(after: Duration) -> Wait<'static> {
    Wait { client: None, deadline: Instant::now() + after }
}

fn endpoint() -> Endpoint {
    Endpoint::unix("/run/socket").unwrap()
}

fn asking() -> (Connecting, BrokersEnd) {
    let (ours, theirs) = Channel::pair().unwrap();
    (Connecting::new(vec![Endpoint::unix("/other").unwrap(), endpoint()], vec![ours]), theirs)
}

#[test]
fn an_endpoint_is_asked_for_by_its_number_and_its_socket_comes_with_the_answer() {
    let (connecting, broker) = asking();
    let (socket, _other) = UnixStream::pair().unwrap();
    let answers = [
        (FromBroker::Connecting { next: Some(4) }, true),
        (FromBroker::Connecting { next: None }, false),
        (FromBroker::Refused { errno: Errno::ECONNREFUSED as i32 }, false),
        (FromBroker::NotResolved { reason: "no".into() }, false),
        (FromBroker::WrongType, false),
    ];
    for (answer, with_socket) in &answers {
        let fds = [socket.as_fd()];
        broker.send(answer, if *with_socket { &fds } else { &[] }).unwrap();
    }
    let begin = || connecting.begin(&endpoint(), 3, &wait(PATIENT)).map(|begun| begun.next);
    assert_eq!(begin(), Ok(Some(4)));
    assert_eq!(begin(), Err(Failure::Os(Errno::EIO)));
    assert_eq!(begin(), Err(Failure::Os(Errno::ECONNREFUSED)));
    assert_eq!(begin(), Err(Failure::NotResolved("no".into())));
    assert_eq!(begin(), Err(Failure::Os(Errno::EIO)));
    let undeclared = Endpoint::unix("/undeclared").unwrap();
    let refused = connecting.begin(&undeclared, 0, &wait(PATIENT)).map(|_| ());
    assert_eq!(refused, Err(Failure::Os(Errno::EACCES)));
    for _ in &answers {
        let question = broker.recv().unwrap().message;
        assert_eq!(question, ToBroker::Connect { endpoint: 1, attempt: 3 });
    }
    assert!(matches!(broker.try_recv(), Err(RecvError::Empty)));
}

#[test]
fn an_answer_that_comes_too_late_is_not_taken_for_another() {
    let (connecting, broker) = asking();
    let begin = |after| connecting.begin(&endpoint(), 0, &wait(after)).map(|begun| begun.next);
    let timed_out = Err(Failure::Os(Errno::ETIMEDOUT));
    assert_eq!(begin(Duration::from_millis(20)), timed_out);
    // Nothing more is asked while that is owed.
    assert_eq!(begin(Duration::from_millis(20)), timed_out);
    assert!(broker.recv().is_ok() && matches!(broker.try_recv(), Err(RecvError::Empty)));
    let (socket, _other) = UnixStream::pair().unwrap();
    broker.send(&FromBroker::Refused { errno: Errno::ENOENT as i32 }, &[]).unwrap();
    broker.send(&FromBroker::Connecting { next: None }, &[socket.as_fd()]).unwrap();
    assert_eq!(begin(PATIENT), Ok(None));
}

#[test]
fn questions_on_several_channels_wait_at_the_same_time() {
    let (links, brokers): (Vec<Link>, Vec<BrokersEnd>) =
        (0..2).map(|_| Channel::pair().unwrap()).unzip();
    let connecting = Connecting::new(vec![endpoint()], links);
    std::thread::scope(|scope| {
        let ask = || connecting.begin(&endpoint(), 0, &wait(PATIENT)).map(|begun| begun.next);
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(ask)).collect();
        for broker in &brokers {
            assert!(broker.recv().is_ok());
        }
        // The third has to wait for one of the two, and not longer than it wants.
        let late = connecting.begin(&endpoint(), 0, &wait(Duration::from_millis(20))).map(|_| ());
        assert_eq!(late, Err(Failure::Os(Errno::ETIMEDOUT)));
        let refused = FromBroker::Refused { errno: Errno::ENOENT as i32 };
        brokers[0].send(&refused, &[]).unwrap();
        assert!(brokers[0].recv().is_ok());
        brokers.iter().for_each(|broker| broker.send(&refused, &[]).unwrap());
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Err(Failure::Os(Errno::ENOENT)));
        }
    });
}
