//! The files for systemd: what systemd itself says of them. What the restrictions of the unit do to
//! the server is tested in `red_team`, `service`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nbdkit_tests::TempDir;
use nbdkit_tests::command::{self, Finished};

/// The tree's directory of this name.
fn tree(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tree").join(name)
}

/// Runs a program of systemd, or prints that there is none.
fn systemd(program: &str, arguments: &[&str]) -> Option<Finished> {
    if Command::new(program).arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no {program}");
        return None;
    }
    let mut command = Command::new(program);
    command.args(arguments).env("SYSTEMD_LOG_LEVEL", "warning");
    Some(command::run(&mut command, Duration::from_secs(60)))
}

/// The units as they are installed, with a program that is there.
fn units() -> TempDir {
    let dir = TempDir::new();
    std::os::unix::fs::symlink("/bin/true", dir.join("nbdkit")).expect("a link");
    for entry in std::fs::read_dir(tree("systemd")).expect("units") {
        let path = entry.expect("a unit").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        if [".service", ".socket", ".slice"].iter().any(|end| name.ends_with(end)) {
            let text = std::fs::read_to_string(&path).expect("UTF-8");
            let bin = dir.path().to_str().expect("UTF-8");
            let text = text.replace("@BINDIR@", bin).replace("@EXAMPLEDIR@", "/usr/share");
            // Since systemd 254; the unit says that older ones ignore it.
            let text = text.replace("\nSurviveFinalKillSignal=yes", "");
            // systemd looks units up by the names of instances.
            std::fs::write(dir.join(&name.replace('@', "@disk")), text).expect("written");
        }
    }
    dir
}

#[test]
fn the_unit_is_as_hardened_as_systemd_can_tell() {
    let dir = units();
    let unit = dir.join("nbdkit@disk.service");
    // Exposure, in tenths.
    let threshold = "--threshold=15";
    let arguments = ["security", "--offline=true", "--no-pager", threshold, unit.to_str().unwrap()];
    let Some(finished) = systemd("systemd-analyze", &arguments) else { return };
    assert!(finished.status.success(), "{}\n{}", finished.stdout, finished.stderr);
    assert!(finished.stdout.contains("Overall exposure level"), "{}", finished.stdout);
}

#[test]
fn systemd_understands_every_line_of_the_units() {
    let dir = units();
    for unit in ["nbdkit@disk.service", "nbdkit@disk.socket", "nbdkit-root@disk.service"] {
        let path = dir.join(unit);
        let arguments = ["verify", "--man=no", "--recursive-errors=no", path.to_str().unwrap()];
        let Some(finished) = systemd("systemd-analyze", &arguments) else { return };
        let quiet = finished.stderr.is_empty();
        assert!(finished.status.success() && quiet, "{unit}: {}", finished.stderr);
    }
}

/// Drop-ins, each with the unit that it says it is for.
#[test]
fn systemd_understands_every_line_of_the_examples() {
    for entry in std::fs::read_dir(tree("systemd/examples")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let of = |kind: &str| text.contains(&format!("/nbdkit@NAME.{kind}.d/"));
        let unit = match (of("service"), of("socket")) {
            (true, false) => "nbdkit@disk.service",
            (false, true) => "nbdkit@disk.socket",
            _ => panic!("{}: the unit is not named", path.display()),
        };
        let dir = units();
        let directory = dir.join(&format!("{unit}.d"));
        std::fs::create_dir(&directory).unwrap();
        let bin = dir.path().to_str().unwrap();
        std::fs::write(directory.join("example.conf"), text.replace("@BINDIR@", bin)).unwrap();
        let unit = dir.join(unit);
        let arguments = ["verify", "--man=no", "--recursive-errors=no", unit.to_str().unwrap()];
        let Some(finished) = systemd("systemd-analyze", &arguments) else { return };
        let quiet = finished.stderr.is_empty();
        assert!(finished.status.success() && quiet, "{}: {}", path.display(), finished.stderr);
    }
}

/// The users of the unit are those that sysusers.d makes, and the directories theirs.
#[test]
fn users_and_directories_are_made() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: takes root");
        return;
    }
    let dir = TempDir::new();
    let root = format!("--root={}", dir.path().display());
    std::fs::create_dir(dir.join("etc")).unwrap();
    let users = tree("systemd/nbdkitd.sysusers");
    let Some(finished) = systemd("systemd-sysusers", &[&root, users.to_str().unwrap()]) else {
        return;
    };
    assert!(finished.status.success(), "{}", finished.stderr);
    let made = |file: &str, name: &str| {
        let text = std::fs::read_to_string(dir.join("etc").join(file)).unwrap();
        text.lines().any(|line| line.split(':').next() == Some(name))
    };
    let service = std::fs::read_to_string(tree("systemd/nbdkit@.service")).unwrap();
    let socket = std::fs::read_to_string(tree("systemd/nbdkit@.socket")).unwrap();
    for (unit, setting, file) in [
        (&service, "\nUser=", "passwd"),
        (&service, "\nGroup=", "group"),
        (&service, "NBDKIT_USER=", "passwd"),
        (&socket, "\nSocketGroup=", "group"),
    ] {
        let (_, after) = unit.split_once(setting).unwrap_or_else(|| panic!("{setting}"));
        let name = after.split_whitespace().next().unwrap();
        assert!(made(file, name), "{setting}{name}");
    }
    let directories = tree("systemd/nbdkitd.tmpfiles");
    let arguments = ["--create", &root, directories.to_str().unwrap()];
    let finished = systemd("systemd-tmpfiles", &arguments).expect("systemd");
    assert!(finished.status.success(), "{}", finished.stderr);
    assert!(dir.join("run/nbdkit").is_dir() && dir.join("var/lib/nbdkit").is_dir());
}
