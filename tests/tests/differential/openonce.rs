//! The openonce filter, which Debian's nbdkit has not.

use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, TempDir};

const SCRIPT: &str = r#"#!/bin/sh
dir=${0%/*}
case $1 in
  open | close) echo "$1 readonly=$2 export=$3" >>"$dir/calls" ;;
  get_size) echo 64K ;;
  pread) head -c "$3" /dev/zero ;;
  can_write) ;;
  pwrite) cat >/dev/null ;;
  *) exit 2 ;;
esac
"#;

#[test]
fn two_clients_have_one_connection_to_the_plugin() {
    let dir = TempDir::new();
    let script = dir.join("script");
    std::fs::write(&script, SCRIPT).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, executable).unwrap();
    let path = script.display().to_string();
    let mut server = ours(&["--filter=openonce", "sh", &path]).start();
    let calls = || std::fs::read_to_string(dir.join("calls")).unwrap();
    let (mut one, mut two) = (server.connected("a"), server.connected("a"));
    for client in [&mut one, &mut two] {
        assert_eq!(client.call(&Ask::read(0, 512)).unwrap().error, None);
    }
    assert_eq!(calls(), "open readonly=false export=a\n");
    one.disconnect().unwrap();
    let mut three = server.connected("b");
    assert_eq!(three.call(&Ask::read(0, 512)).unwrap().error, None);
    assert_eq!(two.call(&Ask::read(0, 512)).unwrap().error, None);
    assert!(!calls().contains("close"), "{}", calls());
    drop((two, three));
    assert!(server.stop().success());
    let calls = calls();
    assert_eq!((calls.matches("open").count(), calls.matches("close").count()), (2, 2), "{calls}");
}
