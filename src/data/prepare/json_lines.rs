//! One JSON object per line, read with bounded memory and classified line by line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::data::prepare::source::{BOM, Content, Reason, Record, bad, text_or_empty};
use crate::runtime::files;

/// The lines of one file.
pub(super) struct JsonLines {
    reader: BufReader<File>,
    path: PathBuf,
    field: String,
    max_line: usize,
    line: u64,
    offset: u64,
}

impl Iterator for JsonLines {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.read_line() {
            Ok(record) => record.map(Ok),
            Err(e) => Some(Err(files::io_failure("read", &self.path, &e).into())),
        }
    }
}

impl JsonLines {
    /// Opens `path`; the text is in `field`, and lines of more than `max_line` bytes are not held.
    pub(super) fn open(path: &Path, field: &str, max_line: usize) -> Result<Self> {
        let (file, _) = files::open_input(path, true)?;
        let reader = BufReader::with_capacity(1 << 20, file);
        Ok(Self { reader, path: path.to_path_buf(), field: field.to_owned(), max_line, line: 0, offset: 0 })
    }

    fn read_line(&mut self) -> std::io::Result<Option<Record>> {
        let mut bytes = Vec::new();
        (&mut self.reader).take(self.max_line as u64 + 1).read_until(b'\n', &mut bytes)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let ended = bytes.pop_if(|last| *last == b'\n').is_some();
        let (offset, mut length) = (self.offset, bytes.len() as u64);
        let mut consumed = length + u64::from(ended);
        let content = if bytes.len() > self.max_line {
            let rest = skip_line(&mut self.reader)?;
            length += rest.content;
            consumed += rest.content + rest.newline;
            bad(Reason::TooLong, format!("a line of {length} bytes; at most {} are read", self.max_line), bytes)
        } else {
            let start = if offset == 0 && bytes.starts_with(BOM) { BOM.len() } else { 0 };
            parse_line(bytes, start, ended, &self.field)
        };
        self.offset += consumed;
        self.line += 1;
        Ok(Some(Record { line: self.line, offset, length, content }))
    }
}

/// Bytes passed over: of the line, and of its newline (0 at the end of the file).
struct Skipped {
    content: u64,
    newline: u64,
}

/// Goes to the next line without holding this one.
fn skip_line(reader: &mut impl BufRead) -> std::io::Result<Skipped> {
    let mut content = 0;
    loop {
        let buffer = reader.fill_buf()?;
        let (n, newline) = match buffer.iter().position(|&b| b == b'\n') {
            Some(n) => (n, 1),
            None => (buffer.len(), 0),
        };
        let at_end = buffer.is_empty();
        reader.consume(n + newline);
        content += n as u64;
        if at_end || newline == 1 {
            return Ok(Skipped { content, newline: newline as u64 });
        }
    }
}

fn parse_line(bytes: Vec<u8>, start: usize, ended: bool, field: &str) -> Content {
    let line = match std::str::from_utf8(&bytes[start..]) {
        Ok(line) => line,
        Err(e) => {
            let cut = !ended && e.error_len().is_none();
            return bad(if cut { Reason::CutOff } else { Reason::Utf8 }, e.to_string(), bytes);
        }
    };
    if line.trim().is_empty() {
        return Content::Empty;
    }
    match text_of(line, field) {
        Ok(Some(text)) => text_or_empty(text),
        Ok(None) => bad(Reason::Field, format!("no string in the field {field:?}"), bytes),
        Err(e) => {
            let reason = match e.classify() {
                serde_json::error::Category::Data => Reason::Field,
                serde_json::error::Category::Eof if !ended => Reason::CutOff,
                _ => Reason::Json,
            };
            bad(reason, e.to_string(), bytes)
        }
    }
}

/// The string in `field` of the JSON object `line`; `None` if it is absent or no string.
fn text_of(line: &str, field: &str) -> serde_json::Result<Option<String>> {
    /// Picks one field and skips the others without building them.
    struct Pick<'a>(&'a str);

    impl<'de> Visitor<'de> for Pick<'_> {
        type Value = Option<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a JSON object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(key) = map.next_key::<String>()? {
                if key == self.0 {
                    found = match map.next_value()? {
                        serde_json::Value::String(text) => Some(text),
                        _ => None,
                    };
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }

    let mut json = serde_json::Deserializer::from_str(line);
    let text = json.deserialize_map(Pick(field))?;
    json.end()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], max_line: usize) -> Vec<Record> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        std::fs::write(&path, bytes).unwrap();
        JsonLines::open(&path, "text", max_line).unwrap().collect::<Result<_>>().unwrap()
    }

    fn reason_of(record: &Record) -> Option<Reason> {
        if let Content::Bad { reason, .. } = record.content { Some(reason) } else { None }
    }

    #[test]
    fn json_lines_are_classified_one_by_one() {
        let text = |text: &str| Ok(text.to_string());
        /// The text; without one, why not (`None`: empty).
        type Outcome = Result<String, Option<Reason>>;
        let cases: &[(&[u8], Outcome)] = &[
            (br#"{"text": "a\nb"}"#, text("a\nb")),
            (br#"  {"id": {"text": [1, "x"]}, "text": "\u00e9\ud83d\ude00", "n": 1e400}  "#, text("\u{e9}\u{1f600}")),
            (b"{\"text\": \"with CR\"}\r", text("with CR")),
            (b"", Err(None)),
            (b" \t\r", Err(None)),
            (br#"{"text": ""}"#, Err(None)),
            (br#"{"text": " \n\u00a0"}"#, Err(None)),
            (br#"{"text": "a""#, Err(Some(Reason::Json))),
            (br#"{"text": "a"} {}"#, Err(Some(Reason::Json))),
            (br#"{"text": "\ud83d"}"#, Err(Some(Reason::Json))),
            (b"{'text': 'a'}", Err(Some(Reason::Json))),
            (br#"{"body": "a"}"#, Err(Some(Reason::Field))),
            (br#"{"text": null}"#, Err(Some(Reason::Field))),
            (br#"{"text": ["a"]}"#, Err(Some(Reason::Field))),
            (br#"["text"]"#, Err(Some(Reason::Field))),
            (br#""text""#, Err(Some(Reason::Field))),
            (b"{\"text\": \"\xff\"}", Err(Some(Reason::Utf8))),
            (b"\x00", Err(Some(Reason::Json))),
        ];
        let all: Vec<u8> = cases.iter().flat_map(|(line, _)| [line, &b"\n"[..]].concat()).collect();
        let got = read(&all, 1000);
        assert_eq!(got.len(), cases.len());
        let mut offset = 0;
        for (i, (record, (line, expected))) in got.iter().zip(cases).enumerate() {
            assert_eq!((record.line, record.offset, record.length), (i as u64 + 1, offset, line.len() as u64));
            offset += line.len() as u64 + 1;
            match (&record.content, expected) {
                (Content::Text(text), Ok(expected)) => assert_eq!(text, expected),
                (Content::Empty, Err(None)) => {}
                (Content::Bad { reason, bytes, .. }, Err(Some(expected))) => {
                    assert_eq!((reason, bytes.as_slice()), (expected, *line));
                }
                (content, expected) => panic!("line {}: {content:?}, expected {expected:?}", i + 1),
            }
        }
    }

    #[test]
    fn a_last_line_without_newline_is_used_or_cut_off() {
        let last = |end: &[u8]| {
            let bytes = [b"\xef\xbb\xbf{\"text\": \"a\"}\n", end].concat();
            let mut records = read(&bytes, 1000);
            assert_eq!(records[0].content, Content::Text("a".into()), "after a byte order mark");
            records.pop().unwrap()
        };
        assert_eq!(last(br#"{"text": "b"}"#).content, Content::Text("b".into()));
        assert_eq!(last(b"  ").content, Content::Empty);
        assert_eq!(reason_of(&last(br#"{"text": "b"#)), Some(Reason::CutOff));
        assert_eq!(reason_of(&last(b"{\"text\": \"\xc3")), Some(Reason::CutOff));
        assert_eq!(reason_of(&last(b"{\"text\": \"\xff")), Some(Reason::Utf8));
        assert_eq!(reason_of(&last(b"{]")), Some(Reason::Json));
    }

    #[test]
    fn lines_above_the_limit_are_skipped_exactly() {
        for long in [40, 41, 42, 200, 3 << 20] {
            let text = "x".repeat(long - 12);
            let line = format!("{{\"text\": \"{text}\"}}");
            assert_eq!(line.len(), long);
            let got = read(format!("{line}\n{{\"text\": \"y\"}}\n{line}").as_bytes(), 41);
            let place: Vec<_> = got.iter().map(|r| (r.line, r.offset, r.length)).collect();
            let long = long as u64;
            assert_eq!(place, [(1, 0, long), (2, long + 1, 13), (3, long + 15, long)]);
            assert_eq!(got[1].content, Content::Text("y".into()));
            for record in [&got[0], &got[2]] {
                assert_eq!(reason_of(record), (long > 41).then_some(Reason::TooLong), "{long}");
            }
        }
    }
}
