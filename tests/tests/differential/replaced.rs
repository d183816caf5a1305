//! Files and links that change while they are served: later clients get what the path leads to
//! then, those who are there keep what they have.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nbdkit_tests::TempDir;
use nbdkit_tests::differential::Row;
use nbdkit_tests::row_name;
use nbdkit_tests::transcript::Session;

/// A file of so many bytes of one value, under its name only when it is complete.
fn replace(path: &Path, value: u8, length: usize) {
    let beside = path.with_extension("new");
    fs::write(&beside, vec![value; length]).unwrap();
    fs::rename(beside, path).unwrap();
}

fn disk(dir: &TempDir) {
    fs::write(dir.join("disk"), [1; 4096]).unwrap();
}

fn directory(dir: &TempDir) {
    fs::create_dir(dir.join("disks")).unwrap();
    fs::write(dir.join("disks/a"), [1; 512]).unwrap();
}

/// A new client, which reads some of an export, if it can.
fn visit(s: &mut Session, export: &str) {
    s.connect();
    s.go(export);
}

fn visit_and_read(s: &mut Session, export: &str) {
    visit(s, export);
    s.read(0, 512);
    s.disconnect();
}

#[test]
fn a_file_that_is_replaced() {
    Row::new(row_name!(), &["file", "{dir}/disk"]).setup(disk).compare(|s| {
        let path = s.dir().join("disk");
        visit_and_read(s, "");
        replace(&path, 2, 8192);
        visit_and_read(s, "");
        // A client that writes does so to the file that it got.
        visit(s, "");
        s.write(0, 512, 3);
        replace(&path, 4, 512);
        s.read(0, 512);
        s.disconnect();
        visit_and_read(s, "");
    });
}

#[test]
fn a_file_that_is_removed_and_made_again() {
    Row::new(row_name!(), &["file", "{dir}/disk"]).setup(disk).compare(|s| {
        let path = s.dir().join("disk");
        fs::remove_file(&path).unwrap();
        visit(s, "");
        fs::write(&path, [2; 1024]).unwrap();
        visit_and_read(s, "");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        visit(s, "");
        fs::remove_dir(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        visit(s, "");
        fs::remove_file(&path).unwrap();
        let target = s.dir().join("target");
        fs::write(&target, [3; 1024]).unwrap();
        symlink(target, &path).unwrap();
        visit_and_read(s, "");
    });
}

/// The path is resolved when the server starts.
#[test]
fn a_link_to_a_file_that_is_pointed_elsewhere() {
    let setup = |dir: &TempDir| {
        fs::write(dir.join("one"), [1; 512]).unwrap();
        fs::write(dir.join("two"), [2; 512]).unwrap();
        symlink("one", dir.join("disk")).unwrap();
    };
    Row::new(row_name!(), &["file", "{dir}/disk"]).setup(setup).compare(|s| {
        visit_and_read(s, "");
        fs::remove_file(s.dir().join("disk")).unwrap();
        symlink("two", s.dir().join("disk")).unwrap();
        visit_and_read(s, "");
    });
}

#[test]
fn a_file_that_is_replaced_and_only_read() {
    for option in ["-r", "--filter=cow"] {
        let arguments = [option, "file", "{dir}/disk"];
        Row::new(row_name!(), &arguments).variant(option).setup(disk).compare(|s| {
            visit_and_read(s, "");
            replace(&s.dir().join("disk"), 2, 4096);
            visit_and_read(s, "");
        });
    }
}

#[test]
fn files_of_split_that_are_replaced() {
    let setup = |dir: &TempDir| {
        fs::write(dir.join("a"), [1; 512]).unwrap();
        fs::write(dir.join("b"), [2; 512]).unwrap();
    };
    // That ours can flush, for all connections, is the row `split`'s.
    let row = Row::new(row_name!(), &["-r", "split", "{dir}/a", "{dir}/b"]).setup(setup);
    row.normalise(|line| Some(line.replace("flags=0x507", "flags=0x403"))).compare(|s| {
        visit(s, "");
        s.read(0, 1024);
        s.disconnect();
        replace(&s.dir().join("b"), 3, 1024);
        visit(s, "");
        s.read(0, 1536);
        s.disconnect();
        fs::remove_file(s.dir().join("a")).unwrap();
        visit(s, "");
        replace(&s.dir().join("a"), 4, 512);
        visit(s, "");
        s.read(0, 1536);
        s.disconnect();
    });
}

/// virt-v2v starts the server first and makes the links then.
#[test]
fn a_directory_whose_files_and_links_come_and_go() {
    Row::new(row_name!(), &["file", "dir={dir}/disks"]).setup(directory).compare(|s| {
        fs::write(s.dir().join("outside"), [2; 512]).unwrap();
        let disks = s.dir().join("disks");
        visit_and_read(s, "a");
        visit(s, "link");
        symlink("../outside", disks.join("link")).unwrap();
        visit_and_read(s, "link");
        fs::remove_file(disks.join("link")).unwrap();
        symlink("a", disks.join("link")).unwrap();
        visit_and_read(s, "link");
        replace(&disks.join("a"), 3, 1024);
        visit_and_read(s, "a");
        visit_and_read(s, "link");
        symlink("/nowhere", disks.join("broken")).unwrap();
        visit(s, "broken");
        visit(s, "../outside");
        fs::create_dir(disks.join("sub")).unwrap();
        fs::write(disks.join("sub/b"), [4; 512]).unwrap();
        visit(s, "sub");
        visit(s, "sub/b");
    });
}

/// What the kernel says of the process that opens it is not served.
#[test]
fn a_link_into_proc() {
    let setup = |dir: &TempDir| {
        fs::create_dir(dir.join("disks")).unwrap();
        symlink("/proc/self/status", dir.join("disks/status")).unwrap();
    };
    Row::new(row_name!(), &["file", "dir={dir}/disks"]).setup(setup).compare(|s| {
        visit(s, "status");
    });
}

#[test]
fn a_directory_that_is_replaced() {
    Row::new(row_name!(), &["file", "dir={dir}/disks"]).setup(directory).compare(|s| {
        visit_and_read(s, "a");
        fs::rename(s.dir().join("disks"), s.dir().join("old")).unwrap();
        visit(s, "a");
        fs::create_dir(s.dir().join("disks")).unwrap();
        fs::write(s.dir().join("disks/a"), [2; 512]).unwrap();
        fs::write(s.dir().join("disks/b"), [3; 512]).unwrap();
        visit_and_read(s, "a");
        visit_and_read(s, "b");
        fs::remove_file(s.dir().join("disks/a")).unwrap();
        s.connect();
        s.list();
    });
}
