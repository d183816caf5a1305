//! nbdkit-ondemand-plugin(1).

use nbdkit_tests::processes::eventually;
use nbdkit_tests::server::Builder;
use nbdkit_tests::{Ask, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{contents, names, output, refused, server};

const COMMAND: &str = "command=truncate -s $size \"$disk\"";

fn served(arguments: &[&str]) -> Builder {
    let builder = server(arguments);
    std::fs::create_dir(builder.dir().join("exports")).unwrap();
    builder
}

fn exports(server: &Server) -> Vec<String> {
    names(&server.dir().join("exports"))
}

/// Whether a client gets an export.
fn opens(server: &Server, export: &str) -> bool {
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    client.go(export, &[]).expect("a reply").export().is_some()
}

#[test]
fn disks_are_made_when_they_are_asked_for_and_stay() {
    let mut server = served(&["ondemand", "dir={dir}/exports", "4M", "label=x"]).start();
    assert_eq!(exports(&server), [""; 0]);
    let mut one = server.connected("one");
    let mut other = server.connected("");
    assert_eq!(exports(&server), ["default", "one"]);
    assert_eq!(server.workers().len(), 2);
    let image = server.dir().join("image");
    std::fs::write(&image, contents(&mut one)).unwrap();
    output("fsck.ext4", &["-fn", image.to_str().unwrap()]);
    assert_eq!(one.call(&Ask::write(512, [7; 512])).expect("a reply").error, None);
    assert_eq!(other.call(&Ask::read(512, 512)).expect("a reply").data, [0; 512]);
    one.disconnect().unwrap();
    eventually("the disk is free", || opens(&server, "one"));
    server.stop();
    assert_eq!(exports(&server), ["default", "one"]);
    let disk = std::fs::read(server.dir().join("exports/one")).unwrap();
    assert_eq!(disk[512..1024], [7; 512]);
}

#[test]
fn a_disk_has_one_client_until_that_ends_however_it_does() {
    for isolation in ["connection", "shared"] {
        let isolation = format!("--isolation={isolation}");
        let server = served(&[&isolation, "ondemand", "dir={dir}/exports", "1M", COMMAND]).start();
        let first = server.connected("a");
        assert!(!opens(&server, "a"));
        let _ = server.wait_for_stderr("a: filesystem is locked by another client");
        assert!(opens(&server, "b"));
        drop(first);
        eventually("the disk is free", || opens(&server, "a"));
    }
}

#[test]
fn a_killed_worker_frees_its_disk() {
    let server = served(&["ondemand", "dir={dir}/exports", "1M", COMMAND]).start();
    let _client = server.connected("a");
    let [worker] = server.workers()[..] else { panic!("{:?}", server.workers()) };
    assert!(!opens(&server, "a"));
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    eventually("the disk is free", || opens(&server, "a"));
}

#[test]
fn who_waits_gets_the_disk_and_who_shares_does_not_wait() {
    let server = served(&["ondemand", "dir={dir}/exports", "1M", COMMAND, "wait=true"]).start();
    let first = server.connected("a");
    std::thread::scope(|scope| {
        let second = scope.spawn(|| opens(&server, "a"));
        eventually("two workers", || server.workers().len() == 2);
        assert!(!second.is_finished());
        drop(first);
        assert!(second.join().unwrap());
    });
    let server = served(&["ondemand", "dir={dir}/exports", "1M", COMMAND, "share=true"]).start();
    let (mut one, mut other) = (server.connected("a"), server.connected("a"));
    assert_eq!(one.call(&Ask::write(0, [7; 512])).expect("a reply").error, None);
    assert_eq!(other.call(&Ask::read(0, 512)).expect("a reply").data, [7; 512]);
}

/// Many clients ask for one new disk at once: one of them gets it, and it is whole.
#[test]
fn clients_who_race_for_a_new_disk_make_one() {
    let command = "command=printf made > \"$disk\"; truncate -s $size \"$disk\"";
    let arguments = ["ondemand", "dir={dir}/exports", "1M", command, "share=1"];
    let server = served(&arguments).start();
    std::thread::scope(|scope| {
        for number in 0_u64..8 {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.connected("new");
                let reply = client.call(&Ask::write(512 * (number + 1), [1; 512]));
                assert_eq!(reply.expect("a reply").error, None);
            });
        }
    });
    assert_eq!(exports(&server), ["new"]);
    let mut expected = vec![1; 512 * 9];
    expected[..512].fill(0);
    expected[..4].copy_from_slice(b"made");
    assert!(contents(&mut server.connected("new"))[..512 * 9] == expected);
}

#[test]
fn hostile_names_make_nothing() {
    let server = served(&["ondemand", "dir={dir}/exports", "1M", COMMAND]).start();
    let long = "x".repeat(4096);
    for name in ["../evil", "/etc/passwd", ".", "..", ".nbdkit-making-x", "a/b", "a\0b", &long] {
        assert!(!opens(&server, name), "{name:?}");
    }
    assert_eq!(exports(&server), [""; 0]);
    assert!(!server.dir().join("evil").exists());
    for name in ["$(touch evil)", "'", "-rf", "a\nb"] {
        assert!(opens(&server, name), "{name:?}");
    }
    assert_eq!(exports(&server).len(), 4);
}

#[test]
fn a_disk_that_fails_is_made_anew_and_read_only_clients_write_nothing() {
    let command = "command=truncate -s $size \"$disk\"; mkdir {dir}/once";
    let server = served(&["-r", "ondemand", "dir={dir}/exports", "1M", command]).start();
    std::fs::create_dir(server.dir().join("once")).unwrap();
    assert!(!opens(&server, "a"));
    assert_eq!(exports(&server), [""; 0]);
    std::fs::remove_dir(server.dir().join("once")).unwrap();
    let mut client = server.connected("a");
    let reply = client.call(&Ask::write(0, [1; 512])).expect("a reply");
    assert_eq!(reply.error.map(|it| it.code), Some(1), "EPERM");
}

#[test]
fn parameters_that_make_no_sense_stop_the_start() {
    refused(server(&["ondemand", "1M"]), "dir and size parameters are required");
    refused(served(&["ondemand", "dir={dir}/exports"]), "dir and size parameters are required");
    refused(server(&["ondemand", "1M", "dir={dir}/exports"]), "No such file or directory");
    refused(served(&["ondemand", "1M", "dir={dir}/exports", "disk=x"]), "'disk' parameter");
    refused(served(&["ondemand", "1M", "dir={dir}/exports", "wait=x"]), "boolean");
}
