//! From files to records, whatever the format.
//!
//! One thread cuts a file into records ([`Reader`] gives [`RawRecord`]), many threads parse them ([`RawRecord::parse`]
//! gives [`ParsedRecord`]): cutting is a search for a byte, parsing is the work. Reading never stops at a bad record: the
//! caller gets it with its bytes and its place, and decides (`data prepare` quarantines it, [`documents`] fails). A file
//! that is cut off gives one last bad record. Between two records lies a [`Position`], from which another reader can
//! continue as if it had read what comes before.
//!
//! | format | record | cut by |
//! |---|---|---|
//! | text | the file, or a part between separators | `delimited.rs` |
//! | JSON lines | a line | `delimited.rs` |
//! | JSON | an element of an array; without one, a line | `array.rs` |
//! | Parquet | a row | `rows.rs` |
//!
//! The name decides (`names.rs`), unless the content says something else: compression is recognised by the bytes (`input.rs`),
//! arrays and Parquet are read under any name, and a file of another kind, such as a web page, is one bad record that says so
//! (`refused.rs`).

mod array;
mod delimited;
mod input;
mod json;
mod names;
mod refused;
mod rows;
#[cfg(test)]
mod tests;
mod unpack;

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::runtime::error::{Exit, fail};
use crate::runtime::python_json;

use array::Array;
use delimited::Delimited;
use input::Input;
use names::{Format, ParsedName};
use refused::Refused;
use rows::Rows;

pub use names::{KNOWN, holds_records, is_corpus_file, is_parquet, refuse_other_kinds, suffixes};
pub use rows::{rewrite_hint, unread_compression};

/// Longest line, element or Parquet value in bytes.
pub const MAX_LINE: usize = 64 << 20;

/// Longest document of a `.txt` file in bytes: it is held and encoded whole.
pub const MAX_TEXT: usize = 128 << 20;

/// Largest length of a separator, in bytes.
const MAX_SEPARATOR: usize = 4096;

/// Where the text is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// JSON field or Parquet column that holds the text.
    pub text_field: String,
    /// What stands between the documents of a `.txt` file; without it a file is one document.
    pub text_separator: Option<String>,
    /// How the user names the field, for hints: `--set data.text_field=NAME`; none where there is no way to.
    pub field_option: Option<&'static str>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { text_field: "text".into(), text_separator: None, field_option: None }
    }
}

/// A place between two records of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub records: u64,
    /// Bytes of the (decompressed) content before it; of a Parquet file, bytes of its text.
    pub offset: u64,
}

/// A record as cut out of the file, not parsed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRecord {
    /// Number of the line, element, row or part, from 1.
    pub line: u64,
    /// Where it begins, in bytes as those of [`Position`].
    pub offset: u64,
    /// Its bytes, without what separates it from the next.
    pub length: u64,
    /// The place behind it. Nothing follows a record that ends its file early.
    pub next: Position,
    /// How many it stands for: one, or all that are left of a file whose rest cannot be read, where that is known.
    pub count: u64,
    body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Body {
    /// A line or element. The last line of a file may not be `ended` by a newline.
    Json { bytes: Vec<u8>, ended: bool },
    /// A document, with the line breaks next to its separators.
    Text { bytes: Vec<u8>, after_separator: bool, before_separator: bool },
    /// Nothing usable; the `last` one takes the rest of the file with it.
    Bad { reason: Reason, detail: String, advice: Option<String>, bytes: Vec<u8>, last: bool },
}

impl Body {
    fn bad(reason: Reason, detail: String, bytes: Vec<u8>) -> Self {
        Self::Bad { reason, detail, advice: None, bytes, last: false }
    }

    fn bad_last(reason: Reason, detail: String, bytes: Vec<u8>) -> Self {
        Self::Bad { reason, detail, advice: None, bytes, last: true }
    }
}

impl RawRecord {
    /// The JSON value it holds; none for a blank line.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn value(self) -> Result<Option<serde_json::Value>, String> {
        match self.body {
            Body::Json { bytes, .. } if bytes.trim_ascii().is_empty() => Ok(None),
            Body::Json { bytes, .. } => {
                let json = std::str::from_utf8(&bytes).map_err(|e| e.to_string())?;
                python_json::value(json).map(Some).map_err(|e| e.to_string())
            }
            Body::Text { .. } => Err("a text, not a record".into()),
            Body::Bad { detail, .. } => Err(detail),
        }
    }

    /// Refuses the record that stands for a whole file of another kind, or one that needs what this program does not have.
    ///
    /// # Errors
    /// [`Exit::Data`], naming `path`.
    pub fn refuse_foreign(&self, path: &Path) -> Result<()> {
        match &self.body {
            Body::Bad { reason: Reason::Foreign | Reason::Unsupported, detail, advice, .. } => {
                let failure = fail(Exit::Data, format!("{}: {detail}", path.display()));
                Err(failure.hint(advice.clone().unwrap_or_else(|| "give another file".into())).into())
            }
            _ => Ok(()),
        }
    }

    /// Parses it; `text_field` names the JSON field that holds the text.
    pub fn parse(self, text_field: &str) -> ParsedRecord {
        let content = match self.body {
            Body::Json { bytes, ended } => json::parse(bytes, ended, text_field),
            Body::Text { bytes, after_separator, before_separator } => {
                parse_text(bytes, after_separator, before_separator)
            }
            Body::Bad { reason, detail, advice, bytes, .. } => Content::Bad { reason, detail, advice, bytes },
        };
        ParsedRecord { line: self.line, offset: self.offset, length: self.length, count: self.count, content }
    }
}

/// A parsed record. The numbers are those of [`RawRecord`].
#[derive(Debug, PartialEq, Eq)]
pub struct ParsedRecord {
    /// Number of the line, element, row or part, from 1.
    pub line: u64,
    pub offset: u64,
    pub length: u64,
    pub count: u64,
    pub content: Content,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    Text(String),
    /// A blank line, or a document without any text but white space.
    Empty,
    Bad {
        reason: Reason,
        detail: String,
        /// What to do about it, where that is known.
        advice: Option<String>,
        /// The raw bytes, at most [`MAX_LINE`] of them.
        bytes: Vec<u8>,
    },
}

/// Why a record is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The bytes are not UTF-8.
    Utf8,
    Json,
    /// Not an object with one string in the text field; of a Parquet file, null.
    Field,
    /// Above [`MAX_LINE`] or [`MAX_TEXT`].
    TooLong,
    /// The file ends within it: it was cut off while it was written or copied.
    CutOff,
    /// The compressed data is not what was written; the rest of the file cannot be read.
    Damaged,
    /// The file is intact, but needs what this program does not have.
    Unsupported,
    /// The whole file is something else than its name says.
    Foreign,
}

impl Reason {
    /// The name it is counted under.
    pub fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "utf8",
            Self::Json => "json",
            Self::Field => "field",
            Self::TooLong => "too_long",
            Self::CutOff => "cut_off",
            Self::Damaged => "damaged",
            Self::Unsupported => "unsupported",
            Self::Foreign => "foreign",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Cuts a file into records. It is not called again after the last record, or after one that is `last`.
trait Cut: Send {
    fn cut(&mut self) -> Result<Option<RawRecord>>;
    fn file_bytes(&self) -> u64;
}

/// Reads one file from a [`Position`] on. Ends at the first error.
pub struct Reader {
    cut: Box<dyn Cut>,
    done: bool,
}

impl Reader {
    /// Opens `path` at a place that an earlier reader with the same options has given (or the default, its start).
    ///
    /// # Errors
    /// [`Exit::Config`] for a kind of file that is not read or an impossible separator; [`Exit::Io`] if the file cannot be read
    /// (also later, from the iterator); [`Exit::Data`] if it has become too short for `from`, or is a Parquet file
    /// without such a column of strings.
    pub fn open(path: &Path, options: &ReadOptions, from: Position) -> Result<Self> {
        if is_parquet(path)? {
            let rows = Rows::open(path, &options.text_field, from)?;
            return Ok(Self { cut: Box::new(rows), done: false });
        }
        let separator = options.text_separator.as_deref();
        if separator.is_some_and(|s| s.is_empty() || s.len() > MAX_SEPARATOR) {
            let message = format!("the text separator is not between 1 and {MAX_SEPARATOR} bytes long");
            return Err(fail(Exit::Config, message)
                .hint("give what stands between documents, as <|endoftext|>")
                .into());
        }
        let name = ParsedName::new(path);
        let mut input = Input::open(path, name.compression)?;
        let format = match name.format {
            Some(format) => format,
            None => names::format_of_content(path, &input)?,
        };
        if refused::is_foreign(format, input.kind()) {
            let whole = Refused::new(path, input.kind(), from);
            return Ok(Self { cut: Box::new(whole), done: from.records > 0 });
        }
        let is_array = format != Format::Text && input.begins_array(format == Format::JsonLines)?;
        // Only after the format was decided by the beginning of the file.
        let follows = from.records == 0 || input.skip_to(from.offset)?;
        let cut: Box<dyn Cut> = match format {
            Format::Text => Box::new(Delimited::text(input, separator, from.records)),
            _ if is_array => Box::new(Array::new(input, from.records)),
            _ => Box::new(Delimited::lines(input, from.records)),
        };
        Ok(Self { cut, done: !follows })
    }

    /// Bytes of the file (compressed, if it is) read so far, for progress; of a Parquet file, its size by rows.
    pub fn file_bytes(&self) -> u64 {
        self.cut.file_bytes()
    }
}

impl Iterator for Reader {
    type Item = Result<RawRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let raw = self.cut.cut();
        self.done = match &raw {
            Ok(Some(raw)) => matches!(raw.body, Body::Bad { last: true, .. }),
            Ok(None) | Err(_) => true,
        };
        raw.transpose()
    }
}

/// A document of a text file, without the line breaks next to its separators.
fn parse_text(bytes: Vec<u8>, after_separator: bool, before_separator: bool) -> Content {
    let mut text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => return bad(Reason::Utf8, e.utf8_error().to_string(), e.into_bytes()),
    };
    let breaks = ['\r', '\n'];
    if before_separator {
        text.truncate(text.trim_end_matches(breaks).len());
    }
    if after_separator {
        text.drain(..text.len() - text.trim_start_matches(breaks).len());
    }
    text_or_empty(text)
}

/// A document, if it has any text.
fn text_or_empty(text: String) -> Content {
    if text.trim().is_empty() { Content::Empty } else { Content::Text(text) }
}

/// A bad record that keeps up to [`MAX_LINE`] of its bytes.
fn bad(reason: Reason, detail: String, mut bytes: Vec<u8>) -> Content {
    bytes.truncate(MAX_LINE);
    bytes.shrink_to_fit();
    Content::Bad { reason, detail, advice: None, bytes }
}

/// A document and where it came from.
#[derive(Debug, PartialEq, Eq)]
pub struct TextDocument {
    /// Its text; never empty or all white space.
    pub text: String,
    /// Index of its file among the paths given.
    pub file: usize,
    /// Number of its record in the file, from 1.
    pub line: u64,
}

/// The documents of `paths` in order, for use in memory. Empty ones are skipped.
///
/// # Errors
/// [`Exit::Data`] for a bad record, naming file and line; otherwise those of [`Reader`].
pub fn documents(paths: &[PathBuf], options: &ReadOptions) -> impl Iterator<Item = Result<TextDocument>> {
    paths.iter().enumerate().flat_map(move |(file, path)| {
        let raws: Box<dyn Iterator<Item = Result<RawRecord>>> = match Reader::open(path, options, Position::default()) {
            Ok(reader) => Box::new(reader),
            Err(e) => Box::new(std::iter::once(Err(e))),
        };
        raws.filter_map(move |raw| {
            let record = raw.map(|raw| raw.parse(&options.text_field));
            record.and_then(|record| document(path, file, record, options)).transpose()
        })
    })
}

fn document(path: &Path, file: usize, record: ParsedRecord, options: &ReadOptions) -> Result<Option<TextDocument>> {
    let ParsedRecord { line, content, .. } = record;
    match content {
        Content::Empty => Ok(None),
        Content::Text(text) => Ok(Some(TextDocument { text, file, line })),
        Content::Bad { reason, detail, advice, .. } => {
            let message = format!("{}:{line}: {detail}", path.display());
            let hint = match (reason, options.field_option, advice) {
                (_, _, Some(advice)) => advice,
                (Reason::Field, Some(option), None) => format!("name the field that holds the text: {option}"),
                _ => "repair the record, or let `data prepare --allow-bad` set bad records aside".into(),
            };
            Err(fail(Exit::Data, message).hint(hint).into())
        }
    }
}
