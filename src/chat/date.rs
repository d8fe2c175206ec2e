//! The date that `strftime_now` tells, as Python's `strftime` writes it in the C locale.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment, in seconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Date(u64);

/// A moment as people say it.
struct Parts {
    year: u64,
    month: usize,
    day: u64,
    day_of_year: u64,
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Date {
    /// 1 January 2025, 00:00.
    pub(super) const FIXED: Self = Self(1_735_689_600);

    pub(super) fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    /// As `format` says; none for a directive that is not known.
    pub(super) fn format(self, format: &str) -> Option<String> {
        let (parts, mut out, mut chars) = (self.parts(), String::new(), format.chars());
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next()? {
                // GNU's "no padding".
                '-' => {
                    let written = parts.directive(chars.next()?)?;
                    let bare = written.trim_start_matches(['0', ' ']);
                    out.push_str(if bare.is_empty() { "0" } else { bare });
                }
                directive => out.push_str(&parts.directive(directive)?),
            }
        }
        Some(out)
    }

    fn parts(self) -> Parts {
        let (mut days, seconds) = (self.0 / 86_400, self.0 % 86_400);
        let weekday = ((days + 4) % 7) as usize;
        let mut year = 1970;
        while days >= days_of_year(year) {
            days -= days_of_year(year);
            year += 1;
        }
        let day_of_year = days + 1;
        let mut month = 0;
        while days >= days_of_month(year, month) {
            days -= days_of_month(year, month);
            month += 1;
        }
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        Parts { year, month, day: days + 1, day_of_year, weekday, hour, minute, second }
    }
}

impl Parts {
    fn directive(&self, directive: char) -> Option<String> {
        let Self { year, month, day, day_of_year, weekday, hour, minute, second } = self;
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        let join = |pieces: &str| {
            pieces.chars().map(|c| if c.is_alphabetic() { self.directive(c) } else { Some(c.into()) }).collect()
        };
        Some(match directive {
            'Y' => year.to_string(),
            'y' => format!("{:02}", year % 100),
            'C' => format!("{:02}", year / 100),
            'm' => format!("{:02}", month + 1),
            'B' => MONTHS[*month].into(),
            'b' | 'h' => MONTHS[*month][..3].into(),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'j' => format!("{day_of_year:03}"),
            'A' => DAYS[*weekday].into(),
            'a' => DAYS[*weekday][..3].into(),
            'w' => weekday.to_string(),
            'u' => (if *weekday == 0 { 7 } else { *weekday }).to_string(),
            'U' => format!("{:02}", (day_of_year + 6 - *weekday as u64) / 7),
            'W' => format!("{:02}", (day_of_year + 6 - (*weekday as u64 + 6) % 7) / 7),
            'H' => format!("{hour:02}"),
            'k' => format!("{hour:2}"),
            'I' => format!("{twelve:02}"),
            'l' => format!("{twelve:2}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'f' => "000000".into(),
            'p' => (if *hour < 12 { "AM" } else { "PM" }).into(),
            'P' => (if *hour < 12 { "am" } else { "pm" }).into(),
            'F' => return join("Y-m-d"),
            'T' | 'X' => return join("H:M:S"),
            'R' => return join("H:M"),
            'r' => return join("I:M:S p"),
            'D' | 'x' => return join("m/d/y"),
            'c' => return join("a b e H:M:S Y"),
            // Local times of Python have no zone.
            'z' | 'Z' => String::new(),
            'n' => "\n".into(),
            't' => "\t".into(),
            '%' => "%".into(),
            _ => return None,
        })
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_of_month(year: u64, month: usize) -> u64 {
    [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month]
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
        assert_eq!(Date::FIXED.format("%Q"), None);
        assert!(Date::now() > Date::FIXED);
    }
}
