//! The sh plugin with a whole script, through the layer that the server calls.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbdkit_api::client::Peer;
use nbdkit_api::{
    BlockSize, Cache, Client, Exports, Extents, Flags, Fua, Layer, Open, Plugin, Result, Stack,
    ThreadModel, Value, Zero,
};

use super::Sh;

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sh/tests/disk.sh")
}

/// The plugin after `config_complete`, and its temporary directory.
fn configured(parameters: &[(&str, &str)]) -> Result<(Sh, PathBuf)> {
    let mut plugin = Sh::default();
    plugin.config("script", Value::new(&script()))?;
    for (key, value) in parameters {
        plugin.config(key, Value::new(*value))?;
    }
    plugin.config_complete()?;
    let tmpdir = plugin.scripts()?.tmpdir.path().to_owned();
    Ok((plugin, tmpdir))
}

fn serving() -> (Arc<Layer>, PathBuf) {
    let (plugin, tmpdir) = configured(&[("script", "Fritz")]).unwrap();
    let mut stack = Stack::new(vec![], Box::new(plugin));
    let model = stack.thread_model().unwrap();
    assert_eq!(model, ThreadModel::Parallel);
    stack.get_ready(model).unwrap();
    let layer = stack.freeze();
    layer.after_fork().unwrap();
    (layer, tmpdir)
}

fn client() -> Arc<Client> {
    Client::new(1, Peer::default(), None, Box::new(|| {}))
}

fn log(tmpdir: &Path) -> Vec<String> {
    let log = std::fs::read_to_string(tmpdir.join("log")).unwrap();
    log.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn a_disk_is_served_by_a_script() {
    let (layer, tmpdir) = serving();
    let client = client();
    let open = Open { client: Some(&client), readonly: false, export: "x y", tls: false };
    let disk = layer.open(&open).unwrap();
    disk.prepare().unwrap();
    assert_eq!(disk.size().unwrap(), 1 << 20);
    assert_eq!(disk.export_description().unwrap(), "disk Fritz");
    let sizes = BlockSize { minimum: 1, preferred: 4096, maximum: 1 << 20 };
    assert_eq!(disk.block_size().unwrap(), sizes);
    assert!(disk.can_write().unwrap() && disk.can_flush().unwrap() && disk.can_trim().unwrap());
    assert!(!disk.is_rotational().unwrap() && !disk.can_multi_conn().unwrap());
    assert_eq!(disk.can_zero().unwrap(), Zero::Native);
    // There is no can_fast_zero, but there is zero.
    assert!(!disk.can_fast_zero().unwrap());
    assert_eq!(disk.can_fua().unwrap(), Fua::Native);
    assert_eq!(disk.can_cache().unwrap(), Cache::Native);
    disk.pwrite(b"hello", 100_000, Flags::FUA).unwrap();
    let mut buf = [1; 7];
    disk.pread(&mut buf, 99_999).unwrap();
    assert_eq!(&buf, b"\0hello\0");
    // The script's EOPNOTSUPP makes the server write zeroes.
    disk.zero(2, 100_001, Flags::MAY_TRIM).unwrap();
    disk.pread(&mut buf, 99_999).unwrap();
    assert_eq!(&buf, b"\0h\0\0lo\0");
    disk.trim(512, 0, Flags::empty()).unwrap();
    disk.flush().unwrap();
    disk.cache(512, 1024).unwrap();
    let mut extents = Extents::new(0, 1 << 20);
    disk.extents(1 << 20, 0, Flags::REQ_ONE, &mut extents).unwrap();
    assert_eq!(extents.as_slice()[0].length, 64 << 10);
    drop(disk);
    let log = log(&tmpdir);
    for line in [
        "config name Fritz",
        "get_ready",
        "after_fork",
        "open false x y false",
        "pwrite handle of x y 5 100000 fua",
        "pread handle of x y 7 99999",
        "zero handle of x y 2 100001 may_trim",
        "trim handle of x y 512 0",
        "extents handle of x y 1048576 0 req_one",
        "close handle of x y",
    ] {
        assert!(log.iter().any(|have| have == line), "{line} in {log:#?}");
    }
    drop(layer);
    assert!(!tmpdir.exists());
}

#[test]
fn exports_are_listed_and_the_default_is_asked_for() {
    let (layer, tmpdir) = serving();
    let client = client();
    let mut exports = Exports::new();
    layer.preconnect(&client, true).unwrap();
    layer.list_exports(&client, true, &mut exports).unwrap();
    assert_eq!(exports.iter().nth(1).unwrap().description.as_deref(), Some("second"));
    assert_eq!(layer.default_export(&client, false).unwrap().as_deref(), Some("one"));
    let log = log(&tmpdir);
    assert!(log.contains(&"preconnect true".to_owned()));
    assert!(log.contains(&"list_exports true false".to_owned()));
}

#[test]
fn the_first_parameter_is_the_script() {
    let mut plugin = Sh::default();
    let why = plugin.config("a", Value::new("b")).unwrap_err();
    assert_eq!(why.message(), "the first parameter must be script=/path/to/script");
    assert_eq!(plugin.config_complete().unwrap_err().message(), "missing script parameter");
    let why = plugin.config("script", Value::new("/nonexistent/script")).unwrap_err();
    assert_eq!(why.message(), "realpath: /nonexistent/script: No such file or directory");
    // A text file that may not be executed.
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let why = plugin.config("script", Value::new(&manifest)).unwrap_err();
    assert!(why.message().ends_with("Permission denied"), "{why}");
}

#[test]
fn errors_of_the_script_are_the_messages_of_the_server() {
    let why = configured(&[("bad", "thing")]).err().unwrap();
    let script = script().canonicalize().unwrap();
    assert_eq!(why.message(), format!("{}: bad parameter: thing", script.display()));
}

#[test]
fn dump_plugin_tells_what_the_script_adds() {
    let mut out = Vec::new();
    Sh::default().dump_plugin(&mut out).unwrap();
    assert_eq!(out, b"max_known_status=8\n");
    out.clear();
    configured(&[]).unwrap().0.dump_plugin(&mut out).unwrap();
    assert_eq!(out, b"max_known_status=8\ndisk=yes\n");
}
