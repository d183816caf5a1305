//! The form of the pages.

use std::process::Command;

use nbdkit_tests::command::run;

use crate::page::pages;
use crate::{DEADLINE, assert_none, root};

/// Pages of others that ours refer to.
const OTHERS: &[(&str, &str)] = &[
    ("bash", "1"),
    ("bzip2", "1"),
    ("cc", "1"),
    ("choom", "1"),
    ("cryptsetup", "8"),
    ("ddrescue", "1"),
    ("debugfs", "8"),
    ("e2fsck", "8"),
    ("fcntl", "2"),
    ("fdatasync", "2"),
    ("fio", "1"),
    ("flock", "2"),
    ("fsck", "8"),
    ("genisoimage", "1"),
    ("getpeername", "2"),
    ("guestfs", "3"),
    ("gzip", "1"),
    ("link", "2"),
    ("logrotate", "8"),
    ("lzip", "1"),
    ("mke2fs", "8"),
    ("mkfs", "8"),
    ("mkisofs", "1"),
    ("mlockall", "2"),
    ("mv", "1"),
    ("nbd-client", "8"),
    ("nbdcopy", "1"),
    ("nbdfuse", "1"),
    ("nbdinfo", "1"),
    ("nbdkit-curl-plugin", "1"),
    ("nbdsh", "1"),
    ("open", "2"),
    ("openssl", "1"),
    ("parted", "8"),
    ("pidof", "1"),
    ("plzip", "1"),
    ("posix_fadvise", "2"),
    ("prctl", "2"),
    ("printf", "3"),
    ("ps", "1"),
    ("psktool", "1"),
    ("qemu-img", "1"),
    ("qemu-nbd", "8"),
    ("sd_notify", "3"),
    ("ss", "8"),
    ("ssh", "1"),
    ("systemd-socket-activate", "1"),
    ("systemd.resource-control", "5"),
    ("systemd.service", "5"),
    ("systemd.socket", "5"),
    ("tar", "1"),
    ("tc", "8"),
    ("tcp", "7"),
    ("vsock", "7"),
    ("xorriso", "1"),
    ("xz", "1"),
    ("zstd", "1"),
];

#[test]
fn mandoc_objects_to_no_line_of_a_page() {
    let mut command = Command::new("mandoc");
    let files = pages().into_iter().map(|page| format!("man/{}.{}", page.name, page.section));
    let command = command.arg("-Tlint").args(files).current_dir(root()).env("LC_ALL", "C.UTF-8");
    let finished = run(command, DEADLINE);
    // Which pages are installed depends on the machine: see the next test.
    let objections = finished.stdout.lines().filter(|line| !line.contains("manual not found"));
    let objections: Vec<String> = objections.map(str::to_owned).collect();
    assert_none("mandoc -Tlint", &objections);
}

#[test]
fn references_lead_to_our_pages_or_to_known_ones() {
    let pages = pages();
    let mut lost = Vec::new();
    let mut used = Vec::new();
    for page in &pages {
        for reference @ (name, section) in page.references() {
            let ours = |page: &&crate::page::Page| (&*page.name, &*page.section) == reference;
            if OTHERS.contains(&reference) {
                used.push((name.to_owned(), section.to_owned()));
            } else if !pages.iter().any(|page| ours(&page)) {
                lost.push(format!("{}: {name}({section})", page.title()));
            }
        }
    }
    assert_none("nowhere", &lost);
    let is_used = |&&(name, section): &&(&str, &str)| {
        used.iter().any(|(used, of)| (&**used, &**of) == (name, section))
    };
    let unused = OTHERS.iter().filter(|other| !is_used(other));
    let unused: Vec<String> = unused.map(|(name, section)| format!("{name}({section})")).collect();
    assert_none("nothing refers to", &unused);
}
