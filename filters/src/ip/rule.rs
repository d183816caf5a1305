//! One rule of the ip filter: parsing, from the command line, and matching.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nbdkit_api::client::{Peer, PeerAddress, TlsPeer};
use nbdkit_api::{Error, Result, parse};

use super::glob;

/// What a rule matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rule {
    Any,
    AnyIpv4,
    AnyIpv6,
    AnyUnix,
    AnyVsock,
    /// A network and the length of its prefix, bits.
    Ipv4(Ipv4Addr, u32),
    /// The same.
    Ipv6(Ipv6Addr, u32),
    ProcessId(i64),
    UserId(i64),
    GroupId(i64),
    VsockCid(u32),
    VsockPort(u32),
    /// Exactly this security context.
    Security(String),
    /// A wildcard for the subject of the client's certificate.
    Dn(String),
    /// A wildcard for its issuer.
    IssuerDn(String),
}

impl Rule {
    /// Parses the value of `allow=` or `deny=` (`key`).
    ///
    /// # Errors
    /// A rule is empty or makes no sense.
    pub(super) fn parse_list(key: &str, value: &str) -> Result<Vec<Rule>> {
        // Distinguished names are full of commas.
        if has_prefix(value, "dn:") || has_prefix(value, "issuer-dn:") {
            return Ok(vec![Rule::parse(key, value)?]);
        }
        let list = value.strip_suffix(',').unwrap_or(value);
        if value.is_empty() {
            return Ok(Vec::new());
        }
        list.split(',').map(|text| Rule::parse(key, text)).collect()
    }

    fn parse(key: &str, text: &str) -> Result<Rule> {
        if text.is_empty() {
            return Err(Error::msg(format!("{key}: empty entry in rule list")));
        }
        match text.to_ascii_lowercase().as_str() {
            "all" | "any" => return Ok(Rule::Any),
            "allipv4" | "anyipv4" => return Ok(Rule::AnyIpv4),
            "allipv6" | "anyipv6" => return Ok(Rule::AnyIpv6),
            "allunix" | "anyunix" => return Ok(Rule::AnyUnix),
            "allvsock" | "anyvsock" => return Ok(Rule::AnyVsock),
            _ => {}
        }
        for (prefix, make) in PREFIXES {
            if has_prefix(text, prefix) {
                return make(prefix, &text[prefix.len()..]);
            }
        }
        parse_network(key, text)
    }

    /// Whether the rule can be judged only after TLS has been negotiated.
    pub(super) fn needs_tls(&self) -> bool {
        matches!(self, Rule::Dn(_) | Rule::IssuerDn(_))
    }

    /// Whether the rule is about this client.
    pub(super) fn matches(&self, peer: &Peer, tls: Option<&TlsPeer>) -> bool {
        let ip = match &peer.address {
            // A socket that serves both families shows IPv4 clients in IPv6 clothes.
            PeerAddress::Inet(address) => Some(address.ip().to_canonical()),
            PeerAddress::Unix | PeerAddress::Vsock { .. } | PeerAddress::Unknown => None,
        };
        let credentials = match peer.address {
            PeerAddress::Unix => peer.credentials,
            PeerAddress::Inet(_) | PeerAddress::Vsock { .. } | PeerAddress::Unknown => None,
        };
        match self {
            Rule::Any => true,
            Rule::AnyIpv4 => matches!(ip, Some(IpAddr::V4(_))),
            Rule::AnyIpv6 => matches!(ip, Some(IpAddr::V6(_))),
            Rule::AnyUnix => matches!(peer.address, PeerAddress::Unix),
            Rule::AnyVsock => matches!(peer.address, PeerAddress::Vsock { .. }),
            Rule::Ipv4(network, prefix) => match ip {
                Some(IpAddr::V4(ip)) => same_prefix(
                    u128::from(ip.to_bits()),
                    u128::from(network.to_bits()),
                    32 - prefix,
                ),
                _ => false,
            },
            Rule::Ipv6(network, prefix) => match ip {
                Some(IpAddr::V6(ip)) => same_prefix(ip.to_bits(), network.to_bits(), 128 - prefix),
                _ => false,
            },
            Rule::ProcessId(wanted) => {
                credentials.is_some_and(|(pid, ..)| *wanted == i64::from(pid))
            }
            Rule::UserId(wanted) => {
                credentials.is_some_and(|(_, uid, _)| *wanted == i64::from(uid))
            }
            Rule::GroupId(wanted) => credentials.is_some_and(|(.., gid)| *wanted == i64::from(gid)),
            Rule::VsockCid(wanted) => {
                matches!(peer.address, PeerAddress::Vsock { cid, .. } if cid == *wanted)
            }
            Rule::VsockPort(wanted) => {
                matches!(peer.address, PeerAddress::Vsock { port, .. } if port == *wanted)
            }
            Rule::Security(label) => peer.security_context.as_deref() == Some(label),
            Rule::Dn(wildcard) => {
                tls.is_some_and(|tls| !tls.dn.is_empty() && glob::matches(wildcard, &tls.dn))
            }
            Rule::IssuerDn(wildcard) => tls.is_some_and(|tls| {
                !tls.issuer_dn.is_empty() && glob::matches(wildcard, &tls.issuer_dn)
            }),
        }
    }
}

/// Whether the peer has an address of a family that rules know.
pub(super) fn is_known(peer: &Peer) -> bool {
    match peer.address {
        PeerAddress::Inet(_) | PeerAddress::Unix | PeerAddress::Vsock { .. } => true,
        PeerAddress::Unknown => false,
    }
}

type Make = fn(&str, &str) -> Result<Rule>;

const PREFIXES: [(&str, Make); 8] = [
    ("pid:", |name, text| Ok(Rule::ProcessId(number(name, text, 1, i32::MAX.into())?))),
    ("uid:", |name, text| Ok(Rule::UserId(number(name, text, 0, u32::MAX.into())?))),
    ("gid:", |name, text| Ok(Rule::GroupId(number(name, text, 0, u32::MAX.into())?))),
    ("vsock-cid:", |name, text| Ok(Rule::VsockCid(parse::integer(name, text)?))),
    ("vsock-port:", |name, text| Ok(Rule::VsockPort(parse::integer(name, text)?))),
    ("security:", |_, text| Ok(Rule::Security(text.to_owned()))),
    ("dn:", |_, text| Ok(Rule::Dn(text.to_owned()))),
    ("issuer-dn:", |_, text| Ok(Rule::IssuerDn(text.to_owned()))),
];

fn has_prefix(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn number(name: &str, text: &str, from: i64, to: i64) -> Result<i64> {
    let number = parse::integer::<i64>(name, text)?;
    if number < from || number > to {
        return Err(Error::msg(format!("{name} parameter out of range")));
    }
    Ok(number)
}

/// An address, or a network in CIDR notation.
fn parse_network(key: &str, text: &str) -> Result<Rule> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(parse::integer::<u32>(key, prefix)?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| {
        Error::msg(match prefix {
            Some(_) => format!("cannot parse address \"{address}\" from {key}={text}"),
            None => format!("don't know how to parse rule: {key}={text}"),
        })
    })?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.unwrap_or(bits);
    if prefix > bits {
        return Err(Error::msg(format!(
            "prefix length {prefix} is longer than {bits} bits in {key}={text}"
        )));
    }
    Ok(match address {
        IpAddr::V4(address) => Rule::Ipv4(address, prefix),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            // Peers are compared as IPv4, so the rule must be.
            Some(mapped) if prefix >= 96 => Rule::Ipv4(mapped, prefix - 96),
            _ => Rule::Ipv6(address, prefix),
        },
    })
}

/// Whether two numbers are the same but for the lowest `ignored` bits.
fn same_prefix(a: u128, b: u128, ignored: u32) -> bool {
    (a ^ b).checked_shr(ignored).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: PeerAddress) -> Peer {
        Peer { address, credentials: Some((100, 1000, 2000)), security_context: None }
    }

    fn tcp(address: &str) -> Peer {
        peer(PeerAddress::Inet((address.parse::<IpAddr>().unwrap(), 5).into()))
    }

    fn matches(rule: &str, peer: &Peer) -> bool {
        Rule::parse("allow", rule).unwrap().matches(peer, None)
    }

    #[test]
    fn each_kind_of_rule_matches_its_kind_of_peer() {
        let unix = peer(PeerAddress::Unix);
        let vsock = peer(PeerAddress::Vsock { cid: 3, port: 99 });
        let (v4, v6) = (tcp("192.168.2.7"), tcp("2001:db8::7"));
        for (rule, expected) in [
            ("ANY", [true, true, true, true]),
            ("all", [true, true, true, true]),
            ("anyipv4", [true, false, false, false]),
            ("allipv6", [false, true, false, false]),
            ("anyunix", [false, false, true, false]),
            ("allvsock", [false, false, false, true]),
            ("192.168.2.7", [true, false, false, false]),
            ("192.168.2.8", [false, false, false, false]),
            ("192.168.2.0/24", [true, false, false, false]),
            ("192.168.2.99/24", [true, false, false, false]),
            ("192.168.2.0/30", [false, false, false, false]),
            ("0.0.0.0/0", [true, false, false, false]),
            ("2001:db8::7", [false, true, false, false]),
            ("2001:db8::/32", [false, true, false, false]),
            ("::/0", [false, true, false, false]),
            ("2001:db9::/32", [false, false, false, false]),
            ("pid:100", [false, false, true, false]),
            ("uid:1000", [false, false, true, false]),
            ("uid:1001", [false, false, false, false]),
            ("gid:2000", [false, false, true, false]),
            ("vsock-cid:3", [false, false, false, true]),
            ("vsock-port:99", [false, false, false, true]),
            ("vsock-port:3", [false, false, false, false]),
        ] {
            let got = [&v4, &v6, &unix, &vsock].map(|peer| matches(rule, peer));
            assert_eq!(got, expected, "{rule}");
        }
        assert!(matches("::ffff:192.168.2.7", &v4));
    }

    #[test]
    fn a_security_label_must_be_the_same() {
        let mut unix = peer(PeerAddress::Unix);
        assert!(!matches("security:", &unix));
        unix.security_context = Some("a:b:c".to_owned());
        assert!(matches("security:a:b:c", &unix));
        assert!(!matches("security:a:b", &unix));
        // Once, the rest of the list was taken for part of the label.
        let rules = Rule::parse_list("allow", "security:a:b:c,pid:5").unwrap();
        assert_eq!(rules, [Rule::Security("a:b:c".to_owned()), Rule::ProcessId(5)]);
    }

    #[test]
    fn a_distinguished_name_takes_the_whole_value() {
        let rules = Rule::parse_list("allow", "issuer-dn:CN=a,O=b").unwrap();
        assert_eq!(rules, [Rule::IssuerDn("CN=a,O=b".to_owned())]);
        let tls = TlsPeer { dn: "CN=a".to_owned(), issuer_dn: String::new() };
        let any = Rule::Dn("*".to_owned());
        assert!(any.matches(&tcp("1.2.3.4"), Some(&tls)));
        assert!(!any.matches(&tcp("1.2.3.4"), None));
        assert!(!Rule::IssuerDn("*".to_owned()).matches(&tcp("1.2.3.4"), Some(&tls)));
    }

    #[test]
    fn bad_rules_say_why() {
        for (value, why) in [
            ("foo", "don't know how to parse rule: allow=foo"),
            ("all,,any", "allow: empty entry in rule list"),
            (",all", "allow: empty entry in rule list"),
            ("1.2.3.4/33", "prefix length 33 is longer than 32 bits in allow=1.2.3.4/33"),
            ("1.2.3/8", "cannot parse address \"1.2.3\" from allow=1.2.3/8"),
            ("pid:0", "pid: parameter out of range"),
            ("uid:-1", "uid: parameter out of range"),
            ("gid:4294967296", "gid: parameter out of range"),
            ("1.2.3.4-1.2.3.6", "don't know how to parse rule: allow=1.2.3.4-1.2.3.6"),
        ] {
            assert_eq!(Rule::parse_list("allow", value).unwrap_err().message(), why);
        }
        assert!(Rule::parse_list("allow", "").unwrap().is_empty());
        assert_eq!(Rule::parse_list("allow", "all,").unwrap(), [Rule::Any]);
    }
}
