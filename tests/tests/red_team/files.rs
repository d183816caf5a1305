//! Attacks on files by the worker of a stack that has declared one. A stack that only reads (`-r`,
//! or a filter above that opens read-only) must have nothing to write to. Each row is made again
//! without the layer that stops it.

use std::fs::{File, Permissions};
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;

use nbd_protocol::constants::Opt;
use nbdkit_tests::Server;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::{cmsg_space, libc};

use crate::bystander::Work;
use crate::confinement::{
    CALLS, End, PATHS, Starter, as_root, builder, carry_out_beside, differs, is_shown_here,
};

use End::{Fails, Refused, Succeeds};

const EACCES: i32 = libc::EACCES;

/// The stacks: what stands before and after the plugin's name.
const READ_ONLY: (&[&str], &[&str]) = (&["-r"], &["disk={dir}/disk"]);
const BELOW_COW: (&[&str], &[&str]) = (&["--filter=cow"], &["disk={dir}/disk"]);
const WRITABLE: (&[&str], &[&str]) = (&[], &["disk={dir}/disk"]);

/// An attack, and what it comes to: without which layers. All layers first.
struct Row {
    attack: &'static str,
    /// Against a stack that writes, too.
    always: bool,
    ends: &'static [(u32, End)],
}

/// The filter, then Landlock, and nothing else: anybody may write the file.
const OPENED: &[(u32, End)] = &[
    (0, Fails(EACCES)),
    (CALLS, Fails(EACCES)),
    (PATHS, Fails(EACCES)),
    (CALLS | PATHS, Succeeds),
];

const ROWS: &[Row] = &[
    // The descriptor itself: nothing to leave out.
    Row { attack: "write-disk", always: false, ends: &[(CALLS | PATHS, Fails(libc::EBADF))] },
    Row { attack: "truncate-disk", always: false, ends: &[(CALLS | PATHS, Fails(libc::EINVAL))] },
    Row { attack: "reopen-disk", always: false, ends: OPENED },
    Row { attack: "open={dir}/disk", always: true, ends: OPENED },
    Row { attack: "open-for-writing={dir}/disk", always: true, ends: OPENED },
    Row { attack: "open-truncating={dir}/disk", always: true, ends: OPENED },
    Row { attack: "create={dir}/new", always: true, ends: OPENED },
    Row { attack: "open=/proc/self/status", always: true, ends: OPENED },
    Row {
        attack: "truncate={dir}/disk",
        always: true,
        ends: &[(0, Refused("truncate")), (CALLS, Fails(EACCES)), (CALLS | PATHS, Succeeds)],
    },
    // The next client may be given the same description.
    Row {
        attack: "append-to-disk",
        always: true,
        ends: &[(0, Refused("fcntl")), (CALLS, Succeeds)],
    },
];

fn run(starter: Starter) {
    let mut wrong = Vec::new();
    for (before, after) in [READ_ONLY, BELOW_COW, WRITABLE] {
        for row in ROWS.iter().filter(|row| row.always || before != WRITABLE.0) {
            for (skip, expected) in row.ends.iter().filter(|(skip, _)| is_shown_here(*skip)) {
                let builder = builder(starter, *skip, before).arg("redteam").args(after);
                let disk = builder.dir().join("disk");
                std::fs::write(&disk, [7; 4096]).expect("written");
                std::fs::set_permissions(&disk, Permissions::from_mode(0o666))
                    .expect("open to all");
                let directory = Permissions::from_mode(0o777);
                std::fs::set_permissions(builder.dir().path(), directory).expect("open to all");
                let server = builder.start();
                let work =
                    if before == READ_ONLY.0 { Work::ReadsZeroes(0) } else { Work::Writes(0) };
                let text = row.attack.replace("{dir}", &server.dir().path().display().to_string());
                let end = carry_out_beside(&server, row.attack, &text, work);
                if end != *expected {
                    let line = differs(starter, *skip, &text, &end, expected);
                    wrong.push(format!("{before:?}: {line}"));
                }
                let untouched = std::fs::read(&disk).expect("a disk") == [7; 4096];
                if *skip == 0 && !untouched {
                    wrong.push(format!("{starter:?}: {before:?} {text}: the disk is another"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Has the worker pass the descriptor of its disk to its client, which is on a Unix socket. Returns
/// what arrives.
fn descriptor_from(server: &Server) -> Option<File> {
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let attack = b"pass-disk";
    let payload = [&(attack.len() as u32).to_be_bytes()[..], attack, &[0, 0]].concat();
    client.send_option(Opt::GO, &payload).expect("sent");
    let mut byte = [0; 1];
    let mut place = [IoSliceMut::new(&mut byte)];
    let mut control = cmsg_space!(RawFd);
    let socket = client.transport().as_raw_fd();
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let got = recvmsg::<()>(socket, &mut place, Some(&mut control), flags).expect("an answer");
    let mut messages = got.cmsgs().expect("control messages");
    match messages.next() {
        // The path is the kernel's name of what this process was given.
        Some(ControlMessageOwned::ScmRights(numbers)) => {
            File::open(format!("/proc/self/fd/{}", numbers[0])).ok()
        }
        _ => None,
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_worker_passes_its_descriptors_to_nobody() {
    for (skip, passes) in [(0, false), (CALLS, true)] {
        let builder = builder(Starter::User, skip, &["redteam", "disk={dir}/disk"]);
        let disk = builder.dir().join("disk");
        std::fs::write(&disk, [7; 4096]).expect("written");
        std::fs::set_permissions(&disk, Permissions::from_mode(0o666)).expect("open to all");
        let server = builder.start();
        let mut content = Vec::new();
        if let Some(mut file) = descriptor_from(&server) {
            file.read_to_end(&mut content).expect("read");
        }
        assert_eq!(content == [7; 4096], passes, "without {skip}");
        if !passes {
            let _ = server.wait_for_stderr("(sendmsg)");
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_worker_of_root_reaches_no_file_but_by_its_descriptor() {
    as_root(run);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_worker_of_an_ordinary_user_reaches_none_either() {
    run(Starter::User);
}
