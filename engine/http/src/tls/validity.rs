//! From when until when a certificate may be used, read from its bytes.
//!
//! TLS libraries check the other side's certificate and never their own. Reads as much of X.509 as
//! lies before the two times, and trusts no length.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// A second in UTC, as the digits YYYYMMDDhhmmss, which are in the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

/// When a certificate may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    from: Moment,
    until: Moment,
}

impl Moment {
    /// The second of a time.
    pub(super) fn of(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (of_day, (year, month, day)) = (seconds % 86_400, date(seconds / 86_400));
        let time = of_day / 3600 * 10_000 + of_day / 60 % 60 * 100 + of_day % 60;
        Moment(((year * 100 + month) * 100 + day) * 1_000_000 + time)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [second, minute, hour, day, month] =
            [0, 1, 2, 3, 4].map(|place| self.0 / 100_u64.pow(place) % 100);
        let year = self.0 / 10_000_000_000;
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

/// Year, month and day that lie `days` after the first of 1970.
fn date(days: u64) -> (u64, u64, u64) {
    // Years that begin in March end with the day that comes and goes; 400 of them are 146,097 days.
    let days = days + 719_468;
    let (eras, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (400 * eras + year + u64::from(month <= 2), month, of_month)
}

impl Validity {
    /// That of a certificate in DER; `None` if it is none.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let mut signed = Der(Der(certificate).next(SEQUENCE)?);
        let mut fields = Der(signed.next(SEQUENCE)?);
        if fields.0.first() == Some(&VERSION) {
            fields.next(VERSION)?;
        }
        // The serial number, the algorithm, and who issued it.
        for tag in [INTEGER, SEQUENCE, SEQUENCE] {
            fields.next(tag)?;
        }
        let mut times = Der(fields.next(SEQUENCE)?);
        Some(Validity { from: times.moment()?, until: times.moment()? })
    }

    /// Says why not, if it may not be used `now`.
    pub(super) fn check(self, now: Moment) -> Result<(), String> {
        let Validity { from, until } = self;
        if now > until {
            return Err(format!("holds a certificate that expired on {until}"));
        }
        if now < from {
            return Err(format!("holds a certificate that is not valid before {from}"));
        }
        Ok(())
    }
}

/// Values that follow each other.
struct Der<'a>(&'a [u8]);

/// Tags.
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERAL_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

impl<'a> Der<'a> {
    /// What the next value holds, if it has this tag.
    fn next(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&[found, first], mut rest) = self.0.split_first_chunk()?;
        let mut len = usize::from(first);
        if first >= 0x80 {
            let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if digits.len() > 4 {
                return None;
            }
            len = digits.iter().fold(0, |len, &digit| len << 8 | usize::from(digit));
            rest = after;
        }
        let (value, after) = rest.split_at_checked(len)?;
        self.0 = after;
        (found == tag).then_some(value)
    }

    fn moment(&mut self) -> Option<Moment> {
        let is_short = self.0.first() == Some(&UTC_TIME);
        let text = self.next(if is_short { UTC_TIME } else { GENERAL_TIME })?;
        let digits = text.strip_suffix(b"Z")?;
        if digits.len() != if is_short { 12 } else { 14 } || !digits.iter().all(u8::is_ascii_digit)
        {
            return None;
        }
        let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
        // Two digits of a year are those from 1950 to 2049.
        let century = match number / 10_000_000_000 {
            _ if !is_short => 0,
            0..50 => 20,
            _ => 19,
        };
        Some(Moment(century * 1_000_000_000_000 + number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (seconds, told) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_798_761_599, "2026-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            let moment = Moment::of(UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(moment.to_string(), told);
        }
    }

    #[test]
    fn times_are_read_in_both_forms() {
        let read = |tag, text: &str| {
            let bytes = [&[tag, text.len() as u8], text.as_bytes()].concat();
            Der(&bytes).moment().map(|moment| moment.to_string())
        };
        assert_eq!(read(UTC_TIME, "491231235959Z").unwrap(), "2049-12-31 23:59:59 UTC");
        assert_eq!(read(UTC_TIME, "500101000000Z").unwrap(), "1950-01-01 00:00:00 UTC");
        assert_eq!(read(GENERAL_TIME, "99991231235959Z").unwrap(), "9999-12-31 23:59:59 UTC");
        for (tag, wrong) in [(UTC_TIME, "20491231235959Z"), (GENERAL_TIME, "491231235959Z")] {
            assert_eq!(read(tag, wrong), None);
        }
        assert_eq!(read(UTC_TIME, "4912312359590"), None);
        assert_eq!(read(UTC_TIME, "49123123595xZ"), None);
        assert_eq!(read(INTEGER, "491231235959Z"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_may_claim_to_be_a_certificate(
            bytes in prop::collection::vec(
                prop_oneof![Just(SEQUENCE), Just(VERSION), Just(0x84), 0_u8..12, any::<u8>()], 0..64
            ),
        ) {
            let _ = Validity::of(&bytes);
        }
    }
}
