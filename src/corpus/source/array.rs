//! The elements of a JSON array, cut out one by one, so that a file of any size needs the memory of one element.
//!
//! Cutting only distinguishes strings from brackets; whether an element is JSON is found when it is parsed. A position
//! between two elements is that of the comma or bracket behind the first.

use anyhow::Result;
use memchr::memchr2;

use crate::corpus::source::input::{Fault, Input, Piece};
use crate::corpus::source::{Body, Cut, MAX_LINE, Position, RawRecord, Reason};

/// Cuts at the commas of the outermost array.
pub(super) struct Array {
    input: Input,
    /// Bytes of a record that are held at most.
    pub(super) max: usize,
    elements: u64,
    /// The opening bracket was not read yet.
    at_start: bool,
}

impl Array {
    /// The array whose opening bracket is the next byte of `input`; or, if there are `elements` before it, the rest of
    /// one.
    pub(super) fn new(input: Input, elements: u64) -> Self {
        Self { input, max: MAX_LINE, elements, at_start: elements == 0 }
    }

    /// Looks behind the closing bracket, where nothing may stand.
    fn close(&mut self) -> Result<Option<RawRecord>> {
        self.input.consume(1);
        if self.input.skip_blanks()?.is_some() {
            return self.junk("something follows the end of the array");
        }
        let is_whole = self.input.fault().is_none();
        Ok(if is_whole { None } else { Some(self.missing()) })
    }

    fn junk(&mut self, detail: &str) -> Result<Option<RawRecord>> {
        let piece = self.input.take(None, self.max)?;
        Ok(Some(self.last(piece, Reason::Json, detail)))
    }

    /// The record that stands for the missing rest of the file.
    fn missing(&mut self) -> RawRecord {
        let nothing = Piece::starting_at(self.input.offset());
        self.cut_off(nothing)
    }

    fn cut_off(&mut self, piece: Piece) -> RawRecord {
        self.last(piece, Reason::CutOff, "the file ends within the array")
    }

    /// The record that ends the file: for what the input says, or else for `reason`.
    fn last(&mut self, piece: Piece, reason: Reason, detail: &str) -> RawRecord {
        let fault = self.input.fault().cloned().unwrap_or_else(|| Fault { reason, detail: detail.into() });
        let body = Body::bad_last(fault.reason, fault.detail, piece.bytes);
        self.raw(piece.offset, piece.length, body, 1)
    }

    fn raw(&mut self, offset: u64, length: u64, body: Body, behind: u64) -> RawRecord {
        self.elements += 1;
        let next = Position { records: self.elements, offset: self.input.offset() + behind };
        RawRecord { line: self.elements, offset, length, next, count: 1, body }
    }

    fn element(&mut self) -> Result<Option<RawRecord>> {
        let mut piece = Piece::starting_at(self.input.offset());
        let mut scan = Scan::default();
        loop {
            let data = self.input.data();
            let end = scan.find_end(data);
            let n = end.unwrap_or(data.len());
            piece.push(&data[..n], self.max);
            self.input.consume(n);
            if end.is_some() {
                break;
            }
            if !self.input.refill()? {
                return Ok(Some(self.cut_off(piece)));
            }
        }
        let body = if piece.length > self.max as u64 {
            let detail = format!("an element of {} bytes; at most {} are read", piece.length, self.max);
            Body::bad(Reason::TooLong, detail, piece.bytes)
        } else {
            let blanks = piece.bytes.iter().rev().take_while(|b| b.is_ascii_whitespace()).count();
            piece.bytes.truncate(piece.bytes.len() - blanks);
            piece.length -= blanks as u64;
            match piece.length {
                0 => Body::bad(Reason::Json, "an element is missing".into(), piece.bytes),
                _ => Body::Json { bytes: piece.bytes, ended: true },
            }
        };
        Ok(Some(self.raw(piece.offset, piece.length, body, 0)))
    }
}

impl Cut for Array {
    fn cut(&mut self) -> Result<Option<RawRecord>> {
        if self.at_start {
            self.input.consume(1);
        } else {
            match self.input.skip_blanks()? {
                Some(b',') => self.input.consume(1),
                Some(b']') => return self.close(),
                Some(_) => return self.junk("no comma between two elements"),
                None => return Ok(Some(self.missing())),
            }
        }
        match self.input.skip_blanks()? {
            Some(b']') if self.at_start => self.close(),
            Some(_) => {
                self.at_start = false;
                self.element()
            }
            None => Ok(Some(self.missing())),
        }
    }

    fn file_bytes(&self) -> u64 {
        self.input.file_bytes()
    }
}

/// Where in an element the bytes seen so far have led.
#[derive(Default)]
struct Scan {
    depth: u64,
    in_string: bool,
    /// The last byte was a backslash that takes the meaning from the next.
    escaped: bool,
}

impl Scan {
    /// The place of the comma or bracket in `data` that ends the element.
    fn find_end(&mut self, data: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < data.len() {
            if self.escaped {
                self.escaped = false;
            } else if self.in_string {
                // Inside a string, which is most of a record, only two bytes mean anything.
                at += memchr2(b'"', b'\\', &data[at..])?;
                self.escaped = data[at] == b'\\';
                self.in_string = self.escaped;
            } else {
                match data[at] {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b',' | b']' if self.depth == 0 => return Some(at),
                    b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
            }
            at += 1;
        }
        None
    }
}
