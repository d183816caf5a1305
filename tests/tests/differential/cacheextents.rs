//! The cacheextents filter: when the layer below is asked, and that all clients share the answer.

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::ours;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir, row_name};

use crate::below;

/// Every other thousand bytes is a hole. The file `calls` has the requests for extents.
const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in
  get_size) echo 1000000 ;;
  can_extents | can_write | can_trim | can_zero | can_flush) ;;
  pread) head -c "$3" /dev/zero ;;
  pwrite) cat >/dev/null ;;
  trim | zero | flush) ;;
  extents)
    echo "$3 $4 $5" >>"$dir/calls"
    at=$(($4 / 1000 * 1000)) kind=$(($4 / 1000 % 2 * 3))
    while [ $at -lt $(($3 + $4)) ]; do
      echo $at 1000 $kind
      at=$((at + 1000)) kind=$((3 - kind))
    done ;;
  *) exit 2 ;;
esac
"#;

fn setup(dir: &TempDir) {
    let script = dir.path().join("script");
    std::fs::write(&script, SCRIPT).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, executable).unwrap();
}

/// Block status of ranges, and what the script was asked for.
fn status(s: &mut Session, ranges: &[(u64, u64)]) {
    for (offset, length) in ranges {
        s.block_status(*offset, *length);
        let path = s.dir().join("calls");
        s.note(format!("calls: {:?}", std::fs::read_to_string(&path).unwrap_or_default()));
        let _ = std::fs::remove_file(path);
    }
}

fn compare(name: &str, variant: &str, script: impl Fn(&mut Session)) {
    let arguments = ["--filter=cacheextents", "sh", "{dir}/script"];
    Row::new(name, &arguments).variant(variant).setup(setup).compare(|s| {
        s.open();
        script(s);
        s.disconnect();
    });
}

#[test]
fn extents_that_the_last_answer_covers() {
    compare(row_name!(), "", |s| {
        status(s, &[(50, 100), (50, 20_000), (999, 1), (1000, 1), (0, 1), (3000, 2000)]);
        status(s, &[(3000, 7000), (4000, 4000), (9999, 10_000), (999_000, 1000), (999_999, 1)]);
    });
}

#[test]
fn extents_after_a_change() {
    let requests = [
        Ask::write(0, [1]),
        Ask::trim(0, 1),
        Ask::write_zeroes(0, 1),
        Ask::flush(),
        Ask::read(0, 1),
    ];
    for_each(&[0, 1, 2, 3, 4], |request: usize| {
        compare(row_name!(), &request.to_string(), |s| {
            status(s, &[(0, 5000), (0, 5000)]);
            s.ask(&requests[request]);
            status(s, &[(0, 5000), (0, 5000)]);
        });
    });
}

#[test]
fn parameters_of_cacheextents() {
    let line = |line: &str| {
        (line.starts_with("exit") || line.starts_with("stdout: filter")).then(|| line.to_owned())
    };
    Row::new(row_name!(), &["--help", "--filter=cacheextents", "null"])
        .variant("--help")
        .normalise(line)
        .compare_command();
    Row::new(row_name!(), &["--filter=cacheextents", "null", "cacheextents=1", "--run", "true"])
        .variant("cacheextents=1")
        .compare_command();
}

/// Processes of their own.
#[test]
fn two_clients_share_what_is_known_of_extents() {
    let builder = ours(&["--filter=cacheextents", "sh"]);
    setup(builder.dir());
    let script = builder.dir().path().join("script");
    let calls = builder.dir().path().join("calls");
    let server = builder.arg(script).start();
    let (mut one, mut other) = (below::open(&server), below::open(&server));
    assert_eq!(server.workers().len(), 2);
    let asked = || std::fs::read_to_string(&calls).unwrap().lines().count();
    let expected = [(1000, 0), (1000, 3), (1000, 0)];
    assert_eq!(below::extents(&mut one, 0, 3000), expected);
    assert_eq!(below::extents(&mut other, 0, 3000), expected);
    assert_eq!(asked(), 1);
    below::write(&mut other, 500, 10, 1);
    assert_eq!(below::extents(&mut one, 0, 3000), expected);
    assert_eq!(asked(), 2);
    assert_eq!(below::extents(&mut other, 1500, 1000), [(500, 3), (500, 0)]);
    assert_eq!(asked(), 2);
}
