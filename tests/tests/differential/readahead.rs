//! The readahead filter: what it prefetches, from a script that logs the cache requests that it
//! gets, and when it says that it does nothing.

use std::time::{Duration, Instant};

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{TempDir, row_name};

/// The file `calls` beside the script has the cache requests: count and offset.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in
  thread_model) echo parallel ;;
  get_size) echo 64M ;;
  can_cache) cat "$dir/can_cache" ;;
  pread) head -c "$3" /dev/zero ;;
  cache) echo "$3 $4" >>"$dir/calls" ;;
  *) exit 2 ;;
esac
"#;

fn setup(dir: &TempDir) {
    let script = dir.path().join("script");
    std::fs::write(&script, SCRIPT).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, executable).unwrap();
    std::fs::write(dir.path().join("can_cache"), "native\n").unwrap();
}

/// The cache requests so far, once there are as many as this.
fn calls(s: &Session, wanted: usize) -> Vec<String> {
    let start = Instant::now();
    loop {
        let calls = std::fs::read_to_string(s.dir().join("calls")).unwrap_or_default();
        let calls: Vec<_> = calls.lines().map(str::to_owned).collect();
        if calls.len() >= wanted {
            return calls;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "not prefetched: {calls:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reads these ranges, each after the prefetching for the one before. All but the last are followed
/// by prefetching.
fn compare(name: &str, variant: &str, reads: &[(u64, u64)]) {
    let arguments = ["--filter=readahead", "sh", "{dir}/script"];
    Row::new(name, &arguments).variant(variant).setup(setup).compare(|s| {
        s.open();
        for (number, (count, offset)) in reads.iter().enumerate() {
            s.read(*offset, *count);
            calls(s, (number + 1).min(reads.len() - 1));
        }
        for call in calls(s, 0) {
            s.note(format!("cache: {call}"));
        }
        s.disconnect();
    });
}

/// The end of the disk, behind which nothing is prefetched.
const END: (u64, u64) = (512, (64 << 20) - 512);

#[test]
fn prefetching_for_sequential_reads() {
    for_each(&[512, 4096, 65536, 1 << 20], |count| {
        let mut reads: Vec<_> = (0..8).map(|i| (count, i * count)).collect();
        reads.push(END);
        compare(row_name!(), &count.to_string(), &reads);
    });
}

#[test]
fn prefetching_for_jumps_ahead() {
    let mut reads: Vec<_> = (1..11).map(|i| (512, i * 6_000_000)).collect();
    reads.push(END);
    compare(row_name!(), "", &reads);
}

/// Around where the window grows, and where it begins anew: see the third read of each.
#[test]
fn prefetching_at_the_edges_of_the_window() {
    for_each(&[999_999, 1_000_000, 1_000_001, 1_033_280, 1_033_281], |edge| {
        let reads = [(512, 1_000_000), (512, edge), (512, 7_000_000), (512, 3_000_000), END];
        compare(row_name!(), &edge.to_string(), &reads);
    });
}

#[test]
fn prefetching_up_to_the_end_of_the_disk() {
    let size = 64 << 20;
    compare(row_name!(), "", &[(512, size - 40_000), (512, size - 20_000), (512, size - 513), END]);
}

/// What is printed for one client. `-U -` and `--run` come behind the arguments.
fn compare_output(name: &str, variant: &str, arguments: &[&str], setup: fn(&TempDir)) {
    let arguments = [arguments, &["-U", "-", "--run", "nbdinfo --size \"$uri\""]].concat();
    Row::new(name, &arguments).variant(variant).setup(setup).compare_command();
}

#[test]
fn warnings_where_a_plugin_does_not_prefetch() {
    fn setup_none(dir: &TempDir) {
        setup(dir);
        std::fs::write(dir.path().join("can_cache"), "none\n").unwrap();
    }
    fn setup_emulate(dir: &TempDir) {
        setup(dir);
        std::fs::write(dir.path().join("can_cache"), "emulate\n").unwrap();
    }
    let alone = ["--filter=readahead", "sh", "{dir}/script"];
    compare_output(row_name!(), "native", &alone, setup);
    compare_output(row_name!(), "none", &alone, setup_none);
    compare_output(row_name!(), "emulate", &alone, setup_emulate);
    // A filter below that prefetches is enough.
    let cow = ["--filter=readahead", "--filter=cow", "sh", "{dir}/script", "cow-on-cache=true"];
    compare_output(row_name!(), "cow", &cow, setup_none);
}

#[test]
fn warnings_where_requests_do_not_come_in_parallel() {
    for_each(&["requests", "all-requests", "connections"], |mode| {
        let serialize = format!("serialize={mode}");
        for filters in [["readahead", "noparallel"], ["noparallel", "readahead"]] {
            let filters = filters.map(|filter| format!("--filter={filter}"));
            let arguments = [&*filters[0], &*filters[1], "sh", "{dir}/script", &*serialize];
            compare_output(row_name!(), &filters.concat(), &arguments, setup);
        }
    });
}

#[test]
fn parameters_of_readahead() {
    let filter_line = |line: &str| {
        (line.starts_with("exit") || line.starts_with("stdout: filter")).then(|| line.to_owned())
    };
    Row::new(row_name!(), &["--help", "--filter=readahead", "null"])
        .variant("--help")
        .normalise(filter_line)
        .compare_command();
    Row::new(row_name!(), &["--filter=readahead", "null", "readahead=1", "--run", "true"])
        .variant("readahead=1")
        .compare_command();
}
