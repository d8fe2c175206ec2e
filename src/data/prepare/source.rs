//! From paths to records: which files, and what each line of them holds.
//!
//! A record is a line of a `.jsonl` file or the whole of a `.txt` file. Reading never stops at a bad one: it is handed
//! on with its bytes and its place, and the caller decides (`data prepare` keeps it in quarantine, [`documents`]
//! fails). Another format is one more arm in [`records`].

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::data::prepare::json_lines::JsonLines;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files;

/// Longest line of a `.jsonl` file in bytes.
pub const MAX_LINE: usize = 64 << 20;

/// Largest `.txt` file in bytes: it is one document, held and encoded whole.
pub const MAX_TEXT: usize = 1 << 30;

pub(super) const BOM: &[u8] = "\u{feff}".as_bytes();

/// One line, or one text file.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// Line number from 1 (1 for a text file).
    pub line: u64,
    /// Byte offset in the file.
    pub offset: u64,
    /// Bytes in the file, without the newline.
    pub length: u64,
    /// What it holds.
    pub content: Content,
}

/// What a record holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// A document.
    Text(String),
    /// A blank line, or a document without any text but white space.
    Empty,
    /// Nothing usable.
    Bad {
        /// The class of fault.
        reason: Reason,
        /// The fault in words.
        detail: String,
        /// The raw bytes, at most [`MAX_LINE`] of them.
        bytes: Vec<u8>,
    },
}

/// Why a record is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Not UTF-8.
    Utf8,
    /// Not JSON.
    Json,
    /// JSON, but not an object with a string in the text field.
    Field,
    /// Above [`MAX_LINE`] or [`MAX_TEXT`].
    TooLong,
    /// Not JSON, and the file ends here without a newline: it was cut off while it was written or copied.
    CutOff,
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
        }
    }
}

/// The records of one file.
pub type Records = Box<dyn Iterator<Item = Result<Record>> + Send>;

/// Reads `path` by its extension; `text_field` names the JSON field that holds the text.
///
/// # Errors
/// [`Exit::Config`] for an unknown extension, [`Exit::Io`] if the file cannot be read (also later, from the iterator).
pub fn records(path: &Path, text_field: &str) -> Result<Records> {
    match kind(path) {
        Some(Kind::Text) => {
            let path = path.to_path_buf();
            Ok(Box::new(std::iter::once_with(move || read_text(&path))))
        }
        Some(Kind::JsonLines) => Ok(Box::new(JsonLines::open(path, text_field, MAX_LINE)?)),
        None => Err(fail(Exit::Config, format!("{}: not a kind of text file that is known", path.display()))
            .hint("give .txt (one document per file) or .jsonl (one JSON object per line)")
            .into()),
    }
}

/// A format of text that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    JsonLines,
}

/// The format of a file, by its extension.
pub(super) fn kind(path: &Path) -> Option<Kind> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "txt" => Some(Kind::Text),
        "jsonl" => Some(Kind::JsonLines),
        _ => None,
    }
}

fn read_text(path: &Path) -> Result<Record> {
    let (file, size) = files::open_input(path, true)?;
    let mut bytes = Vec::with_capacity(size.min(MAX_TEXT as u64) as usize);
    file.take(MAX_TEXT as u64 + 1).read_to_end(&mut bytes).map_err(|e| files::io_failure("read", path, &e))?;
    let length = size.max(bytes.len() as u64);
    let content = if bytes.len() > MAX_TEXT {
        bad(Reason::TooLong, format!("a text file of more than {MAX_TEXT} bytes"), bytes)
    } else {
        if bytes.starts_with(BOM) {
            bytes.drain(..BOM.len());
        }
        match String::from_utf8(bytes) {
            Ok(text) => text_or_empty(text),
            Err(e) => bad(Reason::Utf8, e.utf8_error().to_string(), e.into_bytes()),
        }
    };
    Ok(Record { line: 1, offset: 0, length, content })
}

/// A document, if it has any text.
pub(super) fn text_or_empty(text: String) -> Content {
    if text.trim().is_empty() { Content::Empty } else { Content::Text(text) }
}

/// A bad record that keeps up to [`MAX_LINE`] of its bytes.
pub(super) fn bad(reason: Reason, detail: String, mut bytes: Vec<u8>) -> Content {
    bytes.truncate(MAX_LINE);
    bytes.shrink_to_fit();
    Content::Bad { reason, detail, bytes }
}

/// A document and where it came from.
#[derive(Debug, PartialEq, Eq)]
pub struct Document {
    /// Its text; never empty or all white space.
    pub text: String,
    /// Index of its file among the paths given.
    pub file: usize,
    /// Line of the file, from 1.
    pub line: u64,
}

/// The documents of `paths` in order, for use in memory. Empty ones are passed over.
///
/// # Errors
/// [`Exit::Data`] for a bad record, naming file and line; [`Exit::Io`] and [`Exit::Config`] as [`records`].
pub fn documents(paths: &[PathBuf], text_field: &str) -> impl Iterator<Item = Result<Document>> {
    paths.iter().enumerate().flat_map(move |(file, path)| {
        let records = records(path, text_field).unwrap_or_else(|e| Box::new(std::iter::once(Err(e))));
        records.filter_map(move |record| match record {
            Err(e) => Some(Err(e)),
            Ok(Record { content: Content::Empty, .. }) => None,
            Ok(Record { content: Content::Text(text), line, .. }) => Some(Ok(Document { text, file, line })),
            Ok(Record { content: Content::Bad { detail, .. }, line, .. }) => {
                let message = format!("{}:{line}: {detail}", path.display());
                let hint = "repair the line, or let `data prepare --allow-bad` set bad lines aside";
                Some(Err(fail(Exit::Data, message).hint(hint).into()))
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::error::Failure;

    fn write(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn contents(path: &Path) -> Vec<Record> {
        records(path, "text").unwrap().collect::<Result<_>>().unwrap()
    }

    fn reason_of(record: &Record) -> Option<Reason> {
        if let Content::Bad { reason, .. } = record.content { Some(reason) } else { None }
    }

    #[test]
    fn text_files_are_one_document() {
        let dir = tempfile::tempdir().unwrap();
        let one = |bytes: &[u8]| contents(&write(&dir, "x.TXT", bytes)).pop().unwrap();
        assert_eq!(one(b"\xef\xbb\xbfa\r\n\nb\n").content, Content::Text("a\r\n\nb\n".into()));
        assert_eq!(one(b" \n").content, Content::Empty);
        assert_eq!((one(b"").content, one(b"").line), (Content::Empty, 1));
        assert_eq!(reason_of(&one(b"a\xffb")), Some(Reason::Utf8));
    }

    #[test]
    fn documents_pass_over_empty_lines_and_stop_at_bad_ones() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [
            write(&dir, "a.txt", b"first"),
            write(&dir, "b.jsonl", b"\n{\"body\": \"second\"}\n{\"text\": 1}\n"),
            write(&dir, "c.parquet", b""),
        ];
        let got: Vec<_> = documents(&paths, "body").collect();
        let document = |text: &str, file, line| Document { text: text.into(), file, line };
        assert_eq!(got[0].as_ref().unwrap(), &document("first", 0, 1));
        assert_eq!(got[1].as_ref().unwrap(), &document("second", 1, 2));
        let exit = |i: usize| got[i].as_ref().unwrap_err().downcast_ref::<Failure>().unwrap().exit;
        assert_eq!((exit(2), exit(3), got.len()), (Exit::Data, Exit::Config, 4));
        assert!(got[2].as_ref().unwrap_err().to_string().contains("b.jsonl:3: "));
    }
}
