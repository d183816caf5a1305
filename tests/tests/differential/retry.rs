//! The retry filter over a script that fails when it is told to: what the client gets, after how
//! many attempts.

use nbd_protocol::constants::CommandFlags;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir};

/// Each line of the file `fail.METHOD` beside the script is how one call of the method ends, `ok`
/// for well. The calls that change or read the disk, and open and close, are logged in `calls`.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in open | close | pread | pwrite | flush | trim | zero | cache | extents) echo "$1 $2" >>"$dir/calls" ;; esac
if [ -s "$dir/fail.$1" ]; then
  read -r line <"$dir/fail.$1"
  sed 1d "$dir/fail.$1" >"$dir/rest" && mv "$dir/rest" "$dir/fail.$1"
  if [ "$line" != ok ]; then
    echo "$line" >&2
    exit 1
  fi
fi
case $1 in
  open) echo "readonly=$2" ;;
  get_size) cat "$dir/size" ;;
  can_write | can_flush | can_trim | can_zero | can_fast_zero | can_extents) ;;
  can_fua | can_cache) echo native ;;
  pread) head -c "$3" /dev/zero ;;
  pwrite) cat >/dev/null ;;
  flush | trim | zero | cache) ;;
  extents) echo "0 64K hole,zero" ;;
  *) exit 2 ;;
esac
"#;

pub(crate) fn setup(dir: &TempDir) {
    let script = dir.path().join("script");
    std::fs::write(&script, SCRIPT).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, executable).unwrap();
    std::fs::write(dir.path().join("size"), "64K\n").unwrap();
}

/// How the next calls of a method end.
pub(crate) fn fail(s: &Session, method: &str, ends: &[&str]) {
    let ends: String = ends.iter().map(|end| format!("{end}\n")).collect();
    std::fs::write(s.dir().join(format!("fail.{method}")), ends).unwrap();
}

/// Adds to the transcript what the script was called for since the last time.
pub(crate) fn calls(s: &mut Session) {
    let path = s.dir().join("calls");
    let calls = std::fs::read_to_string(&path).unwrap_or_default();
    let _ = std::fs::remove_file(&path);
    for call in calls.lines() {
        s.note(format!("script: {call}"));
    }
}

fn compare(name: &str, variant: &str, parameters: &[&str], script: impl Fn(&mut Session)) {
    let arguments = [&["--filter=retry", "sh", "{dir}/script"], parameters].concat();
    Row::new(name, &arguments).variant(variant).setup(setup).compare(script);
}

/// Each kind of request, of which the first attempt fails.
pub(crate) fn fail_each_request_once(s: &mut Session) {
    for (method, ask) in [
        ("pread", Ask::read(0, 512)),
        ("pwrite", Ask::write(0, [1; 512])),
        ("pwrite", Ask::write(0, [1; 512]).flags(CommandFlags::FUA)),
        ("flush", Ask::flush()),
        ("trim", Ask::trim(0, 512)),
        ("zero", Ask::write_zeroes(0, 512)),
        ("cache", Ask::cache(0, 512)),
    ] {
        fail(s, method, &["EIO once"]);
        s.ask(&ask);
        calls(s);
    }
    fail(s, "extents", &["EIO once"]);
    s.block_status(0, 65536);
    calls(s);
}

#[test]
fn every_request_is_retried() {
    compare(row_name!(), "", &["retries=1", "retry-delay=1"], |s| {
        s.open();
        fail_each_request_once(s);
        s.disconnect();
    });
}

#[test]
fn zeroes_that_are_not_supported_are_written_and_fast_ones_retried() {
    compare(row_name!(), "", &["retries=1", "retry-delay=1"], |s| {
        s.open();
        fail(s, "zero", &["EOPNOTSUPP no"]);
        s.ask(&Ask::write_zeroes(0, 512));
        calls(s);
        fail(s, "zero", &["EOPNOTSUPP no", "EOPNOTSUPP no"]);
        s.ask(&Ask::write_zeroes(0, 512).flags(CommandFlags::FAST_ZERO));
        calls(s);
        s.disconnect();
    });
}

#[test]
fn the_last_failure_is_the_clients() {
    for_each(&["retries=0", "retries=1"], |retries| {
        let parameters = [retries, "retry-delay=1", "retry-exponential=no"];
        compare(row_name!(), retries, &parameters, |s| {
            s.open();
            fail(s, "pread", &["EINVAL first", "ENOSPC second"]);
            s.read(0, 512);
            calls(s);
            s.read(0, 512);
            s.disconnect();
        });
    });
}

#[test]
fn a_disk_that_cannot_be_reopened() {
    compare(row_name!(), "", &["retries=2", "retry-delay=1", "retry-exponential=no"], |s| {
        s.open();
        fail(s, "open", &["EIO for now"]);
        fail(s, "pread", &["EIO once"]);
        s.read(0, 512);
        calls(s);
        fail(s, "open", &["EIO no", "EIO no", "EIO no", "EIO no"]);
        fail(s, "pread", &["EIO once"]);
        s.read(0, 512);
        s.write(0, 512, 1);
        calls(s);
        s.read(0, 512);
        calls(s);
        s.disconnect();
    });
}

#[test]
fn a_disk_that_is_smaller_afterwards() {
    compare(row_name!(), "", &["retries=1", "retry-delay=1"], |s| {
        s.open();
        std::fs::write(s.dir().join("size"), "4K\n").unwrap();
        fail(s, "pread", &["EIO once"]);
        s.read(4096, 512);
        calls(s);
        s.read(0, 512);
        s.write(4000, 512, 1);
        s.ask(&Ask::trim(8192, 512));
        s.ask(&Ask::write_zeroes(8192, 512));
        s.ask(&Ask::cache(8192, 512));
        calls(s);
        s.disconnect();
    });
}

#[test]
fn a_disk_that_is_read_only_afterwards() {
    let parameters = ["retries=1", "retry-delay=1", "retry-readonly=yes"];
    for_each(&["pread", "pwrite"], |method| {
        compare(row_name!(), method, &parameters, |s| {
            s.open();
            s.write(0, 512, 1);
            fail(s, method, &["EIO once"]);
            s.read(0, 512);
            s.write(0, 512, 1);
            s.ask(&Ask::trim(0, 512));
            s.ask(&Ask::write_zeroes(0, 512));
            s.ask(&Ask::flush());
            s.read(0, 512);
            calls(s);
            s.disconnect();
            // The next client may write.
            s.open();
            s.write(0, 512, 1);
            s.disconnect();
        });
    });
}

#[test]
fn a_file_that_is_replaced_meanwhile_is_the_new_one() {
    fn setup(dir: &TempDir) {
        std::fs::write(dir.path().join("disk"), [1; 4096]).unwrap();
        std::fs::write(dir.path().join("failing"), "").unwrap();
    }
    let arguments = [
        "--filter=retry",
        "--filter=error",
        "file",
        "{dir}/disk",
        "retry-delay=1",
        "error-pread-rate=100%",
        "error-pread-file={dir}/failing",
    ];
    Row::new(row_name!(), &arguments).setup(setup).compare(|s| {
        let dir = s.dir().to_owned();
        s.open();
        // While the first attempt has failed and the second is not yet made.
        let replace = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            std::fs::write(dir.join("new"), [2; 4096]).unwrap();
            std::fs::rename(dir.join("new"), dir.join("disk")).unwrap();
            std::fs::remove_file(dir.join("failing")).unwrap();
        });
        s.read(0, 512);
        s.write(512, 512, 3);
        s.read(0, 4096);
        s.disconnect();
        replace.join().unwrap();
    });
}

#[test]
fn parameters_of_retry() {
    for_each(
        &["retries=-1", "retries=0x10", "retry-delay=0", "retry-exponential=x", "retry-readonly=x"],
        |parameter| {
            let arguments = ["--filter=retry", "null", "1M", parameter, "--run", "true"];
            Row::new(row_name!(), &arguments).variant(parameter).compare_command();
        },
    );
}
