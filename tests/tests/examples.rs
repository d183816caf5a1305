//! The examples of plugins that are built in, with two clients in two processes.

use nbdkit_tests::Ask;
use nbdkit_tests::server::ours;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn a_disk_for_each_client_goes_with_it_and_leaves_nothing_behind() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let builder = ours(&[isolation, "--sandbox=strict", "example3", "size=1M"]);
        let tmp = builder.dir().join("tmp");
        std::fs::create_dir(&tmp).unwrap();
        let server = builder.env("TMPDIR", &tmp).start();
        let (mut one, mut other) = (server.connected(""), server.connected(""));
        assert_eq!(one.call(&Ask::write(0, [7; 512])).expect("a reply").error, None);
        assert_eq!(one.call(&Ask::flush()).expect("a reply").error, None);
        assert_eq!(one.call(&Ask::read(0, 512)).expect("a reply").data, [7; 512]);
        assert_eq!(other.call(&Ask::read(0, 512)).expect("a reply").data, [0; 512]);
        assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0);
        if let [worker, _] = server.workers()[..] {
            // One connection ends, and the other one lives.
            kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
            let read = Ask::read(0, 512);
            let lives = [one.call(&read).is_ok(), other.call(&read).is_ok()];
            assert!(lives[0] != lives[1]);
        }
        let mut third = server.connected("");
        assert_eq!(third.call(&Ask::read(0, 512)).expect("a reply").data, [0; 512]);
        assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0);
    }
}

#[test]
fn a_file_is_opened_for_each_client_and_for_reading() {
    let builder = ours(&["--sandbox=strict", "example2", "file={dir}/file"]);
    let path = builder.dir().join("file");
    std::fs::write(&path, [1; 512]).unwrap();
    let server = builder.start();
    let one = server.connected("");
    std::fs::write(&path, [2; 1024]).unwrap();
    let mut other = server.connected("");
    assert_eq!(server.workers().len(), 2);
    assert_eq!(one.export().map(|(size, _)| size), Some(512));
    assert_eq!(other.call(&Ask::read(0, 1024)).expect("a reply").data, [2; 1024]);
    let refused = other.call(&Ask::write(0, [3; 512])).expect("a reply");
    assert_eq!(refused.error.map(|it| it.code), Some(1), "EPERM");
    // The file becomes shorter than its client believes.
    std::fs::write(&path, []).unwrap();
    let failed = other.call(&Ask::read(0, 512)).expect("a reply");
    assert_eq!(failed.error.map(|it| it.code), Some(5), "EIO");
}

#[test]
fn what_is_no_regular_file_is_refused_when_a_client_comes() {
    for path in ["/dev/null", "/"] {
        let server = ours(&["example2", &format!("file={path}")]).start();
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        assert!(client.go("", &[]).expect("a reply").export().is_none(), "{path}");
    }
}

#[test]
fn the_smallest_example_serves_the_same_to_all() {
    for isolation in ["--isolation=connection", "--isolation=shared"] {
        let server = ours(&[isolation, "-r", "--sandbox=strict", "example1"]).start();
        let (mut one, mut other) = (server.connected(""), server.connected(""));
        let read = Ask::read(0, 65536);
        let data = one.call(&read).expect("a reply").data;
        assert_eq!(data[510..512], [0x55, 0xaa]);
        assert!(data == other.call(&read).expect("a reply").data);
    }
}
