//! Bad lines, set aside with all that is needed to find, repair or replay them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use crate::runtime::files::{AtomicFile, io_context};

/// Name of the quarantine file in the output directory; absent when no line was bad.
pub const QUARANTINE_FILE: &str = "quarantine.jsonl";

/// A bad record; one line of the quarantine file.
#[derive(Debug, Serialize)]
pub(super) struct Entry<'a> {
    /// The source file.
    pub(super) file: &'a Path,
    /// Line number from 1.
    pub(super) line: u64,
    /// Byte offset in the file.
    pub(super) offset: u64,
    /// Bytes of the line; more than are kept below if it was too long.
    pub(super) length: u64,
    /// Class of the fault.
    pub(super) reason: &'static str,
    /// The fault in words.
    pub(super) detail: &'a str,
    /// The raw bytes in hexadecimal, which survives whatever they are.
    pub(super) hex: String,
}

/// The quarantine file, created at the first bad record.
pub(super) struct Quarantine {
    path: PathBuf,
    file: Option<AtomicFile>,
}

impl Quarantine {
    pub(super) fn new(dir: &Path) -> Self {
        Self { path: dir.join(QUARANTINE_FILE), file: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn add(&mut self, entry: &Entry<'_>) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(AtomicFile::create(&self.path)?),
        };
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        file.write_all(&line).map_err(io_context("write", &self.path))
    }

    /// Makes the file durable.
    pub(super) fn commit(&mut self) -> Result<()> {
        self.file.take().map_or(Ok(()), AtomicFile::commit)
    }
}

/// Two digits per byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
