use super::*;
use crate::test_dir::TestDir;

fn plugin(dir: &TestDir, parameters: &[(&str, &str)]) -> OnDemand {
    let mut plugin = OnDemand::default();
    plugin.config("dir", Value::new(dir.path())).unwrap();
    for (key, value) in parameters {
        plugin.config(key, Value::new(*value)).unwrap();
    }
    plugin.config_complete().unwrap();
    plugin.get_ready().unwrap();
    plugin
}

const COMMAND: (&str, &str) = ("command", "truncate -s $size \"$disk\"");

fn open(plugin: &OnDemand, export: &str) -> Result<Box<dyn Connection>> {
    plugin.open(&Open { client: None, readonly: false, export, tls: false })
}

#[test]
fn names_that_leave_the_directory_or_hide_in_it_are_refused() {
    let dir = TestDir::new();
    let plugin = plugin(&dir, &[("size", "1M"), COMMAND]);
    let long = "x".repeat(256);
    for name in [".", "..", ".hidden", "a/b", "/etc/passwd", "../x", "a\0b", &long] {
        let why = open(&plugin, name).err().unwrap();
        assert!(why.message().contains("rejected"), "{name:?}: {why}");
    }
    for name in ["a:b", "a.b", "-x", "$(touch evil)", "'; touch evil; '", &long[..255]] {
        assert_eq!(open(&plugin, name).unwrap().size().unwrap(), 1 << 20, "{name}");
        assert!(dir.join(name).exists());
    }
    open(&plugin, "").unwrap();
    assert!(dir.join("default").exists());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 7);
}

#[test]
fn a_disk_is_locked_while_it_is_open_unless_it_is_shared() {
    let dir = TestDir::new();
    let exclusive = plugin(&dir, &[("size", "1M"), COMMAND]);
    let first = open(&exclusive, "a").unwrap();
    let why = open(&exclusive, "a").err().unwrap();
    assert_eq!(why.message(), "a: filesystem is locked by another client");
    open(&exclusive, "b").unwrap();
    drop(first);
    // A program that another test starts has a copy of each open file until it is executed.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let again = loop {
        match open(&exclusive, "a") {
            Err(why) if why.errno() == Errno::EBUSY => {
                assert!(std::time::Instant::now() < deadline, "{why}");
            }
            other => break other.unwrap(),
        }
    };
    assert!(!again.can_multi_conn().unwrap());
    let shared = plugin(&dir, &[("size", "1M"), COMMAND, ("share", "1")]);
    let (one, other) = (open(&shared, "a").unwrap(), open(&shared, "a").unwrap());
    one.pwrite(&[7; 10], 5, nbdkit_api::Flags::empty()).unwrap();
    let mut buf = [0; 10];
    other.pread(&mut buf, 5).unwrap();
    assert_eq!((buf, other.can_multi_conn().unwrap()), ([7; 10], true));
}

#[test]
fn who_waits_gets_the_disk_when_the_other_has_gone() {
    let dir = TestDir::new();
    let waiting = plugin(&dir, &[("size", "1M"), COMMAND, ("wait", "true")]);
    let first = open(&waiting, "a").unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| open(&waiting, "a").map(drop));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!other.is_finished());
        drop(first);
        other.join().unwrap().unwrap();
    });
}

#[test]
fn a_disk_that_cannot_be_made_leaves_nothing_and_does_not_harm_the_others() {
    let dir = TestDir::new();
    let command = ("command", "echo half > \"$disk\"; echo no luck >&2; exit 3");
    let failing = plugin(&dir, &[("size", "1M"), command]);
    let why = open(&failing, "a").err().unwrap();
    assert_eq!(why.message(), "command: command failed with exit code 3: no luck");
    let nothing = plugin(&dir, &[("size", "1M"), ("command", ":")]);
    assert!(open(&nothing, "a").is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn who_is_slower_gets_the_disk_of_who_was_faster() {
    let dir = TestDir::new();
    std::fs::write(dir.join("made"), "slow").unwrap();
    std::fs::write(dir.join("disk"), "fast").unwrap();
    assert_eq!(publish(&dir.join("made"), &dir.join("disk")), Err(Errno::EEXIST));
    assert_eq!(std::fs::read(dir.join("disk")).unwrap(), b"fast");
    assert_eq!(publish(&dir.join("made"), &dir.join("new")), Ok(()));
    assert_eq!(std::fs::read(dir.join("new")).unwrap(), b"slow");
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    let mut plugin = OnDemand::default();
    let why = |result: Result<()>| result.unwrap_err().message().to_owned();
    plugin.config("size", Value::new("1M")).unwrap();
    assert_eq!(why(plugin.config_complete()), "dir and size parameters are required");
    assert!(why(plugin.config("wait", Value::new("x"))).contains("boolean"));
    assert!(why(plugin.config("dir", Value::new("/no/such/dir"))).contains("No such file"));
    plugin.config("dir", Value::new("/etc/passwd")).unwrap();
    assert_eq!(why(plugin.get_ready()), "opendir: /etc/passwd: Not a directory");
}
