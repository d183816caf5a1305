//! The command line: standard output, standard error and exit status of commands that end by
//! themselves.

use nbdkit_tests::TempDir;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::row_name;

/// `key=value` lines without the values, which are a matter of installation.
fn keys(line: &str) -> Option<String> {
    Some(match line.split_once('=') {
        Some((key, _)) => key.to_owned(),
        None => line.to_owned(),
    })
}

/// The same, less what tells how a plugin is built: which callbacks it has and how large its
/// structure is.
fn plugin_keys(line: &str) -> Option<String> {
    let key = keys(line)?;
    // What is a constructor or a destructor in Rust, and the first version of the interface.
    let c = ["has_load", "has_unload", "has_close"].iter().any(|it| key == format!("stdout: {it}"));
    (!c && !key.starts_with("stdout: has__")).then_some(key)
}

fn status(line: &str) -> Option<String> {
    line.starts_with("exit").then(|| line.to_owned())
}

/// Random names of private sockets.
fn private_socket(line: &str) -> Option<String> {
    const START: &str = "/tmp/nbdkit";
    let mut parts = line.split(START);
    let mut text = parts.next()?.to_owned();
    for part in parts {
        // Six random characters follow.
        text.push_str("{private}");
        text.push_str(part.get(6..)?);
    }
    Some(text)
}

/// `nbdkit 1.32.5 (…)`: the first word, and that a number follows.
fn version(line: &str) -> Option<String> {
    let mut words = line.split(' ');
    let words = [words.next()?, words.next()?, words.next().unwrap_or_default()];
    if words[0] != "stdout:" {
        return Some(line.to_owned());
    }
    Some(format!(
        "{} {} {}",
        words[0],
        words[1],
        words[2].starts_with(|c: char| c.is_ascii_digit())
    ))
}

#[test]
fn version_option() {
    for_each(&["--version", "-V"], |option| {
        Row::new(row_name!(), &[option]).variant(option).normalise(version).compare_command();
    });
}

#[test]
fn help_options_succeed() {
    for_each(&[&["--help"][..], &["--help", "memory"], &["memory", "--help"]], |arguments| {
        Row::new(row_name!(), arguments)
            .variant(&arguments.join(" "))
            .normalise(status)
            .compare_command();
    });
}

#[test]
fn dump_config_keys() {
    Row::new(row_name!(), &["--dump-config"]).normalise(keys).compare_command();
}

#[test]
fn dump_plugin_keys() {
    for_each(
        &[
            "memory",
            "null",
            "zero",
            "full",
            "pattern",
            "data",
            "info",
            "random",
            "split",
            "file",
            "eval",
            "partitioning",
            "floppy",
            "cc",
            "example1",
            "example2",
            "example3",
            "iso",
            "linuxdisk",
            "ondemand",
            "tmpdisk",
            "sparse-random",
        ],
        |plugin| {
            Row::new(row_name!(), &["--dump-plugin", plugin])
                .variant(plugin)
                .normalise(plugin_keys)
                .compare_command();
        },
    );
}

#[test]
fn dump_plugin_of_a_thread_model() {
    let thread_model =
        |line: &str| line.starts_with("stdout: thread_model=").then(|| line.to_owned());
    for_each(
        &[
            &["--dump-plugin", "memory"][..],
            &["--dump-plugin", "file"],
            &["--dump-plugin", "split"],
            &["--dump-plugin", "eval"],
            &["--dump-plugin", "random"],
            &["--dump-plugin", "data"],
            &["--dump-plugin", "memory", "-t", "1"],
        ],
        |arguments| {
            Row::new(row_name!(), arguments)
                .variant(&arguments.join(" "))
                .normalise(thread_model)
                .compare_command();
        },
    );
}

#[test]
fn short_and_long_options_lists() {
    for_each(&["--short-options", "--long-options"], |option| {
        Row::new(row_name!(), &[option]).variant(option).compare_command();
    });
}

#[test]
fn no_arguments_at_all() {
    Row::new(row_name!(), &[]).normalise(status).compare_command();
}

#[test]
fn unknown_options() {
    for_each(&["--frobnicate", "-Z", "--filter", "-p"], |option| {
        Row::new(row_name!(), &["memory", "1M", option])
            .variant(option)
            .normalise(status)
            .compare_command();
    });
}

#[test]
fn unknown_plugins_and_filters() {
    for_each(
        &[&["nosuchplugin"][..], &["--filter=nosuchfilter", "null"], &["{dir}/nosuch.so"]],
        |arguments| {
            Row::new(row_name!(), arguments)
                .variant(arguments[0])
                .normalise(status)
                .compare_command();
        },
    );
}

#[test]
fn bad_option_values() {
    for_each(
        &[
            &["-p", "notaport"][..],
            &["-p", "65536"],
            &["-p", "-1"],
            &["-t", "x"],
            &["-t", "-1"],
            &["--mask-handshake", "x"],
            &["--log=frob"],
            &["--tls=frob"],
            &["-D", "frob"],
            &["-D", "memory.frob"],
            &["-D", "memory.frob=x"],
            &["-s", "-p", "0"],
            &["-i", "127.0.0.1", "-U", "-"],
            &["--run", "true", "-s"],
            &["--vsock"],
            &["-U", "{dir}/a/path/that/does/not/exist"],
        ],
        |arguments| {
            let mut whole = vec!["-f"];
            whole.extend(arguments);
            whole.extend(["null", "--run=exit 0"]);
            Row::new(row_name!(), &whole)
                .variant(&arguments.join(" "))
                .normalise(status)
                .compare_command();
        },
    );
}

#[test]
fn unknown_users_and_groups() {
    for_each(&[["-u", "nosuchuser"], ["-g", "nosuchgroup"]], |[option, name]| {
        // Without --run, whose command may end before the name is looked up.
        Row::new(row_name!(), &[option, name, "null"]).variant(option).compare(|_| {});
    });
}

#[test]
fn bad_parameters() {
    for_each(
        &[
            &["memory"][..],
            &["memory", "size="],
            &["memory", "size=-1"],
            &["memory", "size=1Q"],
            &["memory", "9223372036854775808"],
            &["memory", "1M", "frob=1"],
            &["memory", "1M", "frob"],
            &["memory", "1M", "allocator=frob"],
            &["null", "size=x"],
            &["null", "frob=1"],
            &["zero", "size=1"],
            &["full"],
            &["pattern"],
            &["random", "1M", "seed=x"],
            &["info", "mode=frob"],
            &["--filter=error", "null", "error=EFROB"],
            &["--filter=error", "null", "error-rate=101%"],
            &["--filter=delay", "null", "rdelay=x"],
            &["--filter=truncate", "null", "truncate=-1"],
            &["--filter=fua", "null", "fuamode=frob"],
            &["--filter=nozero", "null", "zeromode=frob"],
            &["--filter=limit", "null", "limit=x"],
            &["--filter=exportname", "null", "exportname-list=frob"],
            &["--filter=cow", "null", "cow-block-size=1000"],
        ],
        |arguments| {
            let mut whole = vec!["-U", "{dir}/sock"];
            whole.extend(arguments);
            whole.push("--run=exit 0");
            Row::new(row_name!(), &whole)
                .variant(&arguments.join(" "))
                .normalise(status)
                .compare_command();
        },
    );
}

/// What users read when a parameter is wrong.
#[test]
fn messages_of_common_mistakes() {
    for_each(
        &[
            &["memory"][..],
            &["memory", "1M", "frob=1"],
            &["memory", "size=1Q"],
            &["zero", "size=1"],
            &["file", "{dir}/missing"],
            &["data", "raw=abc", "zz=1"],
            &["data", "base64=AAAA", "raw=x"],
        ],
        |arguments| {
            let mut whole = vec!["-U", "{dir}/sock"];
            whole.extend(arguments);
            whole.push("--run=exit 0");
            Row::new(row_name!(), &whole).variant(&arguments.join(" ")).compare_command();
        },
    );
}

#[test]
fn run_gives_the_commands_exit_status() {
    for_each(&["exit 0", "exit 3", "exit 255", "kill -TERM $$", "kill -HUP $$"], |command| {
        let run = format!("--run={command}");
        Row::new(row_name!(), &["-U", "-", "null", &run])
            .variant(command)
            .normalise(status)
            .compare_command();
    });
}

#[test]
fn run_with_a_private_socket() {
    let run = r#"--run=echo "uri=$uri nbd=$nbd port=$port socket=$unixsocket export=$exportname"; test -S "$unixsocket""#;
    let arguments = ["-U", "-", "null", run];
    Row::new(row_name!(), &arguments).normalise(private_socket).compare_command();
}

#[test]
fn run_with_an_export_name() {
    let run = r#"--run=echo "uri=$uri export=$exportname""#;
    let arguments = ["-U", "{dir}/sock", "-e", "a b/c%ü", "null", run];
    Row::new(row_name!(), &arguments).compare_command();
}

#[test]
fn run_with_tcp() {
    let run = r#"--run=echo "uri=$uri port=$port socket=$unixsocket""#;
    let port = nbdkit_tests::server::free_port().to_string();
    // The number itself differs from run to run of this test, not between the sides.
    Row::new(row_name!(), &["-p", &port, "-i", "127.0.0.1", "null", run]).compare_command();
}

#[test]
fn run_finds_clients_served() {
    let run = r#"--run=nbdinfo --size "$uri""#;
    Row::new(row_name!(), &["-U", "-", "memory", "1M", run]).compare_command();
}

#[test]
fn pid_file_and_socket_are_left_where_they_were_asked_for() {
    let setup = |dir: &TempDir| std::fs::write(dir.join("pid"), "old\n").unwrap();
    // The command may run before the pid file is written.
    let run = "--run=for i in $(seq 100); do
            grep -qx '[0-9][0-9]*' {dir}/pid && test -S {dir}/sock && echo as asked && break
            sleep 0.1
        done";
    let arguments = ["-U", "{dir}/sock", "-P", "{dir}/pid", "null", run];
    Row::new(row_name!(), &arguments).setup(setup).compare_command();
}

#[test]
fn a_socket_in_use_is_an_error() {
    let setup = |dir: &TempDir| std::fs::write(dir.join("sock"), "").unwrap();
    let arguments = ["-U", "{dir}/sock", "null", "--run=exit 0"];
    Row::new(row_name!(), &arguments).setup(setup).normalise(status).compare_command();
}
