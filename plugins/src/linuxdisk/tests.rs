use super::*;
use crate::test_dir::TestDir;

fn configured(dir: &TestDir, parameters: &[(&str, &str)]) -> Result<LinuxDisk> {
    let mut disk = LinuxDisk::default();
    disk.config("dir", Value::new(dir.path()))?;
    for (key, value) in parameters {
        disk.config(key, Value::new(*value))?;
    }
    disk.config_complete()?;
    disk.get_ready()?;
    Ok(disk)
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    let dir = TestDir::new();
    let why = |key: &str, value: &str| configured(&dir, &[(key, value)]).unwrap_err();
    assert!(why("type", "xfs").message().contains("ext2, ext3 or ext4"));
    assert_eq!(why("size", "x").message(), "could not parse size string: x");
    assert_eq!(why("size", "+x").message(), "could not parse size string: x");
    assert!(configured(&dir, &[("size", "-1")]).is_err());
    assert!(configured(&dir, &[("size", "+-1")]).is_err());
    assert!(configured(&dir, &[("size", "7E")]).is_err());
    assert!(configured(&dir, &[("size", "+7E")]).is_err());
    assert_eq!(why("dir", "/").message(), "dir=<DIRECTORY> must only be set once");
    assert_eq!(why("foo", "1").message(), "unknown parameter 'foo'");
    let message = LinuxDisk::default().config_complete().unwrap_err();
    assert!(message.message().starts_with("you must supply the dir=<DIRECTORY>"));
}

#[test]
fn a_file_system_is_as_large_as_asked_and_its_failure_one_line() {
    let dir = TestDir::new();
    std::fs::write(dir.join("file"), vec![1; 100_000]).unwrap();
    let size = |parameters: &[(&str, &str)]| {
        configured(&dir, parameters).unwrap().image.unwrap().open().unwrap().size().unwrap()
    };
    let around = gpt::START + gpt::END;
    assert_eq!(size(&[]), (1 << 20) + around);
    assert_eq!(size(&[("size", "1000001")]), 1_000_448 + around);
    assert_eq!(size(&[("type", "ext4")]), (33 << 20) + around);
    let why = configured(&dir, &[("size", "20K")]).unwrap_err();
    assert!(why.message().starts_with("mke2fs: command failed with exit code 1: "), "{why}");
    assert!(!why.message().contains('\n'));
}

#[test]
fn there_is_as_much_room_as_was_asked_for() {
    let dir = TestDir::new();
    std::fs::write(dir.join("file"), vec![1; 100_000]).unwrap();
    for (kind, size, free) in [("ext2", "+20M", 20 << 20), ("ext4", "+100M", 100 << 20)] {
        let disk = configured(&dir, &[("type", kind), ("size", size)]).unwrap();
        let found = free_bytes(disk.image.as_ref().unwrap()).unwrap();
        assert!((free..free + free / 4 + (1 << 20)).contains(&found), "{kind}: {found}");
    }
}

#[test]
fn many_small_files_get_their_inodes() {
    let dir = TestDir::new();
    for i in 0..3000 {
        std::fs::write(dir.join(format!("file{i}")), "").unwrap();
    }
    assert!(configured(&dir, &[]).is_ok());
}

#[test]
fn what_has_several_names_is_counted_once_and_links_are_not_followed() {
    let dir = TestDir::new();
    std::fs::create_dir(dir.join("sub")).unwrap();
    std::fs::write(dir.join("sub/file"), vec![1; 1 << 20]).unwrap();
    let before = Contents::of(dir.path()).unwrap();
    std::fs::hard_link(dir.join("sub/file"), dir.join("again")).unwrap();
    std::os::unix::fs::symlink("/", dir.join("link")).unwrap();
    let after = Contents::of(dir.path()).unwrap();
    assert_eq!((before.files, after.files), (3, 4));
    assert!(before.bytes >= 1 << 20 && after.bytes - before.bytes <= 4096, "{before:?} {after:?}");
    let why = Contents::of(&dir.join("again")).unwrap_err();
    assert!(why.message().starts_with("expecting a directory: "));
}
