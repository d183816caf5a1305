//! The sandbox inside nbdkit@.service: a unit that restricts the server takes nothing away from
//! what the server restricts itself. The unit's settings are put in force without systemd
//! (`tests/src/bin/service-unit.rs`).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use nbdkit_tests::Server;
use nbdkit_tests::processes::{children_called, descendants, eventually};
use nbdkit_tests::server::Builder;
use nix::libc::EACCES;
use nix::unistd::{Uid, User, geteuid};

use crate::confinement::{CALLS, End, PATHS, Starter, carry_out, run, start};

/// Stands for the unit's user nbdkit-listener, which this machine need not have.
const LISTENER: &str = "daemon";

fn unit() -> String {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tree");
    top.join("systemd/nbdkit@.service").to_str().expect("UTF-8").to_owned()
}

/// The server as systemd would start it.
pub(crate) fn as_unit(builder: Builder) -> Builder {
    let user = User::from_name(LISTENER).expect("users").expect("a daemon");
    let (id, group) = (user.uid.as_raw(), user.gid.as_raw());
    std::os::unix::fs::chown(builder.dir().path(), Some(id), Some(group)).expect("given");
    let runner = env!("CARGO_BIN_EXE_service-unit");
    builder.through_shell(&format!(r#"exec {runner} {} {LISTENER} "$0" "$@""#, unit()))
}

/// Whether this cannot be tried here, and why.
fn skipped() -> bool {
    let output = Command::new("systemd-analyze").arg("--version").output();
    let why = if !geteuid().is_root() || !crate::may_mount() {
        "takes root that may mount"
    } else if std::env::var_os("NBDKIT_TEST_SURROUNDINGS").is_some() {
        "other surroundings"
    } else if !output.is_ok_and(|output| output.status.success()) {
        "there is no systemd-analyze"
    } else {
        return false;
    };
    eprintln!("SKIPPED: {why}");
    true
}

fn id_of(name: &str) -> Uid {
    User::from_name(name).expect("users").expect("a user").uid
}

/// The fields of /proc/PID/status.
fn status(pid: i32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn namespace(pid: i32, name: &str) -> u64 {
    std::fs::metadata(format!("/proc/{pid}/ns/{name}")).expect("alive").ino()
}

#[test]
#[cfg(target_arch = "x86_64")]
fn every_attack_of_a_worker_of_the_unit_is_stopped_by_the_layer_that_is_said_to() {
    if !skipped() {
        run(Starter::Service);
    }
}

/// Landlock is there behind the filter, and it is that which refuses.
#[test]
#[cfg(target_arch = "x86_64")]
fn without_the_filter_there_is_landlock_in_the_unit() {
    if skipped() {
        return;
    }
    let open = |skip| carry_out(&start(Starter::Service, skip, false), "open=/etc/passwd").0;
    assert_eq!(open(CALLS), End::Fails(EACCES));
    assert_eq!(open(PATHS), End::Fails(EACCES));
    assert_eq!(open(CALLS | PATHS), End::Succeeds);
}

/// What a process has: its user, its capabilities, filters besides the `outer` ones of the unit,
/// and whether it has namespaces of its own.
fn assert_is(pid: i32, listener: i32, user: &str, capabilities: u64, filters: u32, own: bool) {
    let status = status(pid);
    let field = |name: &str| status[name].as_str();
    let title = field("Name");
    let id = id_of(user);
    assert_eq!(field("Uid"), format!("{id}\t{id}\t{id}\t{id}"), "{title}");
    for set in ["CapEff", "CapPrm"] {
        let value = u64::from_str_radix(field(set), 16).expect("hexadecimal");
        assert_eq!(value, capabilities, "{title}: {set}");
    }
    for set in ["CapInh", "CapAmb", "CapBnd"] {
        assert_eq!(u64::from_str_radix(field(set), 16), Ok(0), "{title}: {set}");
    }
    assert_eq!(field("NoNewPrivs"), "1", "{title}");
    // Not dumpable: others of the user must not look into it. proc(5).
    let environ = std::fs::metadata(format!("/proc/{pid}/environ")).expect("alive");
    assert_eq!(environ.uid(), 0, "{title}");
    let outer = 4;
    assert_eq!(field("Seccomp_filters"), (outer + filters).to_string(), "{title}");
    for name in ["net", "ipc", "uts"] {
        assert_eq!(namespace(pid, name) != namespace(listener, name), own, "{title}: {name}");
    }
}

/// `inherited`: filters that the template has from the process that has started it.
fn assert_layers(server: &Server, inherited: u32) -> i32 {
    let listener = server.pid().as_raw();
    let kill = 1 << 5;
    assert_is(listener, listener, LISTENER, kill, 1, false);
    let [template] = children_called(listener, "nbdkit:template")[..] else {
        panic!("one template")
    };
    assert_is(template, listener, "nobody", 0, 3 + inherited, true);
    let worker = || children_called(template, "nbdkit:worker");
    eventually("a worker", || !worker().is_empty());
    assert_is(worker()[0], listener, "nobody", 0, 4 + inherited, true);
    template
}

#[test]
fn each_process_of_the_unit_has_its_user_and_no_more_than_it_needs() {
    if skipped() {
        return;
    }
    let server = start(Starter::Service, 0, false);
    let mut client = server.connected("");
    let first = assert_layers(&server, 0);
    assert_eq!(client.call(&nbdkit_tests::Ask::read(0, 1)).expect("a reply").error, None);
    // None of them is root, not even the spawner, from which a new template gets what it needs.
    for pid in descendants(server.pid().as_raw()) {
        assert!(!status(pid)["Uid"].split('\t').any(|id| id == "0"), "{:?}", status(pid));
    }
    drop(client);
    let pid = nix::unistd::Pid::from_raw(first);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
    let _client = server.connected("");
    // With the spawner's filter.
    assert_ne!(assert_layers(&server, 1), first);
}
