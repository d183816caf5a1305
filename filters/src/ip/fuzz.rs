//! For the fuzz targets: rules, and clients to judge by them.

#![forbid(unsafe_code)]

use nbdkit_api::Result;
use nbdkit_api::client::{Peer, TlsPeer};

use super::rule::Rule;

/// Whether any rule of the list `rules` is about the client.
///
/// # Errors
/// The list makes no sense.
pub fn matches(rules: &str, peer: &Peer, tls: Option<&TlsPeer>) -> Result<bool> {
    let rules = Rule::parse_list("allow", rules)?;
    let _ = rules.iter().any(Rule::needs_tls);
    Ok(rules.iter().any(|rule| rule.matches(peer, tls)))
}
