//! Compiles the functions with variable arguments, which stable Rust cannot define, and puts the
//! functions that plugins call into the program's dynamic symbol table, where dlopen(3) finds them.

fn main() {
    const SOURCE: &str = "src/cabi/variadic.c";
    println!("cargo::rerun-if-changed={SOURCE}");
    cc::Build::new()
        .file(SOURCE)
        .warnings(true)
        .extra_warnings(true)
        // Nothing of ours calls them.
        .link_lib_modifier("+whole-archive")
        .compile("variadic");
    println!("cargo::rustc-link-arg-bins=-Wl,--export-dynamic-symbol=nbdkit_*");
}
