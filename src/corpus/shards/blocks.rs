//! The hash of each block of a shard, compared when the block is first read.
//!
//! A shard that was changed after it was prepared, with its size unchanged, must not reach the model; but hashing hundreds
//! of gigabytes before the first step would take too long. So a process checks each MiB once, when it first reads from it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use crate::corpus::npy::TokenFile;
use crate::corpus::shards::manifest::{BLOCK_BYTES, BLOCK_DIGITS, ShardEntry};
use crate::runtime::error::{Exit, fail};

/// The blocks of one shard.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Concatenated first [`BLOCK_DIGITS`] hex digits of the blocks' BLAKE3.
    hashes: String,
    /// Blocks that were compared and were right.
    checked: Vec<AtomicBool>,
}

impl Blocks {
    pub(super) fn new(entry: &ShardEntry) -> Self {
        let checked = (0..entry.blocks.len() / BLOCK_DIGITS).map(|_| AtomicBool::new(false)).collect();
        Self { hashes: entry.blocks.clone(), checked }
    }

    /// Checks the blocks that hold `bytes` of `file`, unless that has been done.
    ///
    /// # Errors
    /// [`Exit::Data`] for a block that is not what the manifest says; [`Exit::Io`] if it cannot be read.
    pub(super) fn check(&self, file: &TokenFile, bytes: Range<u64>) -> Result<()> {
        let first = bytes.start / BLOCK_BYTES as u64;
        let last = bytes.end.saturating_sub(1) / BLOCK_BYTES as u64;
        for block in first..=last {
            let checked = self.checked.get(block as usize);
            // Relaxed: at worst two threads check the same block.
            if checked.is_some_and(|checked| checked.load(Ordering::Relaxed)) {
                continue;
            }
            if !self.is_right(file, block)? {
                let path = file.path().display();
                let Range { start, end } = file.tokens_in(block_range(file, block));
                let message = format!("{path}: tokens {start} to {end} are not those that shards.json was made from");
                return Err(fail(Exit::Data, message)
                    .hint("restore the shard from a good copy, or run `data prepare` again")
                    .into());
            }
            if let Some(checked) = checked {
                checked.store(true, Ordering::Relaxed);
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
