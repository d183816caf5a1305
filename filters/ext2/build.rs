//! Links with the system's libext2fs, which gets the distribution's security updates, and takes the
//! version of the filter interface from nbdkit-version.h.

const HEADER: &str = "../../include/nbdkit-version.h";

fn main() {
    println!("cargo::rerun-if-changed={HEADER}");
    println!("cargo::rustc-link-lib=dylib=ext2fs");
    println!("cargo::rustc-link-lib=dylib=com_err");
    let header = std::fs::read_to_string(HEADER).unwrap_or_default();
    let version =
        header.lines().find_map(|line| line.strip_prefix("#define NBDKIT_VERSION_STRING "));
    let Some(version) = version else { panic!("{HEADER} has no NBDKIT_VERSION_STRING") };
    println!("cargo::rustc-env=NBDKIT_INTERFACE={}", version.trim().trim_matches('"'));
}
