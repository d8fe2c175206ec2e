//! Digests of logs: what a checkpoint records of them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The beginning of a log: all that it held at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDigest {
    pub lines: u64,
    pub bytes: u64,
    /// BLAKE3 of the bytes, 64 lower-case hex digits.
    pub blake3: String,
}

/// Digests of a run's logs, by file name.
pub type LogDigests = BTreeMap<String, LogDigest>;

/// A digest that grows with its log.
#[derive(Clone, Debug, Default)]
pub(super) struct RunningDigest {
    hasher: blake3::Hasher,
    lines: u64,
}

impl RunningDigest {
    /// One more line, with its newline.
    pub(super) fn push(&mut self, line: &[u8]) {
        self.hasher.update(line);
        self.lines += 1;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.hasher.count()
    }

    pub(super) fn digest(&self) -> LogDigest {
        LogDigest { lines: self.lines, bytes: self.hasher.count(), blake3: self.hasher.finalize().to_hex().to_string() }
    }
}
