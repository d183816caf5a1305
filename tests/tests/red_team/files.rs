//! Attacks on files by the worker of a stack that has declared one. A stack that only reads (`-r`, or a filter above that
//! opens read-only) must have nothing to write to. Each row is made again without the layer that stops it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use nix::libc;
use nix::unistd::geteuid;

use crate::bystander::{Bystander, Work};
use crate::confinement::{CALLS, End, PATHS, Starter, builder, carry_out};

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
            for (skip, expected) in row.ends {
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
                let bystander = Bystander::start(&server, row.attack, work);
                let text = row.attack.replace("{dir}", &server.dir().path().display().to_string());
                let (end, words) = carry_out(&server, &text);
                bystander.finish();
                println!("{starter:?} | {before:?} {text} | without {skip} | {end:?} | {words}");
                if end != *expected {
                    wrong.push(format!("{starter:?}: {before:?} {text} without {skip}: {end:?}"));
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

#[test]
#[cfg(target_arch = "x86_64")]
fn a_worker_of_root_reaches_no_file_but_by_its_descriptor() {
    if geteuid().is_root() {
        run(Starter::Root);
    } else {
        eprintln!("SKIPPED: takes root");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_worker_of_an_ordinary_user_reaches_none_either() {
    run(Starter::User);
}
