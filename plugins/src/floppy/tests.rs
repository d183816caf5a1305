use super::fat::{Label, stamp};
use super::names::{ShortNames, check_long, checksum, long_entries, shown};
use super::*;
use crate::test_dir::TestDir;

fn configured(dir: &TestDir, parameters: &[(&str, &str)]) -> Result<Floppy> {
    let mut plugin = Floppy::default();
    plugin.config("dir", Value::new(dir.path()))?;
    for (key, value) in parameters {
        plugin.config(key, Value::new(*value))?;
    }
    plugin.config_complete()?;
    plugin.get_ready()?;
    Ok(plugin)
}

fn open(plugin: &Floppy) -> Box<dyn Connection> {
    plugin.open(&Open { client: None, readonly: true, export: "", tls: false }).unwrap()
}

fn why(dir: &TestDir, parameters: &[(&str, &str)]) -> String {
    configured(dir, parameters).unwrap_err().message().to_owned()
}

#[test]
fn short_names_are_of_the_usual_form_and_each_only_once() {
    let mut names = ShortNames::default();
    for (name, exact, expected) in [
        ("README", true, Some("README")),
        ("readme", true, None),
        ("hello.txt", true, Some("HELLO.TXT")),
        ("hello.text", true, None),
        ("hello.text", false, Some("HELLO~1.TEX")),
        (".hidden", true, None),
        (".hidden", false, Some("HIDDEN~1")),
        ("A long name.data", false, Some("ALONGN~1.DAT")),
        ("A long name too.data", false, Some("ALONGN~2.DAT")),
        ("a.b.c", false, Some("AB~1.C")),
        ("\u{e9}+.txt", false, Some("__~1.TXT")),
        ("...a", false, Some("A~1")),
    ] {
        let found = names.take(name, exact).map(|short| shown(&short));
        assert_eq!(found.as_deref(), expected, "{name}");
    }
    for number in 3..20_000 {
        let short = names.take("A long name", false).unwrap();
        assert!(shown(&short).ends_with(&format!("~{}", number - 2)), "{short:?}");
    }
}

#[test]
fn a_long_name_is_cut_into_parts_of_13() {
    let short = *b"ABCDEF~1TXT";
    let entries = long_entries("abcdefghijklmnop", &short);
    assert_eq!(entries.len(), 2);
    assert_eq!((entries[0][0], entries[1][0]), (0x42, 1));
    assert_eq!(entries[0][1..11], *b"n\0o\0p\0\0\0\xff\xff");
    assert_eq!(entries[1][28..], *b"l\0m\0");
    assert!(entries.iter().all(|entry| entry[13] == checksum(&short)));
    // The example of the entries that Debian's server makes.
    assert_eq!((checksum(b"HELLO   TXT"), checksum(b"SUB        ")), (0xf1, 0xbf));
    // No unit is left over, and so no end.
    assert_eq!(long_entries("abcdefghijklm", &short)[0][28..], *b"l\0m\0");
}

/// By what the fuzz target checks of any names.
#[test]
fn names_that_look_alike_are_read_back_each_as_it_is() {
    let mut names: Vec<String> =
        (0..200).map(|number| format!("a long name {number}.text")).collect();
    names.extend([1, 12, 13, 14, 26, 255].map(|length| "x".repeat(length)));
    names.extend(
        ["A.TXT", "a.txt", "ünïcödé", "\u{1f4be}", "no.long.name", ".hidden"].map(str::to_owned),
    );
    fuzz::run(names.join("\0").as_bytes());
}

#[test]
fn names_that_fat_cannot_hold_are_refused() {
    for bad in ["a:b", "a?", "a\n", "a.", "a ", " a", &"n".repeat(256), &"\u{1d11e}".repeat(128)] {
        assert!(check_long(bad).is_err(), "{bad:?}");
    }
    for good in [".a", "a+=[];,b", "a b", &"n".repeat(255), "\u{e9}"] {
        assert!(check_long(good).is_ok(), "{good:?}");
    }
    let dir = TestDir::new();
    std::fs::write(dir.join("a:b"), "").unwrap();
    assert!(
        why(&dir, &[])
            .ends_with("/a:b: the name has a character that a FAT file system cannot hold")
    );
    std::fs::remove_file(dir.join("a:b")).unwrap();
    for name in ["Name", "nAME"] {
        std::fs::write(dir.join(name), "").unwrap();
    }
    assert!(why(&dir, &[]).ends_with("/nAME: another name differs in upper and lower case only"));
    std::fs::remove_file(dir.join("Name")).unwrap();
    let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff");
    std::fs::write(dir.join(odd), "").unwrap();
    assert!(why(&dir, &[]).ends_with(": the name is not UTF-8"));
}

#[test]
fn labels_of_up_to_eleven_characters() {
    assert!(Label::parse(b"ELEVENCHARS").is_ok() && Label::parse(b"").is_ok());
    for bad in [&b"TWELVE CHARS"[..], b"A.B", b"\xc3\xa9", b" A", b"A\n"] {
        let why = Label::parse(bad).unwrap_err();
        assert!(why.message().starts_with("label="), "{why}");
    }
}

#[test]
fn times_are_utc_in_steps_of_two_seconds() {
    assert_eq!(stamp(1_580_702_707), (0x5043, 0x20a3));
    assert_eq!(stamp(0), (0x0021, 0));
    assert_eq!(stamp(951_782_400), (20 << 9 | 2 << 5 | 29, 0));
    assert_eq!(stamp(i64::MAX), (127 << 9 | 12 << 5 | 31, 23 << 11 | 59 << 5 | 29));
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let dir = TestDir::new();
    std::fs::write(dir.join("a"), [1; 20_000]).unwrap();
    let least = open(&configured(&dir, &[]).unwrap()).size().unwrap();
    let size = |bytes: u64| {
        let plugin = configured(&dir, &[("size", &bytes.to_string())])?;
        open(&plugin).size()
    };
    assert_eq!(size(least).unwrap(), least);
    assert_eq!(size(least + 100).unwrap(), least + 100);
    for small in [0, 1, 1 << 20, least - 512] {
        assert_eq!(size(small).unwrap_err().message(), "filesystem is larger than \"size\" bytes");
    }
    let large = size(1 << 41).unwrap_err();
    assert_eq!(large.message(), "disk image is too large for the MBR disk format");
    let most = ((1 << 32) - 1) * 512;
    assert_eq!(size(most).unwrap(), most);
    std::fs::File::create(dir.join("b")).unwrap().set_len(1 << 32).unwrap();
    assert!(why(&dir, &[]).ends_with("/b: a file on a FAT file system is smaller than 4 GiB"));
}

#[test]
fn the_table_is_the_same_however_it_is_read() {
    let dir = TestDir::new();
    for (name, size) in [("a", 16_384 * 3), ("b", 16_385), ("c", 0), ("d", 1)] {
        std::fs::write(dir.join(name), vec![1; size]).unwrap();
    }
    let disk = open(&configured(&dir, &[]).unwrap());
    let start = (2048 + 32) * 512;
    let mut whole = vec![0; 64];
    disk.pread(&mut whole, start).unwrap();
    let entries: Vec<u32> =
        whole.as_chunks::<4>().0.iter().map(|entry| u32::from_le_bytes(*entry)).collect();
    let end = 0x0fff_ffff;
    let expected = [0x0fff_fff8, end, end, 4, 5, end, 7, end, end, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(entries, expected);
    for from in 0..32 {
        let mut part = vec![0; 32];
        disk.pread(&mut part, start + from as u64).unwrap();
        assert_eq!(part, whole[from..from + 32]);
    }
}

#[test]
fn a_directory_is_required_once() {
    let mut plugin = Floppy::default();
    assert!(plugin.config_complete().is_err());
    let dir = TestDir::new();
    plugin.config("dir", Value::new(dir.path())).unwrap();
    let why = plugin.config("dir", Value::new(dir.path())).unwrap_err();
    assert_eq!(why.message(), "dir=<DIRECTORY> must only be set once");
    std::fs::write(dir.join("file"), "").unwrap();
    let mut plugin = Floppy::default();
    plugin.config("dir", Value::new(&dir.join("file"))).unwrap();
    assert!(plugin.get_ready().unwrap_err().message().contains("Not a directory"));
}

#[test]
fn only_directories_with_files_are_declared() {
    let dir = TestDir::new();
    std::fs::create_dir_all(dir.join("a/b")).unwrap();
    std::fs::write(dir.join("a/b/c"), "x").unwrap();
    std::os::unix::fs::symlink("b", dir.join("a/link")).unwrap();
    let plugin = configured(&dir, &[]).unwrap();
    let needs = plugin.needs(false);
    assert_eq!(needs.declared, [Declared::directory(dir.join("a/b"), false)]);
    assert!(!needs.writes());
    assert_eq!(plugin.tree.directories.len(), 3);
}
