//! Bad records, set aside with all that is needed to find, repair or replay them.
//!
//! Written under its final name from the start, so that it can be read during the run or after it has stopped.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use crate::runtime::files::{Growing, io_context};

/// Name of the quarantine file in the output directory; absent when no record was bad.
pub const QUARANTINE_FILE: &str = "quarantine.jsonl";

/// A bad record; a line of the quarantine file but for its bytes.
#[derive(Debug, Serialize)]
pub(super) struct QuarantineEntry<'a> {
    pub(super) file: &'a str,
    pub(super) line: u64,
    /// In bytes from the start of the file's content.
    pub(super) offset: u64,
    /// Bytes of the record; more than are kept if it was too long.
    pub(super) length: u64,
    /// Records that this one stands for, if the rest of its file cannot be read.
    #[serde(skip_serializing_if = "is_one")]
    pub(super) records: u64,
    pub(super) reason: &'static str,
    pub(super) detail: &'a str,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference
fn is_one(n: &u64) -> bool {
    *n == 1
}

/// Size of the file above which records are listed without their bytes, which can be found in the input.
const MAX_COPIES: u64 = 256 << 20;

/// The quarantine file, created at the first bad record.
pub(super) struct Quarantine {
    path: PathBuf,
    file: Option<Growing>,
}

impl Quarantine {
    /// Opens the file in `dir` after its first `len` bytes.
    pub(super) fn open(dir: &Path, len: u64) -> Result<Self> {
        let path = dir.join(QUARANTINE_FILE);
        let file = if len == 0 { None } else { Some(Growing::open(&path, len)?) };
        Ok(Self { path, file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Number of bytes in the file.
    pub(super) fn len(&self) -> u64 {
        self.file.as_ref().map_or(0, Growing::len)
    }

    /// Adds a record with its `bytes`, written in hexadecimal, which survives whatever they are.
    pub(super) fn add(&mut self, entry: &QuarantineEntry<'_>, bytes: &[u8]) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(Growing::open(&self.path, 0)?),
        };
        let mut line = serde_json::to_vec(entry)?;
        if file.len() >= MAX_COPIES {
            line.push(b'\n');
            return file.write_all(&line).map_err(io_context("write", &self.path));
        }
        line.pop();
        line.extend_from_slice(b",\"hex\":\"");
        // Piece by piece: a record may have 64 MiB.
        for piece in bytes.chunks(1 << 16) {
            push_hex(&mut line, piece);
            file.write_all(&line).map_err(io_context("write", &self.path))?;
            line.clear();
        }
        line.extend_from_slice(b"\"}\n");
        file.write_all(&line).map_err(io_context("write", &self.path))
    }

    pub(super) fn sync(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), Growing::sync)
    }
}

fn push_hex(text: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.extend(bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]));
}
