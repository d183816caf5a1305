//! nbdkit's security history: what went wrong there must not go wrong here. One test for each
//! entry, by name.
//!
//! | entry | why there is no test here |
//! |---|---|
//! | CVE-2025-47712: overflow in the blocksize filter | unit tests of the filter, `differential`: `blocksize` |
//! | luks: iteration counts, open without prepare, endless loop | unit tests of the filter; fuzz: `luks`, `luks2` |
//! | TLS: certificates' names | no name is promised to be checked; rules for names are in `tls`: `peers` |
//! | ondemand, tmpdisk, ddrescue, tar: values in shell text | unit tests of `made_disk` and `ondemand`; ddrescue and tar run no shell |
//! | qcow2dec, gzip, xz, bzip2, lzip, indexed-gzip | hostile images are in the tests of each filter, and fuzzed |
//! | a race on static buffers for names of the protocol | names are formatted where they are printed, nothing is static |
//! | file: errors of flush and range sync taken as advice | needs a device that fails; units of the file plugin |
//! | a note about signal handlers | handlers touch atomics and call shutdown(2); asserted where they are defined |

use std::process::Command as Process;
use std::time::Duration;

use nbd_protocol::constants::{Command, CommandFlags, NbdError, Opt, Rep};
use nbd_protocol::handshake::{InfoRequest, MetaContextRequest, encode_option};
use nbd_protocol::transmission::Request;
use nbdkit_tests::binary::Binary;
use nbdkit_tests::client::{Failure, Headers};
use nbdkit_tests::server::ours;
use nbdkit_tests::{Ask, TempDir, command, tls};

use super::bystander::{Bystander, Work};
use super::{Connection, GIB, MIB, haggling, open, succeed};

/// Without a sandbox, since the tests have the scripts write where they can see it.
const SCRIPT: [&str; 4] =
    ["--sandbox=off", "eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero"];

fn script(more: &[&str]) -> nbdkit_tests::server::Builder {
    ours(&[&SCRIPT[..], more].concat())
}

#[test]
fn cve_2019_14850_nothing_is_opened_before_an_export_is_picked() {
    let server = script(&["open=echo opened >> {dir}/opened"]).start();
    let opened = server.dir().join("opened");
    let mut client = haggling(&server);
    client.structured_replies().expect("a reply");
    client.list().expect("a reply");
    client.set_meta_context("", &["base:allocation"]).expect("a reply");
    client.simple_option(Opt(99), &[1; 100]).expect("a reply");
    let silent: Vec<_> = (0..20).map(|_| server.connect()).collect();
    std::thread::sleep(Duration::from_millis(100));
    assert!(!opened.exists(), "nobody has picked an export");
    drop(silent);
    client.go("", &[]).expect("a reply");
    assert_eq!(std::fs::read_to_string(opened).expect("opened now"), "opened\n");
}

/// Every order of these options, each given twice in a row, then a session that works.
#[test]
fn cve_2019_14851_options_in_any_order() {
    let server = ours(&["memory", "1M"]).start();
    let bystander = Bystander::start(&server, "options in any order", Work::Writes(65536));
    let mut info = Vec::new();
    InfoRequest::encode(&mut info, "", &[]);
    let mut unknown = Vec::new();
    InfoRequest::encode(&mut unknown, "no such export, and memory takes any", &[]);
    let mut meta = Vec::new();
    MetaContextRequest::encode(&mut meta, "", &["base:allocation"]);
    let options: [(Opt, &[u8]); 5] = [
        (Opt::INFO, &info),
        (Opt::INFO, &unknown),
        (Opt::LIST, &[]),
        (Opt::SET_META_CONTEXT, &meta),
        (Opt::STRUCTURED_REPLY, &[]),
    ];
    for order in orders(options.len()) {
        let mut client = haggling(&server);
        for index in order {
            let (option, payload) = options[index];
            client.option(option, payload).expect("an answer");
            client.option(option, payload).expect("the same again is answered too");
        }
        client.structured_replies().expect("an answer");
        assert_eq!(client.go("", &[]).expect("an answer").end.reply, Rep::ACK);
        // Structured replies were negotiated above, whatever this client remembers of it.
        client.disconnect().expect("sent");
    }
    bystander.finish();
}

fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(count - 1);
    shorter
        .iter()
        .flat_map(|order| {
            (0..count).map(|at| {
                let mut longer = order.clone();
                longer.insert(at, count - 1);
                longer
            })
        })
        .collect()
}

/// Whatever is put in the clear behind NBD_OPT_STARTTLS, by whoever sits on the line, is neither an
/// option nor part of TLS.
#[test]
fn cve_2021_3716_plaintext_behind_starttls_ends_the_connection() {
    if !tls::is_possible() {
        return;
    }
    let pki = TempDir::new();
    let authority = tls::Authority::new(&pki.join("ca"), "CA");
    authority.issue_server(&pki.join("server"), tls::KeyType::Ecdsa);
    let certificates = format!("--tls-certificates={}", pki.join("server").display());
    let server = ours(&[&certificates, "--tls=on", "memory", "1M"]).start();
    let mut starttls = Vec::new();
    encode_option(&mut starttls, Opt::STARTTLS, &[]);
    for (option, payload) in [
        (Opt::STRUCTURED_REPLY, &[][..]),
        (Opt::LIST, &[]),
        (Opt::ABORT, &[]),
        (Opt::EXPORT_NAME, b"x"),
    ] {
        let mut injected = starttls.clone();
        encode_option(&mut injected, option, payload);
        let mut client = haggling(&server);
        client.send_raw(&injected).expect("sent");
        client.expect_close().expect("not one word about either");
        let _ = server.wait_for_stderr("the client sent more without waiting");
    }
    // What was negotiated before is forgotten.
    let mut client = haggling(&server);
    client.structured_replies().expect("a reply");
    client.set_meta_context("", &["base:allocation"]).expect("a reply");
    let mut client = client.starttls(authority.client_config(None)).expect("TLS");
    client.go("", &[]).expect("a reply");
    assert_eq!(client.call(&Ask::read(0, 512)).expect("a simple reply").data, [0; 512]);
    let status = client.call(&Ask::block_status(0, 4096)).expect("a reply");
    assert_eq!(status.nbd_error(), Some(NbdError::Inval), "no context is set");
}

/// Without TLS a refusal changes nothing, and what follows is read as it comes.
#[test]
fn starttls_is_refused_and_what_was_negotiated_before_stays() {
    let server = ours(&["memory", "1M"]).start();
    let mut client = haggling(&server);
    client.structured_replies().expect("a reply");
    client.set_meta_context("", &["base:allocation"]).expect("a reply");
    let reply = client.simple_option(Opt::STARTTLS, &[]).expect("a reply");
    assert!(reply.reply.is_error());
    client.go("", &[]).expect("a reply");
    assert_eq!(client.call(&Ask::block_status(0, 4096)).expect("a reply").status.len(), 1);
}

#[test]
fn cve_2025_47711_block_status_of_exactly_4_gib_minus_1() {
    const COUNT: u64 = 4 * GIB - 1;
    for first in [COUNT - 1, COUNT, COUNT + 1, COUNT + 2, 7 * GIB] {
        let second = format!("echo {first} {}", 8 * GIB - first);
        let extents = format!("extents=echo 0 {first} hole,zero; {second}");
        let server =
            ours(&["eval", "get_size=echo 8G", "pread=head -c $3 /dev/zero", &extents]).start();
        for flags in [CommandFlags::empty(), CommandFlags::REQ_ONE] {
            let mut client = open(&server, Headers::Structured);
            let reply = client.call(&Ask::block_status(0, COUNT).flags(flags)).expect("a reply");
            assert_eq!(reply.error, None, "{first}");
            let (_, runs) = &reply.status[0];
            assert!(runs.len() == 1, "one descriptor: {runs:?}");
            assert!(runs[0].0 <= 0xffff_0000, "aligned to every block size: {runs:?}");
            succeed(&mut client, &Ask::read(0, 512));
        }
        // 64 bits have room for the truth.
        let mut client = open(&server, Headers::Extended);
        let reply = client.call(&Ask::block_status(0, COUNT)).expect("a reply");
        assert_eq!(reply.status[0].1[0], (first, 3));
    }
}

#[test]
fn cve_2025_47711_with_a_plugin_whose_only_extent_is_8_gib() {
    for arguments in [["memory", "8G"], ["null", "8G"], ["full", "8G"]] {
        let server = ours(&arguments).start();
        let mut client = open(&server, Headers::Structured);
        for count in [4 * GIB - 1, 4 * GIB - 2, 4 * GIB - 65536, 4 * GIB - 65535] {
            for offset in [0, 1, 4 * GIB] {
                let reply = client.call(&Ask::block_status(offset, count)).expect("a reply");
                assert_eq!(reply.error, None);
                assert_eq!(reply.status[0].1.len(), 1, "{arguments:?} {offset} {count}");
            }
        }
    }
}

/// 1.34: before STARTTLS there; anywhere here.
#[test]
fn unknown_options_with_a_payload_do_not_desynchronise_the_stream() {
    let pki = TempDir::new();
    let certificates = format!("--tls-certificates={}", pki.join("server").display());
    let authority = tls::is_possible().then(|| {
        let authority = tls::Authority::new(&pki.join("ca"), "CA");
        authority.issue_server(&pki.join("server"), tls::KeyType::Ecdsa);
        authority
    });
    let plain = ["memory", "1M"];
    let require = [certificates.as_str(), "--tls=require", "memory", "1M"];
    let arguments = [&plain[..], &require].into_iter().take(1 + usize::from(authority.is_some()));
    for arguments in arguments {
        let server = ours(arguments).start();
        let mut client = haggling(&server);
        for length in [0, 1, 4096, 65535, 65536, 1 << 20, 16 << 20] {
            // A payload that would be an option, were it read as one.
            let payload = b"IHAVEOPT\0\0\0\x02\0\0\0\0".repeat(length / 16 + 1);
            let reply = client.simple_option(Opt(4321), &payload[..length]).expect("one reply");
            assert!(reply.reply.is_error(), "{length}");
        }
        if arguments.len() == plain.len() {
            assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
            succeed(&mut client, &Ask::read(0, 512));
        } else if let Some(authority) = &authority {
            let mut client = client.starttls(authority.client_config(None)).expect("TLS");
            assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
        }
    }
}

/// 1.34: an assertion there.
#[test]
fn hanging_up_inside_any_request_harms_nobody() {
    for plugin in [["memory", "1M"], ["file", "{dir}/disk"]] {
        let builder = ours(&plugin);
        std::fs::write(builder.dir().join("disk"), vec![0; 1 << 20]).expect("written");
        let server = builder.start();
        let bystander = Bystander::start(&server, "hanging up", Work::Writes(4096));
        for command in [0, 1, 3, 4, 5, 6, 7] {
            let flags = CommandFlags::empty();
            let command = Command(command);
            let request = Request { flags, command, cookie: 1, offset: 65536, length: 65536 };
            let bytes = [&request.encode()[..], &[7; 65536]].concat();
            for cut in [1, 4, 27, 28, 29, 30_000] {
                let mut client = open(&server, Headers::Structured);
                let _ = client.send_raw(&bytes[..cut]);
            }
        }
        bystander.finish();
        assert!(!server.stderr_text().contains("panic"), "{}", server.stderr_text());
    }
}

/// 1.36: a double free in the file plugin there.
#[test]
fn hanging_up_in_negotiation_under_the_file_plugin_harms_nobody() {
    let builder = ours(&["file", "dir={dir}"]);
    std::fs::write(builder.dir().join("disk"), vec![0; 1 << 20]).expect("written");
    let server = builder.start();
    for name in ["disk", "", "nothing", "../disk", "sock"] {
        for _ in 0..5 {
            let mut client = haggling(&server);
            client.info(name, &[]).expect("a reply");
            drop(client);
            let mut client = haggling(&server);
            client.info("disk", &[]).expect("a reply");
            client.send_raw(b"IHAVEOPT\0\0\0\x07").expect("sent");
        }
    }
    let mut client = haggling(&server);
    assert!(
        client.go("../disk", &[]).expect("a reply").end.reply.is_error(),
        "not out of the directory"
    );
    assert_eq!(client.go("disk", &[]).expect("a reply").end.reply, Rep::ACK);
    assert_eq!(server.stderr_text().matches("signal").count(), 0, "{}", server.stderr_text());
}

/// 1.36: what a client names reached the operator's terminal there.
#[test]
fn control_characters_of_a_client_do_not_reach_the_log() {
    const EVIL: &str = "a\x1b]0;owned\x07\r\nnbdkit: error: forged";
    let mut server = ours(&["-v", "file", "dir={dir}"]).start();
    let mut client = haggling(&server);
    client.info(EVIL, &[]).expect("a reply");
    client.list_meta_context(EVIL, &[EVIL]).expect("a reply");
    client.set_meta_context(EVIL, &[EVIL]).expect("a reply");
    client.go(EVIL, &[]).expect("a reply");
    client.export_name(EVIL).expect_err("closed");
    server.stop();
    let text = server.stderr_text_after_end();
    assert!(text.contains("owned"), "it is logged: {text}");
    assert!(!text.contains(['\x1b', '\x07', '\r']), "and harmless: {text}");
    assert!(!text.lines().any(|line| line.starts_with("nbdkit: error: forged")), "{text}");
}

fn run(arguments: &[&str]) -> command::Finished {
    let mut nbdkit = Process::new(Binary::ours().path());
    command::run(
        nbdkit.args(["-U", "-"]).args(arguments).args(["--run", "true"]),
        Duration::from_secs(20),
    )
}

/// 1.38: crashes there.
#[test]
fn plugins_and_filters_without_parameters_serve_or_say_why_not() {
    for plugin in [
        "cc",
        "data",
        "eval",
        "example1",
        "example2",
        "example3",
        "file",
        "full",
        "info",
        "iso",
        "linuxdisk",
        "memory",
        "null",
        "ondemand",
        "ones",
        "pattern",
        "random",
        "sh",
        "split",
        "tmpdisk",
        "zero",
    ] {
        let finished = run(&[plugin]);
        let status = finished.status.code();
        assert!(matches!(status, Some(0 | 1)), "{plugin}: {}", finished.status_text());
        assert_eq!(status == Some(1), !finished.stderr.is_empty(), "{plugin}: {}", finished.stderr);
        assert!(!finished.stderr.contains("panic"), "{plugin}: {}", finished.stderr);
    }
    for filter in [
        "cow",
        "delay",
        "error",
        "exitlast",
        "exportname",
        "fua",
        "ip",
        "limit",
        "log",
        "nocache",
        "noextents",
        "noparallel",
        "nozero",
        "offset",
        "stats",
        "truncate",
    ] {
        let finished = run(&["--filter", filter, "null", "1M"]);
        assert!(matches!(finished.status.code(), Some(0 | 1)), "{filter}");
        assert!(!finished.stderr.contains("panic"), "{filter}: {}", finished.stderr);
    }
}

/// 1.40.
#[test]
fn names_on_the_command_line_are_quoted_in_errors() {
    for arguments in [
        &["file", "/nonexistent\x1b[31m\nnbdkit: error: forged"][..],
        &["no\x1b[31m\nnbdkit: error: forged"],
        &["./no\x1b[31m\nnbdkit: error: forged"],
        &["--filter=no\x1b[31m\nnbdkit: error: forged", "null"],
        &["null", "key\x1b[31m\nnbdkit: error: forged=1"],
    ] {
        let finished = run(arguments);
        assert_eq!(finished.status.code(), Some(1), "{arguments:?}");
        let text = &finished.stderr;
        assert!(!text.contains('\x1b') && !text.contains("\nnbdkit: error: forged"), "{text:?}");
    }
}

/// 1.40: a `security:` rule swallowed the rest of its list there.
#[test]
fn ip_rules_after_a_security_rule_count() {
    let user = format!("uid:{}", nix::unistd::geteuid());
    for (rules, allowed) in [
        (["allow=security:nobody,anyunix", "deny=all"], true),
        (["allow=security:nobody,anyipv4", "deny=all"], false),
        (["deny=security:nobody,anyunix", "allow=anyipv4"], false),
        (["deny=all", "allow=anyipv4,anyipv6,anyvsock"], false),
        ([&format!("allow={user}"), "deny=all"], true),
    ] {
        let server = ours(&["--filter=ip", "null", "1M", rules[0], rules[1]]).start();
        let mut client = server.connect();
        assert_eq!(admitted(&mut client), allowed, "{rules:?}");
    }
}

fn admitted(client: &mut Connection) -> bool {
    let opened = client.handshake().and_then(|_| client.go("", &[]));
    opened.is_ok_and(|answer| answer.end.reply == Rep::ACK)
}

/// 1.40: with `-s` the peer may be of no known family, and got past `deny=all` there.
#[test]
fn clients_of_unknown_families_do_not_slip_past_deny_all() {
    let mut nbdkit = Process::new(Binary::ours().path());
    nbdkit.args(["-s", "--filter=ip", "null", "1M", "deny=all"]);
    let finished = command::run(&mut nbdkit, Duration::from_secs(20));
    assert!(!finished.stdout.contains("IHAVEOPT"), "no greeting: {finished:?}");
}

/// 1.42: names leaked to clients that were denied late.
#[test]
fn a_denied_client_learns_no_export_names() {
    for rules in [&["deny=all"][..], &["deny=all", "allow=anyipv4"]] {
        let arguments = [&["--filter=ip", "info", "mode=exportname"][..], rules].concat();
        let server = ours(&arguments).start();
        let mut client = server.connect();
        let listed = client.handshake().and_then(|_| client.list());
        assert!(listed.is_err() || listed.is_ok_and(|list| list.exports.is_empty()));
    }
}

/// 1.42: parameters became shell text there; here what a client names never does.
#[test]
fn an_export_name_is_never_shell_text() {
    let server = script(&["open=echo \"$3\" > {dir}/name"]).start();
    let evil = format!(
        "$(touch {0}/owned) `touch {0}/owned`; touch {0}/owned '\"",
        server.dir().path().display()
    );
    let mut client = haggling(&server);
    assert_eq!(client.go(&evil, &[]).expect("a reply").end.reply, Rep::ACK);
    assert_eq!(
        std::fs::read_to_string(server.dir().join("name")).expect("opened"),
        format!("{evil}\n")
    );
    assert!(!server.dir().join("owned").exists());
}

/// 1.44.1: beyond 64 MiB old data stayed there.
#[test]
fn zeroing_more_than_64_mib_by_writes_leaves_no_old_data() {
    let server = ours(&["--filter=nozero", "memory", "200M", "zeromode=emulate"]).start();
    let mut client = open(&server, Headers::Extended);
    let marks = [MIB, 63 * MIB, 64 * MIB - 1, 64 * MIB, 65 * MIB, 128 * MIB, 149 * MIB, 151 * MIB];
    for mark in marks {
        succeed(&mut client, &Ask::write(mark, vec![9; 512]));
    }
    succeed(&mut client, &Ask::write_zeroes(0, 150 * MIB));
    for mark in marks {
        let expected = if mark < 150 * MIB { 0 } else { 9 };
        assert_eq!(succeed(&mut client, &Ask::read(mark, 512)), vec![expected; 512], "{mark}");
    }
}

/// A server that is told to stop in the middle of all this still ends in order.
#[test]
fn the_server_ends_in_order_while_clients_misbehave() {
    let mut server = ours(&["memory", "64M"]).start();
    let mut uncollected = open(&server, Headers::Simple);
    for _ in 0..16 {
        uncollected.send(&Ask::read(0, MIB)).expect("sent");
    }
    let _silent: Vec<_> = (0..10).map(|_| server.connect()).collect();
    let mut half = open(&server, Headers::Simple);
    half.send_raw(&[0x25]).expect("sent");
    let status = server.stop();
    assert!(status.success(), "{status}");
    assert!(matches!(half.receive_raw(1), Err(Failure::Closed)));
}
