//! From text to batches: corpus → tokenizer → tokens → windows in a keyed order.
//!
//! | file | holds |
//! |---|---|
//! | `dataset.rs`, `dataset/` | what a configuration's `[data]` means: tokenizer, training tokens, validation rows, floor |
//! | `loader.rs` | training sequences: batch = f(seed, step) |
//! | `batch.rs` | the sequences of a step |
//! | `prefetch.rs` | the next step's sequences, read while this one is computed |
//! | `mixture.rs` | several sources by weight |
//! | `boundary.rs` | where documents begin in a stream of tokens |
//! | `packed_rows.rs` | conversations packed into rows |
//! | `eval_set.rs` | validation rows: every token predicted exactly once |
//! | `order.rs` | the keyed permutation and the hash of the data |
//! | `inspect.rs`, `excerpt.rs` | `data inspect`: a directory of shards, or the tokens at one place, for people |

pub mod batch;
pub mod boundary;
pub mod dataset;
pub mod eval_set;
pub mod excerpt;
pub mod inspect;
pub mod loader;
pub mod mixture;
pub mod order;
pub mod packed_rows;
pub mod prefetch;

use crate::corpus::shards::ShardSet;
use anyhow::Result;
use std::sync::Arc;

/// A long array of token ids, in memory or in shards. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// Tokenised when the program started.
    Memory(Arc<Vec<u32>>),
    /// Read as needed; ids are checked against this vocabulary size as they are read.
    Shards(Arc<ShardSet>, usize),
}

impl Tokens {
    pub fn total(&self) -> u64 {
        match self {
            Self::Memory(ids) => ids.len() as u64,
            Self::Shards(set, _) => set.total_tokens(),
        }
    }

    /// Whether the separator ends documents instead of beginning them; `None` if it does both.
    pub fn separator_after(&self) -> Option<bool> {
        match self {
            Self::Memory(_) => Some(false),
            Self::Shards(set, _) => set.separator_after(),
        }
    }

    /// Fills `out` from token `start` on.
    ///
    /// # Errors
    /// Those of reading shards. The range must be inside the array: a caller computes it from [`Tokens::total`].
    pub fn read(&self, start: u64, out: &mut [u32]) -> Result<()> {
        match self {
            Self::Memory(ids) => {
                out.copy_from_slice(&ids[start as usize..start as usize + out.len()]);
                Ok(())
            }
            Self::Shards(set, vocab) => set.read(start, out, *vocab),
        }
    }

    /// Identifies the tokens and their order.
    ///
    /// # Errors
    /// Those of reading shards.
    pub fn fingerprint(&self) -> Result<String> {
        match self {
            Self::Memory(ids) => {
                let mut hasher = blake3::Hasher::new_derive_key("llama-lite tokens in memory v1");
                for piece in ids.chunks(4096) {
                    let bytes: Vec<u8> = piece.iter().flat_map(|id| id.to_le_bytes()).collect();
                    hasher.update(&bytes);
                }
                Ok(hasher.finalize().to_hex().to_string())
            }
            Self::Shards(set, _) => set.fingerprint(),
        }
    }
}
