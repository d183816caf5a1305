//! nbdkit-cc-plugin(3).

use nbdkit_tests::binary::Binary;
use nbdkit_tests::differential::{Row, for_each};
use nbdkit_tests::server::{Builder, ours};
use nbdkit_tests::{Ask, Server, TempDir, command, row_name};
use std::process::Command;
use std::time::Duration;

use crate::support::{exercise, file, open, top};

/// A disk of `size` bytes, which clients share.
const SOURCE: &str = r#"
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#ifndef FILL
#define FILL "x"
#endif

int disk_debug_loud;
static char data[1 << 20];
static int64_t size = 65536;

static int
disk_config (const char *key, const char *value)
{
  if (strcmp (key, "size") != 0) {
    nbdkit_error ("unknown parameter '%s'", key);
    return -1;
  }
  size = nbdkit_parse_size (value);
  if (size == -1)
    return -1;
  memset (data, FILL[0], 512);
  return 0;
}

static void *
disk_open (int readonly)
{
  if (disk_debug_loud)
    nbdkit_debug ("disk: loud");
  return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t
disk_get_size (void *handle)
{
  return size;
}

static int
disk_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  memcpy (buf, data + offset, count);
  return 0;
}

static int
disk_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  memcpy (data + offset, buf, count);
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "disk",
  .config = disk_config,
  .open = disk_open,
  .get_size = disk_get_size,
  .pread = disk_pread,
  .pwrite = disk_pwrite,
};

NBDKIT_REGISTER_PLUGIN (plugin)
"#;

fn source(dir: &TempDir) {
    let old = SOURCE.replace("VERSION 2", "VERSION 1");
    let old = old
        .replace(",\n            uint32_t flags", "")
        .replace(",\n             uint32_t flags", "");
    for (name, text) in
        [("disk.c", SOURCE), ("old.c", &old), ("wrong.c", "int x = ;"), ("empty.c", "")]
    {
        file(dir, name, text.as_bytes());
    }
    std::fs::create_dir(dir.join("tmp")).unwrap();
}

fn served(arguments: &[&str]) -> Builder {
    let builder = ours(arguments);
    source(builder.dir());
    let tmp = builder.dir().join("tmp");
    builder.env("TMPDIR", tmp)
}

fn left_behind(server: &Server) -> usize {
    std::fs::read_dir(server.dir().join("tmp")).unwrap().count()
}

#[test]
fn a_source_is_compiled_and_gets_its_parameters() {
    let extra = "EXTRA_CFLAGS=-DFILL='\"y z\"'";
    let arguments = ["cc", "{dir}/disk.c", "size=128K", extra, "-v", "-D", "disk.loud=1"];
    let server = served(&arguments).start();
    assert_eq!(left_behind(&server), 0);
    let (mut one, mut other) = (server.connect(), server.connect());
    open(&mut one);
    open(&mut other);
    assert_eq!(one.export().map(|(size, _)| size), Some(128 << 10));
    assert_eq!(one.call(&Ask::read(0, 512)).expect("a reply").data, [b'y'; 512]);
    assert_eq!(one.call(&Ask::write(512, [7; 512])).expect("a reply").error, None);
    assert_eq!(other.call(&Ask::read(512, 512)).expect("a reply").data, [7; 512]);
    let text = server.wait_for_stderr("disk: loud");
    assert!(!text.contains("debug flag -D disk.loud was not used"), "{text}");
}

#[test]
fn a_source_may_come_from_standard_input() {
    let server = served(&["cc", "-"]).through_shell("exec \"$0\" \"$@\" < {dir}/disk.c").start();
    let mut client = server.connect();
    open(&mut client);
    assert_eq!(client.export().map(|(size, _)| size), Some(64 << 10));
    assert_eq!(left_behind(&server), 0);
}

#[test]
fn a_source_that_declares_what_it_needs_is_confined_strictly() {
    let example = top().join("examples/c-plugin/textfile.c");
    let flags = format!("EXTRA_CFLAGS=-I{}", top().join("include").display());
    let arguments =
        ["--sandbox=strict", "cc", example.to_str().unwrap(), "file={dir}/wrong.c", &flags];
    let server = served(&arguments).start();
    let (mut one, mut other) = (server.connect(), server.connect());
    open(&mut one);
    open(&mut other);
    assert_eq!(server.workers().len(), 2);
    assert_eq!(one.call(&Ask::read(0, 3)).expect("a reply").data, b"int");
}

#[test]
fn a_source_may_be_in_another_language() {
    let example = top().join("tests/cplugins/plain.cc");
    let server = served(&["cc", example.to_str().unwrap(), "CC=c++"]).start();
    open(&mut server.connect());
}

#[test]
fn what_cannot_be_compiled_stops_the_start_and_leaves_nothing_behind() {
    for (arguments, why) in [
        (&["wrong.c"][..], "cc: command failed with exit code 1"),
        (&["disk.c", "CC=no-such-compiler"], "(Debian has a compiler in the package gcc)"),
        (&["disk.c", "CFLAGS=-fPIC -shared --no-such-flag"], "cc: command failed"),
        (&["disk.c", "CFLAGS=-c"], "cannot open plugin"),
        (&["empty.c"], "undefined symbol: plugin_init"),
        (&["old.c"], "plugin uses the wrong NBDKIT_API_VERSION, it must be 2"),
        (&["disk.c", "foo=1"], "unknown parameter 'foo'"),
        (&["nothing.c"], "No such file or directory"),
    ] {
        let builder = served(&["cc", &format!("{{dir}}/{}", arguments[0])]).args(&arguments[1..]);
        let tmp = builder.dir().join("tmp");
        let finished = builder.try_start().expect_err("refused");
        assert!(finished.stderr.contains(why), "{arguments:?}: {}", finished.stderr);
        assert_eq!(finished.status.code(), Some(1), "{arguments:?}");
        assert!(std::fs::read_dir(tmp).map_or(0, Iterator::count) == 0, "{arguments:?}");
    }
}

#[test]
fn standard_input_is_the_clients_with_s() {
    let mut nbdkit = Command::new(Binary::ours().path());
    let finished = command::run(nbdkit.args(["-s", "cc", "-"]), Duration::from_secs(20));
    assert!(finished.stderr.contains("inline script is incompatible with -s"), "{finished:?}");
}

#[test]
fn cc() {
    for_each(
        &[&["cc", "{dir}/disk.c"][..], &["cc", "script={dir}/disk.c", "size=1M"]],
        |arguments| {
            Row::new(row_name!(), arguments)
                .variant(&arguments.join(" "))
                .setup(source)
                .compare(exercise);
        },
    );
}

#[test]
fn cc_refusals() {
    let rows: &[&[&str]] = &[
        &["cc"],
        &["cc", "CC=gcc", "{dir}/disk.c"],
        &["cc", "{dir}/disk.c", "script={dir}/disk.c"],
        &["cc", "{dir}/nothing.c"],
        &["cc", "{dir}/old.c"],
    ];
    for_each(rows, |arguments| {
        Row::new(row_name!(), arguments)
            .variant(&arguments.join(" "))
            .setup(source)
            .compare(|_| {});
    });
}

/// The examples in C serve what the built-in ones do.
#[test]
fn the_examples_in_c_are_the_built_in_ones() {
    let transcript = |arguments: &[&str]| {
        let builder = served(arguments);
        file(builder.dir(), "file", &[7; 10_000]);
        let server = builder.start();
        let mut client = server.connect();
        open(&mut client);
        let size = client.export().map(|(size, _)| size);
        let asks = [Ask::write(512, [1; 512]), Ask::read(0, 8192), Ask::flush()];
        let replies = asks.map(|ask| {
            let reply = client.call(&ask).expect("a reply");
            (reply.error.map(|error| error.code), reply.data)
        });
        assert_eq!(left_behind(&server), 0);
        (size, replies)
    };
    for (name, parameter) in
        [("example1", None), ("example2", Some("file={dir}/file")), ("example3", Some("size=1M"))]
    {
        let source = top().join(format!("examples/{name}.c"));
        let built_in = transcript(&[&[name][..], parameter.as_slice()].concat());
        let flags = ["cc", source.to_str().unwrap(), "EXTRA_CFLAGS=-Wall -Werror"];
        assert_eq!(transcript(&[&flags[..], parameter.as_slice()].concat()), built_in, "{name}");
    }
}

#[test]
fn the_example_in_python_is_a_disk_that_clients_share() {
    let example = top().join("examples/example4.py");
    let server = ours(&["python", example.to_str().unwrap(), "size=1M"]).start();
    let (mut one, mut other) = (server.connect(), server.connect());
    open(&mut one);
    open(&mut other);
    assert_eq!(one.call(&Ask::write(512, [7; 512])).expect("a reply").error, None);
    assert_eq!(one.call(&Ask::write_zeroes(600, 100)).expect("a reply").error, None);
    let expected = [vec![7; 88], vec![0; 100], vec![7; 324]].concat();
    assert_eq!(other.call(&Ask::read(512, 512)).expect("a reply").data, expected);
    let finished = ours(&["python", example.to_str().unwrap()]).try_start().expect_err("refused");
    assert!(finished.stderr.contains("size was not set"), "{}", finished.stderr);
}
