//! What each option means. What is refused is in `refused`.

mod refused;

use super::*;
use crate::cli::command_line::{
    AllowedPath, CrlExpiry, DebugFlag, Isolation, KeepAlive, LogDestination, Sandbox, TcpPort,
    TlsVersion,
};
use crate::cli::parameters::parameter;
use nbdkit_ipc::messages::Applies;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

/// Where the tests pretend to be.
const HERE: &str = "/here";
const PID: u32 = 77;

fn no_files(_: &Path) -> io::Result<Vec<u8>> {
    Err(io::ErrorKind::NotFound.into())
}

fn environment() -> Environment<'static> {
    Environment {
        listen_pid: None,
        listen_fds: None,
        posixly_correct: false,
        pid: PID,
        current_dir: Some(HERE.into()),
        read_file: &no_files,
    }
}

fn activated() -> Environment<'static> {
    Environment {
        listen_pid: Some(PID.to_string().into()),
        listen_fds: Some("2".into()),
        ..environment()
    }
}

fn parse_in(environment: &Environment<'_>, args: &[&str]) -> Result<CommandLine, String> {
    let args = std::iter::once("nbdkit").chain(args.iter().copied()).map(OsString::from).collect();
    parse(args, environment).map_err(|error| error.to_string())
}

fn ok(args: &[&str]) -> CommandLine {
    parse_in(&environment(), args).unwrap_or_else(|error| panic!("{args:?}: {error}"))
}

fn options(args: &[&str]) -> Options {
    let mut all = args.to_vec();
    all.push("null");
    ok(&all).options
}

fn refused(args: &[&str]) -> String {
    parse_in(&environment(), args).expect_err(&format!("{args:?}"))
}

fn service(args: &[&str]) -> ServiceMode {
    service_in(&environment(), args)
}

fn service_in(environment: &Environment<'_>, args: &[&str]) -> ServiceMode {
    match parse_in(environment, args).unwrap().action {
        Action::Serve { service, .. } => service,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn stack(args: &[&str]) -> Stack {
    match ok(args).action {
        Action::Serve { stack, .. } => stack,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn tcp(address: Option<&str>, port: Option<TcpPort>, family: AddressFamily) -> ServiceMode {
    ServiceMode::Tcp { address: address.map(Into::into), port, family }
}

fn plain_stack(filters: &[&str], plugin: &str) -> Stack {
    Stack {
        filters: filters.iter().map(Into::into).collect(),
        plugin: plugin.into(),
        parameters: Vec::new(),
    }
}

#[test]
fn a_plugin_alone_is_served_over_tcp_with_the_defaults() {
    let command_line = ok(&["null"]);
    assert_eq!(command_line.program, "nbdkit");
    assert_eq!(command_line.options, Options::default());
    assert_eq!(command_line.notices, [""; 0]);
    assert_eq!(
        command_line.action,
        Action::Serve {
            stack: plain_stack(&[], "null"),
            service: tcp(None, None, AddressFamily::Any)
        }
    );
}

#[test]
fn a_poll_is_in_microseconds_and_may_be_none() {
    for (value, micros) in [("0", 0), ("25", 25), ("1000", 1000)] {
        let poll = options(&[&format!("--busy-poll={value}")]).busy_poll;
        assert_eq!(poll, Some(Duration::from_micros(micros)));
    }
    assert_eq!(options(&[]).busy_poll, None);
}

#[test]
fn a_client_is_parked_after_seconds_or_never() {
    for (value, seconds) in [("0", 0), ("3600", 3600)] {
        let park = options(&[&format!("--park-idle={value}")]).park_idle;
        assert_eq!(park, Some(Duration::from_secs(seconds)));
    }
    assert_eq!(options(&[]).park_idle, None);
    for value in ["", "-1", "1.5", "5s"] {
        assert!(
            refused(&[&format!("--park-idle={value}"), "null"]).contains("park-idle"),
            "{value}"
        );
    }
}

#[test]
fn every_spelling_of_every_switch_sets_its_field() {
    type Set = fn(&mut Options);
    let cases: &[(&[&str], Set)] = &[
        (&["--allow-net"], |o| o.allow_net = true),
        (&["--exit-with-parent"], |o| (o.exit_with_parent, o.foreground) = (true, true)),
        (&["-f", "--foreground", "--no-fork"], |o| o.foreground = true),
        (&["--keepalive", "--keep-alive"], |o| o.keepalive = KeepAlive::System),
        (&["--no-keepalive"], |o| o.keepalive = KeepAlive::Off),
        (&["-n", "--new-style", "--newstyle"], |_| {}),
        (&["--no-mc", "--no-meta-contexts"], |o| o.protocol.meta_contexts = false),
        (&["--no-sr", "--no-structured-replies"], |o| o.protocol.structured_replies = false),
        (&["-o", "--old-style", "--oldstyle"], |o| o.protocol.oldstyle = true),
        (&["--print-uri", "--print-url", "--show-uri", "--show-url"], |o| o.print_uri = true),
        (&["-r", "--read-only", "--readonly", "--read"], |o| o.readonly = true),
        (&["--swap"], |o| o.swap = true),
        (&["--tls-verify-peer", "--tls-v"], |o| o.tls.verify_peer = true),
        (&["-v", "--verbose"], |o| o.verbose = true),
    ];
    for (spellings, set) in cases {
        let mut expected = Options::default();
        set(&mut expected);
        for spelling in *spellings {
            assert_eq!(options(&[spelling]), expected, "{spelling}");
        }
    }
}

fn allowed(path: &str, write: bool) -> AllowedPath {
    AllowedPath { path: path.into(), write }
}

#[test]
fn every_spelling_of_every_argument_sets_its_field() {
    type Set = fn(&mut Options);
    let cases: &[(&[&str], &str, Set)] = &[
        (&["--allow-path"], "img", |o| o.allow_paths = vec![allowed("/here/img", false)]),
        (&["--allow-path"], "/a:b:rw", |o| o.allow_paths = vec![allowed("/a:b", true)]),
        (&["--allow-path"], "/a:rw:ro", |o| o.allow_paths = vec![allowed("/a:rw", false)]),
        (&["-D", "--debug"], "file.x.y=-2", |o| {
            o.debug_flags = vec![DebugFlag { name: "file".into(), flag: "x.y".into(), value: -2 }];
        }),
        (&["-e", "--export", "--export-name", "--exportname"], "a=b", |o| {
            o.export_name = "a=b".into();
        }),
        (&["-g", "--group"], "nobody", |o| o.group = Some("nobody".into())),
        (&["--isolation"], "connection", |o| o.isolation = Some(Isolation::Connection)),
        (&["--isolation"], "shared", |o| o.isolation = Some(Isolation::Shared)),
        (&["--log"], "stderr", |o| o.log = LogDestination::Stderr),
        (&["--log"], "syslog", |o| o.log = LogDestination::Syslog),
        (&["--log"], "journal", |o| o.log = LogDestination::Journal),
        (&["--log"], "null", |o| o.log = LogDestination::Null),
        (&["--listener-user"], "daemon", |o| o.listener_user = Some("daemon".into())),
        (&["--log"], "default", |o| o.log = LogDestination::Default),
        (&["--log"], "/var/log/x", |o| o.log = LogDestination::File("/var/log/x".into())),
        (&["--mask-handshake"], "0x1", |o| o.protocol.mask_handshake = 1),
        (&["--max-connections"], "0", |o| o.max_connections = Some(0)),
        (&["--max-connections-per-peer"], "8", |o| o.max_connections_per_peer = Some(8)),
        (&["--name"], "disk 1", |o| o.name = Some("disk 1".into())),
        (&["-P", "--pid-file", "--pidfile"], "x.pid", |o| o.pid_file = Some("/here/x.pid".into())),
        (&["-P"], "/x.pid", |o| o.pid_file = Some("/x.pid".into())),
        (&["--run"], "", |o| (o.run, o.foreground) = (Some("".into()), true)),
        (&["--sandbox"], "strict", |o| o.sandbox = Some(Sandbox::Strict)),
        (&["--sandbox"], "programs", |o| o.sandbox = Some(Sandbox::Programs)),
        (&["--sandbox"], "compat", |o| o.sandbox = Some(Sandbox::Compat)),
        (&["--sandbox"], "off", |o| o.sandbox = Some(Sandbox::Off)),
        (&["--selinux-label"], "a:b:c", |o| o.selinux_label = Some("a:b:c".into())),
        (&["-t", "--threads"], "4", |o| o.threads = NonZero::new(4)),
        (&["-t"], "0", |o| o.threads = None),
        (&["--timeout", "--time-out", "--time"], "1500ms", |o| {
            o.timeout = Some(Duration::from_millis(1500));
        }),
        (&["--timeout"], "0", |o| o.timeout = None),
        (&["--tls"], "OFF", |o| o.tls.mode = Some(TlsMode::Off)),
        (&["--tls"], "1", |o| o.tls.mode = Some(TlsMode::On)),
        (&["--tls"], "Require", |o| o.tls.mode = Some(TlsMode::Require)),
        (&["--tls-certificates"], "certs", |o| o.tls.certificates = Some("certs".into())),
        (&["--tls-crl-expiry"], "warn", |o| o.tls.crl_expiry = CrlExpiry::Warn),
        (&["--tls-crl-expiry"], "enforce", |o| o.tls.crl_expiry = CrlExpiry::Enforce),
        (&["--tls-min-version"], "1.2", |o| o.tls.min_version = Some(TlsVersion::V1_2)),
        (&["--tls-min-version"], "1.3", |o| o.tls.min_version = Some(TlsVersion::V1_3)),
        (&["--tls-priority"], "NORMAL", |o| o.tls.priority = Some("NORMAL".into())),
        (&["--tls-psk"], "k.psk", |o| o.tls.psk = Some("k.psk".into())),
        (&["-u", "--user"], "1000", |o| o.user = Some("1000".into())),
    ];
    for (spellings, argument, set) in cases {
        let mut expected = Options::default();
        set(&mut expected);
        for spelling in *spellings {
            assert_eq!(options(&[spelling, argument]), expected, "{spelling} {argument}");
            let joint = if spelling.starts_with("--") { "=" } else { "" };
            let attached = format!("{spelling}{joint}{argument}");
            if attached != *spelling {
                assert_eq!(options(&[&attached]), expected, "{attached}");
            }
        }
    }
}

#[test]
fn where_to_listen_follows_from_the_options() {
    let private = || ServiceMode::UnixPrivate;
    for (args, expected) in [
        (&["-s", "null"][..], ServiceMode::Stdin),
        (&["--single", "null"], ServiceMode::Stdin),
        (&["--stdin", "-i", "::1", "null"], ServiceMode::Stdin),
        (&["-U", "-", "null"], private()),
        (&["--unix=-", "null"], private()),
        (&["-U", "/s", "null"], ServiceMode::Unix("/s".into())),
        (&["-U", "./s", "null"], ServiceMode::Unix("/here/./s".into())),
        (&["-U", "-", "-U", "/s", "-i", "x", "null"], ServiceMode::Unix("/s".into())),
        (&["--run", "x", "null"], private()),
        (&["--run", "x", "-i", "::1", "null"], private()),
        (&["--run", "x", "-U", "/s", "null"], ServiceMode::Unix("/s".into())),
        (
            &["--run", "x", "-p", "1", "null"],
            tcp(None, Some(TcpPort::Number(1)), AddressFamily::Any),
        ),
        (&["--run", "x", "--vsock", "null"], ServiceMode::Vsock { port: None }),
        (&["--vsock", "-i", "x", "null"], ServiceMode::Vsock { port: None }),
        (&["--vsock", "-p", "4294967295", "null"], ServiceMode::Vsock { port: Some(u32::MAX) }),
        (
            &["-p", "1", "--port=65535", "null"],
            tcp(None, Some(TcpPort::Number(65535)), AddressFamily::Any),
        ),
        (&["-p", "0", "null"], tcp(None, Some(TcpPort::Number(0)), AddressFamily::Any)),
        (
            &["-p", "nbd", "null"],
            tcp(None, Some(TcpPort::Service("nbd".into())), AddressFamily::Any),
        ),
        (&["-p", "-1", "null"], tcp(None, Some(TcpPort::Service("-1".into())), AddressFamily::Any)),
        (
            &["-4", "-6", "--ip-addr", "localhost", "null"],
            tcp(Some("localhost"), None, AddressFamily::V6),
        ),
        (&["-6", "--ipv4-only", "--ipaddr=::1", "null"], tcp(Some("::1"), None, AddressFamily::V4)),
    ] {
        assert_eq!(service(args), expected, "{args:?}");
    }
}

#[test]
fn pairs_that_nbdkit_accepts_are_accepted() {
    for args in [
        &["-U", "-", "--dump-plugin", "null"][..],
        &["-p", "1", "--dump-plugin", "null"],
        &["--run", "x", "--dump-plugin", "null"],
        &["--vsock", "-p", "1", "null"],
        &["--exit-with-parent", "--run", "x", "null"],
        &["--exit-with-parent", "-s", "null"],
        &["--tls=on", "-o", "null"],
    ] {
        ok(args);
    }
}

#[test]
fn debug_flags_are_split_as_nbdkit_splits_them() {
    let flags = options(&["-D", "a..b=1", "-D", "nbdkit.backend.datapath=0x10"]).debug_flags;
    assert_eq!(flags.len(), 2);
    assert_eq!((flags[0].name.as_str(), flags[0].flag.as_str(), flags[0].value), ("a", ".b", 1));
    assert_eq!(
        (flags[1].flag.as_str(), flags[1].value, flags[1].is_server()),
        ("backend.datapath", 16, true)
    );
    let format = "nbdkit: -D (Debug Flag) must have the format NAME.FLAG=N";
    for flag in ["foo", "foo.bar", "foo.bar=", ".bar=1", "foo.=1", "null=1", "a=b.c=1", "a.b.", ""]
    {
        assert_eq!(refused(&["-D", flag, "null"]), format, "{flag}");
    }
    assert_eq!(
        refused(&["-D", "a.b=1=2", "null"]),
        format!("nbdkit: error: flag: could not parse number: \"1=2\": trailing garbage\n{format}")
    );
    assert_eq!(
        refused(&["-D", "a.b=x", "null"]),
        format!("nbdkit: error: flag: could not parse number: \"x\": not a number\n{format}")
    );
}

#[test]
fn questions_without_a_plugin_are_answered_by_the_listener() {
    for (args, action) in [
        (&["--help"][..], Action::Help),
        (&["--version"], Action::Version),
        (&["-V"], Action::Version),
        (&["--version", "--help"], Action::Help),
        (&["--version", "--dump-plugin"], Action::Version),
        (&["--filter=nosuch", "--version"], Action::Version),
        (&["--help", "-s", "--run", "x"], Action::Help),
        (&["--dump-config"], Action::DumpConfig),
        (&["--dump-config", "nosuch", "--bad"], Action::DumpConfig),
        (&["--version", "--dump-config"], Action::DumpConfig),
        (&["null", "--long-options", "--bad"], Action::LongOptions),
        (&["--short"], Action::ShortOptions),
    ] {
        assert_eq!(ok(args).action, action, "{args:?}");
    }
}

#[test]
fn questions_about_a_plugin_carry_the_stack() {
    let named = || plain_stack(&["nozero", "./f.so"], "null");
    let filters = ["--filter=nozero", "--filter", "./f.so", "null"];
    // Parameters do not matter to these two, not even parameter files that cannot be read.
    assert_eq!(
        ok(&[&filters[..], &["--help", "x=1", "@nowhere"]].concat()).action,
        Action::PluginHelp(named())
    );
    assert_eq!(
        ok(&[&filters[..], &["-V", "--dump-plugin", "x"]].concat()).action,
        Action::PluginVersion(named())
    );
    let mut with_parameter = named();
    with_parameter.parameters = vec![parameter("x=1".as_ref(), Applies::Always)];
    assert_eq!(
        ok(&[&filters[..], &["--dump-plugin", "x=1"]].concat()).action,
        Action::DumpPlugin(with_parameter)
    );
}

#[test]
fn parameters_keep_their_order_among_options() {
    let stack = stack(&[
        "file",
        "disk.img",
        "-U",
        "-",
        "a=1",
        "--filter=cow",
        "a=2",
        "--",
        "-x=1",
        "--run=1",
    ]);
    let parameters: Vec<(Option<&str>, &str)> = stack
        .parameters
        .iter()
        .map(|parameter| (parameter.key.as_deref(), parameter.value.to_str().unwrap()))
        .collect();
    assert_eq!(
        parameters,
        [(None, "disk.img"), (Some("a"), "1"), (Some("a"), "2"), (None, "-x=1"), (None, "--run=1")]
    );
    assert_eq!((stack.filters, stack.plugin), (vec!["cow".into()], "file".into()));
}

#[test]
fn parameter_files_are_read_from_the_current_directory() {
    let read = |path: &Path| {
        assert_eq!(path, Path::new("/here/p"));
        Ok(b"size=1M\n".to_vec())
    };
    let environment = Environment { read_file: &read, ..environment() };
    let command_line = parse_in(&environment, &["memory", "@p"]).unwrap();
    let Action::Serve { stack, .. } = command_line.action else { panic!() };
    assert_eq!(stack.parameters, [parameter("size=1M".as_ref(), Applies::Always)]);
    let forbidden = |_: &Path| Err(io::ErrorKind::PermissionDenied.into());
    let environment = Environment { read_file: &forbidden, ..environment };
    assert!(parse_in(&environment, &["memory", "@p"]).is_err());
}

#[test]
fn script_lines_reach_us_as_the_kernel_cuts_them() {
    // #!/usr/sbin/nbdkit perl
    let perl = stack(&["perl", "/x/script", "a=b"]);
    assert_eq!(perl.plugin, "perl");
    assert_eq!(perl.parameters.first().map(|first| first.value.clone()), Some("/x/script".into()));
    // #!/usr/sbin/nbdkit -f sh
    assert_eq!(refused(&["-f sh", "/x/script"]), "nbdkit: invalid option -- ' '");
    // #!/usr/sbin/nbdkit perl x
    assert_eq!(stack(&["perl x", "/x/script"]).plugin, "perl x");
}

#[test]
fn everything_that_needs_the_foreground_implies_it() {
    for args in [
        &["-s", "null"][..],
        &["--run", "x", "null"],
        &["--exit-with-parent", "null"],
        &["-f", "null"],
    ] {
        assert!(ok(args).options.foreground, "{args:?}");
    }
    assert!(!ok(&["-U", "-", "-v", "null"]).options.foreground);
    assert!(parse_in(&activated(), &["null"]).unwrap().options.foreground);
}

#[test]
fn passed_sockets_exclude_other_ways_to_listen() {
    assert_eq!(service_in(&activated(), &["null"]), ServiceMode::SocketActivation { count: 2 });
    assert_eq!(
        service_in(&activated(), &["--vsock", "null"]),
        ServiceMode::SocketActivation { count: 2 }
    );
    for (args, flag) in [
        (&["-p", "1"][..], "-p"),
        (&["-i", "::1", "-U", "-"], "-i"),
        (&["-U", "-", "-s", "--run", "x"], "-U"),
        (&["-s", "--run", "x"], "-s"),
        (&["--run", "x"], "--run"),
        (&["--version", "-p", "1"], "-p"),
        (&["-o", "--tls=require", "-s"], "-s"),
    ] {
        let message = format!("nbdkit: cannot use socket activation with {flag} flag");
        assert_eq!(parse_in(&activated(), args).unwrap_err(), message);
        assert_eq!(parse_in(&activated(), &[args, &["null"]].concat()).unwrap_err(), message);
    }
    assert_eq!(parse_in(&activated(), &["--version"]).unwrap().action, Action::Version);
}

#[test]
fn sockets_for_others_are_mentioned_and_ignored() {
    let others = Environment { listen_pid: Some("1".into()), ..activated() };
    let command_line = parse_in(&others, &["-U", "-", "null"]).unwrap();
    assert_eq!(command_line.notices, ["nbdkit: LISTEN_PID was not for us (ignored)"]);
    assert!(matches!(command_line.action, Action::Serve { service: ServiceMode::UnixPrivate, .. }));
    assert_eq!(
        parse_in(&others, &["--bad"]).unwrap_err(),
        "nbdkit: LISTEN_PID was not for us (ignored)\nnbdkit: unrecognized option '--bad'"
    );
}

#[test]
fn posixly_correct_makes_parameters_of_late_options() {
    let posix = Environment { posixly_correct: true, ..environment() };
    let Action::Serve { stack, service } =
        parse_in(&posix, &["-f", "null", "-U", "-"]).unwrap().action
    else {
        panic!()
    };
    assert_eq!(stack.parameters.len(), 2);
    assert!(matches!(service, ServiceMode::Tcp { .. }));
}

#[test]
fn paths_and_values_need_not_be_utf8() {
    let raw = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let args = vec![
        "nbdkit".into(),
        "-U".into(),
        raw(b"s\xff"),
        "-P".into(),
        raw(b"/p\xfe"),
        raw(b"--log=/l\xfd"),
        raw(b"./plugin\xfc"),
        raw(b"file=\xfb"),
        raw(b"\xfa"),
    ];
    let command_line = parse(args, &environment()).unwrap();
    let Action::Serve { stack, service } = command_line.action else { panic!() };
    assert_eq!(service, ServiceMode::Unix(raw(b"/here/s\xff").into()));
    assert_eq!(command_line.options.pid_file, Some(raw(b"/p\xfe").into()));
    assert_eq!(command_line.options.log, LogDestination::File(raw(b"/l\xfd").into()));
    assert_eq!(stack.plugin, raw(b"./plugin\xfc"));
    assert_eq!(stack.parameters[0].value, raw(b"\xfb"));
    assert_eq!(stack.parameters[1], parameter(&raw(b"\xfa"), Applies::Always));
}
