//! Filters in C: our header in both its ages, every callback and function, contexts, errors,
//! crashes, stacks; side by side with Debian's server where the same source compiles with its
//! header. The C sources are in `tests/cfilters`, and are compiled here.
#![expect(clippy::unwrap_used, reason = "a file that cannot be prepared is a failed test")]

mod callbacks;
mod contexts;
mod loading;
mod samples;
mod shared;
mod support;
