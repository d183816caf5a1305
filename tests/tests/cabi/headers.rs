//! The headers: what they promise about sizes, in C and C++, and that plugins compile with them.

use nbdkit_tests::{Ask, Server};

use crate::support::{cc, compile, open};

#[test]
fn sizes_and_offsets_are_those_of_the_interface() {
    for version in ["-DNBDKIT_API_VERSION=1", "-DNBDKIT_API_VERSION=2"] {
        for language in [&["-std=c11", "-Wextra"][..], &["-xc++", "-std=c++11"]] {
            let flags = [&[version], language].concat();
            let finished = cc("layout.c", &flags, &["-c", "-o", "/dev/null"]);
            assert!(finished.status.success(), "{flags:?}: {}", finished.stderr);
        }
    }
    for language in [&["-std=c11", "-Wextra"][..], &["-xc++", "-std=c++11"]] {
        let finished = cc("layout-filter.c", language, &["-c", "-o", "/dev/null"]);
        assert!(finished.status.success(), "{language:?}: {}", finished.stderr);
    }
}

#[test]
fn versions_that_there_are_not_do_not_compile() {
    for version in ["-DNBDKIT_API_VERSION=0", "-DNBDKIT_API_VERSION=3"] {
        let finished = cc("layout.c", &[version], &["-c", "-o", "/dev/null"]);
        assert!(!finished.status.success(), "{version}");
    }
}

#[test]
fn a_plugin_in_cplusplus_serves() {
    let server = Server::nbdkit([compile("plain.cc", &[])]).start();
    let mut client = server.connect();
    open(&mut client);
    assert_eq!(client.call(&Ask::read(10, 3)).expect("a reply").data, b"+++");
}
