//! Plugins that were compiled against what the interface once was, and those that it never was.

use nbdkit_tests::Server;
use nbdkit_tests::differential::Row;
use nbdkit_tests::row_name;

use crate::support::{compile, exercise};

#[test]
fn a_plugin_of_version_1_with_a_short_table() {
    let plugin = compile("old.c", &["-w"]);
    Row::new(row_name!(), &[&plugin]).compare(|s| {
        exercise(s);
        s.open();
        s.write(40_000, 512, 1);
        s.disconnect();
    });
}

#[test]
fn a_plugin_of_version_0_is_one_of_version_1() {
    let plugin = compile("old.c", &["-w", "-DAPI=0"]);
    Row::new(row_name!(), &[&plugin]).compare(exercise);
}

/// What the server says to a plugin that it cannot use.
fn refusal(flags: &[&str]) -> String {
    let flags = [&["-w"], flags].concat();
    let finished = Server::nbdkit([compile("old.c", &flags)]).try_start().err();
    finished.expect("refused").stderr
}

#[test]
fn plugins_that_cannot_be_used_are_refused_with_the_reason() {
    for (flag, why) in [
        ("-DAPI=3", "_api_version = 3"),
        ("-DAPI=-1", "_api_version = -1"),
        ("-DSIZE=0", ".name"),
        ("-DSIZE=16", ".name"),
        ("-DSIZE=96", ".get_size"),
        ("-DSIZE=112", ".pread"),
        ("-DAPI=2", ".pread"),
        ("-DMODEL=4", "thread model 4"),
        ("-DNAME=0", ".name"),
        ("-DNAME=\"\"", "alphanumeric"),
        ("-DNAME=\"-old\"", "alphanumeric"),
        ("-DNAME=\"o/d\"", "alphanumeric"),
    ] {
        let stderr = refusal(&[flag]);
        assert!(stderr.contains(why) && stderr.contains("old_c"), "{flag}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{flag}: {stderr}");
    }
}

#[test]
fn files_that_are_no_plugins_are_refused_with_the_reason() {
    for (file, why) in [
        ("/etc/passwd", "invalid ELF header"),
        ("/nonexistent/x.so", "No such file or directory"),
        ("/", "cannot read file data"),
    ] {
        let finished = Server::nbdkit([file]).try_start().expect_err("refused");
        assert!(finished.stderr.contains(why), "{file}: {}", finished.stderr);
        assert!(finished.stderr.contains(file), "{file}: {}", finished.stderr);
    }
    let no_entry = compile("layout-filter.c", &[]);
    let finished = Server::nbdkit([&no_entry]).try_start().expect_err("refused");
    assert!(finished.stderr.contains("undefined symbol: plugin_init"), "{}", finished.stderr);
}
