//! When a certificate revocation list is out of date. RFC 5280, 5.1.
//!
//! Neither GnuTLS as nbdkit uses it nor rustls checks that: an old list still revokes the
//! certificates that it names, but lacks those that were revoked later.

#![forbid(unsafe_code)]

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, civil};
use nbdkit_ipc::der::{Der, INTEGER, SEQUENCE};

/// UTCTime: `YYMMDDHHMMSSZ`. RFC 5280, 4.1.2.5.1.
const UTC_TIME: u8 = 0x17;
/// GeneralizedTime: `YYYYMMDDHHMMSSZ`. RFC 5280, 4.1.2.5.2.
const GENERALIZED_TIME: u8 = 0x18;

/// The nextUpdate of a list (DER). `None` if it has none, or is no list.
pub(super) fn next_update(list: &[u8]) -> Option<Timestamp> {
    // tbsCertList begins with version (if not 1), signature, issuer, thisUpdate, nextUpdate (if it
    // is known).
    let mut tbs = Der(Der(Der(list).take(SEQUENCE)?).take(SEQUENCE)?);
    if tbs.tag() == Some(INTEGER) {
        tbs.any()?;
    }
    tbs.take(SEQUENCE)?;
    tbs.take(SEQUENCE)?;
    tbs.any().filter(|(tag, ..)| is_time(*tag))?;
    let (tag, text, _) = tbs.any().filter(|(tag, ..)| is_time(*tag))?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        _ => {
            let (year, rest) = text.split_at_checked(4)?;
            (number(year)?, rest)
        }
    };
    date_time(year, rest)?.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp())
}

fn is_time(tag: u8) -> bool {
    tag == UTC_TIME || tag == GENERALIZED_TIME
}

/// `rest`: month, day, hour, minute and second, two digits each.
fn date_time(year: i16, rest: &str) -> Option<DateTime> {
    let mut fields = [0; 5];
    if rest.len() != 2 * fields.len() {
        return None;
    }
    for (index, field) in fields.iter_mut().enumerate() {
        *field = i8::try_from(number(rest.get(2 * index..2 * index + 2)?)?).ok()?;
    }
    let [month, day, hour, minute, second] = fields;
    let date = civil::Date::new(year, month, day).ok()?;
    Some(date.to_datetime(civil::Time::new(hour, minute, second, 0).ok()?))
}

/// Digits and nothing else.
fn number(digits: &str) -> Option<i16> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        assert!(content.len() < 128);
        [&[tag, content.len() as u8], content].concat()
    }

    fn list(version: &[u8], times: &[(u8, &str)]) -> Vec<u8> {
        let times: Vec<u8> =
            times.iter().flat_map(|(tag, text)| der(*tag, text.as_bytes())).collect();
        let tbs = [version, &der(SEQUENCE, &[]), &der(SEQUENCE, b"issuer"), &times].concat();
        der(SEQUENCE, &der(SEQUENCE, &tbs))
    }

    #[test]
    fn the_second_time_of_a_list_is_its_next_update() {
        let this = (UTC_TIME, "240101000000Z");
        for (tag, text, expected) in [
            (UTC_TIME, "261128120000Z", Some("2026-11-28T12:00:00Z")),
            (UTC_TIME, "491231235959Z", Some("2049-12-31T23:59:59Z")),
            (UTC_TIME, "500101000000Z", Some("1950-01-01T00:00:00Z")),
            (GENERALIZED_TIME, "20500101000000Z", Some("2050-01-01T00:00:00Z")),
            (GENERALIZED_TIME, "99991231235959Z", None),
            (UTC_TIME, "261328120000Z", None),
            (UTC_TIME, "2611281200Z", None),
            (UTC_TIME, "26112812000 Z", None),
            (UTC_TIME, "+6112812000-Z", None),
            (UTC_TIME, "261128120000", None),
            (SEQUENCE, "261128120000Z", None),
        ] {
            for version in [vec![], der(INTEGER, &[1])] {
                let list = list(&version, &[this, (tag, text)]);
                let found = next_update(&list).map(|time| time.to_string());
                assert_eq!(found.as_deref(), expected, "{text}");
                for cut in 0..list.len() {
                    assert_eq!(next_update(&list[..cut]), None, "{cut}");
                }
            }
        }
        assert_eq!(next_update(&list(&[], &[this])), None, "there is no nextUpdate");
    }
}
