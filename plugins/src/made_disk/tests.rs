use super::*;
use crate::test_dir::TestDir;

fn recipe(parameters: &[(&str, &str)]) -> Recipe {
    let mut recipe = Recipe::default();
    for (key, value) in parameters {
        recipe.config(key, Value::new(*value)).unwrap();
    }
    recipe
}

#[test]
fn parameters_become_variables_of_the_command_whatever_is_in_them() {
    let dir = TestDir::new();
    let nasty = "a $b `c` \"d\" 'e' \\ \n*; touch evil";
    let command = "printf '%s|' \"$type\" \"$label\" \"$size\" \"$x\" \"$_Y1\" > \"$disk\"";
    let parameters =
        [("size", "3K"), ("label", nasty), ("x", nasty), ("_Y1", ""), ("command", command)];
    let disk = dir.join("a disk'");
    recipe(&parameters).make(&disk, None).unwrap();
    let expected = format!("|{nasty}|3072|{nasty}||");
    assert_eq!(std::fs::read_to_string(&disk).unwrap(), expected);
}

#[test]
fn keys_that_are_no_names_of_variables_are_unknown() {
    for key in ["a-b", "1a", "a b", "", "a$", "a=b"] {
        let why = Recipe::default().config(key, Value::new("x")).unwrap_err();
        assert_eq!(why.message(), format!("unknown parameter '{key}'"));
    }
    for kind in ["", "a b", "../x", "a/b"] {
        assert!(Recipe::default().config("type", Value::new(kind)).is_err(), "{kind}");
    }
}

#[test]
fn file_systems_have_their_size_type_and_label() {
    let dir = TestDir::new();
    let parameters = [("size", "1M"), ("type", "ext2"), ("label", "the label")];
    recipe(&parameters).make(&dir.join("disk"), None).unwrap();
    let disk = std::fs::read(dir.join("disk")).unwrap();
    assert_eq!(disk.len(), 1 << 20);
    assert_eq!(disk[1024 + 0x38..1024 + 0x3a], [0x53, 0xef]);
    assert_eq!(disk[1024 + 0x78..1024 + 0x81], *b"the label");
    let why = recipe(&[("size", "1K")]).make(&dir.join("small"), None).unwrap_err();
    assert!(why.message().starts_with("mkfs.ext4: command failed with exit code 1: "), "{why}");
    let why = recipe(&[("size", "1M")]).make(&dir.join("disk"), None).unwrap_err();
    assert!(why.message().contains("File exists"), "{why}");
}

#[test]
fn a_program_that_is_missing_is_named_before_there_is_a_client() {
    let missing = recipe(&[("type", "no-such")]).check().unwrap_err();
    assert_eq!(missing.message(), "there is no program mkfs.no-such");
    let why = no_program("mkfs.xfs", recipe(&[("type", "xfs")]).file_system().package);
    let expected = "mkfs.xfs is not installed (Debian has it in the package xfsprogs)";
    assert_eq!(why.message(), expected);
    let long = "x".repeat(MAX_SCRIPT);
    assert!(recipe(&[("command", &long)]).check().is_err());
    recipe(&[("command", &long[100..])]).check().unwrap();
}

#[test]
fn what_a_killed_process_left_is_removed_and_what_is_in_use_is_not() {
    let dir = TestDir::new();
    let used = Workplace::new(dir.path()).unwrap();
    let left = dir.join(".nbdkit-making-XYZ123");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("disk"), "half").unwrap();
    std::fs::write(dir.join("other"), "").unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.join(".nbdkit-making-link")).unwrap();
    let second = Workplace::new(dir.path()).unwrap();
    assert!(!left.exists() && used.path().exists() && second.path().exists());
    assert!(dir.join("other").exists() && dir.join(".nbdkit-making-link").exists());
    drop((used, second));
    sweep(dir.path());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}
