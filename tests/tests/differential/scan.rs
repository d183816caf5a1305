//! The scan filter: what it prefetches, from a script that logs the cache requests that it gets.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::ours;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir, row_name};

/// The file `calls` beside the script has the cache requests: count and offset. They do not end
/// while there is a file `hold`.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in
  thread_model) echo parallel ;;
  get_size) echo 10000000 ;;
  can_cache) cat "$dir/can_cache" ;;
  pread) head -c "$3" /dev/zero ;;
  cache)
    echo "$3 $4" >>"$dir/calls"
    while [ -e "$dir/hold" ]; do sleep 0.01; done
    ;;
  *) exit 2 ;;
esac
"#;

fn setup(dir: &TempDir) {
    let script = dir.join("script");
    std::fs::write(&script, SCRIPT).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, executable).unwrap();
    std::fs::write(dir.join("can_cache"), "native\n").unwrap();
    std::fs::write(dir.join("hold"), "").unwrap();
}

fn calls(dir: &std::path::Path) -> Vec<String> {
    let calls = std::fs::read_to_string(dir.join("calls")).unwrap_or_default();
    calls.lines().map(str::to_owned).collect()
}

/// The cache requests up to this one, which comes in the end.
fn wait_for(s: &mut Session, last: &str) {
    let dir = s.dir().to_owned();
    eventually("the disk is scanned", || calls(&dir).iter().any(|call| call == last));
    for call in calls(&dir) {
        s.note(format!("cache: {call}"));
    }
}

#[test]
fn what_is_prefetched_while_a_client_reads() {
    for_each(
        &[
            ("scan-ahead=true", "902488 9097512"),
            ("scan-ahead=false", "1611392 8388608"),
            ("scan-size=4M", "1611392 8388608"),
        ],
        |(parameter, last)| {
            let arguments = ["--filter=scan", "sh", "{dir}/script", parameter];
            Row::new(row_name!(), &arguments).variant(parameter).setup(setup).compare(|s| {
                s.open();
                let dir = s.dir().to_owned();
                eventually("the scan has begun", || !calls(&dir).is_empty());
                if parameter != "scan-size=4M" {
                    s.read(7_000_000, 360);
                }
                std::fs::remove_file(dir.join("hold")).unwrap();
                wait_for(s, last);
                s.disconnect();
            });
        },
    );
}

#[test]
fn warnings_where_nothing_is_scanned() {
    let compare = |variant: &str, more: &[&str], uri: &str, setup: fn(&TempDir)| {
        let run = format!("nbdinfo --size \"{uri}\"");
        let arguments = [more, &["-U", "-", "sh", "{dir}/script", "--run", &run]].concat();
        Row::new(row_name!(), &arguments).variant(variant).setup(setup).compare_command();
    };
    fn setup_none(dir: &TempDir) {
        setup(dir);
        std::fs::write(dir.join("can_cache"), "none\n").unwrap();
    }
    let serial = ["--filter=noparallel", "--filter=scan"];
    compare("none", &["--filter=scan"], "$uri", setup_none);
    compare("serial", &serial, "$uri", setup);
    compare("export", &["--filter=scan"], "nbd+unix:///other?socket=$unixsocket", setup);
}

#[test]
fn parameters_of_scan() {
    for_each(
        &[
            "scan-size=0",
            "scan-size=511",
            "scan-size=512",
            "scan-size=3M",
            "scan-size=64M",
            "scan-ahead=x",
        ],
        |parameter| {
            let arguments = ["--filter=scan", "null", "1M", parameter, "--run", "true"];
            Row::new(row_name!(), &arguments).variant(parameter).compare_command();
        },
    );
}

/// Both scan at once, and each block is prefetched once.
#[test]
fn two_clients_in_two_processes_scan_the_disk_once() {
    let builder = ours(&["--filter=scan", "sh", "{dir}/script", "scan-size=1M"]);
    setup(builder.dir());
    let dir = builder.dir().path().to_owned();
    let mut server = builder.start();
    let (mut one, mut two) = (server.connected(""), server.connected(""));
    eventually("both have begun", || calls(&dir).len() == 2);
    std::fs::remove_file(dir.join("hold")).unwrap();
    eventually("the disk is scanned", || calls(&dir).len() >= 10);
    // A third client finds nothing left to do.
    let mut three = server.connected("");
    for client in [&mut one, &mut two, &mut three] {
        assert_eq!(client.call(&Ask::read(0, 512)).unwrap().error, None);
        client.disconnect().unwrap();
    }
    assert!(server.stop().success());
    let mut offsets: Vec<u64> =
        calls(&dir).iter().map(|call| call.split_once(' ').unwrap().1.parse().unwrap()).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (0..10).map(|block| block << 20).collect::<Vec<u64>>());
}
