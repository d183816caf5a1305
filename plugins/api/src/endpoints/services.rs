//! Ports by number, or by a service's name in /etc/services. services(5).
//!
//! Read here and not by getservbyname(3), so that a port is a number before the sandbox closes,
//! which allows it alone.

#![forbid(unsafe_code)]

use crate::error::{Error, Result, ResultExt};

/// The TCP port that `text` names.
///
/// # Errors
/// One line: it is 0 or too large; there is no such service; /etc/services cannot be read.
pub(super) fn port(text: &str) -> Result<u16> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = text.parse().ok().filter(|port| *port != 0);
        return number.ok_or_else(|| Error::msg(format!("port number out of range: {text}")));
    }
    let file = "/etc/services";
    let services = std::fs::read(file).or_error(|| format!("open: {file}"))?;
    find(&String::from_utf8_lossy(&services), text)
        .ok_or_else(|| Error::msg(format!("unknown service: {}", text.escape_default())))
}

/// `name port/protocol [alias...] [#comment]`
fn find(services: &str, name: &str) -> Option<u16> {
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (first, port) = (words.next()?, words.next()?);
        let (number, "tcp") = port.split_once('/')? else { return None };
        (first == name || words.any(|alias| alias == name)).then(|| number.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_found_by_name_and_by_alias() {
        let text =
            "# services\nntp 123/udp\nnbd\t10809/tcp # disks\nhttp 80/tcp www web\nbad x/tcp\n";
        for (name, port) in [
            ("nbd", Some(10809)),
            ("web", Some(80)),
            ("ntp", None),
            ("disks", None),
            ("bad", None),
            ("", None),
        ] {
            assert_eq!(find(text, name), port, "{name}");
        }
    }

    #[test]
    fn numbers_are_ports() {
        assert_eq!(port("10809").unwrap(), 10809);
        for (text, message) in [
            ("0", "port number out of range: 0"),
            ("65536", "port number out of range: 65536"),
            ("no-such-service", "unknown service: no-such-service"),
            ("", "unknown service: "),
        ] {
            assert_eq!(port(text).unwrap_err().message(), message);
        }
    }
}
