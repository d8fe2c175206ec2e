//! The date that `strftime_now` gives, as Python's `strftime` writes it in the C locale.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use chrono::format::{Fixed, Item, Numeric, StrftimeItems};

/// A moment, in seconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Date(u64);

impl Date {
    /// 2025-01-01, 00:00 (UTC).
    pub(super) const FIXED: Self = Self(1_735_689_600);

    pub(super) fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    /// The date in Python's `format`; none for a directive that is not known.
    pub(super) fn format(self, format: &str) -> Option<String> {
        let time = DateTime::from_timestamp(i64::try_from(self.0).ok()?, 0)?.naive_utc();
        let mut out = String::new();
        for item in StrftimeItems::new(format) {
            match item {
                Item::Error => return None,
                // Python's fraction has microseconds, and its local times have no zone.
                Item::Numeric(Numeric::Nanosecond, _) => out.push_str("000000"),
                Item::Fixed(Fixed::TimezoneName | Fixed::TimezoneOffset) => {}
                item => write!(out, "{}", time.format_with_items(std::iter::once(item))).ok()?,
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // Each checked with Python's datetime.
        for (seconds, text) in [
            (0, "Thursday 01 January 1970 00:00:00 001 00 00 4"),
            (951_782_399, "Monday 28 February 2000 23:59:59 059 09 09 1"),
            (951_782_400, "Tuesday 29 February 2000 00:00:00 060 09 09 2"),
            (1_735_689_600, "Wednesday 01 January 2025 00:00:00 001 00 00 3"),
            (1_798_761_599, "Thursday 31 December 2026 23:59:59 365 52 52 4"),
        ] {
            assert_eq!(Date(seconds).format("%A %d %B %Y %H:%M:%S %j %U %W %u").unwrap(), text);
        }
        // Date::FIXED as Python 3 with glibc writes it.
        for (format, text) in [
            ("%-d %e %k %l %-I %-m %-j", "1  1  0 12 12 1 1"),
            (
                "%c|%x|%X|%r|%R|%D|%F|%T",
                "Wed Jan  1 00:00:00 2025|01/01/25|00:00:00|12:00:00 AM|00:00|01/01/25|2025-01-01|00:00:00",
            ),
            ("%a %b %h %y %C %p %P %f %w %n%t%%", "Wed Jan Jan 25 20 AM am 000000 3 \n\t%"),
            ("[%z%Z]", "[]"),
        ] {
            assert_eq!(Date::FIXED.format(format).unwrap(), text);
        }
        for unknown in ["%Q", "%", "%-", "%+", "%:z"] {
            assert_eq!(Date::FIXED.format(unknown), None, "{unknown}");
        }
        assert!(Date::now() > Date::FIXED);
    }
}
