//! What a file's name says about its format. Where it says nothing, the content decides.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::corpus::source::Compression;
use crate::corpus::source::input::Input;
use crate::runtime::content::Kind;
use crate::runtime::error::{Exit, fail};

/// The formats in words, for messages.
pub const KNOWN: &str = ".txt, .jsonl or .json, each also with .gz or .zst behind, or .parquet";

/// How the records of a file are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    JsonLines,
    Json,
    Parquet,
}

/// What a file's name says, from its suffixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParsedName {
    /// By the last suffix that is not one of compression.
    pub(super) format: Option<Format>,
    pub(super) compression: Compression,
    /// Without a dot, in small letters; empty if there is none.
    suffix: String,
}

impl ParsedName {
    pub(super) fn new(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let mut rest = name.as_str();
        let mut compression = Compression::None;
        while let Some((stem, suffix)) = rest.rsplit_once('.') {
            let next = match suffix {
                "gz" | "gzip" => Compression::Gzip,
                "zst" | "zstd" => Compression::Zstd,
                _ => break,
            };
            if compression == Compression::None {
                compression = next;
            }
            rest = stem;
        }
        let suffix = Path::new(rest).extension().unwrap_or_default().to_string_lossy().into_owned();
        let format = match suffix.as_str() {
            "txt" | "text" => Some(Format::Text),
            "jsonl" | "jsonlines" | "ndjson" => Some(Format::JsonLines),
            "json" => Some(Format::Json),
            "parquet" | "parq" | "pq" => Some(Format::Parquet),
            _ => None,
        };
        Self { format, compression, suffix }
    }

    /// Whether the name promises a format that is read. Parquet compresses within, and is not read out of a stream.
    fn is_known(&self) -> bool {
        self.format.is_some_and(|format| format != Format::Parquet || self.compression == Compression::None)
    }
}

/// Whether `path` is a file of text among others, such as licences and scripts: by its name, or, if that has no suffix, because
/// it holds records (JSON or Parquet).
///
/// # Errors
/// [`Exit::Io`](crate::runtime::error::Exit::Io) if its content was needed and cannot be read.
pub fn is_corpus_file(path: &Path) -> Result<bool> {
    let name = ParsedName::new(path);
    if name.is_known() || !name.suffix.is_empty() || name.format.is_some() {
        return Ok(name.is_known());
    }
    // A name like `.gitignore` is all suffix.
    if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
        return Ok(false);
    }
    Ok(match Kind::of_file(path)? {
        Kind::Parquet | Kind::Json => true,
        Kind::Gzip | Kind::Zstd => Input::open(path, Compression::None)?.kind() == Kind::Json,
        _ => false,
    })
}

/// The format of a file that the user names, where its name does not say it. Content that looks like records is read as
/// records; text is read only if the name has no suffix, since a table or a program is not a document.
///
/// # Errors
/// [`Exit::Config`] for all else.
pub(super) fn format_of_content(path: &Path, input: &Input) -> Result<Format> {
    let has_suffix = !ParsedName::new(path).suffix.is_empty();
    match input.kind() {
        Kind::Json => Ok(Format::Json),
        Kind::Text | Kind::Empty if !has_suffix => Ok(Format::Text),
        kind => Err(refusal(path, kind)),
    }
}

/// Whether `path` is read as Parquet: by its content, and of nothing or unknown bytes by its name.
///
/// # Errors
/// [`Exit::Io`] if it cannot be read.
pub fn is_parquet(path: &Path) -> Result<bool> {
    let is_named_so = ParsedName::new(path).format == Some(Format::Parquet);
    Ok(match Kind::of_file(path)? {
        Kind::Parquet => true,
        Kind::Empty | Kind::Binary => is_named_so,
        // A Parquet file that was cut off within its magic number, PAR1, reads as text.
        Kind::Text => is_named_so && path.metadata().is_ok_and(|meta| meta.len() < 4),
        _ => false,
    })
}

/// Whether `path` holds JSON records, by its name or, where that says nothing, by its content.
///
/// # Errors
/// [`Exit::Io`] if it cannot be read.
pub fn holds_records(path: &Path) -> Result<bool> {
    let name = ParsedName::new(path);
    Ok(match name.format {
        Some(format) => format != Format::Text,
        None => Input::open(path, name.compression)?.kind() == Kind::Json,
    })
}

/// Refuses a file whose kind is not read.
fn refusal(path: &Path, kind: Kind) -> anyhow::Error {
    let message = format!("{} is {}; this kind of file is not read", path.display(), kind.describe());
    let hint = match kind {
        Kind::Text => format!("give {KNOWN}; if the file is one document, rename it to end in .txt"),
        Kind::Binary => format!("give {KNOWN}"),
        kind => kind.advice(path),
    };
    fail(Exit::Config, message).hint(hint).into()
}

/// Refuses the first of `paths`, named one by one by the user, that [`Reader::open`](super::Reader::open) would refuse for its
/// kind: before anything is made of the others.
///
/// # Errors
/// [`Exit::Config`] for a kind of file that is not read, [`Exit::Io`] for one that cannot be read.
pub fn refuse_other_kinds(paths: &[PathBuf]) -> Result<()> {
    for path in paths.iter().filter(|path| ParsedName::new(path).format.is_none()) {
        if Kind::of_file(path)? != Kind::Parquet {
            format_of_content(path, &Input::open(path, ParsedName::new(path).compression)?)?;
        }
    }
    Ok(())
}

/// The suffixes of `path` as its name has them, `.tar.gz`: what files that are left out are counted by.
pub fn suffixes(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ParsedName { suffix, compression, .. } = ParsedName::new(path);
    let dots_before = match (suffix.is_empty(), compression) {
        (true, Compression::None) => return String::new(),
        (true, _) | (false, Compression::None) => 0,
        (false, _) => 1,
    };
    name.rmatch_indices('.').nth(dots_before).map_or(String::new(), |(at, _)| name[at..].to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_of_any_case_and_number_are_understood() {
        for (name, format, compression) in [
            ("a.txt", Some(Format::Text), Compression::None),
            ("A.TEXT.GZ", Some(Format::Text), Compression::Gzip),
            ("a.b.jsonl", Some(Format::JsonLines), Compression::None),
            ("a.JSONL.zstd", Some(Format::JsonLines), Compression::Zstd),
            ("a.jsonlines.gzip", Some(Format::JsonLines), Compression::Gzip),
            ("a.ndjson.zst", Some(Format::JsonLines), Compression::Zstd),
            ("a.json.gz.zst", Some(Format::Json), Compression::Zstd),
            ("a.parq", Some(Format::Parquet), Compression::None),
            ("x/.a.parquet", Some(Format::Parquet), Compression::None),
            ("a.gz", None, Compression::Gzip),
            ("a.txt.bz2", None, Compression::None),
            ("a.jsonl.part", None, Compression::None),
            ("txt", None, Compression::None),
            (".txt", None, Compression::None),
            ("a.txt/b", None, Compression::None),
        ] {
            let read = ParsedName::new(Path::new(name));
            assert_eq!((read.format, read.compression), (format, compression), "{name}");
        }
    }

    #[test]
    fn what_is_left_out_is_counted_by_suffix() {
        for (name, suffix) in [
            ("a/b.CSV", ".csv"),
            ("a.jsonl.bz2", ".bz2"),
            ("a.parquet.gz", ".parquet.gz"),
            ("a.tar.gz", ".tar.gz"),
            ("LICENSE", ""),
            ("x.gz", ".gz"),
        ] {
            assert_eq!(suffixes(Path::new(name)), suffix, "{name}");
        }
    }

    #[test]
    fn without_a_suffix_the_content_decides() {
        let dir = tempfile::tempdir().unwrap();
        let zstd = zstd::encode_all(&b"{\"text\": \"x\"}\n"[..], 1).unwrap();
        for (name, bytes, expected) in [
            ("records", &b"{\"text\": \"x\"}\n"[..], true),
            ("packed", &zstd, true),
            ("packed.zst", &zstd, true),
            ("rows", b"PAR1...", true),
            ("LICENSE", b"MIT", false),
            ("x.csv", b"{\"text\": \"x\"}\n", false),
            (".hidden", b"{\"text\": \"x\"}\n", false),
            ("x.parquet.gz", b"PAR1", false),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(is_corpus_file(&path).unwrap(), expected, "{name}");
        }
    }
}
