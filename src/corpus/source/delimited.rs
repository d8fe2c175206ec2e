//! Records between delimiters: lines of JSON, and text files, whole or divided by a separator.

use anyhow::Result;
use memchr::memmem::Finder;

use crate::corpus::source::input::Input;
use crate::corpus::source::{Body, Cut, MAX_LINE, MAX_TEXT, Position, RawRecord, Reason};

pub(super) struct Delimited {
    input: Input,
    delimiter: Option<Finder<'static>>,
    json: bool,
    /// Bytes of a record that are held at most.
    pub(super) max: usize,
    records: u64,
}

impl Delimited {
    /// The lines of `input`; `records` lines come before its current position.
    pub(super) fn lines(input: Input, records: u64) -> Self {
        Self { input, delimiter: Some(Finder::new(b"\n").into_owned()), json: true, max: MAX_LINE, records }
    }

    /// Documents between occurrences of `separator`, or the whole text as one.
    pub(super) fn text(input: Input, separator: Option<&str>, records: u64) -> Self {
        let delimiter = separator.map(|separator| Finder::new(separator).into_owned());
        Self { input, delimiter, json: false, max: MAX_TEXT, records }
    }

    fn too_long(&self, length: u64) -> String {
        let max = self.max;
        match (self.json, &self.delimiter) {
            (true, _) => format!("a line of {length} bytes; at most {max} are read"),
            (false, Some(_)) => format!("{length} bytes without a separator; at most {max} are read"),
            (false, None) => {
                format!("a text of {length} bytes; at most {max} are read: give a text separator to divide it")
            }
        }
    }
}

impl Cut for Delimited {
    fn cut(&mut self) -> Result<Option<RawRecord>> {
        let piece = self.input.take(self.delimiter.as_ref(), self.max)?;
        let fault = if piece.ended { None } else { self.input.fault() };
        // An empty text file is one document without text; an empty file of lines has no record.
        let is_first_text = !self.json && self.records == 0;
        if piece.length == 0 && !piece.ended && fault.is_none() && !is_first_text {
            return Ok(None);
        }
        let mut next = Position { records: self.records + 1, offset: self.input.offset() };
        let bytes = piece.bytes;
        let ended = piece.ended;
        let body = if let Some(fault) = fault {
            next.offset += 1;
            Body::bad_last(fault.reason, fault.detail.clone(), bytes)
        } else if piece.length > self.max as u64 {
            Body::bad(Reason::TooLong, self.too_long(piece.length), bytes)
        } else if self.json {
            Body::Json { bytes, ended }
        } else {
            Body::Text { bytes, after_separator: self.records > 0, before_separator: ended }
        };
        self.records += 1;
        Ok(Some(RawRecord { line: self.records, offset: piece.offset, length: piece.length, next, count: 1, body }))
    }

    fn file_bytes(&self) -> u64 {
        self.input.file_bytes()
    }
}
