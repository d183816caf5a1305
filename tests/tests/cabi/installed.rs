//! What `make install` installs, of the programs that were built for the tests: among it a file for
//! each built-in plugin and filter where people look for one.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbdkit_tests::binary::Binary;
use nbdkit_tests::{Ask, Server, TempDir, command};

use crate::support::{open, top};

const PLUGINS: &str = "usr/lib/nbdkit/plugins";
/// The filter that is a file of its own.
const EXT2: &str = "ext2";
const FILTERS: &str = "usr/lib/nbdkit/filters";

fn run(program: &Path, arguments: &[&str]) -> command::Finished {
    command::run(Command::new(program).args(arguments), Duration::from_secs(60))
}

/// `make install DESTDIR=...` without building the programs anew.
fn install() -> TempDir {
    let dir = TempDir::new();
    // Where cargo puts the one thing that is built here.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let programs = Binary::ours().path().parent().unwrap().to_owned();
    let mut make = Command::new("make");
    make.arg("-C").arg(top()).args(["built-in", "install-files", "PROFILE=", "PREFIX=/usr"]);
    // Otherwise only where this machine has AppArmor.
    make.arg("APPARMORDIR=/etc/apparmor.d");
    make.arg(format!("DESTDIR={}", dir.path().display()));
    make.arg(format!("RELEASE={}", programs.display()));
    make.arg(format!("BUILT_IN_FILE={}/debug/libnbdkit_built_in.so", target.display()));
    // Those of the make that runs the tests.
    make.env("CARGO_TARGET_DIR", target).env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    let finished = command::run(&mut make, Duration::from_secs(300));
    assert!(finished.status.success(), "{}\n{}", finished.stdout, finished.stderr);
    dir
}

/// The short names of the files in a directory.
fn names(directory: &Path, what: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries
        .map(|name| {
            let name = name.into_string().unwrap();
            let short = name.strip_prefix("nbdkit-").and_then(|name| name.strip_suffix(what));
            short.unwrap_or_else(|| panic!("{name}")).to_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn every_built_in_module_has_a_file_that_means_it() {
    let dir = install();
    let (plugins, filters) = (dir.join(PLUGINS), dir.join(FILTERS));
    let ours = Binary::ours();
    let listed = run(&ours.path().with_file_name("nbdkit-worker"), &["--built-in"]).stdout;
    for (directory, what) in [(&plugins, "plugin"), (&filters, "filter")] {
        let expected = listed.lines().filter_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        let mut expected: Vec<&str> = expected.collect();
        // Which is none of those, but a file that was made.
        if what == "filter" {
            expected.push(EXT2);
            expected.sort_unstable();
        }
        assert_eq!(names(directory, &format!("-{what}.so")), expected);
        assert!(expected.len() > 10, "{expected:?}");
    }
    for name in names(&plugins, "-plugin.so") {
        let path = plugins.join(format!("nbdkit-{name}-plugin.so"));
        let size = std::fs::metadata(&path).unwrap().len();
        assert!(size < 8192, "{name}: {size} bytes");
        let by_path = run(ours.path(), &["--dump-plugin", path.to_str().unwrap()]);
        let by_name = run(ours.path(), &["--dump-plugin", &name]);
        assert!(by_path.status.success(), "{name}: {}", by_path.stderr);
        assert_eq!(by_path.stdout, by_name.stdout);
    }
    for name in names(&filters, "-filter.so").into_iter().filter(|name| name != EXT2) {
        let path = filters.join(format!("nbdkit-{name}-filter.so"));
        let dump = |filter: &str| {
            let option = format!("--filter={filter}");
            run(ours.path(), &["--dump-plugin", &option, "null"])
        };
        let (by_path, by_name) = (dump(path.to_str().unwrap()), dump(&name));
        assert!(by_path.status.success(), "{name}: {}", by_path.stderr);
        assert!(by_path.stdout.contains("_path=") && by_path.stdout == by_name.stdout, "{name}");
    }
    let ext2 = filters.join("nbdkit-ext2-filter.so");
    let dumped =
        run(ours.path(), &["--dump-plugin", &format!("--filter={}", ext2.display()), "null"]);
    assert!(dumped.stdout.contains("sandbox=strict"), "{}", dumped.stderr);
    let path = |kind: &str, what: &str, name: &str| {
        dir.join(kind).join(format!("nbdkit-{name}-{what}.so")).to_str().unwrap().to_owned()
    };
    let cow = format!("--filter={}", path(FILTERS, "filter", "cow"));
    let memory = path(PLUGINS, "plugin", "pattern");
    let server = Server::nbdkit([&cow, &memory, "64K"]).binary(ours).start();
    let mut client = server.connect();
    open(&mut client);
    assert_eq!(client.call(&Ask::write(0, "written")).expect("a reply").error, None);
    assert_eq!(client.call(&Ask::read(0, 7)).expect("a reply").data, b"written");
}

#[test]
fn programs_headers_pages_and_completions_are_installed() {
    let dir = install();
    for (path, mode) in [
        ("usr/bin/nbdkit", 0o755),
        ("usr/libexec/nbdkit/nbdkit-worker", 0o755),
        ("usr/include/nbdkit-plugin.h", 0o644),
        ("usr/include/nbdkit-confine.h", 0o644),
        ("usr/lib/pkgconfig/nbdkit.pc", 0o644),
        ("usr/share/man/man1/nbdkit.1", 0o644),
        ("usr/share/man/man3/nbdkit-plugin.3", 0o644),
        ("usr/share/bash-completion/completions/nbdkit", 0o644),
        ("usr/share/zsh/site-functions/_nbdkit", 0o644),
        ("usr/share/fish/vendor_completions.d/nbdkit.fish", 0o644),
        ("usr/lib/nbdkit/plugins/nbdkit-file-plugin.so", 0o644),
        ("usr/lib/systemd/system/nbdkit@.service", 0o644),
        ("usr/lib/systemd/system/nbdkit@.socket", 0o644),
        ("usr/lib/systemd/system/nbdkit-root@.service", 0o644),
        ("usr/lib/systemd/system/nbdkit.slice", 0o644),
        ("usr/lib/sysusers.d/nbdkitd.conf", 0o644),
        ("usr/lib/tmpfiles.d/nbdkitd.conf", 0o644),
        ("usr/share/doc/nbdkitd/examples/systemd/tls-psk.conf", 0o644),
        ("etc/nbdkit/disk.conf.example", 0o644),
        ("etc/apparmor.d/nbdkit-worker", 0o644),
        ("etc/apparmor.d/abstractions/nbdkit-images", 0o644),
    ] {
        let metadata =
            std::fs::metadata(dir.join(path)).unwrap_or_else(|why| panic!("{path}: {why}"));
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{path}");
    }
    // Plugins that are scripts begin with #!/usr/sbin/nbdkit.
    let link = std::fs::read_link(dir.join("usr/sbin/nbdkit")).unwrap();
    assert_eq!(link, Path::new("../bin/nbdkit"));
    for directory in ["usr/lib/systemd/system", "usr/share/doc/nbdkitd/examples/systemd"] {
        for entry in std::fs::read_dir(dir.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            for blank in ["@BINDIR@", "@EXAMPLEDIR@"] {
                assert!(!text.contains(blank), "{}: {blank}", path.display());
            }
        }
    }
    let unit = "usr/lib/systemd/system/nbdkit@.service";
    let unit = std::fs::read_to_string(dir.join(unit)).unwrap();
    assert!(unit.contains("\nExecStart=/usr/bin/nbdkit "), "{unit}");
    // The profile that the unit asks for, if it is loaded, is the one that is installed.
    let profile = std::fs::read_to_string(dir.join("etc/apparmor.d/nbdkit")).unwrap();
    assert!(unit.contains("\nAppArmorProfile=-nbdkit\n") && profile.contains("\nprofile nbdkit {"));
}

/// What `readelf` prints of an installed program.
fn readelf(path: &Path) -> String {
    let finished = run(Path::new("readelf"), &["--wide", "-hlSd", path.to_str().unwrap()]);
    assert!(finished.status.success(), "{}", finished.stderr);
    finished.stdout
}

#[test]
fn installed_programs_are_stripped_and_hardened() {
    let dir = install();
    for name in ["bin/nbdkit", "libexec/nbdkit/nbdkit-worker", "libexec/nbdkit/nbdkit-spawner"] {
        let elf = readelf(&dir.join(&format!("usr/{name}")));
        // Position independent; what the dynamic linker fills in is read-only from the start on.
        for hardened in ["DYN (Position-Independent", "GNU_RELRO", "BIND_NOW"] {
            assert!(elf.contains(hardened), "{name}: {hardened}: {elf}");
        }
        let stack = elf.lines().find(|line| line.contains("GNU_STACK")).expect("a stack");
        assert!(stack.contains(" RW ") && !stack.contains("RWE"), "{name}: {stack}");
        for section in [".debug_info", ".debug_line", ".symtab"] {
            assert!(!elf.contains(section), "{name}: {section}: {elf}");
        }
    }
    // What modules call is still there.
    let dynamic = run(
        Path::new("readelf"),
        &["--wide", "--dyn-syms", dir.join("usr/libexec/nbdkit/nbdkit-worker").to_str().unwrap()],
    );
    assert!(dynamic.stdout.contains(" nbdkit_error"), "{}", dynamic.stdout);
}

/// Root need not have cargo: `make install` builds nothing and says what is missing.
#[test]
fn make_install_without_a_build_says_so() {
    let (dir, out) = (TempDir::new(), TempDir::new());
    let install = |arguments: &[&str]| {
        let mut make = Command::new("make");
        make.arg("-C").arg(top()).args(["install", "CARGO=false", "RUSTC=false"]).args(arguments);
        make.arg(format!("RELEASE={}", dir.path().display()));
        make.arg(format!("DESTDIR={}", out.path().display()));
        make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
        command::run(&mut make, Duration::from_secs(60))
    };
    let refused = |arguments: &[&str], why: &str| {
        let finished = install(arguments);
        assert!(!finished.status.success());
        assert!(finished.stderr.contains(why), "{}", finished.stderr);
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "nothing is installed");
    };
    refused(&[], "/nbdkit: run \"make\" first");
    let programs = ["nbdkit", "nbdkit-worker", "nbdkit-worker-psk", "nbdkit-spawner"];
    for name in programs.into_iter().chain(["libnbdkit_built_in.so"]) {
        std::fs::copy("/bin/true", dir.join(name)).unwrap();
    }
    refused(&[], "the last build is not complete");
    std::fs::write(dir.join("built-for"), "/elsewhere/bin\n").unwrap();
    refused(&[], "built for other directories (/elsewhere/bin)");
}

#[test]
fn a_file_under_another_name_is_refused() {
    let dir = install();
    let file = dir.join(PLUGINS).join("nbdkit-file-plugin.so");
    for (name, arguments) in [
        ("nbdkit-nosuch-plugin.so", &[][..]),
        ("file.so", &[]),
        // A filter's name, for a plugin.
        ("nbdkit-cow-filter.so", &[]),
        ("nbdkit-nosuch-filter.so", &["null"]),
    ] {
        let copy = dir.join(name);
        std::fs::copy(&file, &copy).unwrap();
        let what = if arguments.is_empty() { "plugin" } else { "filter" };
        let first = match what {
            "plugin" => copy.to_str().unwrap().to_owned(),
            _ => format!("--filter={}", copy.display()),
        };
        // One that is not refused ends, too.
        let ends = ["-U", "-", "--run", "true"];
        let finished = run(Binary::ours().path(), &[&ends[..], &[&*first], arguments].concat());
        assert_eq!(finished.status.code(), Some(1), "{name}");
        let expected = format!(
            "nbdkit: error: {}: no built-in {what} has this name (nbdkit-NAME-{what}.so)\n",
            copy.display()
        );
        assert_eq!(finished.stderr, expected);
    }
}

#[test]
fn debians_nbdkit_says_that_there_is_nothing_in_the_file() {
    let Some(debian) = Binary::debian() else {
        eprintln!("SKIPPED: Debian's nbdkit is not installed");
        return;
    };
    let dir = install();
    let plugin = dir.join(PLUGINS).join("nbdkit-memory-plugin.so");
    let filter = format!("--filter={}", dir.join(FILTERS).join("nbdkit-cow-filter.so").display());
    for arguments in [&[plugin.to_str().unwrap(), "1M"][..], &[&filter, "null"]] {
        let arguments = [&["-U", "-", "--run", "true"], arguments].concat();
        let finished = run(debian.path(), &arguments);
        assert_eq!(finished.status.code(), Some(1), "{arguments:?}");
        assert!(finished.stderr.contains("is built into nbdkitd"), "{}", finished.stderr);
    }
}
