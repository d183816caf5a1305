//! nbdinfo(1), nbdcopy(1), nbdsh(1).

use nbdkit_tests::Server;

use crate::{has, must, noise, sparse_disk, uri};

#[test]
fn nbdinfo_tells_size_and_features() {
    if !has("nbdinfo") {
        return;
    }
    let server = Server::nbdkit(["memory", "1M"]).start();
    let text = must("nbdinfo", &[&uri(&server)]).stdout;
    for line in [
        "export-size: 1048576 (1M)",
        "can_multi_conn: true",
        "can_fast_zero: true",
        "base:allocation",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let list = must("nbdinfo", &["--list", &uri(&server)]).stdout;
    assert!(list.contains("export=\"\""), "{list}");
}

#[test]
fn nbdinfo_maps_the_holes_of_a_file() {
    if !has("nbdinfo") {
        return;
    }
    let builder = Server::nbdkit(["file", "{dir}/disk"]);
    sparse_disk(&builder.dir().join("disk"));
    let server = builder.start();
    let map = must("nbdinfo", &["--map", &uri(&server)]).stdout;
    let rows: Vec<Vec<&str>> =
        map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(
        rows,
        [
            ["0", "2097152", "0"],
            ["2097152", "4194304", "3"],
            ["6291456", "1048576", "0"],
            ["7340032", "9437184", "3"]
        ]
    );
}

#[test]
fn nbdcopy_copies_in_and_out() {
    if !has("nbdcopy") {
        return;
    }
    for plugin in [&["memory", "16M"][..], &["file", "{dir}/target"]] {
        let builder = Server::nbdkit(plugin);
        let source = builder.dir().join("source");
        let content = sparse_disk(&source);
        std::fs::File::create(builder.dir().join("target"))
            .and_then(|f| f.set_len(16 << 20))
            .expect("a target");
        let server = builder.start();
        let copy = server.dir().join("copy");
        must("nbdcopy", &["--flush", &source.to_string_lossy(), &uri(&server)]);
        must("nbdcopy", &[&uri(&server), &copy.to_string_lossy()]);
        assert!(std::fs::read(copy).expect("a copy") == content, "{plugin:?}");
    }
}

#[test]
fn nbdcopy_through_filters_keeps_the_bytes() {
    if !has("nbdcopy") {
        return;
    }
    let builder = Server::nbdkit([
        "--filter=cow",
        "--filter=offset",
        "file",
        "{dir}/disk",
        "offset=1M",
        "range=8M",
    ]);
    let content = sparse_disk(&builder.dir().join("disk"));
    let server = builder.start();
    let copy = server.dir().join("copy");
    must("nbdcopy", &[&uri(&server), &copy.to_string_lossy()]);
    assert!(std::fs::read(&copy).expect("a copy") == content[1 << 20..9 << 20]);
    let other = noise(8 << 20);
    std::fs::write(&copy, &other).expect("written");
    must("nbdcopy", &[&copy.to_string_lossy(), &uri(&server)]);
    let again = server.dir().join("again");
    must("nbdcopy", &[&uri(&server), &again.to_string_lossy()]);
    assert!(std::fs::read(&again).expect("a copy") == other);
    let below = std::fs::read(server.dir().join("disk")).expect("the disk");
    assert!(below == content, "cow must not change the disk");
}

#[test]
fn nbdsh_uses_every_command() {
    if !has("nbdsh") {
        return;
    }
    let server = Server::nbdkit(["memory", "1M"]).start();
    let script = r#"
assert h.get_size() == 1048576
h.pwrite(b"hello", 1000)
h.pwrite(b"x" * 300000, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(7, 999) == b"\0hello\0"
h.zero(4096, 8192)
h.trim(65536, 131072)
h.cache(65536, 0)
h.flush()
assert h.pread(4096, 8192) == bytearray(4096)
extents = []
h.block_status(1048576, 0, lambda context, offset, entries, error: extents.extend(entries) or 0)
assert sum(extents[0::2]) == 1048576, extents
try:
    h.set_strict_mode(0)
    h.pread(512, 1048576)
    assert False
except nbd.Error as error:
    assert error.errno == "EINVAL", error.errno
print("done")
"#;
    let context = "h.add_meta_context(\"base:allocation\")";
    let connect = format!("h.connect_uri(\"{}\")", uri(&server));
    let output = must("nbdsh", &["-c", context, "-c", &connect, "-c", script]).stdout;
    assert_eq!(output.trim(), "done");
}
