//! The tar filter: files in archives that GNU tar makes, in every format, beside Debian's server.

use std::process::Command;

use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::ours;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, TempDir, row_name};

const FORMATS: [&str; 5] = ["v7", "oldgnu", "gnu", "ustar", "posix"];

/// A name that is longer than the field for it, and one that is longer than ustar permits.
const LONG: &str = "directory-directory-directory-directory-directory-directory/file-file-file-file-file-file-file-file-file-file";

fn setup(dir: &TempDir) {
    std::fs::write(dir.join("small"), "abc").unwrap();
    let pattern: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(dir.join("disk"), pattern).unwrap();
    let long = dir.join(LONG);
    std::fs::create_dir_all(long.parent().unwrap()).unwrap();
    std::fs::write(long, [5; 5000]).unwrap();
    std::fs::write(dir.join("new\nline"), [6; 600]).unwrap();
    for format in FORMATS {
        // v7 has no long names.
        let long = if format == "v7" { "small" } else { LONG };
        let status = Command::new("tar")
            .args(["-c", "-f", &format!("{format}.tar"), "--format", format])
            .args(["small", long, "new\nline", "disk"])
            .current_dir(dir.path())
            .status();
        assert!(status.unwrap().success(), "{format}");
    }
}

fn requests(s: &mut Session) {
    s.open();
    s.read(0, 3);
    s.read(0, 512);
    s.read(4096, 4096);
    s.read(99_000, 1000);
    s.read(99_001, 1000);
    s.write(100, 50, 0xee);
    s.ask(&Ask::write_zeroes(150, 50));
    s.read(0, 256);
    s.disconnect();
}

fn row(name: &str, format: &str, entry: &str) {
    let (path, parameter) = (format!("{{dir}}/{format}.tar"), format!("tar-entry={entry}"));
    let arguments = ["--filter=tar", "file", &path, &parameter];
    Row::new(name, &arguments)
        .variant(&format!("{format} {entry}"))
        .setup(setup)
        .normalise(|line| (!line.starts_with("stderr")).then(|| line.to_owned()))
        .compare(requests);
}

#[test]
fn files_in_archives_of_every_format() {
    for_each(&FORMATS, |format| {
        for_each(&["small", "disk", "new\nline", "new\\nline"], |entry| {
            row(row_name!(), format, entry);
        });
    });
}

#[test]
fn files_with_long_names() {
    for_each(&["ustar", "posix"], |format| row(row_name!(), format, LONG));
}

/// The name is in an entry of its own before the file's. Debian's server takes that for the file.
#[test]
fn files_with_long_names_in_gnu_archives() {
    let dir = TempDir::new();
    setup(&dir);
    for format in ["oldgnu", "gnu"] {
        let archive = dir.join(&format!("{format}.tar")).display().to_string();
        let entry = format!("tar-entry={LONG}");
        let server = ours(&["--filter=tar", "file", &archive, &entry]).start();
        let mut client = server.connected("");
        assert_eq!(client.export().unwrap().0, 5000);
        assert_eq!(client.call(&Ask::read(0, 5000)).unwrap().data, [5; 5000]);
    }
}

#[test]
fn files_that_are_not_there() {
    for_each(&["smal", "./small", "directory"], |entry| row(row_name!(), "gnu", entry));
}

#[test]
fn parameters_of_tar() {
    let alone = ["--filter=tar", "null", "1M", "--run", "true"];
    Row::new(row_name!(), &alone).variant("none").compare_command();
    let twice = [&alone[..], &["tar-entry=x", "tar-entry=x"]].concat();
    Row::new(row_name!(), &twice).variant("twice").compare_command();
    let program = [&alone[..], &["tar-entry=x", "tar=gtar"]].concat();
    Row::new(row_name!(), &program).variant("program").compare_command();
}

/// GNU tar makes sparse entries of files with holes, in two formats. Debian's server serves
/// something else than the file.
#[test]
fn sparse_files_are_refused() {
    let dir = TempDir::new();
    let file = std::fs::File::create(dir.join("sparse")).unwrap();
    file.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"data", 700_000).unwrap();
    std::fs::write(dir.join("after"), [3; 1000]).unwrap();
    for format in ["gnu", "posix"] {
        let archive = dir.join(&format!("{format}.tar"));
        let status = Command::new("tar")
            .args(["-c", "-S", "--format", format, "-f"])
            .arg(&archive)
            .args(["sparse", "after"])
            .current_dir(dir.path())
            .status();
        assert!(status.unwrap().success());
        let archive = archive.display().to_string();
        let server = ours(&["--filter=tar", "file", &archive, "tar-entry=sparse"]).start();
        let mut client = server.connect();
        client.handshake().unwrap();
        assert!(client.go("", &[]).unwrap().export().is_none());
        let _ = server.wait_for_stderr("sparse is a sparse entry, which cannot be served");
        // What comes behind it is found.
        let server = ours(&["--filter=tar", "file", &archive, "tar-entry=after"]).start();
        let mut client = server.connected("");
        assert_eq!(client.call(&Ask::read(0, 1000)).unwrap().data, [3; 1000]);
    }
}

/// The second client's process does not look for the entry: there is none any more.
#[test]
fn the_entry_is_found_once_for_clients_in_two_processes() {
    let dir = TempDir::new();
    setup(&dir);
    let path = dir.join("gnu.tar");
    let argument = path.display().to_string();
    let mut server = ours(&["--filter=tar", "file", &argument, "tar-entry=small"]).start();
    let mut one = server.connected("");
    let data = std::fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_at(&data, &[0; 512], 0).unwrap();
    let mut two = server.connected("");
    for client in [&mut one, &mut two] {
        assert_eq!(client.call(&Ask::read(0, 3)).unwrap().data, b"abc");
    }
    assert_eq!(one.call(&Ask::write(1, *b"x")).unwrap().error, None);
    assert_eq!(two.call(&Ask::read(0, 3)).unwrap().data, b"axc");
    drop((one, two));
    assert!(server.stop().success());
}
