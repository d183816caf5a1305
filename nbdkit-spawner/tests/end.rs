//! The spawner by itself, with this test as its listener: what it removes, and what it does not
//! do.
#![expect(clippy::unwrap_used, reason = "a spawner that cannot be started is a failed test")]

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
fn a_listener_of_another_build_is_refused() {
    let directory = directory("build");
    let (pid, link) = start_with(&directory, |setup| setup.hello.build.push('x'));
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 1)));
    assert!(link.recv().is_err(), "no answer");
    assert!(!directory.exists(), "removed, however the spawner ends");
}
