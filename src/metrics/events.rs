//! `RUN/events.jsonl`: the history of a run's attempts, for people who ask what happened.
//!
//! Unlike the metrics it is never cut: a start, a crash and the resume after it all stay. It is also the only log that
//! carries wall-clock time, which is for display alone: nothing is ordered or measured by it.

use super::jsonl::parsed;
use crate::runtime::files::{Appender, append_log};
use anyhow::Result;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// `RUN/events.jsonl`, open for appending.
#[derive(Debug)]
pub struct Events {
    /// None: what is appended goes nowhere.
    log: Option<Appender>,
}

impl Events {
    /// Opens the history of `run_dir`, made if missing.
    ///
    /// # Errors
    /// [`crate::runtime::error::Exit::Io`] if the file cannot be opened.
    pub fn open(run_dir: &Path) -> Result<Self> {
        Ok(Self { log: Some(append_log(&run_dir.join("events.jsonl"))?) })
    }

    /// A history that keeps nothing: of a rank that writes no files.
    pub fn discard() -> Self {
        Self { log: None }
    }

    /// Appends `{"time":..,"kind":kind, fields..}` durably. `fields` is a JSON object (`json!({..})`) or null; the
    /// keys `time` and `kind` are taken.
    ///
    /// # Errors
    /// [`crate::runtime::error::Exit::Io`] if the file cannot be written.
    pub fn append(&mut self, kind: &str, fields: Value) -> Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        log.line(&line(SystemTime::now(), kind, fields))?;
        log.sync()
    }

    /// The open file, to check whether it is still in place.
    pub fn file(&self) -> Option<&Appender> {
        self.log.as_ref()
    }
}

/// The events that `run_dir` has kept, in order; lines that cannot be read are skipped.
///
/// # Errors
/// [`crate::runtime::error::Exit::Io`] if there is a file that cannot be read.
pub fn read_events(run_dir: &Path) -> Result<Vec<Value>> {
    let path = run_dir.join("events.jsonl");
    if path.symlink_metadata().is_err() {
        return Ok(Vec::new());
    }
    parsed(&path, false)
}

fn line(time: SystemTime, kind: &str, fields: Value) -> String {
    let mut event = Map::new();
    event.insert("time".into(), iso8601(time).into());
    event.insert("kind".into(), kind.into());
    match fields {
        Value::Null => {}
        Value::Object(fields) => fields.into_iter().for_each(|(key, value)| {
            event.entry(key).or_insert(value);
        }),
        other => {
            event.insert("value".into(), other);
        }
    }
    Value::Object(event).to_string()
}

/// UTC to the millisecond, as `2026-03-01T09:05:07.250Z`. A clock set before 1970 reads as 1970.
pub fn iso8601(time: SystemTime) -> String {
    DateTime::<Utc>::from(time.max(UNIX_EPOCH)).to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::time::Duration;

    #[test]
    fn times_are_iso_8601_in_utc() {
        let known = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599_001, "2024-12-31T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ];
        for (milliseconds, want) in known {
            assert_eq!(iso8601(UNIX_EPOCH + Duration::from_millis(milliseconds)), want);
        }
        assert_eq!(iso8601(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }

    /// Counts the days of four centuries one by one.
    #[test]
    fn dates_follow_the_gregorian_calendar() {
        let (mut year, mut month, mut day) = (1970_u64, 1, 1);
        for days in 0..146_097_u64 + 366 {
            let text = iso8601(UNIX_EPOCH + Duration::from_secs(days * 86_400));
            assert_eq!(text, format!("{year:04}-{month:02}-{day:02}T00:00:00.000Z"));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    #[test]
    fn events_keep_their_order_and_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        Events::open(dir.path()).unwrap().append("start", json!({"step": 0, "kind": "mine", "z": 1, "a": 2})).unwrap();
        Events::open(dir.path()).unwrap().append("resume", Value::Null).unwrap();
        let text = fs::read_to_string(dir.path().join("events.jsonl")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with(r#","kind":"start","step":0,"z":1,"a":2}"#), "{}", lines[0]);
        assert!(lines[0].starts_with(r#"{"time":"20"#) && lines[1].ends_with(r#"Z","kind":"resume"}"#), "{}", lines[1]);
        assert_eq!(line(UNIX_EPOCH, "x", json!([1])), r#"{"time":"1970-01-01T00:00:00.000Z","kind":"x","value":[1]}"#);
    }
}
