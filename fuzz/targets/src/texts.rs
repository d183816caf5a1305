//! Parsers of texts: the command line, parameters, what scripts print, what workers log; and the
//! protocol's decoders.

#[expect(clippy::unwrap_used, reason = "it belongs to the tests of nbd-protocol")]
#[path = "../../../nbd-protocol/tests/decoders/mod.rs"]
mod decoders;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nbdkit_api::client::{Peer, PeerAddress, TlsPeer};
use nbdkit_api::parse;
use nbdkit_ipc::messages::{Applies, Level, LogRecord, Parameter};
use nbdkit_worker::fuzz::Server;

use crate::input::Input;
use crate::session;

/// Every decoder of `nbd-protocol`.
///
/// # Panics
/// If one does, or if what it decodes does not encode back.
pub fn protocol(data: &[u8]) {
    decoders::round_trip(data);
    let mut header = [0; 152];
    let length = data.len().min(header.len());
    header[..length].copy_from_slice(&data[..length]);
    decoders::headers(header);
}

/// A command line, an argument on each line; after an empty line the parameter file that every
/// `--parameters-from` or the like finds. The first byte chooses whether sockets were passed: the
/// first two arguments are then the variables.
///
/// # Panics
/// If the parser does, or prints what no terminal or shell should get.
pub fn command_line(data: &[u8]) {
    let Some((activation, data)) = data.split_first() else { return };
    let end = data.windows(2).position(|pair| pair == b"\n\n").unwrap_or(data.len());
    let file = data.get(end + 2..).unwrap_or_default();
    let mut args: Vec<OsString> = data[..end]
        .split(|byte| *byte == b'\n')
        .filter(|argument| !argument.contains(&0))
        .map(|argument| OsString::from_vec(argument.to_vec()))
        .collect();
    let activation =
        (activation & 1 != 0 && args.len() >= 2).then(|| (args.remove(0), args.remove(0)));
    let activation = activation.as_ref().map(|(pid, fds)| (pid.as_os_str(), fds.as_os_str()));
    args.insert(0, "nbdkit".into());
    let read = |_: &std::path::Path| {
        if file.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(file.to_vec()) }
    };
    match nbdkitd::fuzz::command_line(args, activation, &read) {
        Ok(printed) => {
            if let [uri, _script] = &printed[..] {
                let plain = uri.as_bytes().iter().all(u8::is_ascii_graphic);
                assert!(plain, "a URI is in printable characters: {}", uri.display());
            }
        }
        Err(text) => assert!(!text.is_empty(), "a refusal says why"),
    }
}

/// Numbers, as parameters and scripts write them.
///
/// # Panics
/// If a parser does, or accepts what is out of its range.
pub fn numbers(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(size) = parse::size(&text) {
        assert!(i64::try_from(size).is_ok(), "{text:?} is {size}");
        assert_eq!(parse::size(&size.to_string()).ok(), Some(size));
    }
    if let Ok(probability) = parse::probability("p", &text) {
        assert!(probability >= 0.0 && probability.is_finite(), "{text:?} is {probability}");
    }
    if let Ok(number) = parse::integer::<i64>("n", &text) {
        assert_eq!(parse::integer::<i64>("n", &number.to_string()).ok(), Some(number));
    }
    let _ = (parse::integer::<u8>("n", &text), parse::integer::<u64>("n", &text));
    let _ = (parse::boolean(&text), parse::delay("d", &text));
}

/// Plugins that touch nothing outside when they are configured.
const PLUGINS: [&str; 8] = ["data", "full", "info", "memory", "null", "ones", "pattern", "random"];
/// Filters of the same kind, and that do not sleep.
const FILTERS: [&str; 13] = [
    "cow",
    "error",
    "exitlast",
    "exportname",
    "fua",
    "ip",
    "limit",
    "nocache",
    "noextents",
    "noparallel",
    "nozero",
    "offset",
    "truncate",
];

/// A stack from the command line and a client that tries it: two filters and a plugin by number,
/// then a parameter on each line.
///
/// # Panics
/// If anything does.
pub fn parameters(data: &[u8]) {
    let mut input = Input(data);
    let filters = [input.u8(), input.u8()];
    let filters: Vec<&str> =
        filters.iter().filter_map(|at| FILTERS.get(usize::from(at % 16)).copied()).collect();
    let plugin = PLUGINS[usize::from(input.u8()) % PLUGINS.len()];
    // Memory is taken when the size is known; and the data format may name files and scripts.
    let hungry = |needle: &[u8]| input.0.windows(needle.len()).any(|part| part == needle);
    if hungry(b"malloc")
        || plugin == "data" && [&b"<"[..], b"$", b"*", b"@"].iter().any(|it| hungry(it))
    {
        return;
    }
    let parameters: Vec<Parameter> = input
        .0
        .split(|byte| *byte == b'\n')
        .take(16)
        .filter(|line| !line.contains(&0))
        .map(|line| {
            let equals = line.iter().position(|byte| *byte == b'=');
            let key = equals.and_then(|at| str::from_utf8(&line[..at]).ok());
            let value = if key.is_some() { &line[equals.map_or(0, |at| at + 1)..] } else { line };
            Parameter {
                key: key.map(str::to_owned),
                value: OsStr::from_bytes(value).to_owned(),
                applies: Applies::Always,
            }
        })
        .collect();
    let configure = session::configuration(&filters, plugin);
    let Ok(server) = Server::new(&configure, &parameters) else { return };
    let _ = session::serve(&server, &crate::transmission::trial());
}

/// The data plugin's language; the parts between NUL bytes are the text, and the parameters `a`,
/// `b` and `c`.
///
/// # Panics
/// If the evaluator does, or makes an image that contradicts itself.
pub fn data_format(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == 0);
    let text = parts.next().unwrap_or_default();
    let parameters: HashMap<String, OsString> = ["a", "b", "c"]
        .into_iter()
        .zip(parts)
        .map(|(name, text)| (name.to_owned(), OsString::from_vec(text.to_vec())))
        .collect();
    let _ = nbdkit_plugins::fuzz::image(text, &parameters);
}

/// What scripts print: an exit status, and two texts with a NUL byte between them.
///
/// # Panics
/// If a parser does, or believes extents that cannot be.
pub fn script_output(data: &[u8]) {
    let mut input = Input(data);
    // Not those by which the server would be asked to end.
    let code = match input.u8() {
        4 | 5 => 1,
        code => code,
    };
    let mut texts = input.0.splitn(2, |byte| *byte == 0);
    let (stdout, stderr) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
    nbdkit_plugins::fuzz::script(ExitStatus::from_raw(i32::from(code) << 8), stdout, stderr);
}

/// What TLS brings beside its own records: certificates of clients, transcripts that workers want
/// signed, and files of pre-shared keys. The first byte chooses which.
///
/// # Panics
/// If one of them does, or if a transcript is signed that has the length of none.
pub fn tls(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() % 3 {
        0 => drop(nbdkit_worker::fuzz::names(input.0)),
        1 => {
            let scheme = input.u32() as u16;
            // RFC 8446, 4.4.3, with both hashes; RFC 8422, 5.4, with three curves.
            let lengths = [130, 146, 64 + 4 + 65, 64 + 4 + 97, 64 + 4 + 32];
            let signed = nbdkitd::fuzz::is_signed(scheme, input.0);
            assert!(!signed || lengths.contains(&input.0.len()), "{:?}", input.0);
        }
        _ => drop(nbdkitd::fuzz::is_key_file(input.0)),
    }
}

/// Files of filters that describe a disk: lists of extents, maps of ddrescue. The first byte
/// chooses which.
///
/// # Panics
/// If extents overlap or are out of order, or ranges that were rescued touch.
pub fn filter_lists(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.u8();
    let text = String::from_utf8_lossy(input.0);
    if kind & 1 == 0 {
        let extents = nbdkit_filters::fuzz::extent_list(&text).unwrap_or_default();
        assert!(extents.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
    } else {
        let rescued = nbdkit_filters::fuzz::rescued(&text).unwrap_or_default();
        assert!(rescued.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }
}

/// Rules of the ip filter: a client, and then the rules.
///
/// # Panics
/// If parsing a rule does, or if a peer matches rules and not the same rules with `any`.
pub fn ip_rules(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.u8();
    let address = match kind % 5 {
        0 => PeerAddress::Inet(SocketAddr::new(IpAddr::from(input.u32().to_be_bytes()), 1)),
        1 => {
            let (high, low) = (input.u64(), input.u64());
            let bits = u128::from(high) << 64 | u128::from(low);
            PeerAddress::Inet(SocketAddr::new(IpAddr::from(bits.to_be_bytes()), 1))
        }
        2 => PeerAddress::Unix,
        3 => PeerAddress::Vsock { cid: input.u32(), port: input.u32() },
        _ => PeerAddress::Unknown,
    };
    let credentials =
        (kind & 0x80 != 0).then(|| (input.u32().cast_signed(), input.u32(), input.u32()));
    let name = |input: &mut Input<'_>| String::from_utf8_lossy(input.sized()).into_owned();
    let security_context = (kind & 0x40 != 0).then(|| name(&mut input));
    let tls =
        (kind & 0x20 != 0).then(|| TlsPeer { dn: name(&mut input), issuer_dn: name(&mut input) });
    let peer = Peer { address, credentials, security_context };
    let rules = String::from_utf8_lossy(input.0);
    if let Ok(true) = nbdkit_filters::fuzz::matches(&rules, &peer, tls.as_ref()) {
        let with_any = format!("any,{rules}");
        let any = nbdkit_filters::fuzz::matches(&with_any, &peer, tls.as_ref());
        assert!(any.unwrap_or(true), "more rules match no less");
    }
}

/// A record of a hostile worker as a line of the log.
///
/// # Panics
/// If it is more than one line, or one that a terminal would obey.
pub fn log_line(data: &[u8]) {
    let mut input = Input(data);
    let (kind, connection) = (input.u8(), input.u64());
    let layer = (kind & 1 != 0).then(|| String::from_utf8_lossy(input.sized()).into_owned());
    let text = String::from_utf8_lossy(input.0).into_owned();
    let level = match kind & 6 {
        0 => Level::Debug,
        2 => Level::Error,
        4 => Level::Warning,
        _ => Level::Notice,
    };
    let line = nbdkitd::fuzz::log_line(&LogRecord { level, layer, connection, text });
    let line = line.strip_suffix('\n').expect("a line ends");
    assert!(!line.chars().any(char::is_control), "{line:?}");
}
