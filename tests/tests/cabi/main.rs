//! Plugins in C: our headers, every callback and function, errors, crashes, threads; Debian's own,
//! side by side with Debian's server. The C sources are in `tests/cplugins`, and are compiled here.
#![expect(clippy::unwrap_used, reason = "a file that cannot be prepared is a failed test")]

mod callbacks;
mod cc;
mod confined;
mod crashes;
mod debian;
mod declared;
mod examples;
mod exported;
mod functions;
mod headers;
mod installed;
mod languages;
mod old;
mod rust;
mod stress;
mod support;
mod threads;
mod tls;
