//! Tokens out: one split's shards, cut at exactly the shard size, each written whole, durably and with its hash.
//!
//! A shard is built in memory (200 MB at the default size and 16 bits), because its header, which comes first and is
//! part of its hash, holds the count. That bounds memory by the shard size of the two splits.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::data::npy::Dtype;
use crate::data::npy::header::{HEADER_LEN, npy_header};
use crate::data::shards::manifest::{ShardEntry, Split, Totals};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files;

/// Writes the shards of one split.
pub(super) struct ShardWriter {
    dir: PathBuf,
    split: Split,
    dtype: Dtype,
    shard_tokens: usize,
    /// The file being built: room for the header, then tokens.
    file: Vec<u8>,
    /// Starts of documents in it, as little-endian u64.
    docs: Vec<u8>,
    /// Bytes of text of those documents.
    text_bytes: u64,
    shards: Vec<ShardEntry>,
    totals: Totals,
}

impl ShardWriter {
    /// For `split`'s shards of `shard_tokens` tokens in `dir`.
    pub(super) fn new(dir: &Path, split: Split, dtype: Dtype, shard_tokens: usize) -> Self {
        Self {
            dir: dir.to_path_buf(),
            split,
            dtype,
            shard_tokens,
            file: vec![0; HEADER_LEN],
            docs: Vec::new(),
            text_bytes: 0,
            shards: Vec::new(),
            totals: Totals::default(),
        }
    }

    /// Adds a document of `text_bytes` bytes: the separator, then its ids. Full shards are written on the way.
    pub(super) fn document(&mut self, separator: u32, ids: &[u32], text_bytes: u64) -> Result<()> {
        self.docs.extend_from_slice(&(self.len() as u64).to_le_bytes());
        self.text_bytes += text_bytes;
        self.totals.documents += 1;
        self.totals.bytes += text_bytes;
        self.totals.tokens += 1 + ids.len() as u64;
        for &id in [separator].iter().chain(ids) {
            if !self.dtype.push(&mut self.file, id) {
                let message = format!("the tokenizer gave the id {id}, beyond its own vocabulary");
                return Err(fail(Exit::Internal, message).into());
            }
            if self.len() == self.shard_tokens {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Tokens in the shard being built.
    fn len(&self) -> usize {
        (self.file.len() - HEADER_LEN) / self.dtype.width()
    }

    fn flush(&mut self) -> Result<()> {
        let index = self.shards.len();
        // Names are in order only while the numbers have five digits.
        if index > 99_999 {
            let message = format!("{}: more than 100000 shards", self.dir.display());
            return Err(fail(Exit::Config, message).hint("raise --shard-tokens").into());
        }
        let tokens = self.len();
        self.file[..HEADER_LEN].copy_from_slice(&npy_header(self.dtype, tokens));
        let entry = ShardEntry {
            name: format!("{}-{index:05}.npy", self.split.name()),
            split: self.split,
            tokens: tokens as u64,
            documents: (self.docs.len() / 8) as u64,
            bytes: self.text_bytes,
            dtype: self.dtype,
            blake3: blake3::hash(&self.file).to_hex().to_string(),
            docs_blake3: blake3::hash(&self.docs).to_hex().to_string(),
        };
        files::write_atomic(&self.dir.join(entry.docs_name()), &self.docs)?;
        files::write_atomic(&self.dir.join(&entry.name), &self.file)?;
        self.shards.push(entry);
        self.file.truncate(HEADER_LEN);
        self.docs.clear();
        self.text_bytes = 0;
        Ok(())
    }

    /// Sizes so far, of what is written and what is not.
    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// Writes the last, short shard and returns all of them.
    pub(super) fn finish(mut self) -> Result<(Vec<ShardEntry>, Totals)> {
        if self.len() > 0 {
            self.flush()?;
        }
        Ok((self.shards, self.totals))
    }
}
