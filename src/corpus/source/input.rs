//! The content of a file as one stream of bytes, decompressed on the way, from which records are cut.
//!
//! Callers look at the bytes in the buffer ([`Input::data`]) and skip them with [`Input::consume`]; [`Input::refill`]
//! reads more behind what is left. A compressed stream that is cut off or damaged is no error: its content ends there and
//! [`Input::fault`] says why, since every record before it is good. Only the system's own errors are errors.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Result;
use memchr::memmem::Finder;

use crate::corpus::source::unpack;
use crate::corpus::source::unpack::Unpacked;
use crate::corpus::source::{Compression, Reason};
use crate::runtime::content::{HEAD, Kind};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files;

/// Bytes read at a time: they stay in the second-level cache. Always the same, so that a broken stream breaks at
/// the same byte whichever way one came there.
const CHUNK: usize = 256 << 10;

/// Why the content ended before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: Reason,
    pub(super) detail: String,
}

pub(super) struct Input {
    path: PathBuf,
    stream: Stream,
    /// Bytes of the file when it was opened.
    size: u64,
    /// What was read and not consumed is `buffer[start..end]`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Number of bytes of content consumed.
    offset: u64,
    fault: Option<Fault>,
    /// What the decompressed content is, by its first bytes.
    kind: Kind,
}

enum Stream {
    Plain(File),
    Packed(Unpacked),
}

/// Bytes cut out of the content.
pub(super) struct Piece {
    pub(super) offset: u64,
    /// The bytes, as many as were asked for at most.
    pub(super) bytes: Vec<u8>,
    /// How many there are in the content.
    pub(super) length: u64,
    /// A delimiter follows, not the end of the content.
    pub(super) ended: bool,
}

impl Piece {
    pub(super) fn starting_at(offset: u64) -> Self {
        Self { offset, bytes: Vec::new(), length: 0, ended: false }
    }

    /// Appends `more`, of which no byte above `max` in all is kept.
    pub(super) fn push(&mut self, more: &[u8], max: usize) {
        self.length += more.len() as u64;
        let room = max - self.bytes.len();
        self.bytes.extend_from_slice(&more[..more.len().min(room)]);
    }
}

impl Input {
    /// Opens `path` at its start, behind a byte order mark. Its first bytes decide whether and how it is compressed, also
    /// more than once; where they say nothing, its name decides (`named`).
    pub(super) fn open(path: &Path, named: Compression) -> Result<Self> {
        let (file, size) = files::open_input(path, true)?;
        let compression = match Kind::of_file(path)? {
            Kind::Gzip => Compression::Gzip,
            Kind::Zstd => Compression::Zstd,
            // Damaged from the first byte on.
            Kind::Empty | Kind::Binary => named,
            _ => Compression::None,
        };
        let stream = match compression {
            Compression::None => Stream::Plain(file),
            packed => Stream::Packed(unpack::open(file, packed).map_err(|e| files::io_failure("read", path, &e))?),
        };
        // Neither format stands for "nothing" by no bytes at all, whatever its decoder makes of it.
        let nothing = size == 0 && compression != Compression::None;
        let fault = nothing.then(|| Fault { reason: Reason::CutOff, detail: "the compressed file is empty".into() });
        let path = path.to_path_buf();
        let buffer = vec![0; CHUNK];
        let kind = Kind::Empty;
        let mut input = Self { path, stream, size, buffer, start: 0, end: 0, offset: 0, fault, kind };
        // A decompressor may give a few bytes at a time, too few to tell what they are.
        while input.data().len() < HEAD && input.refill()? {}
        input.kind = Kind::of_head(input.data());
        if input.data().starts_with("\u{feff}".as_bytes()) {
            input.consume(3);
        }
        Ok(input)
    }

    /// What the decompressed content is, by its first bytes.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The bytes that are read and not consumed.
    pub(super) fn data(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Passes over the first `n` bytes of [`Input::data`].
    pub(super) fn consume(&mut self, n: usize) {
        self.start += n;
        self.offset += n as u64;
    }

    /// Number of bytes of content consumed.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the file read for what was consumed.
    pub(super) fn file_bytes(&self) -> u64 {
        match &self.stream {
            Stream::Plain(_) => self.offset,
            Stream::Packed(unpacked) => unpacked.taken(),
        }
    }

    /// Why the content ended early, if it did. Complete only after [`Input::refill`] has returned false.
    pub(super) fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Reads more behind what is left; false at the end of the content.
    pub(super) fn refill(&mut self) -> Result<bool> {
        if self.fault.is_some() {
            return Ok(false);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() < self.end + CHUNK {
            self.buffer.resize(self.end + CHUNK, 0);
        }
        let into = &mut self.buffer[self.end..self.end + CHUNK];
        loop {
            let read = match &mut self.stream {
                Stream::Plain(file) => file.read(into),
                Stream::Packed(unpacked) => unpacked.read(into),
            };
            match read {
                Ok(n) => {
                    self.end += n;
                    return Ok(n > 0);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    self.fault = Some(self.classify(e)?);
                    return Ok(false);
                }
            }
        }
    }

    /// What is wrong with the compressed data, unless it is the system that failed: its errors carry a number.
    fn classify(&self, error: io::Error) -> Result<Fault> {
        match (&self.stream, error.raw_os_error(), error.kind()) {
            (Stream::Plain(_), ..) | (_, Some(_), _) => Err(files::io_failure("read", &self.path, &error).into()),
            (_, _, ErrorKind::UnexpectedEof) => {
                Ok(Fault { reason: Reason::CutOff, detail: "the compressed data is cut off".into() })
            }
            (_, _, ErrorKind::Unsupported) => {
                Ok(Fault { reason: Reason::Unsupported, detail: format!("not supported: {error}") })
            }
            _ => Ok(Fault { reason: Reason::Damaged, detail: format!("the compressed data is damaged: {error}") }),
        }
    }

    /// Goes to byte `target` of the content; false if nothing follows there since the file has ended early before it.
    pub(super) fn skip_to(&mut self, target: u64) -> Result<bool> {
        if let Stream::Plain(file) = &mut self.stream {
            // A plain file need not be read to get there; a compressed one must be, in the loop below.
            let to = target.min(self.size);
            file.seek(SeekFrom::Start(to)).map_err(|e| files::io_failure("read", &self.path, &e))?;
            (self.start, self.end, self.offset) = (0, 0, to);
        }
        while self.offset < target {
            let ahead = usize::try_from(target - self.offset).unwrap_or(usize::MAX);
            self.consume(ahead.min(self.data().len()));
            if self.offset < target && !self.refill()? {
                // A record that ends its file is followed by the place one byte behind the content.
                return if self.fault.is_some() || self.offset + 1 == target {
                    Ok(false)
                } else {
                    self.shorter(target)
                };
            }
        }
        if self.offset > target { self.shorter(target) } else { Ok(true) }
    }

    fn shorter<T>(&self, target: u64) -> Result<T> {
        let message = format!("{}: no record begins at byte {target}, where reading was to go on", self.path.display());
        Err(fail(Exit::Data, message).hint("the file has changed since: restore it, or start over").into())
    }

    /// Cuts out what comes before the next `delimiter` and passes over both; without one, the whole rest. At most `max`
    /// bytes are held.
    pub(super) fn take(&mut self, delimiter: Option<&Finder<'static>>, max: usize) -> Result<Piece> {
        let mut piece = Piece::starting_at(self.offset);
        loop {
            let data = &self.buffer[self.start..self.end];
            if let Some(delimiter) = delimiter
                && let Some(at) = delimiter.find(data)
            {
                piece.push(&data[..at], max);
                piece.ended = true;
                self.consume(at + delimiter.needle().len());
                return Ok(piece);
            }
            // A delimiter may begin in these bytes and end in the next.
            let kept = delimiter.map_or(0, |d| d.needle().len() - 1).min(data.len());
            let free = data.len() - kept;
            piece.push(&data[..free], max);
            self.consume(free);
            if delimiter.is_none() && piece.length > max as u64 && self.skip_plain_rest(&mut piece)? {
                return Ok(piece);
            }
            if !self.refill()? {
                piece.push(&self.buffer[self.start..self.end], max);
                self.consume(self.end - self.start);
                return Ok(piece);
            }
        }
    }

    /// Counts the rest of a plain file into `piece` without reading it; false if there is no way to.
    fn skip_plain_rest(&mut self, piece: &mut Piece) -> Result<bool> {
        let Stream::Plain(file) = &mut self.stream else { return Ok(false) };
        let end = file.seek(SeekFrom::End(0)).map_err(|e| files::io_failure("read", &self.path, &e))?;
        piece.length += end.saturating_sub(self.offset);
        (self.start, self.end, self.offset) = (0, 0, end.max(self.offset));
        Ok(true)
    }

    /// Whether the content begins with an array of records; if so, white space before it is skipped. `lines` may be arrays
    /// of their own: only what has an object in it is one.
    pub(super) fn begins_array(&mut self, lines: bool) -> Result<bool> {
        if lines {
            let mut bytes = self.data().iter().filter(|b| !b" \t\r\n".contains(b));
            if (bytes.next(), bytes.next()) != (Some(&b'['), Some(&b'{')) {
                return Ok(false);
            }
        }
        Ok(self.skip_blanks()? == Some(b'['))
    }

    /// The next byte that is no JSON white space; the white space before it is skipped.
    pub(super) fn skip_blanks(&mut self) -> Result<Option<u8>> {
        loop {
            let data = self.data();
            let blanks = data.iter().position(|b| !b" \t\r\n".contains(b));
            let found = blanks.map(|n| data[n]);
            self.consume(blanks.unwrap_or(data.len()));
            if found.is_some() || !self.refill()? {
                return Ok(found);
            }
        }
    }
}
