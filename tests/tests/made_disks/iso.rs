//! nbdkit-iso-plugin(1).

use nbdkit_tests::Ask;
use nbdkit_tests::server::{Builder, Server};

use crate::support::{contents, left_behind, output, refused, server};

fn served(arguments: &[&str]) -> Builder {
    let builder = server(arguments);
    let dir = builder.dir();
    std::fs::create_dir_all(dir.join("one/sub")).unwrap();
    std::fs::create_dir(dir.join("other")).unwrap();
    std::fs::write(dir.join("one/sub/a_long_name_in_lower_case"), "content\n").unwrap();
    std::fs::write(dir.join("other/file"), "other\n").unwrap();
    builder
}

/// What isoinfo prints about the disk that a client sees.
fn isoinfo(server: &Server, arguments: &[&str]) -> String {
    let image = server.dir().join("image");
    std::fs::write(&image, contents(&mut server.connected(""))).unwrap();
    let image = image.to_str().unwrap();
    output("isoinfo", &[&["-i", image], arguments].concat())
}

#[test]
fn every_program_makes_an_image_of_all_directories() {
    for prog in ["xorriso", "genisoimage", "mkisofs"] {
        let prog = format!("prog={prog}");
        let params = "params=-r -V 'My Disk'";
        let server = served(&["iso", "{dir}/one", "dir={dir}/other", params, &prog]).start();
        assert_eq!(left_behind(&server), [""; 0]);
        let names = isoinfo(&server, &["-R", "-f"]);
        assert!(names.contains("/sub/a_long_name_in_lower_case\n"), "{prog}: {names}");
        let content = isoinfo(&server, &["-R", "-x", "/sub/a_long_name_in_lower_case"]);
        assert_eq!(content, "content\n");
        assert_eq!(isoinfo(&server, &["-R", "-x", "/file"]), "other\n");
        assert!(isoinfo(&server, &["-d"]).contains("Volume id: My Disk"), "{prog}");
    }
}

#[test]
fn two_clients_in_two_processes_read_the_same_image() {
    let server = served(&["-r", "--sandbox=strict", "iso", "{dir}/one"]).start();
    let (mut one, mut other) = (server.connected(""), server.connected(""));
    assert_eq!(server.workers().len(), 2);
    let image = contents(&mut one);
    assert!(image == contents(&mut other));
    assert_eq!(image[32769..32774], *b"CD001");
    let refused = other.call(&Ask::write(0, [1; 2048])).expect("a reply");
    assert_eq!(refused.error.map(|it| it.code), Some(1), "EPERM");
    let shared = served(&["--isolation=shared", "iso", "{dir}/one"]).start();
    assert_eq!(contents(&mut shared.connected(""))[32769..32774], *b"CD001");
}

#[test]
fn what_cannot_be_made_is_one_line() {
    refused(server(&["iso"]), "you must supply the dir=<DIRECTORY> parameter");
    refused(server(&["iso", "{dir}/nothing"]), "No such file or directory");
    refused(
        served(&["iso", "{dir}/one", "prog=no-such"]),
        "prog=no-such: there is no such program",
    );
    refused(served(&["iso", "{dir}/one", "prog=false"]), "false: command failed with exit code 1");
    refused(
        served(&["iso", "{dir}/one", "prog=genisoimage", "params=-no-such-option"]),
        "genisoimage: command failed",
    );
    refused(served(&["iso", "{dir}/one", "foo=bar"]), "unknown parameter 'foo'");
}
