//! nbdkit-tmpdisk-plugin(1).

use std::os::unix::net::UnixStream;

use nbd_protocol::constants::Opt;
use nbd_protocol::handshake::InfoRequest;
use nbdkit_tests::processes::{eventually, is_alive};
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, Client, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{contents, left_behind, output, refused, server};

/// A command that makes a disk with the content `made`.
const MADE: &str = "command=printf made > \"$disk\"; truncate -s $size \"$disk\"";

#[test]
fn each_client_has_a_file_system_of_its_own_that_goes_with_it() {
    let server = server(&["tmpdisk", "4M", "label=the label"]).start();
    let (mut one, mut other) = (server.connected(""), server.connected(""));
    assert_eq!(server.workers().len(), 2);
    assert_eq!(left_behind(&server), [""; 0]);
    for client in [&mut one, &mut other] {
        let image = server.dir().join("image");
        std::fs::write(&image, contents(client)).unwrap();
        let image = image.to_str().unwrap();
        output("fsck.ext4", &["-fn", image]);
        let about = output("dumpe2fs", &["-h", image]);
        assert!(about.contains("Filesystem volume name:   the label"), "{about}");
    }
    assert_eq!(one.call(&Ask::write(512, [7; 512])).expect("a reply").error, None);
    assert_eq!(one.call(&Ask::read(512, 512)).expect("a reply").data, [7; 512]);
    assert_eq!(other.call(&Ask::read(512, 512)).expect("a reply").data, [0; 512]);
    one.disconnect().unwrap();
    let mut third = server.connected("");
    assert_eq!(third.call(&Ask::read(512, 512)).expect("a reply").data, [0; 512]);
}

#[test]
fn a_command_makes_the_disk_with_the_variables_that_it_is_given() {
    let command =
        "command=printf '%s|%s|%s|%s' \"$size\" \"$type\" \"$label\" \"$own\" > \"$disk\"";
    let arguments =
        ["--isolation=shared", "tmpdisk", "size=0", "own=$(id) ' x", "label=l", command];
    let server = server(&arguments).start();
    let expected = "0||l|$(id) ' x";
    assert_eq!(contents(&mut server.connected("")), expected.as_bytes());
    assert_eq!(left_behind(&server), [""; 0]);
}

#[test]
fn nobody_writes_to_a_server_that_is_read_only() {
    let server = server(&["-r", "tmpdisk", "1M", MADE]).start();
    let mut client = server.connected("");
    let reply = client.call(&Ask::write(0, [1; 512])).expect("a reply");
    assert_eq!(reply.error.map(|it| it.code), Some(1), "EPERM");
    assert!(contents(&mut client).starts_with(b"made"));
}

#[test]
fn a_command_that_fails_or_makes_no_disk_is_an_error_of_one_client() {
    for (command, why) in [
        ("command=echo no luck >&2; exit 7", "command failed with exit code 7: no luck"),
        ("command=:", "No such file or directory"),
        ("command=mkdir \"$disk\"", "file is not regular or block device"),
        ("command=mkfifo \"$disk\"", "file is not regular or block device"),
        ("command=kill -9 $$", "command was killed by signal 9"),
    ] {
        let server = server(&["tmpdisk", "1M", command]).start();
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        assert!(client.go("", &[]).expect("a reply").export().is_none());
        let _ = server.wait_for_stderr(why);
        assert_eq!(left_behind(&server), [""; 0]);
    }
}

/// Waits until a command has written its process id to a file.
fn running_command(server: &Server) -> i32 {
    let pid_file = server.dir().join("command.pid");
    let read = || std::fs::read_to_string(&pid_file).unwrap_or_default();
    eventually("the command runs", || read().ends_with('\n'));
    read().trim().parse().unwrap()
}

/// Kills the worker that runs the command.
fn kill_worker_while_making(server: &Server) {
    let command = running_command(server);
    let [worker] = server.workers()[..] else { panic!("{:?}", server.workers()) };
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    eventually("the command has been killed", || !is_alive(command));
}

/// A client that has asked for the disk and not yet got it.
fn asking(server: &Server) -> Client<UnixStream> {
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let mut payload = Vec::new();
    InfoRequest::encode(&mut payload, "", &[]);
    client.send_option(Opt::GO, &payload).unwrap();
    client
}

#[test]
fn a_command_ends_with_the_client_that_waits_for_it() {
    let command = "command=echo $$ > {dir}/command.pid; exec sleep 1000";
    let server = server(&["tmpdisk", "1M", command]).start();
    let client = asking(&server);
    let command = running_command(&server);
    drop(client);
    eventually("the command has been killed", || !is_alive(command));
    eventually("nothing is left", || left_behind(&server).is_empty());
}

#[test]
fn what_a_killed_worker_leaves_behind_the_next_one_removes() {
    // The first client's command waits for its end, the others' do not.
    let command = "command=if mkdir {dir}/first 2>/dev/null; then echo $$ > {dir}/command.pid; \
                   exec sleep 1000; fi; truncate -s $size \"$disk\"";
    let mut server = server(&["tmpdisk", "1M", command]).start();
    let _client = asking(&server);
    kill_worker_while_making(&server);
    assert_eq!(left_behind(&server).len(), 1);
    let mut next = server.connected("");
    assert_eq!(contents(&mut next).len(), 1 << 20);
    assert_eq!(left_behind(&server), [""; 0]);
    server.stop();
}

#[test]
fn parameters_that_make_no_sense_stop_the_start() {
    refused(ours(&["tmpdisk"]), "size parameter is required");
    refused(ours(&["tmpdisk", "1M", "disk=x"]), "'disk' parameter cannot be set");
    refused(ours(&["tmpdisk", "1M", "a-b=x"]), "unknown parameter 'a-b'");
    refused(ours(&["tmpdisk", "1M", "type=no-such"]), "there is no program mkfs.no-such");
}
