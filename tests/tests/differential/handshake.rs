//! Greetings and option haggling.

use nbd_protocol::constants::Opt;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;

const MEMORY: &[&str] = &["memory", "1M"];

#[test]
fn every_option_in_a_usual_order() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.list();
        s.info("");
        s.structured_replies();
        s.list_meta_context("", &[]);
        s.set_meta_context("", &["base:allocation"]);
        s.info("");
        s.go("");
        s.read(0, 512);
        s.disconnect();
    });
}

#[test]
fn export_name_with_and_without_zeroes() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        for flags in 0..=3 {
            s.connect_with_flags(flags);
            s.export_name("");
            s.read(0, 512);
            s.disconnect();
        }
    });
}

#[test]
fn unknown_client_flags() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        for flags in [4, 7, 0x8000_0003] {
            s.connect_with_flags(flags);
            s.expect_close();
        }
    });
}

#[test]
fn options_without_fixed_newstyle() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect_with_flags(2);
        s.option(Opt::LIST, &[]);
        s.go("");
    });
}

#[test]
fn any_export_name_opens_the_memory_disk() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.info("disk");
        s.go("ünïcödé");
        s.read(0, 16);
        s.disconnect();
    });
}

#[test]
fn unknown_options_are_refused_and_skipped() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.option(Opt(0x1234), &[]);
        s.option(Opt(0xffff_ffff), &[7; 1000]);
        s.option(Opt::PEEK_EXPORT, &[0; 4]);
        s.option(Opt(0), &[]);
        s.go("");
        s.disconnect();
    });
}

#[test]
fn options_that_want_no_data_refuse_data() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.option(Opt::LIST, &[0]);
        s.option(Opt::STRUCTURED_REPLY, &[0; 4]);
        s.option(Opt::STARTTLS, &[0; 4]);
        s.list();
        s.structured_replies();
        s.go("");
        s.disconnect();
    });
}

#[test]
fn a_second_structured_reply_option() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.structured_replies();
        s.structured_replies();
        s.go("");
        s.read(0, 512);
        s.disconnect();
    });
}

#[test]
fn extended_headers_option() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.option(Opt::EXTENDED_HEADERS, &[]);
    });
}

#[test]
fn starttls_without_tls() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.option(Opt::STARTTLS, &[]);
        s.go("");
        s.disconnect();
    });
}

#[test]
fn malformed_info_and_go() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        for option in [Opt::INFO, Opt::GO] {
            s.connect();
            s.option(option, b"");
            s.option(option, b"\0\0\0\0");
            s.option(option, b"\0\0\0\0\0");
            s.option(option, b"\0\0\0\0\0\x01");
            s.option(option, b"\0\0\0\0\0\0\0\0");
            s.option(option, b"\0\0\0\x05disk\0\0");
            s.option(option, b"\xff\xff\xff\xff\0\0");
            s.option(option, b"\0\0\0\0\xff\xff");
            s.go("");
            s.disconnect();
        }
    });
}

#[test]
fn information_of_unknown_types() {
    Row::new(row_name!(), &["null", "1M"]).compare(|s| {
        s.connect();
        s.option(Opt::INFO, b"\0\0\0\0\0\x02\x12\x34\0\0");
        s.option(Opt::INFO, b"\0\0\0\0\0\x03\0\x03\0\x03\0\x03");
        s.disconnect();
    });
}

#[test]
fn export_names_of_every_bad_kind() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        for name in [&b"a\0b"[..], b"\xff\xfe", &[b'a'; 4097]] {
            s.connect();
            let length = u32::try_from(name.len()).unwrap();
            s.option(Opt::INFO, &[&length.to_be_bytes(), name, b"\0\0"].concat());
            s.go("");
            s.disconnect();
            s.connect();
            s.step("EXPORT_NAME", |client| {
                client.export_name(name).map(|reply| format!("size={}", reply.size))
            });
        }
    });
}

#[test]
fn the_longest_export_name() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        let name = "n".repeat(4096);
        s.connect();
        s.go(&name);
        s.read(0, 1);
        s.disconnect();
        s.connect();
        s.export_name(&name);
        s.disconnect();
    });
}

#[test]
fn meta_contexts_by_every_query() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.structured_replies();
        for queries in [
            &[][..],
            &["base:"],
            &["base:allocation"],
            &["base:unknown"],
            &["x-vendor:thing"],
            &["x:y", "base:allocation", ""],
            &["nocolon"],
        ] {
            s.list_meta_context("", queries);
            s.set_meta_context("", queries);
        }
        s.go("");
        s.disconnect();
    });
}

#[test]
fn the_same_meta_context_twice() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.structured_replies();
        s.list_meta_context("", &["base:allocation", "base:allocation"]);
        s.set_meta_context("", &["base:allocation", "base:allocation"]);
    });
}

#[test]
fn meta_contexts_without_structured_replies() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.list_meta_context("", &[]);
        s.set_meta_context("", &["base:allocation"]);
        s.go("");
        s.block_status(0, 512);
        s.disconnect();
    });
}

#[test]
fn meta_contexts_selected_for_another_export() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.structured_replies();
        s.set_meta_context("other", &["base:allocation"]);
        s.go("");
        s.block_status(0, 512);
        s.disconnect();
    });
}

#[test]
fn meta_contexts_deselected_again() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.structured_replies();
        s.set_meta_context("", &["base:allocation"]);
        s.set_meta_context("", &[]);
        s.go("");
        s.block_status(0, 512);
        s.disconnect();
    });
}

#[test]
fn malformed_meta_context_options() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        for option in [Opt::LIST_META_CONTEXT, Opt::SET_META_CONTEXT] {
            s.connect();
            s.structured_replies();
            s.option(option, b"");
            s.option(option, b"\0\0\0\0");
            s.option(option, b"\0\0\0\0\0\0\0\x01");
            s.option(option, b"\0\0\0\0\0\0\0\x01\0\0\0\x02a");
            s.option(option, b"\0\0\0\0\0\0\0\x01\0\0\0\x03a:b");
            s.option(option, b"\0\0\0\0\xff\xff\xff\xff");
            s.option(option, b"\0\0\0\x09name\0\0\0\0");
            s.go("");
            s.disconnect();
        }
    });
}

#[test]
fn bytes_after_the_last_meta_context_query() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.structured_replies();
        s.option(Opt::SET_META_CONTEXT, b"\0\0\0\0\0\0\0\x01\0\0\0\x03a:bc");
        s.go("");
        s.disconnect();
    });
}

#[test]
fn abort_ends_the_session() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.option(Opt::ABORT, &[]);
        s.expect_close();
        s.connect();
        s.option(Opt::ABORT, b"bye");
        s.expect_close();
    });
}

#[test]
fn wrong_option_magic_ends_the_session() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.raw("option with a wrong magic", b"IHAVEOPX\0\0\0\x03\0\0\0\0");
        s.expect_close();
    });
}

#[test]
fn options_of_increasing_length() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        for length in [4096, 8192, 32768] {
            s.connect();
            s.option(Opt(77), &vec![0; length]);
            s.go("");
            s.disconnect();
        }
    });
}

#[test]
fn hanging_up_at_every_point_of_the_handshake() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        let whole = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";
        for cut in 0..whole.len() {
            s.connect_with_flags(3);
            s.step("hang up", |client| client.send_raw(&whole[4..cut.max(4)]).map(|()| "sent"));
        }
        s.open();
        s.read(0, 512);
        s.disconnect();
    });
}

#[test]
fn masked_handshake_flags() {
    for_each(&["0", "1", "2", "0xfffe"], |mask| {
        Row::new(row_name!(), &["--mask-handshake", mask, "memory", "1M"]).variant(mask).compare(
            |s| {
                s.connect();
                s.option(Opt::LIST, &[]);
                s.connect();
                s.export_name("");
                s.read(0, 512);
                s.disconnect();
            },
        );
    });
}

#[test]
fn structured_replies_switched_off() {
    Row::new(row_name!(), &["--no-sr", "memory", "1M"]).compare(|s| {
        s.connect();
        s.structured_replies();
        s.list_meta_context("", &[]);
        s.set_meta_context("", &["base:allocation"]);
        s.go("");
        s.read(0, 512);
        s.read(1 << 20, 512);
        s.disconnect();
    });
}

#[test]
fn oldstyle_handshake() {
    Row::new(row_name!(), &["--oldstyle", "memory", "1M"]).compare(|s| {
        s.connect_oldstyle();
        s.write(0, 512, 7);
        s.read(0, 1024);
        s.read(1 << 20, 1);
        s.disconnect();
    });
}

#[test]
fn a_read_only_server_says_so() {
    Row::new(row_name!(), &["-r", "memory", "1M"]).compare(|s| {
        s.connect();
        s.go("");
        s.read(0, 512);
        s.write(0, 512, 1);
        s.read(0, 512);
        s.disconnect();
    });
}
