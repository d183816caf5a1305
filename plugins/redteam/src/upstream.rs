//! No attack: what a plugin does whose disk is somewhere else.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use nbdkit_api::{Client, Endpoint, Error, Result, ResultExt, endpoints};

/// `tcp:HOST:PORT`, `unix:PATH`, `vsock:CID:PORT`.
///
/// # Errors
/// One line.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint> {
    let wrong = || Error::msg(format!("endpoint: {text}"));
    let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
    let place = || rest.rsplit_once(':').ok_or_else(wrong);
    let number = |text: &str| text.parse().map_err(|_| wrong());
    match kind {
        "tcp" => place().and_then(|(host, port)| Endpoint::tcp(host, port)),
        "unix" => Endpoint::unix(rest),
        "vsock" => {
            let (cid, port) = place()?;
            Ok(Endpoint::Vsock { cid: number(cid)?, port: number(port)? })
        }
        _ => Err(wrong()),
    }
}

/// `NUMBER,MILLISECONDS`: all that the endpoint of this number sends, when it is connected to in
/// that time.
///
/// # Errors
/// Those of [`endpoints::connect`].
pub(crate) fn fetch(all: &[Endpoint], client: Option<&Client>, argument: &str) -> Result<String> {
    let (number, patience) = argument.split_once(',').unwrap_or((argument, "20000"));
    let endpoint = number.parse().ok().and_then(|number: usize| all.get(number));
    let endpoint = endpoint.ok_or_else(|| Error::msg("fetch: no such endpoint"))?;
    let patience = Duration::from_millis(patience.parse().unwrap_or(0));
    let socket = endpoints::connect(client, endpoint, Instant::now() + patience)?;
    let mut text = String::new();
    File::from(socket).read_to_string(&mut text).or_error(|| "read")?;
    Ok(text)
}
