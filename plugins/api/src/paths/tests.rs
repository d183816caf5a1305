use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use super::*;
use crate::Errno;

/// A directory of this test's own.
struct Dir(PathBuf);

impl Dir {
    fn new(test: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("nbdkit-paths-{}-{test}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Dir(path)
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.0.join(name), text).unwrap();
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(mut file: &File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn only_direct_children_of_the_right_types_are_found() {
    let dir = Dir::new("children");
    dir.put("a", "a");
    std::fs::create_dir(dir.0.join("sub")).unwrap();
    nix::unistd::mkfifo(&dir.0.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let declared = Declared::directory(&dir.0, true);
    let found = |name: &[u8]| find(&declared, Some(OsStr::from_bytes(name)), true);
    assert!(found(b"a").unwrap().writable);
    for name in [&b"sub"[..], b"fifo", b".", b".."] {
        assert_eq!(found(name).unwrap_err(), Failure::WrongType, "{}", name.escape_ascii());
    }
    for name in [&b""[..], b"../a", b"sub/../a", b"/etc/passwd", b"a/", b"a\0b", b"b"] {
        assert_eq!(found(name).unwrap_err(), Failure::Os(Errno::ENOENT), "{}", name.escape_ascii());
    }
    assert_eq!(found(&[b'x'; 256]).unwrap_err(), Failure::Os(Errno::ENAMETOOLONG));
}

#[test]
fn what_is_declared_read_only_is_opened_read_only() {
    let dir = Dir::new("read-only");
    let path = dir.put("a", "a");
    let found = find(&Declared::file(&path).read_only(true), None, true).unwrap();
    assert!(!found.writable);
    assert!(std::os::unix::fs::FileExt::write_at(&found.file, b"b", 0).is_err());
    let beneath =
        find(&Declared::directory(&dir.0, true).read_only(true), Some(OsStr::new("a")), true)
            .unwrap();
    assert!(!beneath.writable);
}

#[test]
fn links_are_followed_whenever_they_were_made_unless_they_are_not_wanted() {
    let (dir, outside) = (Dir::new("links"), Dir::new("links-outside"));
    let target = outside.put("target", "target");
    let name = Some(OsStr::new("link"));
    let mut declared = Declared::directory(&dir.0, true);
    assert_eq!(find(&declared, name, true).unwrap_err(), Failure::Os(Errno::ENOENT));
    std::os::unix::fs::symlink(target, dir.0.join("link")).unwrap();
    assert_eq!(text(&find(&declared, name, true).unwrap().file), "target");
    declared.links = false;
    assert_eq!(find(&declared, name, true).unwrap_err(), Failure::Os(Errno::ELOOP));
    dir.put("plain", "plain");
    assert!(find(&declared, Some(OsStr::new("plain")), true).is_ok());
}

#[test]
fn a_directory_is_found_by_its_path_or_by_its_descriptor() {
    let dir = Dir::new("renamed");
    let (there, away) = (dir.0.join("there"), dir.0.join("away"));
    std::fs::create_dir(&there).unwrap();
    std::fs::write(there.join("a"), "old").unwrap();
    let by_path = Declared::directory(&there, true);
    let open = File::open(&there).unwrap();
    let by_descriptor = Declared::open_directory(open.into(), &there, true);
    std::fs::rename(&there, away).unwrap();
    std::fs::create_dir(&there).unwrap();
    std::fs::write(there.join("a"), "new").unwrap();
    let name = Some(OsStr::new("a"));
    assert_eq!(text(&find(&by_path, name, false).unwrap().file), "new");
    assert_eq!(text(&find(&by_descriptor, name, false).unwrap().file), "old");
    assert!(by_path != by_descriptor);
    assert!(find_directory(&by_path).is_ok() && find_directory(&by_descriptor).is_ok());
    let file = Declared::file(there.join("a"));
    assert_eq!(find_directory(&file).unwrap_err(), Failure::Os(Errno::EACCES));
    let no_directory = Declared::directory(there.join("a"), true);
    assert_eq!(find_directory(&no_directory).unwrap_err(), Failure::Os(Errno::ENOTDIR));
    assert_eq!(find(&file, name, false).unwrap_err(), Failure::Os(Errno::EACCES));
    assert_eq!(find(&by_path, None, false).unwrap_err(), Failure::Os(Errno::EACCES));
}

#[test]
fn a_kept_file_belongs_to_one_client_at_a_time() {
    let dir = Dir::new("kept");
    let declared = Declared::file(dir.put("a", "a"));
    let kept = Kept::new(std::slice::from_ref(&declared));
    assert_eq!((kept.slots(), kept.paths()), (MOST_KEPT, vec![declared.path.clone()]));
    let mut all: Vec<_> = (0..MOST_KEPT).map(|_| kept::lend(&kept, &declared).unwrap()).collect();
    assert!(all.iter().all(|(_, writable)| *writable));
    assert!(kept::lend(&kept, &declared).is_none());
    all.pop();
    kept.use_slot(Some(MOST_KEPT as u32 - 1));
    let own = kept::lend(&kept, &declared).unwrap();
    assert!(kept::lend(&kept, &declared).is_none());
    drop(own);
    assert!(kept::lend(&kept, &declared).is_some());
    kept.use_slot(None);
    assert!(kept::lend(&kept, &declared).is_none());
}

#[test]
fn the_descriptors_of_other_slots_are_all_but_those_of_one() {
    let dir = Dir::new("slots");
    let declared = [Declared::file(dir.put("a", "a")), Declared::file(dir.put("b", "b"))];
    let kept = Kept::new(&declared);
    let count = |slot| kept.of_other_slots(slot).into_iter().flatten().count();
    // Other tests open descriptors at the same time: there may be too many ranges.
    assert!([0, 2 * MOST_KEPT].contains(&count(None)));
    assert!([0, 2 * MOST_KEPT - 2].contains(&count(Some(3))));
    kept.use_slot(Some(3));
    let lent = declared.each_ref().map(|it| kept::lend(&kept, it).unwrap().0);
    let others = kept.of_other_slots(Some(3));
    for file in lent {
        let number = std::os::fd::AsRawFd::as_raw_fd(&*file);
        assert!(others.iter().all(|range| !range.contains(&number)));
    }
}

#[test]
fn a_kept_file_that_is_not_at_its_path_any_more_or_has_another_mode_is_not_lent() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new("replaced");
    let declared = Declared::file(dir.put("a", "old"));
    let kept = Kept::new(std::slice::from_ref(&declared));
    assert_eq!(text(&kept::lend(&kept, &declared).unwrap().0), "old");
    kept.use_slot(Some(1));
    let mode = |mode| std::fs::set_permissions(&declared.path, PermissionsExt::from_mode(mode));
    let before = std::fs::metadata(&declared.path).unwrap().permissions().mode();
    mode(0o400).unwrap();
    assert!(kept::lend(&kept, &declared).is_none());
    mode(before).unwrap();
    assert!(kept::lend(&kept, &declared).is_some());
    std::fs::rename(dir.put("b", "new"), &declared.path).unwrap();
    assert!(kept::lend(&kept, &declared).is_none());
    assert_eq!(kept.slots(), MOST_KEPT);
    kept.forget_replaced(false);
    assert_eq!(kept.slots(), 0);
}

#[test]
fn a_process_of_all_clients_closes_what_was_replaced_when_it_finds_out() {
    let dir = Dir::new("closed");
    let declared = Declared::file(dir.put("a", "old"));
    let kept = Kept::new(std::slice::from_ref(&declared));
    std::fs::remove_file(&declared.path).unwrap();
    assert!(kept::lend(&kept, &declared).is_none());
    assert_eq!(kept.slots(), 0);
}

#[test]
fn a_directory_and_a_descriptor_are_not_kept_and_many_files_keep_fewer() {
    let dir = Dir::new("few");
    let path = dir.put("a", "a");
    let directory = Declared::directory(&dir.0, true);
    assert_eq!(Kept::new(&[directory]).slots(), 0);
    assert_eq!(Kept::new(&[Declared::file(dir.0.join("b"))]).slots(), 0);
    let many: Vec<_> = (0..100)
        .map(|number| Declared::file(dir.put(&number.to_string(), "x")))
        .chain([Declared::file(path)])
        .collect();
    assert_eq!(Kept::new(&many).slots(), 2);
}

#[test]
fn a_parked_client_gets_its_file_again_whatever_became_of_its_path() {
    let dir = Dir::new("parked");
    let declared = Declared::file(dir.put("a", "old"));
    let kept = Kept::new(std::slice::from_ref(&declared));
    let id = FileId::of(&kept::lend(&kept, &declared).unwrap().0).unwrap();
    let start = |file: &File| {
        let mut bytes = [0; 3];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    };
    let again = |kept: &Kept| kept.lend_again(id).map(|(lent, _)| start(&lent));
    assert_eq!(again(&kept).as_deref(), Some("old"));
    std::fs::rename(dir.put("b", "new"), &declared.path).unwrap();
    assert_eq!(again(&kept).as_deref(), Some("old"));
    kept.forget_replaced(true);
    assert!(kept.has(id) && kept.has_replaced());
    assert_eq!((again(&kept).as_deref(), kept.slots()), (Some("old"), MOST_KEPT));
    assert!(kept::lend(&kept, &declared).is_none(), "of the new file none is kept");
    // Where all slots are taken.
    kept.use_slot(None);
    assert!(again(&kept).is_none());
    assert_eq!(start(&kept.replaced(id).unwrap().file), "old");
    let other = FileId { birth: id.birth.map(|birth| birth + 1), ..id };
    assert!(id.birth.is_none() || kept.replaced(other).is_none());
    kept.none_parked();
    assert!(!kept.has(id) && kept.replaced(id).is_none());
}
