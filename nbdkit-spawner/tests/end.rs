//! The spawner by itself, with this test as its listener: what it removes and opens, and what it
//! does not do.
#![expect(clippy::unwrap_used, reason = "a spawner that cannot be started is a failed test")]

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nbdkit_ipc::messages::Hello;
use nbdkit_ipc::messages::spawner::SpawnerSetup;
use nbdkit_ipc::program::Program;
use nbdkit_ipc::{Channel, FromSpawner, StackId, ToSpawner, private};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// What nobody should execute here.
const TEMPLATE: &str = "/bin/false";

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("nbdkit-spawner-{name}-{}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    UnixListener::bind(path.join(private::SOCKET)).unwrap();
    path
}

fn start(directory: &Path, replaces: bool) -> (Pid, Channel<ToSpawner, FromSpawner>) {
    start_with(directory, |setup| setup.replaces = replaces)
}

fn start_with(
    directory: &Path,
    change: impl FnOnce(&mut SpawnerSetup),
) -> (Pid, Channel<ToSpawner, FromSpawner>) {
    let program = Program {
        path: env!("CARGO_BIN_EXE_nbdkit-spawner").into(),
        title: "spawner".to_owned(),
        spared: false,
        directory: None,
        stderr: None,
    };
    let (pid, link) = program.start(&[]).unwrap();
    let mut setup = SpawnerSetup {
        hello: Hello::ours(),
        listener: Pid::this().as_raw(),
        private: Some(directory.into()),
        log: None,
        gains: false,
        replaces: false,
        program: TEMPLATE.into(),
        directory: None,
        title: "template".to_owned(),
        spared: false,
    };
    change(&mut setup);
    link.send(&ToSpawner::Setup(setup), &[]).unwrap();
    (pid, link)
}

#[test]
fn the_private_directory_goes_when_the_channel_is_closed() {
    let directory = directory("closed");
    let (pid, link) = start(&directory, false);
    link.send(&ToSpawner::SetupEnd, &[]).unwrap();
    assert!(directory.exists());
    drop(link);
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
    assert!(!directory.exists());
}

/// A template that nobody configures would do what a listener tells it that was taken over.
#[test]
fn a_template_that_was_not_described_is_not_started() {
    for messages in [
        &[ToSpawner::SetupEnd, ToSpawner::Start { stack: StackId::ONLY }][..],
        &[ToSpawner::Know(Box::new(nbdkit_ipc::ToTemplate::ConfigureEnd))],
    ] {
        let directory = directory(&format!("start-{}", messages.len()));
        let (pid, link) = start(&directory, false);
        for message in messages {
            link.send(message, &[]).unwrap();
        }
        assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 1)));
        assert!(link.recv().is_err(), "no answer");
        assert!(!directory.exists(), "removed, however the spawner ends");
    }
}

#[test]
fn a_template_for_a_stack_that_does_not_exist_is_not_started() {
    let (pid, link) = start(&directory("stack"), true);
    for message in [ToSpawner::SetupEnd, ToSpawner::Start { stack: StackId(1) }] {
        link.send(&message, &[]).unwrap();
    }
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 1)));
    assert!(link.recv().is_err(), "no answer");
}

#[test]
fn the_log_file_of_the_setup_is_opened_and_a_failure_reported() {
    let directory = directory("log");
    let log = directory.join("log");
    let (pid, link) = start_with(&directory, |setup| setup.log = Some((&log).into()));
    link.send(&ToSpawner::SetupEnd, &[]).unwrap();
    for text in ["one\n", "two\n"] {
        link.send(&ToSpawner::OpenLog, &[]).unwrap();
        let received = link.recv().unwrap();
        assert_eq!(received.message, FromSpawner::Log);
        let [fd] = <[_; 1]>::try_from(received.fds).unwrap();
        File::from(fd).write_all(text.as_bytes()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "one\ntwo\n");
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    link.send(&ToSpawner::OpenLog, &[]).unwrap();
    let received = link.recv().unwrap();
    let errno = nix::errno::Errno::EISDIR as i32;
    assert_eq!((received.message, received.fds.len()), (FromSpawner::NoLog { errno }, 0));
    std::fs::remove_dir(&log).unwrap();
    drop(link);
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
    assert!(!directory.exists());
}

#[test]
fn without_a_log_file_none_is_opened() {
    let (pid, link) = start(&directory("no-log"), false);
    for message in [ToSpawner::SetupEnd, ToSpawner::OpenLog] {
        link.send(&message, &[]).unwrap();
    }
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 1)));
    assert!(link.recv().is_err(), "no answer");
}

#[test]
fn a_listener_of_another_build_is_refused() {
    let directory = directory("build");
    let (pid, link) = start_with(&directory, |setup| setup.hello.build.push('x'));
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 1)));
    assert!(link.recv().is_err(), "no answer");
    assert!(!directory.exists(), "removed, however the spawner ends");
}
