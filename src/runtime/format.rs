//! Numbers, and text from elsewhere, as a terminal shows them.

use std::time::Duration;

/// `1234567` as `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `value` with so many decimals; what rounds to zero has no sign.
pub fn fixed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(digits) if digits.bytes().all(|b| matches!(b, b'0' | b'.')) => digits.to_owned(),
        _ => text,
    }
}

/// Three significant digits and a unit: `987`, `12.3k`, `1.20M`; `-` if not finite.
pub fn rate(number: f64) -> String {
    if !number.is_finite() {
        return "-".into();
    }
    let mut scaled = number;
    let mut unit = "";
    for next in ["k", "M", "G", "T", "P"] {
        if scaled.abs() < 999.5 {
            break;
        }
        (scaled, unit) = (scaled / 1000.0, next);
    }
    let decimals = match scaled.abs() {
        _ if unit.is_empty() => 0,
        // The bounds are the values that round to one more digit.
        size if size < 9.995 => 2,
        size if size < 99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.decimals$}{unit}")
}

/// The two largest units: `0.4s`, `45s`, `3m 05s`, `2h 07m`, `12d 03h`.
pub fn duration(time: Duration) -> String {
    let tenths = (time.as_secs_f64() * 10.0).round();
    if tenths < 100.0 {
        return format!("{:.1}s", tenths / 10.0);
    }
    let seconds = time.as_secs_f64().round() as u64;
    let minutes = seconds / 60;
    let hours = seconds / 3600;
    let days = seconds / 86_400;
    match () {
        () if minutes == 0 => format!("{seconds}s"),
        () if hours == 0 => format!("{minutes}m {:02}s", seconds % 60),
        () if days == 0 => format!("{hours}h {:02}m", minutes % 60),
        () => format!("{days}d {:02}h", hours % 24),
    }
}

/// `text` with its control characters escaped, newlines and tabs excepted: names, texts and values from files must not move the
/// cursor, clear the screen or retitle the window.
pub fn escape_control(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !matches!(c, '\n' | '\t') {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// The first `most` characters of `text`, with a sign of what is left out.
pub fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_shown() {
        assert_eq!([0, 2, 3, 9].map(|most| shortened("aé🙂", most)), ["…", "aé…", "aé🙂", "aé🙂"]);
        assert_eq!(shortened("", 0), "");
    }

    #[test]
    fn numbers_read_at_a_glance() {
        let counts = [0, 7, 999, 1000, 123_456, 1_716_144_128].map(thousands);
        assert_eq!(counts, ["0", "7", "999", "1,000", "123,456", "1,716,144,128"]);
        let rates = [0.0, 3.7, 999.4, 999.6, 1234.0, 9_996.0, 12_345.0, 99_960.0, 999_600.0, 1.2e6, 3e18].map(rate);
        assert_eq!(rates, ["0", "4", "999", "1.00k", "1.23k", "10.0k", "12.3k", "100k", "1.00M", "1.20M", "3000P"]);
        assert_eq!([f64::NAN, f64::INFINITY].map(rate), ["-", "-"]);
    }

    #[test]
    fn zero_has_no_sign() {
        for (value, text) in
            [(-0.0, "0.0000"), (-1e-9, "0.0000"), (-0.00004, "0.0000"), (-0.00006, "-0.0001"), (1.5, "1.5000")]
        {
            assert_eq!(fixed(value, 4), text);
        }
        assert_eq!([fixed(-0.4, 0), fixed(f64::NAN, 2), fixed(f64::NEG_INFINITY, 2)], ["0", "NaN", "-inf"]);
    }

    #[test]
    fn control_characters_are_escaped_but_newlines_and_tabs() {
        assert_eq!(escape_control("a\tb\n\u{e9}\x1b[2J\r\u{9b}\x7f"), "a\tb\n\u{e9}\\u{1b}[2J\\u{d}\\u{9b}\\u{7f}");
    }

    #[test]
    fn durations_have_their_two_largest_units() {
        let seconds = [0.04, 0.44, 9.94, 9.96, 59.4, 59.6, 185.0, 3599.6, 7_620.0, 86_400.0, 1_047_600.0];
        let read = seconds.map(|seconds| duration(Duration::from_secs_f64(seconds)));
        let want = ["0.0s", "0.4s", "9.9s", "10s", "59s", "1m 00s", "3m 05s", "1h 00m", "2h 07m", "1d 00h", "12d 03h"];
        assert_eq!(read, want);
    }
}
