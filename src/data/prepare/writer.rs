//! Tokens out: one split's shards, cut at exactly the shard size.
//!
//! A shard grows in a file of a temporary name, so that memory does not depend on its size. What counts of that file
//! is what the journal says; a shard that is full is given its name only when the journal lists it, and so never is
//! there under its name with anything but its final content.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::data::npy::Dtype;
use crate::data::npy::header::{HEADER_LEN, npy_header};
use crate::data::prepare::digest::digest;
use crate::data::shards::manifest::{ShardEntry, Split, Totals};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{self, Growing};

/// What begins the name of a shard that grows.
pub(super) const PART_PREFIX: &str = ".part-";

/// A split's shards, as the journal keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    /// The full ones.
    pub(super) shards: Vec<ShardEntry>,
    /// What is in the one that grows.
    pub(super) growing: Totals,
    /// Its largest id.
    pub(super) max_id: u32,
    /// All of it.
    pub(super) totals: Totals,
}

/// Writes the shards of one split.
pub(super) struct ShardWriter {
    dir: PathBuf,
    split: Split,
    dtype: Dtype,
    shard_tokens: u64,
    written: Written,
    /// Full shards that have their names.
    published: usize,
    open: Option<Open>,
    /// Bytes of tokens on their way to the file.
    bytes: Vec<u8>,
}

/// A shard that grows: its file and that of its document starts.
struct Open {
    tokens: Growing,
    docs: Growing,
}

impl ShardWriter {
    /// Goes on with `split`'s shards of `shard_tokens` tokens in `dir` from where `written` ends.
    pub(super) fn open(dir: &Path, split: Split, dtype: Dtype, shard_tokens: usize, written: Written) -> Result<Self> {
        let mut writer = Self {
            dir: dir.to_path_buf(),
            split,
            dtype,
            shard_tokens: shard_tokens as u64,
            written,
            published: 0,
            open: None,
            bytes: Vec::new(),
        };
        if writer.written.growing != Totals::default() {
            writer.open = Some(writer.open_files()?);
        }
        Ok(writer)
    }

    fn open_files(&self) -> Result<Open> {
        let index = self.written.shards.len();
        // Names are in order only while the numbers have five digits.
        if index > 99_999 {
            let message = format!("{}: more than 100000 shards", self.dir.display());
            return Err(fail(Exit::Config, message).hint("raise --shard-tokens").into());
        }
        let part = |kind| self.dir.join(format!("{PART_PREFIX}{}-{index:05}.{kind}", self.split.name()));
        let Totals { tokens, documents, .. } = self.written.growing;
        let len = if tokens == 0 { 0 } else { HEADER_LEN as u64 + tokens * self.dtype.width() as u64 };
        let docs = Growing::open(&part("docs"), documents * 8)?;
        let mut file = Growing::open(&part("npy"), len)?;
        if len == 0 {
            put(&mut file, &[0; HEADER_LEN])?;
        }
        Ok(Open { tokens: file, docs })
    }

    /// The shard that grows, begun if there is none.
    fn growing(&mut self) -> Result<&mut Open> {
        if self.open.is_none() {
            self.open = Some(self.open_files()?);
        }
        self.open.as_mut().ok_or_else(|| fail(Exit::Internal, "no shard is open").into())
    }

    /// A document whose text has `text_bytes` bytes begins with the next token.
    pub(super) fn begin_document(&mut self, text_bytes: u64) -> Result<()> {
        let start = self.written.growing.tokens.to_le_bytes();
        put(&mut self.growing()?.docs, &start)?;
        for totals in [&mut self.written.growing, &mut self.written.totals] {
            totals.documents += 1;
            totals.bytes += text_bytes;
        }
        Ok(())
    }

    /// Adds `ids`. Shards that are full are finished on the way.
    pub(super) fn tokens(&mut self, mut ids: &[u32]) -> Result<()> {
        while !ids.is_empty() {
            let room = self.shard_tokens - self.written.growing.tokens;
            let (now, later) = ids.split_at(ids.len().min(room as usize));
            self.push(now)?;
            if now.len() as u64 == room {
                self.finish_shard()?;
            }
            ids = later;
        }
        Ok(())
    }

    /// Adds `ids`, for which there is room in the shard.
    fn push(&mut self, ids: &[u32]) -> Result<()> {
        let largest = ids.iter().copied().fold(0, u32::max);
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        match self.dtype {
            // The ids have been checked against the vocabulary, whose size decides on the type.
            Dtype::U16 => bytes.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            Dtype::U32 => bytes.extend(ids.iter().flat_map(|&id| id.to_le_bytes())),
        }
        put(&mut self.growing()?.tokens, &bytes)?;
        self.bytes = bytes;
        self.written.max_id = self.written.max_id.max(largest);
        self.written.growing.tokens += ids.len() as u64;
        self.written.totals.tokens += ids.len() as u64;
        Ok(())
    }

    /// Completes the shard that grows, if there is one.
    pub(super) fn finish_shard(&mut self) -> Result<()> {
        let Some(Open { mut tokens, mut docs }) = self.open.take() else { return Ok(()) };
        let Totals { tokens: count, documents, bytes } = std::mem::take(&mut self.written.growing);
        tokens.overwrite(0, &npy_header(self.dtype, count as usize))?;
        tokens.sync()?;
        docs.sync()?;
        let content = digest(&mut tokens)?;
        self.written.shards.push(ShardEntry {
            name: format!("{}-{:05}.npy", self.split.name(), self.written.shards.len()),
            split: self.split,
            tokens: count,
            documents,
            bytes,
            dtype: self.dtype,
            max_id: std::mem::take(&mut self.written.max_id),
            blake3: content.blake3,
            blocks: content.blocks,
            docs_blake3: files::hash_open_file(docs.reader()?, docs.path())?.blake3,
        });
        Ok(())
    }

    /// What is written; safe once [`ShardWriter::sync`] has returned.
    pub(super) fn written(&self) -> &Written {
        &self.written
    }

    /// Room in the first shard.
    pub(super) fn room_in_first(&self) -> u64 {
        if self.written.shards.is_empty() { self.shard_tokens - self.written.growing.tokens } else { 0 }
    }

    /// Makes all that is written durable.
    pub(super) fn sync(&mut self) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.tokens.sync()?;
        open.docs.sync()
    }

    /// Gives the full shards, which the journal now lists, their names. Those that have them already, from before an
    /// interruption, are left alone.
    pub(super) fn publish(&mut self) -> Result<()> {
        for entry in &self.written.shards[self.published..] {
            for name in [entry.docs_name(), entry.name.clone()] {
                let (part, done) = (self.dir.join(format!("{PART_PREFIX}{name}")), self.dir.join(&name));
                if part.exists() {
                    files::rename_durable(&part, &done)?;
                } else if !done.exists() {
                    let message = format!("{}: is gone, but was written", done.display());
                    let hint = "delete the unfinished output and begin again";
                    return Err(fail(Exit::Data, message).hint(hint).into());
                }
            }
        }
        self.published = self.written.shards.len();
        Ok(())
    }
}

fn put(file: &mut Growing, bytes: &[u8]) -> Result<()> {
    file.write_all(bytes).map_err(|e| files::io_context("write", file.path())(e))
}
