//! The samples of nbdkit-filter(3) of both ages, in C and C++, and the functions about lists.

use nbdkit_tests::binary::Binary;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, Server};

use crate::support::{check_header, compare, compile, connected, exercise, read, transcript};

/// A disk of which every part can be told from every other.
const DATA: &str = "data=(0x01 0x02 0x03 0x04)*256 @8192 (0x05 0x06)*1024 @131071 0x07";

#[test]
fn the_header_compiles_alone_in_both_languages_and_ages() {
    for api in ["-DNBDKIT_FILTER_API=116", "-DNBDKIT_FILTER_API=140"] {
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

/// Extents of everything, of one, and of ranges that are not aligned.
fn extents(s: &mut Session) {
    s.connect();
    s.structured_replies();
    s.set_meta_context("", &["base:allocation"]);
    s.go("");
    s.block_status(0, 1 << 20);
    s.block_status(65536, 65536);
    s.ask(&Ask::block_status(0, 1 << 20).flags(nbd_protocol::constants::CommandFlags::REQ_ONE));
    s.block_status(4096, 512);
    s.disconnect();
}

#[test]
fn full_and_aligned_extents() {
    let data = "data=1 @40000 1 @65536 1*66000 @1048575 1";
    for how in ["full", "512", "65536", "131072", "3"] {
        let how = format!("extents={how}");
        compare_extents(&["--filter={FILTER}", "data", data, &how]);
    }
}

/// Debian's server asserts where ours refuses, so that only what is aligned can be compared.
fn compare_extents(arguments: &[&str]) {
    let ours = transcript(&Binary::under_test(), ("extents.c", &[]), arguments, extents);
    let Some(how) = arguments.last().and_then(|how| how.strip_prefix("extents=")) else { return };
    if how == "3" {
        assert!(ours.join("\n").contains("EINVAL"), "{ours:#?}");
    } else if how == "full" || how == "512" {
        compare("extents.c", &[], arguments, extents);
    }
}
