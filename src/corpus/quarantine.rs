//! Bad records, set aside with all that is needed to find, repair or replay them.
//!
//! Written under its final name from the start, so that it can be read while the run goes on or after it has stopped.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use crate::runtime::files::{Growing, io_context};

/// Name of the quarantine file in the output directory; absent when no record was bad.
pub const QUARANTINE_FILE: &str = "quarantine.jsonl";

/// A bad record; a line of the quarantine file but for its bytes.
#[derive(Debug, Serialize)]
pub(super) struct Entry<'a> {
    pub(super) file: &'a str,
    /// Line number from 1.
    pub(super) line: u64,
    /// Byte offset in the file.
    pub(super) offset: u64,
    /// Bytes of the line; more than are kept if it was too long.
    pub(super) length: u64,
    /// Records that this one stands for, if its file cannot be read on.
    #[serde(skip_serializing_if = "is_one")]
    pub(super) records: u64,
    pub(super) reason: &'static str,
    pub(super) detail: &'a str,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference
fn is_one(n: &u64) -> bool {
    *n == 1
}

/// Bytes of the file from which on records are listed without a copy: their places in the input are known.
const MAX_COPIES: u64 = 256 << 20;

/// The quarantine file, created at the first bad record.
pub(super) struct Quarantine {
    path: PathBuf,
    file: Option<Growing>,
}

impl Quarantine {
    /// Goes on after the first `len` bytes of the file in `dir`.
    pub(super) fn open(dir: &Path, len: u64) -> Result<Self> {
        let path = dir.join(QUARANTINE_FILE);
        let file = if len == 0 { None } else { Some(Growing::open(&path, len)?) };
        Ok(Self { path, file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes written.
    pub(super) fn len(&self) -> u64 {
        self.file.as_ref().map_or(0, Growing::len)
    }

    /// Adds a record with its `bytes`, written in hexadecimal, which survives whatever they are.
    pub(super) fn add(&mut self, entry: &Entry<'_>, bytes: &[u8]) -> Result<()> {
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

/// Two digits per byte.
fn push_hex(text: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.extend(bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]));
}
