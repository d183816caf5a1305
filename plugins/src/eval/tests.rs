//! The eval plugin, and with it what a script may do wrong in every method.

use std::ops::Deref;
use std::sync::Arc;

use nbdkit_api::client::Peer;
use nbdkit_api::{
    Cache, Client, Errno, Extents, Flags, Fua, Layer, Next, Open, Plugin, Result, Stack,
    ThreadModel, Value, Zero,
};

use super::{Eval, METHODS};

fn configured(parameters: &[(&str, &str)]) -> Result<Eval> {
    let mut plugin = Eval::default();
    for (key, value) in parameters {
        plugin.config(key, Value::new(*value))?;
    }
    plugin.config_complete()?;
    Ok(plugin)
}

/// A connection, which is closed before its server goes.
struct Disk {
    disk: Next,
    _layer: Arc<Layer>,
}

impl Deref for Disk {
    type Target = Next;

    fn deref(&self) -> &Next {
        &self.disk
    }
}

/// A disk of 512 bytes with these scripts.
fn open(parameters: &[(&str, &str)]) -> Result<Disk> {
    open_for(None, &[&[("get_size", "echo 512")], parameters].concat())
}

fn open_for(client: Option<&Arc<Client>>, parameters: &[(&str, &str)]) -> Result<Disk> {
    let mut stack = Stack::new(vec![], Box::new(configured(parameters)?));
    let model = stack.thread_model()?;
    stack.get_ready(model)?;
    let layer = stack.freeze();
    let disk = layer.open(&Open { client, readonly: false, export: "e", tls: false })?;
    disk.prepare()?;
    Ok(Disk { disk, _layer: layer })
}

#[test]
fn the_methods_are_sorted() {
    assert!(METHODS.is_sorted());
}

#[test]
fn methods_imply_what_the_server_asks_first() {
    let nothing = open(&[]).unwrap();
    assert!(!nothing.can_write().unwrap() && !nothing.can_flush().unwrap());
    assert!(!nothing.can_extents().unwrap());
    assert_eq!(nothing.can_cache().unwrap(), Cache::None);
    let all = ["pwrite", "flush", "trim", "zero", "extents", "cache"].map(|name| (name, "exit 0"));
    let disk = open(&all).unwrap();
    assert!(disk.can_write().unwrap() && disk.can_flush().unwrap() && disk.can_trim().unwrap());
    assert!(disk.can_extents().unwrap());
    assert_eq!(disk.can_zero().unwrap(), Zero::Native);
    assert_eq!(disk.can_fua().unwrap(), Fua::Emulate);
    assert_eq!(disk.can_cache().unwrap(), Cache::Native);
    assert!(!disk.can_fast_zero().unwrap());
    let not = open(&[("pwrite", "exit 0"), ("can_write", "exit 3")]).unwrap();
    assert!(!not.can_write().unwrap());
}

#[test]
fn scripts_share_a_directory_that_goes_with_the_plugin() {
    let plugin = configured(&[
        ("config", "printf %s \"$0 $1 $2 $3\" > $tmpdir/seen"),
        ("get_size", "echo 1M"),
        ("some-key", "value of it"),
        ("unload", "cp $tmpdir/seen $tmpdir.unloaded"),
    ])
    .unwrap();
    let tmpdir = plugin.scripts().unwrap().tmpdir.path().to_owned();
    let seen = std::fs::read_to_string(tmpdir.join("seen")).unwrap();
    assert_eq!(seen, format!("{}/config config some-key value of it", tmpdir.display()));
    drop(plugin);
    assert!(!tmpdir.exists());
    std::fs::remove_file(tmpdir.with_extension("unloaded")).unwrap();
}

#[test]
fn a_fragment_may_name_its_interpreter() {
    let parameters = [("get_size", "echo 1"), ("dump_plugin", "#!/bin/echo a\nb")];
    let plugin = configured(&parameters).unwrap();
    let mut out = Vec::new();
    // A test that forks just now may still have the new file open for writing (ETXTBSY).
    for _ in 0..100 {
        out.clear();
        plugin.dump_plugin(&mut out).unwrap();
        if out.ends_with(b"dump_plugin\n") {
            break;
        }
    }
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with("max_known_status=8\na /tmp/nbdkit"), "{text}");
    assert!(text.ends_with("/dump_plugin dump_plugin\n"), "{text}");
}

#[test]
fn mistakes_on_the_command_line_are_explained() {
    let size = ("get_size", "echo 1M");
    let unknown = "callback 'load' is unknown, and there is no 'config' callback to handle it";
    for (parameters, message) in [
        (&[("pread", "exit 0")][..], "the get_size method is required"),
        (&[], "the get_size method is required"),
        (&[size, size], "method get_size defined more than once on the command line"),
        (&[size, ("load", "x")], unknown),
    ] {
        assert_eq!(configured(parameters).err().unwrap().message(), message);
    }
    let why = configured(&[("config", "echo EIO no $2 >&2; exit 1"), ("a", "b")]).err().unwrap();
    assert!(why.message().ends_with("/config: no a"), "{why}");
    let why = configured(&[size, ("config_complete", "echo EIO >&2; exit 1")]).err().unwrap();
    assert!(why.message().ends_with("/config_complete: Input/output error"), "{why}");
}

#[test]
fn missing_stands_for_every_other_method() {
    let all = r#"case $1 in get_size) echo 2K;; can_write) exit 3;; *) exit 2;; esac"#;
    let disk = open_for(None, &[("missing", all)]).unwrap();
    assert_eq!(disk.size().unwrap(), 2048);
    assert!(!disk.can_write().unwrap());
    let failing = configured(&[("get_size", "echo 1"), ("missing", "echo EIO m $1 >&2; exit 1")]);
    let why = failing.err().unwrap();
    assert!(why.message().ends_with("/missing: m config_complete"), "{why}");
}

#[test]
fn the_thread_model_is_the_safe_one_unless_a_known_one_is_printed() {
    let model = |script: &str| {
        configured(&[("get_size", "echo 1"), ("thread_model", script)]).unwrap().thread_model()
    };
    assert_eq!(model("echo parallel").unwrap(), ThreadModel::Parallel);
    assert_eq!(model("echo foo").unwrap(), ThreadModel::SerializeAllRequests);
    assert_eq!(model("exit 2").unwrap(), ThreadModel::SerializeAllRequests);
    assert!(model("echo EIO x >&2; exit 1").is_err());
    let none = configured(&[("get_size", "echo 1")]).unwrap().thread_model();
    assert_eq!(none.unwrap(), ThreadModel::SerializeAllRequests);
}

#[test]
fn pread_must_print_as_much_as_was_asked_for() {
    let incorrect = |n: usize| {
        format!(
            "incorrect amount of data read: expecting 512 bytes but received {n} bytes from the script"
        )
    };
    for (script, errno, message) in [
        ("printf %512s x", None, String::new()),
        ("printf %513s x", Some(Errno::EIO), incorrect(513)),
        ("printf x", Some(Errno::EIO), incorrect(1)),
        ("exit 3", Some(Errno::EIO), "pread method returned unexpected code (3/false)".into()),
        ("exit 2", Some(Errno::EIO), "the pread method is required".into()),
        ("printf %512s x; kill -9 $$", Some(Errno::EIO), "script terminated by signal 9".into()),
        ("echo ENOSPC full >&2; exit 1", Some(Errno::ENOSPC), "full".into()),
        ("echo ENOMEM >&2; exit 16", Some(Errno::ENOMEM), String::new()),
        ("nosuchcommand_", Some(Errno::EIO), "nosuchcommand_: not found".into()),
    ] {
        let result = open(&[("pread", script)]).unwrap().pread(&mut [0; 512], 0);
        match (result, errno) {
            (Ok(()), None) => {}
            (Err(why), Some(errno)) => {
                assert_eq!(why.errno(), errno, "{script}");
                assert!(why.message().ends_with(&message), "{script}: {why}");
            }
            (result, _) => panic!("{script}: {result:?}"),
        }
    }
    let endless = open(&[("pread", "exec cat /dev/zero")]).unwrap();
    assert!(endless.pread(&mut [0; 512], 0).is_err());
}

#[test]
fn pwrite_may_ignore_its_input() {
    let big = vec![1; 1 << 20];
    for (script, ok) in
        [("exit 0", true), ("exec <&-", true), ("cat >/dev/null", true), ("exit 1", false)]
    {
        let disk = open_for(None, &[("get_size", "echo 1M"), ("pwrite", script)]).unwrap();
        assert_eq!(disk.pwrite(&big, 0, Flags::empty()).is_ok(), ok, "{script}");
    }
}

#[test]
fn zero_falls_back_to_pwrite() {
    for zero in ["echo ENOTSUP >&2; exit 1", "echo EOPNOTSUPP no >&2; exit 1", "exit 2"] {
        let disk = open(&[("zero", zero), ("pwrite", "cat > $tmpdir/data")]).unwrap();
        disk.zero(100, 5, Flags::empty()).unwrap();
    }
    let disk = open(&[("zero", "echo ENOSPC x >&2; exit 1"), ("pwrite", "exit 0")]).unwrap();
    assert_eq!(disk.zero(100, 5, Flags::empty()).unwrap_err().errno(), Errno::ENOSPC);
}

#[test]
fn what_was_promised_and_is_missing_fails_only_for_pwrite() {
    let promises = ["can_write", "can_flush", "can_trim", "can_zero"].map(|name| (name, "exit 0"));
    let disk = open(&[&promises[..], &[("can_cache", "echo native")]].concat()).unwrap();
    disk.flush().unwrap();
    disk.trim(512, 0, Flags::empty()).unwrap();
    disk.cache(512, 0).unwrap();
    let why = disk.pwrite(&[1; 512], 0, Flags::empty()).unwrap_err();
    assert!(why.message().ends_with("pwrite not implemented"), "{why}");
}

#[test]
fn nonsense_in_answers_is_an_error() {
    for (method, script) in [
        ("get_size", "echo foo"),
        ("get_size", "exit 2"),
        ("get_size", "echo 10E"),
        ("get_size", r"printf '\377'"),
    ] {
        let disk = open_for(None, &[(method, script)]).unwrap();
        assert!(disk.size().is_err(), "{script}");
    }
    for script in ["echo 1 512", "echo x y z", "echo 3 512 1024", "exit 3", "yes"] {
        assert!(open(&[("block_size", script)]).unwrap().block_size().is_err(), "{script}");
    }
    for script in ["echo foo", "exit 3", "true"] {
        let disk = open(&[("pwrite", "exit 0"), ("can_fua", script)]).unwrap();
        assert!(disk.can_fua().is_err(), "{script}");
        assert!(open(&[("can_cache", script)]).unwrap().can_cache().is_err(), "{script}");
    }
    for script in ["echo 0", "echo 256 256", "exit 3", "exit 2"] {
        let disk = open(&[("extents", script)]).unwrap();
        assert!(
            disk.extents(512, 0, Flags::empty(), &mut Extents::new(0, 512)).is_err(),
            "{script}"
        );
    }
    assert!(open(&[("open", "echo EPERM no >&2; exit 1")]).is_err());
    assert!(open(&[("export_description", "exit 1")]).unwrap().export_description().is_none());
}

#[test]
fn scripts_can_disconnect_their_client() {
    for (code, ok, cut) in [(6, false, true), (7, true, false), (8, false, false)] {
        let client = Client::new(7, Peer::default(), None, Box::new(|| {}));
        let flush = format!("exit {code}");
        let parameters = [("get_size", "echo 1"), ("flush", flush.as_str())];
        let disk = open_for(Some(&client), &parameters).unwrap();
        let result = disk.flush();
        assert_eq!(result.is_ok(), ok, "{code}");
        if let Err(why) = result {
            assert_eq!(why.errno(), Errno::ESHUTDOWN);
        }
        assert!(client.is_disconnecting());
        assert_eq!(client.is_cut(), cut, "{code}");
    }
}

#[test]
fn many_requests_may_run_at_once() {
    let disk = open(&[("pread", "sleep 0.0$((512 - $4)); printf %${3}s $4")]).unwrap();
    std::thread::scope(|scope| {
        for offset in (0..512).step_by(64) {
            let disk = &disk;
            scope.spawn(move || {
                let mut buf = [0; 8];
                disk.pread(&mut buf, offset).unwrap();
                assert_eq!(String::from_utf8_lossy(&buf).trim(), offset.to_string());
            });
        }
    });
}
