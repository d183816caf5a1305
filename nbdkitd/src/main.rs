//! (see Cargo.toml)
#[allow(dead_code, reason = "the stages of the listener that read these come next")]
mod cli;
fn main() {}
