//! The time in the lines of a log file: RFC 3339 with milliseconds and the offset of the local
//! time.

#![forbid(unsafe_code)]

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The local time. The zone is read once, before the listener confines itself: its rules include
/// the changes to come.
#[derive(Debug)]
pub(super) struct Clock(TimeZone);

impl Clock {
    /// With the zone of `TZ`, or of the system; UTC if there is none.
    pub(super) fn new() -> Clock {
        Clock(TimeZone::system())
    }

    /// `2026-11-29T12:13:45.678+01:00`.
    pub(super) fn now(&self) -> String {
        self.show(Timestamp::now())
    }

    fn show(&self, time: Timestamp) -> String {
        time.to_zoned(self.0.clone()).strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz;

    #[test]
    fn times_have_milliseconds_and_an_offset() {
        let time = Timestamp::from_millisecond(1_796_000_000_007).unwrap();
        for (zone, shown) in [
            (TimeZone::UTC, "2026-11-30T00:53:20.007+00:00"),
            (TimeZone::fixed(tz::offset(-8)), "2026-11-29T16:53:20.007-08:00"),
        ] {
            assert_eq!(Clock(zone).show(time), shown);
        }
    }
}
