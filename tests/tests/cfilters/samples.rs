//! The samples of nbdkit-filter(3) of both ages, in C and C++, and the functions about lists.

use nbd_protocol::constants::CommandFlags;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, Server};

use crate::support::{check_header, compare, compile, connected, exercise, read, transcript};

/// A disk of which every part can be told from every other.
const DATA: &str = "data=(0x01 0x02 0x03 0x04)*256 @8192 (0x05 0x06)*1024 @131071 0x07";

#[test]
fn the_header_compiles_alone_in_both_languages_and_ages() {
    for api in ["-DNBDKIT_FILTER_API=116", "-DNBDKIT_FILTER_API=146"] {
        for (language, standard) in [("c", "-std=c99"), ("c", "-std=c11"), ("c++", "-std=c++11")] {
            let finished = check_header(language, &[api, standard]);
            assert!(finished.status.success(), "{api} {standard}: {}", finished.stderr);
        }
    }
    assert!(!check_header("c", &["-DNBDKIT_FILTER_API=117"]).status.success());
}

#[test]
fn the_samples_of_the_manual_page() {
    for contexts in ["contexts=automatic", "contexts=manual"] {
        compare(
            "shift.c",
            &["-w"],
            &["--filter={FILTER}", "data", DATA, "shift=1K", contexts],
            exercise,
        );
    }
}

#[test]
fn a_shift_beyond_the_end_is_the_filters_error() {
    compare("shift.c", &["-w"], &["--filter={FILTER}", "memory", "1K", "shift=1M"], exercise);
}

#[test]
fn the_samples_of_the_manual_page_of_1_16() {
    let old = transcript(
        &Binary::under_test(),
        ("old.c", &[]),
        &["--filter={FILTER}", "data", DATA, "shift=1K"],
        exercise,
    );
    let offset = transcript(
        &Binary::under_test(),
        ("old.c", &[]),
        &["--filter=noparallel", "--filter=offset", "data", DATA, "offset=1K"],
        exercise,
    );
    assert_eq!(old, offset);
}

#[test]
fn reopen_of_1_16_closes_and_opens_the_layer_below() {
    let filter = format!("--filter={}", compile("old.c", &[]));
    let mut server = Server::nbdkit(["-v", &filter, "--filter=log", "memory", "1M"])
        .args(["reopen=1", "logfile={dir}/log"])
        .start();
    let mut client = connected(&server);
    let reply = client.call(&Ask::write(0, *b"kept")).expect("a reply");
    assert_eq!(reply.error, None);
    for _ in 0..3 {
        assert_eq!(read(&mut client, 0, 4), b"kept");
    }
    client.disconnect().expect("gone");
    assert!(server.stop().success());
    let log = std::fs::read_to_string(server.dir().join("log")).unwrap();
    assert_eq!(log.matches(" Connect ").count(), 4, "{log}");
    assert_eq!(log.matches(" Disconnect ").count(), 4, "{log}");
    let stderr = server.stderr_text_after_end();
    for word in ["old: load", "old: finalize, 0 left", "old: close", "old: unload"] {
        assert!(stderr.contains(word), "{word}: {stderr}");
    }
}

#[test]
fn a_filter_of_1_16_over_and_under_others() {
    let old = format!("--filter={}", compile("old.c", &[]));
    let shift = format!("--filter={}", compile("shift.c", &[]));
    for filters in [["--filter=offset", &old], [&old, "--filter=offset"], [&shift, &old]] {
        let arguments = ["data", DATA, "shift=1K", "offset=8K"];
        let arguments =
            if filters.contains(&"--filter=offset") { &arguments } else { &arguments[..3] };
        let server = Server::nbdkit(filters).args(arguments).start();
        let mut client = connected(&server);
        let expected: &[u8] = if arguments.len() == 4 { &[5, 6, 5, 6] } else { &[0; 4] };
        assert_eq!(read(&mut client, 0, 4), expected, "{filters:?}");
    }
}

#[test]
fn a_filter_in_cplusplus() {
    let filter = format!("--filter={}", compile("plain.cc", &[]));
    let server = Server::nbdkit([&filter, "data", "data=1 2 3", "plain=1"]).start();
    assert_eq!(read(&mut connected(&server), 0, 3), [2, 3, 4]);
}

/// Extents of everything and of the first, and, if `fine`, of parts in sectors.
fn extents(s: &mut Session, fine: bool) {
    s.connect();
    s.structured_replies();
    s.set_meta_context("", &["base:allocation"]);
    s.go("");
    s.block_status(0, 1 << 20);
    s.ask(&Ask::block_status(0, 1 << 20).flags(CommandFlags::REQ_ONE));
    if fine {
        s.block_status(65536, 65536);
        s.block_status(4096, 512);
    }
    s.disconnect();
}

const SPARSE: &str = "data=1 @40000 1 @65536 1*66000 @1048575 1";

#[test]
fn full_and_aligned_extents() {
    for (how, fine) in [("full", true), ("512", true), ("16384", false)] {
        let how = format!("extents={how}");
        let arguments = ["--filter={FILTER}", "data", SPARSE, &how];
        compare("extents.c", &[], &arguments, |s| extents(s, fine));
    }
}

/// Debian's server stops at the first block that is not all the same; ours goes on.
#[test]
fn a_block_is_what_all_of_it_is() {
    for (align, expected) in [
        (65536, "196608:data 786432:hole,zero 65536:data"),
        (131_072, "262144:data 655360:hole,zero 131072:data"),
    ] {
        let how = format!("extents={align}");
        let arguments = ["--filter={FILTER}", "data", SPARSE, &how];
        // One page of data in what is otherwise a hole, whatever the page's size.
        let filter = ("extents.c", &[][..]);
        let lines = transcript(&Binary::under_test(), filter, &arguments, |s| extents(s, false));
        assert_eq!(lines[4], format!("BLOCK_STATUS 0+1048576 -> ok {expected}"));
    }
}

/// Debian's server asserts here, so there is nothing to compare.
#[test]
fn extents_that_cannot_be_aligned_are_an_error() {
    for how in ["3", "131072"] {
        let how = format!("extents={how}");
        let lines = transcript(
            &Binary::under_test(),
            ("extents.c", &[]),
            &["--filter={FILTER}", "data", SPARSE, &how],
            |s| extents(s, true),
        );
        assert!(lines.join("\n").contains("EINVAL"), "{how}: {lines:#?}");
    }
}
