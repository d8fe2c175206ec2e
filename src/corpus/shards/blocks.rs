//! The hash of each block of a shard, compared when the block is first read.
//!
//! A shard changed after it was prepared, with its size unchanged, must not reach the model; but to hash hundreds of gigabytes
//! before the first step would be no kindness. So a process checks each MiB once, when it first needs a token of it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use crate::corpus::npy::TokenFile;
use crate::corpus::shards::manifest::{BLOCK_BYTES, BLOCK_DIGITS, ShardEntry};
use crate::runtime::error::{Exit, fail};

/// The blocks of one shard.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Concatenated beginnings of the blocks' BLAKE3.
    hashes: String,
    /// Blocks that have been found right.
    known: Vec<AtomicBool>,
}

impl Blocks {
    pub(super) fn new(entry: &ShardEntry) -> Self {
        let known = (0..entry.blocks.len() / BLOCK_DIGITS).map(|_| AtomicBool::new(false)).collect();
        Self { hashes: entry.blocks.clone(), known }
    }

    /// Checks the blocks that hold `bytes` of `file`, unless that has been done.
    ///
    /// # Errors
    /// [`Exit::Data`] for a block that is not what the manifest says; [`Exit::Io`] if it cannot be read.
    pub(super) fn check(&self, file: &TokenFile, bytes: Range<u64>) -> Result<()> {
        let first = bytes.start / BLOCK_BYTES as u64;
        let last = bytes.end.saturating_sub(1) / BLOCK_BYTES as u64;
        for block in first..=last {
            let known = self.known.get(block as usize);
            if known.is_some_and(|known| known.load(Ordering::Relaxed)) {
                continue;
            }
            if !self.is_right(file, block)? {
                let path = file.path().display();
                let tokens = file.tokens_in(block_range(file, block));
                let start = tokens.start;
                let end = tokens.end;
                let message = format!("{path}: tokens {start} to {end} are not those that shards.json was made from");
                return Err(fail(Exit::Data, message)
                    .hint("restore the shard from a good copy, or run `data prepare` again")
                    .into());
            }
            if let Some(known) = known {
                known.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn is_right(&self, file: &TokenFile, block: u64) -> Result<bool> {
        let at = block as usize * BLOCK_DIGITS;
        let Some(expected) = self.hashes.get(at..at + BLOCK_DIGITS) else { return Ok(false) };
        let range = block_range(file, block);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_bytes(range.start, &mut bytes)?;
        Ok(blake3::hash(&bytes).to_hex()[..BLOCK_DIGITS] == *expected)
    }
}

fn block_range(file: &TokenFile, block: u64) -> Range<u64> {
    let start = block * BLOCK_BYTES as u64;
    start..(start + BLOCK_BYTES as u64).min(file.size())
}
