//! What comes after the plugin's name, and how words of the command line are told apart: keys,
//! magic keys, scripts, parameter files, getopt's permutation and abbreviations. nbdkit(1), "Plugin
//! configuration".

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use nbdkit_tests::binary::Binary;
use nbdkit_tests::{Ask, Server};

use crate::support::{
    Foreground, Paths, assert_refused, assert_serves, connect, debian_lacks, open, pid_in, run,
};

/// The size of the default export that a server with these arguments serves.
fn size(arguments: &[&str]) -> u64 {
    let server = Server::nbdkit(arguments).start();
    size_of(&server)
}

fn size_of(server: &Server) -> u64 {
    let mut client = server.connect();
    open(&mut client);
    client.export().expect("an export").0
}

#[test]
fn a_bare_word_is_the_value_of_the_magic_key() {
    assert_eq!(size(&["memory", "64K"]), 65536);
    assert_eq!(size(&["memory", "size=64K"]), 65536);
    assert_eq!(size(&["null", "123"]), 123);
    assert_eq!(size(&["pattern", "1M"]), 1 << 20);
    assert_eq!(size(&["data", "1 2 3", "size=512"]), 512);
}

#[test]
fn a_magic_value_may_look_like_a_key_if_it_begins_otherwise() {
    let builder = Server::nbdkit(["file", "{dir}/a=b.img"]);
    std::fs::write(builder.dir().join("a=b.img"), vec![1; 1024]).unwrap();
    assert_eq!(size_of(&builder.start()), 1024);
}

#[test]
fn a_bare_word_for_a_plugin_that_knows_no_parameters_is_refused() {
    for word in ["foo", "size=1", "foo=bar"] {
        assert_refused(
            ["-f", "-U", "-", "zero", word],
            &["does not need command line configuration"],
        );
    }
}

#[test]
fn the_first_bare_word_of_a_plugin_without_a_magic_key_is_its_script() {
    // eval has no parameter "script": its complaint names the key that the word was given.
    let finished = run(["-f", "-U", "-", "eval", "word"]);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("script"), "{finished:?}");
}

#[test]
fn a_later_bare_word_of_such_a_plugin_is_refused() {
    assert_refused(
        ["-f", "-U", "-", "eval", "get_size=echo 1M", "word"],
        &["expecting key=value on the command line", "word"],
    );
}

#[test]
fn unknown_keys_are_refused_by_name() {
    for plugin in ["memory", "null", "pattern"] {
        let finished = run(["-f", "-U", "-", plugin, "1M", "frob=1"]);
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(finished.stderr.contains("frob"), "{finished:?}");
    }
}

#[test]
fn a_filter_takes_its_own_parameters() {
    assert_eq!(size(&["--filter=truncate", "memory", "1M", "truncate=4K"]), 4096);
    assert_eq!(size(&["--filter", "truncate", "memory", "truncate=8K", "1M"]), 8192);
}

#[test]
fn filters_stack_in_the_order_of_the_command_line() {
    let stack = |first: &str, second: &str| {
        size(&[first, second, "memory", "1M", "truncate=64K", "offset=4K", "range=32K"])
    };
    // The first is the nearest to the client.
    assert_eq!(stack("--filter=truncate", "--filter=offset"), 64 << 10);
    assert_eq!(stack("--filter=offset", "--filter=truncate"), 32 << 10);
}

const SCRIPT: &str = r#"
case "$1" in
    get_size) echo 64K ;;
    pread) head -c "$3" /dev/zero ;;
    *) exit 2 ;;
esac
"#;

#[test]
fn a_script_is_the_magic_value_of_sh() {
    let builder = Server::nbdkit(["sh", "{dir}/script"]);
    std::fs::write(builder.dir().join("script"), format!("#!/bin/sh\n{SCRIPT}")).unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(builder.dir().join("script"), mode).unwrap();
    let server = builder.start();
    assert_eq!(size_of(&server), 65536);
    assert_serves(&mut server.connect());
}

#[test]
fn a_file_that_names_the_server_as_its_interpreter_can_be_executed() {
    let paths = Paths::new();
    // The kernel appends the path of the script: "nbdkit file ./script -f ...". A plugin that runs
    // its script, sh, would run this one for ever; the file plugin serves it.
    let text = format!("#!{} file\nserved as it is\n", Binary::under_test().path().display());
    // Longer first lines are cut by Linux before 5.1.
    assert!(text.len() < 127, "{text}: build in a shorter path");
    let script = paths.write("script", &text);
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("/bin/sh");
    // A thread of ours that forks while the file is open for writing makes it busy for a moment,
    // and sh says so.
    command.args(["-c", r#"sleep 0.2; exec "$0" "$@""#, &script]);
    command.args(["-f", "-U", &paths.text("sock"), "-P", &paths.text("pid")]);
    let server = Foreground::start(command.stdin(Stdio::null()));
    assert_eq!(pid_in(&paths.path("pid")), server.pid().as_raw());
    let mut client = connect(&paths.path("sock"));
    open(&mut client);
    assert_eq!(client.export().map(|(size, _)| size), Some(text.len() as u64));
    let reply = client.call(&Ask::read(0, text.len() as u64)).expect("a reply");
    assert_eq!(String::from_utf8_lossy(&reply.data), text);
}

#[test]
fn a_script_on_standard_input_is_read() {
    let paths = Paths::new();
    let mut command = crate::support::nbdkit([
        "-f",
        "-U",
        &paths.text("sock"),
        "-P",
        &paths.text("pid"),
        "sh",
        "-",
    ]);
    let input = paths.write("input", format!("#!/bin/sh\n{SCRIPT}"));
    let _server = Foreground::start(command.stdin(std::fs::File::open(input).unwrap()));
    let _ = pid_in(&paths.path("pid"));
    assert_serves(&mut connect(&paths.path("sock")));
}

#[test]
fn parameters_can_come_from_a_file() {
    if debian_lacks("@FILE") {
        return;
    }
    let builder = Server::nbdkit(["--filter=truncate", "memory", "@{dir}/parameters"]);
    let dir = builder.dir();
    let text = "# a comment\n\nsize=1M\n   \n@more/last\n";
    std::fs::write(dir.join("parameters"), text).unwrap();
    std::fs::create_dir(dir.join("more")).unwrap();
    // Relative to the file that names it.
    std::fs::write(dir.join("more/last"), "@again").unwrap();
    std::fs::write(dir.join("more/again"), "truncate=12K").unwrap();
    assert_eq!(size_of(&builder.start()), 12 << 10);
}

#[test]
fn lines_of_a_parameter_file_are_taken_as_they_are() {
    if debian_lacks("@FILE") {
        return;
    }
    let builder = Server::nbdkit(["file", "@{dir}/parameters"]);
    let name = "  two words 'and' \"quotes\" # no comment ";
    let path = builder.dir().join(name);
    std::fs::write(&path, vec![1; 2048]).unwrap();
    let text = format!("file={}\n", path.display());
    std::fs::write(builder.dir().join("parameters"), text).unwrap();
    assert_eq!(size_of(&builder.start()), 2048);
}

/// nbdkit-data-plugin(1), "Data format": `@` moves the offset, and an example of its manual page
/// begins with it.
#[test]
fn words_with_an_at_sign_that_name_no_file_are_values() {
    for (arguments, expected) in [
        (&["data", "@0x1fe 0x55 0xaa"][..], 512),
        (&["data", "@+10"], 10),
        (&["data", "1 @-1 2", "size=7"], 7),
        (&["data", "@^512"], 0),
        (&["data", "@8 1 @^512"], 512),
    ] {
        assert_eq!(size(arguments), expected, "{arguments:?}");
    }
}

#[test]
fn a_value_is_one_also_where_a_file_has_its_name() {
    let paths = Paths::new();
    paths.write("10", "size=20\n");
    // A number is the plugin's, though there is a file; a name is the file's.
    paths.write("name", "size=30\n");
    // The file has no data in it.
    for (word, expected) in [("@10", "10"), ("@name", "data parameter was not specified")] {
        if word == "@name" && debian_lacks("@FILE") {
            return;
        }
        let mut command =
            crate::support::nbdkit(["-U", "-", "data", word, "--run", "nbdinfo --size $uri"]);
        let finished = nbdkit_tests::command::run(
            command.current_dir(paths.path(".")),
            crate::support::DEADLINE,
        );
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(said.contains(expected), "{word}: {said}");
    }
}

#[test]
fn parameter_files_that_cannot_be_read_are_refused() {
    if debian_lacks("@FILE") {
        return;
    }
    let paths = Paths::new();
    paths.write("loop", "@loop\n");
    paths.write("nul", b"size=1\0M\n");
    std::fs::write(paths.path("long"), vec![b'#'; 2 << 20]).unwrap();
    for name in ["missing", "loop", "nul", "long", "."] {
        let path = paths.text(name);
        assert_refused(["-f", "-U", "-", "memory", &format!("@{path}")], &[name]);
    }
    // Without a magic key the word can mean nothing but a file.
    assert_refused(["-f", "-U", "-", "zero", "@missing"], &["missing: No such file or directory"]);
    assert_refused(["-f", "-U", "-", "memory", "@/dev/zero"], &["/dev/zero"]);
}

#[test]
fn options_and_parameters_mix_as_getopt_permutes_them() {
    let paths = Paths::new();
    for (at, arguments) in [
        &["memory", "1M", "-U", "SOCK", "--run", "echo $uri"][..],
        &["-U", "SOCK", "memory", "--run", "echo $uri", "1M"],
        &["--run", "echo $uri", "memory", "-U", "SOCK", "1M"],
        &["--run=echo $uri", "-USOCK", "--", "memory", "1M"],
        &["memory", "-fUSOCK", "1M", "--run=echo $uri"],
    ]
    .iter()
    .enumerate()
    {
        let socket = paths.text(&format!("sock{at}"));
        let arguments: Vec<String> =
            arguments.iter().map(|argument| argument.replace("SOCK", &socket)).collect();
        let finished = run(&arguments);
        assert_eq!(finished.stdout, format!("nbd+unix://?socket={socket}\n"), "{finished:?}");
    }
}

#[test]
fn after_two_dashes_there_are_no_options() {
    // "-f" is then the plugin's magic parameter.
    let finished = run(["-U", "-", "--run", "true", "--", "memory", "-f"]);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains("-f"), "{finished:?}");
}

#[test]
fn long_options_may_be_abbreviated_as_long_as_they_are_unique() {
    for options in [
        &["--read", "--exp=a", "--unix", "-"][..],
        &["--fore", "--unix=-", "--thr=2"],
        &["--no-s", "--mask=3", "--uni", "-"],
        // An exact match wins over longer names.
        &["--export", "a", "-U-"],
    ] {
        let finished = run([options, &["null", "--run", "exit 6"]].concat());
        assert_eq!(finished.status.code(), Some(6), "{options:?}: {finished:?}");
    }
}

#[test]
fn ambiguous_unknown_and_superfluous_words_are_refused() {
    for (arguments, words) in [
        (&["--r", "null"][..], &["option '--r' is ambiguous"][..]),
        (&["--ip", "null"], &["option '--ip' is ambiguous"]),
        (&["--nosuch", "null"], &["unrecognized option '--nosuch'"]),
        (&["--nosuch=1", "null"], &["unrecognized option '--nosuch=1'"]),
        (&["--verbose=1", "null"], &["option '--verbose' doesn't allow an argument"]),
        (&["null", "--port"], &["option '--port' requires an argument"]),
        (&["null", "-p"], &["option requires an argument -- 'p'"]),
        (&["-Z", "null"], &["invalid option -- 'Z'"]),
        (&["null", "-t", "x"], &["threads"]),
        (&["null", "--mask-handshake=x"], &["mask-handshake"]),
    ] {
        let finished = run(arguments);
        assert_eq!(finished.status.code(), Some(1), "{arguments:?}: {finished:?}");
        for word in words {
            assert!(finished.stderr.contains(word), "{arguments:?}: {finished:?}");
        }
    }
}

#[test]
fn a_command_line_without_a_plugin_is_refused() {
    for arguments in [&[][..], &["-f"], &["-U", "-"], &["--filter=cow"]] {
        let finished = run(arguments);
        assert_eq!(finished.status.code(), Some(1), "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains("no plugins given"), "{finished:?}");
    }
}

#[test]
fn unknown_plugins_and_filters_are_refused_by_name() {
    for (arguments, name) in [
        (&["nosuchplugin"][..], "nosuchplugin"),
        (&["--filter=nosuchfilter", "null"], "nosuchfilter"),
        (&["/nonexistent/plugin.so"], "/nonexistent/plugin.so"),
        (&["--filter=/nonexistent/filter.so", "null"], "/nonexistent/filter.so"),
    ] {
        let finished = run([&["-f", "-U", "-"], arguments].concat());
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(finished.stderr.contains(name), "{finished:?}");
    }
}

#[test]
fn a_directory_is_listed_in_its_own_order() {
    let paths = Paths::new();
    std::fs::create_dir(paths.path("disks")).unwrap();
    // So many that no order comes about by chance.
    for number in 0..100 {
        paths.write(&format!("disks/{number}"), "disk");
    }
    let directory = paths.path("disks");
    let expected: Vec<String> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let server = Server::nbdkit(["file", &format!("dir={}", directory.display())]).start();
    let mut client = server.connect();
    client.handshake().unwrap();
    let exports = client.list().unwrap().exports;
    let names: Vec<String> = exports.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, expected);
}
