//! Plays the listener to a real `nbdkit-worker`: the start-up sequence, clients, the end.

#![expect(clippy::unwrap_used, reason = "a test ends where something goes wrong")]

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nbd_protocol::constants::{Command as Cmd, CommandFlags, Opt, Rep};
use nbd_protocol::handshake::{OptionReplyHeader, encode_option};
use nbd_protocol::transmission::{Request, SimpleReply};
use nbdkit_ipc::messages::{
    Allowed, Applies, Configure, EnterService, Hello, Isolation, Level, Parameter, ParkedState,
    Peer, PeerAddress, Protocol, Purpose, Serve,
};
use nbdkit_ipc::process::Process;
use nbdkit_ipc::{Channel, FromTemplate, FromWorker, StackId, ToTemplate, ToWorker, WorkerExit};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The listener's side of a running template.
struct Template {
    link: Channel<ToTemplate, FromTemplate>,
    child: Child,
}

impl Drop for Template {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that is never parked.
fn serve(connection: u64, peer: Peer) -> Serve {
    let (stack, broker) = (StackId::ONLY, false);
    Serve { connection, stack, peer, broker, park_after: None, parked: None }
}

impl Template {
    fn start(plugin: &str, parameters: &[(&str, &str)], isolation: Option<Isolation>) -> Template {
        let (link, theirs) = Channel::pair().unwrap();
        fcntl(theirs.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_nbdkit-worker"))
            .arg(theirs.as_fd().as_raw_fd().to_string())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        drop(theirs);
        let template = Template { link, child };
        template.send(&ToTemplate::Hello(Hello::ours()));
        template.send(&ToTemplate::Configure(Box::new(Configure {
            stack: StackId::ONLY,
            purpose: Purpose::Serve,
            filters: vec![],
            plugin: plugin.into(),
            verbose: false,
            debug_flags: vec![],
            readonly: false,
            threads: 16,
            protocol: Protocol {
                mask_handshake: u32::MAX,
                meta_contexts: true,
                oldstyle: false,
                structured_replies: true,
            },
            timeout: None,
            stdio_safe: true,
            swap: false,
            isolation,
            sandbox: None,
            tls: None,
            introduction: String::new(),
            one_client: false,
            allowed: Allowed::default(),
            log_connections: false,
            busy_poll: Duration::ZERO,
        })));
        for (key, value) in parameters {
            let parameter = Parameter {
                key: Some((*key).to_owned()),
                value: OsString::from(value),
                applies: Applies::Always,
            };
            template.send(&ToTemplate::Parameter(parameter));
        }
        template.send(&ToTemplate::ConfigureEnd);
        assert_eq!(template.recv(), FromTemplate::Hello(Hello::ours()));
        template
    }

    fn serving(
        plugin: &str,
        parameters: &[(&str, &str)],
        isolation: Option<Isolation>,
    ) -> Template {
        let template = Template::start(plugin, parameters, isolation);
        let configured = template.recv();
        assert!(matches!(configured, FromTemplate::Configured(_)), "{configured:?}");
        template.send(&ToTemplate::EnterService(EnterService {
            user: None,
            group: None,
            background: false,
            forked: false,
        }));
        assert_eq!(template.recv(), FromTemplate::Ready);
        template
    }

    fn send(&self, message: &ToTemplate) {
        self.link.send(message, &[]).unwrap();
    }

    fn recv(&self) -> FromTemplate {
        self.link.recv().unwrap().message
    }

    /// A client in a process of its own: its end of the socket, the control channel of its worker.
    fn client(&self, connection: u64) -> (UnixStream, Channel<ToWorker, FromWorker>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (link, worker) = Channel::pair().unwrap();
        let peer = Peer { address: PeerAddress::Unix, credentials: None, security_context: None };
        let message = ToTemplate::Serve(serve(connection, peer));
        self.link.send(&message, &[worker.as_fd(), theirs.as_fd()]).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (ours, link)
    }
}

/// Goes to the transmission phase of the default export.
fn negotiate(client: &mut UnixStream) {
    let mut greeting = [0; 18];
    client.read_exact(&mut greeting).unwrap();
    let mut out = 3u32.to_be_bytes().to_vec();
    encode_option(&mut out, Opt::GO, &[0; 6]);
    client.write_all(&out).unwrap();
    loop {
        let mut header = [0; 20];
        client.read_exact(&mut header).unwrap();
        let header = OptionReplyHeader::decode(&header).unwrap();
        let mut payload = vec![0; header.length as usize];
        client.read_exact(&mut payload).unwrap();
        match header.reply {
            Rep::INFO => {}
            Rep::ACK => return,
            other => panic!("{other}"),
        }
    }
}

fn read(client: &mut UnixStream, offset: u64, length: usize) -> Vec<u8> {
    let flags = CommandFlags::empty();
    let request = Request { flags, command: Cmd::READ, cookie: 1, offset, length: length as u64 };
    client.write_all(&request.encode()).unwrap();
    let mut reply = [0; 16];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(SimpleReply::decode(&reply).unwrap(), SimpleReply { error: 0, cookie: 1 });
    let mut data = vec![1; length];
    client.read_exact(&mut data).unwrap();
    data
}

#[test]
fn every_client_gets_a_process_that_ends_with_it() {
    let template = Template::serving("null", &[("size", "1M")], None);
    let (mut first, first_link) = template.client(1);
    let (mut second, _second_link) = template.client(2);
    let (mut pids, mut numbers) = (vec![], vec![]);
    for _ in 0..2 {
        let received = template.link.recv().unwrap();
        let FromTemplate::Forked { connection, pid } = received.message else { panic!() };
        let [handle] = <[_; 1]>::try_from(received.fds).unwrap();
        // Before Linux 6.13 it does not say whose it is.
        if let Ok((its, _)) = Process::from_fd(handle).identity() {
            assert_eq!(its.as_raw(), pid);
        }
        pids.push(pid);
        numbers.push(connection);
    }
    assert_eq!(numbers, [1, 2]);
    assert_ne!(pids[0], pids[1]);
    negotiate(&mut first);
    negotiate(&mut second);
    assert_eq!(
        first_link.recv().unwrap().message,
        FromWorker::Serving { stack: StackId::ONLY, export: String::new(), tls_dn: None }
    );
    assert_eq!(read(&mut first, 0, 512), [0; 512]);
    drop(first);
    assert_eq!(template.recv(), FromTemplate::Exited { connection: 1, exit: WorkerExit::Clean });
    assert_eq!(read(&mut second, 4096, 100_000), vec![0; 100_000]);
}

#[test]
fn quiesce_ends_workers_and_template_and_a_killed_worker_is_reported() {
    let mut template = Template::serving("null", &[("size", "1M")], None);
    let (mut client, link) = template.client(1);
    negotiate(&mut client);
    let (mut other, _other_link) = template.client(2);
    negotiate(&mut other);
    let FromTemplate::Forked { .. } = template.recv() else { panic!() };
    let FromTemplate::Forked { pid, .. } = template.recv() else { panic!() };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    assert_eq!(
        template.recv(),
        FromTemplate::Exited { connection: 2, exit: WorkerExit::Killed(9) }
    );
    assert_eq!(read(&mut client, 0, 512), [0; 512]);
    link.send(&ToWorker::Quiesce, &[]).unwrap();
    assert_eq!(template.recv(), FromTemplate::Exited { connection: 1, exit: WorkerExit::Clean });
    template.send(&ToTemplate::Quiesce);
    assert!(template.child.wait().unwrap().success());
}

#[test]
fn shared_isolation_serves_on_threads() {
    let mut template = Template::serving("null", &[("size", "1M")], Some(Isolation::Shared));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let peer = Peer { address: PeerAddress::Unix, credentials: None, security_context: None };
    template.link.send(&ToTemplate::Serve(serve(1, peer)), &[theirs.as_fd()]).unwrap();
    drop(theirs);
    negotiate(&mut ours);
    let serving = FromTemplate::Serving {
        connection: 1,
        stack: StackId::ONLY,
        export: String::new(),
        tls_dn: None,
    };
    assert_eq!(template.recv(), serving);
    assert_eq!(read(&mut ours, 0, 512), [0; 512]);
    // One that is not there any more is no reason to complain.
    template.send(&ToTemplate::Disconnect { connection: 2 });
    template.send(&ToTemplate::Disconnect { connection: 1 });
    assert_eq!(ours.read_to_end(&mut Vec::new()).unwrap(), 0);
    assert!(matches!(template.recv(), FromTemplate::Exited { connection: 1, .. }));
    template.send(&ToTemplate::Quiesce);
    assert!(template.child.wait().unwrap().success());
}

#[test]
fn a_bad_parameter_fails_with_the_plugins_words() {
    let mut template = Template::start("null", &[("size", "1x")], None);
    let FromTemplate::Log(record) = template.recv() else { panic!() };
    assert_eq!(record.text, "could not parse size: unknown suffix: x");
    assert_eq!(template.recv(), FromTemplate::Failed);
    assert!(!template.child.wait().unwrap().success());
}

#[test]
fn a_client_that_breaks_the_protocol_loses_its_own_connection() {
    let template = Template::serving("null", &[("size", "1M")], None);
    let (mut good, _good_link) = template.client(1);
    negotiate(&mut good);
    let (mut bad, bad_link) = template.client(2);
    negotiate(&mut bad);
    bad.write_all(&[0xff; 28]).unwrap();
    for _ in 0..2 {
        assert!(matches!(template.recv(), FromTemplate::Forked { .. }));
    }
    assert_eq!(template.recv(), FromTemplate::Exited { connection: 2, exit: WorkerExit::Protocol });
    assert!(matches!(bad_link.recv().unwrap().message, FromWorker::Serving { .. }));
    let FromWorker::Log(record) = bad_link.recv().unwrap().message else { panic!() };
    assert!(record.level == Level::Error && record.text.contains("invalid request"), "{record:?}");
    assert_eq!(read(&mut good, 0, 512), [0; 512]);
}

/// As when the listener is killed: everything that it started ends.
#[test]
fn nothing_outlives_the_listener() {
    let mut template = Template::serving("null", &[("size", "1M")], None);
    let (mut client, link) = template.client(1);
    negotiate(&mut client);
    let (closed, _) = Channel::<ToTemplate, FromTemplate>::pair().unwrap();
    drop(std::mem::replace(&mut template.link, closed));
    drop(link);
    assert!(template.child.wait().unwrap().success());
    assert_eq!(client.read_to_end(&mut Vec::new()).unwrap(), 0);
}

#[test]
fn a_client_that_is_idle_is_parked_and_the_next_worker_goes_on_where_the_last_one_was() {
    let template = Template::serving("memory", &[("size", "1M")], None);
    let (mut client, theirs) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let peer = || Peer { address: PeerAddress::Unix, credentials: None, security_context: None };
    let park_after = Some(Duration::from_millis(20));
    let begin = |parked| {
        let (link, worker) = Channel::<ToWorker, FromWorker>::pair().unwrap();
        let message = ToTemplate::Serve(Serve { park_after, parked, ..serve(1, peer()) });
        template.link.send(&message, &[worker.as_fd(), theirs.as_fd()]).unwrap();
        assert!(matches!(template.recv(), FromTemplate::Forked { connection: 1, .. }));
        link
    };
    let parked = |link: &Channel<ToWorker, FromWorker>| {
        let FromWorker::Park { state, totals } = link.recv().unwrap().message else {
            panic!("not parked")
        };
        let exit = WorkerExit::Parked;
        assert_eq!(template.recv(), FromTemplate::Exited { connection: 1, exit });
        (state, totals)
    };
    let first = begin(None);
    negotiate(&mut client);
    assert!(matches!(first.recv().unwrap().message, FromWorker::Serving { .. }));
    assert_eq!(read(&mut client, 0, 512), [0; 512]);
    let (state, totals) = parked(&first);
    assert_eq!((totals.read, totals.written), (512, 0));
    let second = begin(Some(state));
    assert_eq!(read(&mut client, 4096, 1024), [0; 1024]);
    let (_, totals) = parked(&second);
    assert_eq!((totals.read, totals.written), (1024, 0));
    // What is no state of a connection ends its worker only.
    let third = begin(Some(ParkedState::of(&7_u8).unwrap()));
    assert!(matches!(third.recv().unwrap().message, FromWorker::Log(_)));
    let exit = WorkerExit::Failed;
    assert_eq!(template.recv(), FromTemplate::Exited { connection: 1, exit });
}
