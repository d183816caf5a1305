//! The extentlist filter: maps of lists as people write them, and lists that are refused.

use nbdkit_tests::TempDir;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;

/// Files beside the server, by the name that a row's variant has.
const LISTS: &[(&str, &str)] = &[
    ("all", "0 1M\n1M 9M hole,zero\n"),
    ("start", "0 1M\n"),
    ("middle", "1M 1M\n"),
    ("order", "2M 1M 1\n0 1M\n"),
    ("kinds", "0 1M hole\n4M 4096 zero\n5M 1M 2\n7M 1M 3\n"),
    ("blanks", "0  1M\n\t2M\t1M\tzero\n"),
    ("beyond", "0 20M\n"),
    ("empty", ""),
    ("nothing", "4096 0\n0 512 hole\n"),
    ("overlap", "0 2M\n1M 2M\n"),
    ("short", "0\n"),
    ("size", "0 x\n"),
    ("offset", "y 1\n"),
];

fn setup(dir: &TempDir) {
    for (name, text) in LISTS {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
}

#[test]
fn maps_of_extent_lists() {
    for_each(
        &["all", "start", "middle", "order", "kinds", "blanks", "beyond", "empty", "nothing"],
        |name| {
            let list = format!("extentlist={{dir}}/{name}");
            let arguments = ["--filter=extentlist", "memory", "10M", &*list];
            Row::new(row_name!(), &arguments).variant(name).setup(setup).compare(|s| {
                s.open();
                s.block_status(0, 10 << 20);
                s.block_status(4096, 512);
                s.block_status((4 << 20) - 512, 2 << 20);
                s.read(0, 512);
                s.disconnect();
            });
        },
    );
}

/// The status of a command whose list is refused; ours names the line.
fn refused(line: &str) -> Option<String> {
    line.starts_with("exit").then(|| line.to_owned())
}

#[test]
fn extent_lists_that_are_refused() {
    for_each(&["overlap", "short", "size", "offset", "missing"], |name| {
        let list = format!("extentlist={{dir}}/{name}");
        let arguments =
            ["-U", "-", "--filter=extentlist", "memory", "10M", &*list, "--run", "true"];
        let row = Row::new(row_name!(), &arguments).variant(name).setup(setup);
        row.normalise(refused).compare_command();
    });
}

#[test]
fn parameters_of_extentlist() {
    let twice = ["--filter=extentlist", "null", "extentlist=/dev/null", "extentlist=/dev/null"];
    let none = ["--filter=extentlist", "null", "--run", "true"];
    let missing = ["--filter=extentlist", "null", "extentlist=/no/such/list", "--run", "true"];
    Row::new(row_name!(), &twice).variant("twice").compare_command();
    Row::new(row_name!(), &none).variant("none").compare_command();
    Row::new(row_name!(), &missing).variant("missing").compare_command();
}
