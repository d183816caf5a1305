//! The programs of a server come from one build: others are refused, whatever their version. What
//! an upgrade of a running server does: `hostile/replacing.rs`.

use std::path::Path;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::command::{self, Finished};

use crate::support::{DEADLINE, Paths, debian_lacks};

/// Before the number of the build, in each program.
const BEFORE: &[u8] = b"nbdkitd 0.1.0 build ";
/// Its digits.
const DIGITS: usize = 16;

const PROGRAMS: [&str; 3] = ["nbdkit", "nbdkit-worker", "nbdkit-spawner"];

/// The places in a program where its build's number is.
fn places(program: &[u8]) -> Vec<usize> {
    let places = program.windows(BEFORE.len()).enumerate().filter(|(_, it)| *it == BEFORE);
    places.map(|(place, _)| place + BEFORE.len()).collect()
}

/// The programs in a directory of their own.
fn copy(paths: &Paths) {
    let directory = Binary::under_test().path().parent().unwrap().to_owned();
    for program in PROGRAMS {
        std::fs::copy(directory.join(program), paths.path(program)).unwrap();
    }
}

/// Makes a program one of another build: nothing but a digit is different. The new file takes the
/// place of the old one, as with a package.
fn change(program: &Path) {
    let mut bytes = std::fs::read(program).unwrap();
    let places = places(&bytes);
    assert!(!places.is_empty(), "{} has the number of its build", program.display());
    for place in places {
        assert!(bytes[place..place + DIGITS].iter().all(u8::is_ascii_hexdigit));
        bytes[place] = if bytes[place] == b'0' { b'1' } else { b'0' };
    }
    let new = program.with_extension("new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::set_permissions(&new, std::fs::metadata(program).unwrap().permissions()).unwrap();
    std::fs::rename(new, program).unwrap();
}

fn run(paths: &Paths) -> Finished {
    let mut command = std::process::Command::new(paths.path("nbdkit"));
    command.args(["-f", "-U", &paths.text("sock"), "null", "1M"]);
    command::run(&mut command, DEADLINE)
}

#[test]
fn a_worker_of_another_build_is_refused_with_one_line() {
    if debian_lacks("a worker") {
        return;
    }
    let paths = Paths::new();
    copy(&paths);
    change(&paths.path("nbdkit-worker"));
    let finished = run(&paths);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    let lines: Vec<&str> = finished.stderr.lines().collect();
    let [line] = lines[..] else { panic!("one line: {finished:?}") };
    assert!(line.contains("different builds"), "{line}");
    // Both numbers.
    assert_eq!(line.matches("build ").count(), 2, "{line}");
}

/// As it must for all programs of one build.
#[test]
fn all_programs_have_the_same_number() {
    if debian_lacks("a worker") {
        return;
    }
    let directory = Binary::under_test().path().parent().unwrap().to_owned();
    let numbers = PROGRAMS.map(|program| {
        let bytes = std::fs::read(directory.join(program)).unwrap();
        let numbers: Vec<Vec<u8>> =
            places(&bytes).into_iter().map(|at| bytes[at..at + DIGITS].to_vec()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] == pair[1]), "{program}");
        numbers.into_iter().next().unwrap_or_else(|| panic!("{program} has none"))
    });
    assert!(numbers.windows(2).all(|pair| pair[0] == pair[1]), "{numbers:?}");
}
