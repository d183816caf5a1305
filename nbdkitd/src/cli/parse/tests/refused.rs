//! Command lines that are refused, and the errors: options that contradict each other, and bad
//! arguments.

use super::*;

#[test]
fn contradictions_have_the_errors_of_nbdkit() {
    let combination = "nbdkit: --dump-plugin, -p, --run, -s, -U or --vsock options cannot be used in this combination";
    for args in [
        &["-p", "1", "-U", "-"][..],
        &["--vsock", "-U", "/s"],
        &["-s", "-p", "1"],
        &["-s", "-U", "-"],
        &["-s", "--vsock"],
        &["-s", "--run", "x"],
        &["-s", "--dump-plugin"],
        &["-p", "1", "-U", "-", "--dump-plugin"],
        &["-p", "1", "-U", "-", "--run", "x"],
        &["-s", "-U", "-", "--help"],
        &["-s", "-U", "-", "--version"],
    ] {
        assert_eq!(refused(&[args, &["null"]].concat()), combination, "{args:?}");
    }
    let oldstyle = "nbdkit: cannot use oldstyle protocol (-o) and require TLS";
    assert_eq!(refused(&["--tls=require", "-o", "null"]), oldstyle);
    assert_eq!(refused(&["--tls=require", "-o", "-s", "-U", "-", "null", "--help"]), oldstyle);
    assert!(ok(&["--tls=require", "-o", "-n", "null"]).options.tls.mode == Some(TlsMode::Require));
}

#[test]
fn bad_arguments_have_the_errors_of_nbdkit() {
    let long_path = format!("/tmp/{}", "x".repeat(120));
    for (args, message) in [
        (&["--tls=foo"][..], "nbdkit: error: could not decipher boolean (foo)"),
        (&["--tls="], "nbdkit: error: could not decipher boolean ()"),
        (&["-t", "abc"], "nbdkit: error: threads: could not parse number: \"abc\": not a number"),
        (
            &["--mask-handshake=-1"],
            "nbdkit: error: mask-handshake: negative numbers are not allowed",
        ),
        (
            &["--log=relative"],
            "nbdkit: --log must be \"stderr\", \"syslog\", \"journal\", \"null\", or an absolute path",
        ),
        (&["-U", ""], "nbdkit: error: cannot convert null or empty path to an absolute path"),
        (&["-P", ""], "nbdkit: error: cannot convert null or empty path to an absolute path"),
        (&["-U", &long_path], "nbdkit: -U: path too long: length 125 > max 107 bytes"),
        (
            &["--vsock", "-p", "abc"],
            "nbdkit: error: port: could not parse number: \"abc\": not a number",
        ),
        (&["--vsock", "-p", "-5"], "nbdkit: error: port: negative numbers are not allowed"),
        (
            &["--vsock", "-p", "4294967296"],
            "nbdkit: error: port: could not parse number: \"4294967296\": Numerical result out of range",
        ),
        (&["-p", "65536"], "nbdkit: error: port: 65536 is out of range: TCP ports end at 65535"),
        (&["-p", ""], "nbdkit: error: port: empty string where we expected a number"),
        (&["--timeout=1x"], "nbdkit: error: timeout: could not parse delay or sleep: \"1x\""),
        (&["--busy-poll=1001"], "nbdkit: --busy-poll must be from 0 to 1000 microseconds"),
        (
            &["--busy-poll=1ms"],
            "nbdkit: error: busy-poll: could not parse number: \"1ms\": trailing garbage",
        ),
        (&["--isolation=none"], "nbdkit: --isolation must be \"connection\" or \"shared\""),
        (
            &["--sandbox=on"],
            "nbdkit: --sandbox must be \"strict\", \"programs\", \"compat\" or \"off\"",
        ),
        (&["--allow-path="], "nbdkit: --allow-path must be PATH or PATH:rw"),
        (&["--allow-path=:rw"], "nbdkit: --allow-path must be PATH or PATH:rw"),
        (&["--name=a\nb"], "nbdkit: --name must be printable UTF-8 text"),
    ] {
        assert_eq!(refused(&[args, &["null"]].concat()), message, "{args:?}");
    }
}

#[test]
fn without_plugin_and_question_there_is_nothing_to_do() {
    let nothing = "nbdkit: no plugins given on the command line.\n\
                   Use 'nbdkit --help' or read the nbdkit(1) manual page for documentation.";
    for args in [&[][..], &["-f"], &["-s", "-U", "-"], &["-o", "--tls=require"], &["--filter=x"]] {
        assert_eq!(refused(args), nothing, "{args:?}");
    }
    assert!(
        refused(&["--dump-plugin"]).starts_with("nbdkit: use 'nbdkit plugin --dump-plugin' or\n")
    );
}

#[test]
fn the_first_bad_option_ends_the_reading() {
    assert_eq!(refused(&["--bad", "--dump-config"]), "nbdkit: unrecognized option '--bad'");
    assert!(refused(&["-D", "foo", "--dump-config"]).contains("-D (Debug Flag)"));
    assert!(refused(&["--help", "-t", "abc"]).contains("threads"));
    assert_eq!(refused(&["--version", "-p"]), "nbdkit: option requires an argument -- 'p'");
}

#[test]
fn a_count_of_no_sockets_is_fatal_before_the_options_are_read() {
    let none = Environment { listen_fds: Some("0".into()), ..activated() };
    for args in [&["--help"][..], &["--dump-config"], &["--bad"], &[]] {
        assert_eq!(
            parse_in(&none, args).unwrap_err(),
            "nbdkit: socket activation: LISTEN_FDS=0 out of range"
        );
    }
}

#[test]
fn messages_begin_with_the_name_of_the_program() {
    for (argv0, args, message) in [
        ("/usr/bin/nbdkit", &["--bad"][..], "/usr/bin/nbdkit: unrecognized option '--bad'"),
        ("/usr/bin/nbdkit", &["--tls=foo"], "nbdkit: error: could not decipher boolean (foo)"),
        ("foo", &["--tls=foo"], "foo: error: could not decipher boolean (foo)"),
        ("foo", &["-D", "x"], "foo: -D (Debug Flag) must have the format NAME.FLAG=N"),
        ("", &["-D", "x"], "nbdkit: -D (Debug Flag) must have the format NAME.FLAG=N"),
    ] {
        let args = std::iter::once(&argv0).chain(args).map(OsString::from).collect();
        let error = parse(args, &environment()).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn only_getopt_refusals_want_the_usage() {
    let ask = |args: &[&str]| {
        parse(args.iter().map(OsString::from).collect(), &environment()).unwrap_err()
    };
    assert!(ask(&["nbdkit", "--bad"]).wants_usage());
    assert!(ask(&["nbdkit", "null", "-p"]).wants_usage());
    assert!(!ask(&["nbdkit"]).wants_usage());
    assert!(!ask(&["nbdkit", "--tls=foo", "null"]).wants_usage());
}

#[test]
fn relative_paths_need_a_current_directory() {
    let nowhere = Environment { current_dir: None, ..environment() };
    assert!(
        parse_in(&nowhere, &["-U", "s", "null"]).unwrap_err().contains("current directory is gone")
    );
    assert!(parse_in(&nowhere, &["-U", "/s", "null"]).is_ok());
}
