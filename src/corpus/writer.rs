//! Tokens out: one split's shards, cut at exactly the shard size.
//!
//! A shard grows in a file with a temporary name, so that memory does not depend on its size. The journal says how much of
//! that file counts. A full shard gets its final name only once the journal lists it, so a file with a final name always
//! has its final content.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Result;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::corpus::digest::digest;
use crate::corpus::npy::TokenDtype;
use crate::corpus::npy::header::{HEADER_LEN, npy_header};
use crate::corpus::shards::manifest::{ShardEntry, Split, Totals};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{self, Growing};

/// The name of a shard that grows begins with this.
pub(super) const PART_PREFIX: &str = ".part-";

/// A split's shards, as the journal keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    pub(super) shards: Vec<ShardEntry>,
    /// What is in the one that grows.
    pub(super) growing: Totals,
    pub(super) max_id: u32,
    pub(super) totals: Totals,
    /// BLAKE3 of the two files that grow, as far as they count.
    pub(super) growing_blake3: [String; 2],
}

/// Writes the shards of one split.
pub(super) struct ShardWriter {
    dir: PathBuf,
    split: Split,
    dtype: TokenDtype,
    shard_tokens: u64,
    written: Written,
    /// Full shards that have their names.
    published: usize,
    open: Option<OpenShard>,
    /// Bytes of tokens on their way to the file.
    bytes: Vec<u8>,
}

/// A shard that grows: its file and that of its document starts.
struct OpenShard {
    tokens: GrowingFile,
    docs: GrowingFile,
}

/// A file that grows, and the hash of all that was appended behind its header.
struct GrowingFile {
    file: Growing,
    hasher: blake3::Hasher,
}

impl GrowingFile {
    /// Opens the first `len` bytes of `path`, whose hash behind `header` bytes must be `blake3`. (The header is written last, perhaps
    /// by a process that died before it could say so.)
    fn open(path: &Path, header: u64, len: u64, blake3: &str) -> Result<Self> {
        let mut part = Self { file: Growing::open(path, len)?, hasher: blake3::Hasher::new() };
        if len > 0 {
            let mut reader = part.file.reader()?;
            reader.seek(SeekFrom::Start(header)).map_err(|e| files::io_failure("read", path, &e))?;
            part.hasher.update_reader(reader).map_err(|e| files::io_failure("read", path, &e))?;
            // The finished shard's hash will be of whatever lies there, so a change must be found now.
            if part.blake3() != blake3 {
                return Err(changed(path));
            }
        }
        Ok(part)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|e| files::io_context("write", self.file.path())(e))
    }

    fn blake3(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

fn changed(path: &Path) -> anyhow::Error {
    fail(Exit::Data, format!("{}: is not what was written to it before the interruption", path.display()))
        .hint("delete the unfinished output and begin again")
        .into()
}

impl ShardWriter {
    /// Continues the shards of `split`, of `shard_tokens` tokens each, in `dir` from where `written` ends.
    pub(super) fn open(
        dir: &Path,
        split: Split,
        dtype: TokenDtype,
        shard_tokens: usize,
        written: Written,
    ) -> Result<Self> {
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

    fn open_files(&self) -> Result<OpenShard> {
        let index = self.written.shards.len();
        // Names are in order only while the numbers have five digits.
        if index > 99_999 {
            let message = format!("{}: more than 100000 shards", self.dir.display());
            return Err(fail(Exit::Config, message).hint("raise --shard-tokens").into());
        }
        let name = format!("{PART_PREFIX}{}-{index:05}", self.split.name());
        let Totals { tokens, documents, .. } = self.written.growing;
        // Without a token the file may not even have room for its header.
        let len = if tokens == 0 { 0 } else { HEADER_LEN as u64 + tokens * self.dtype.width() as u64 };
        let [tokens_blake3, docs_blake3] = &self.written.growing_blake3;
        let docs = GrowingFile::open(&self.dir.join(format!("{name}.docs")), 0, documents * 8, docs_blake3)?;
        let mut tokens =
            GrowingFile::open(&self.dir.join(format!("{name}.npy")), HEADER_LEN as u64, len, tokens_blake3)?;
        if len == 0 {
            // Room for the header, which says how many tokens follow: that is known at the end.
            let header = tokens.file.write_all(&[0; HEADER_LEN]);
            header.map_err(|e| files::io_context("write", tokens.file.path())(e))?;
        }
        Ok(OpenShard { tokens, docs })
    }

    /// The shard that grows, created if there is none.
    fn growing(&mut self) -> Result<&mut OpenShard> {
        if self.open.is_none() {
            self.open = Some(self.open_files()?);
        }
        self.open.as_mut().ok_or_else(|| fail(Exit::Internal, "no shard is open").into())
    }

    /// A document whose text has `text_bytes` bytes begins with the next token.
    pub(super) fn begin_document(&mut self, text_bytes: u64) -> Result<()> {
        let start = self.written.growing.tokens.to_le_bytes();
        self.growing()?.docs.append(&start)?;
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
            // The next shard is opened when something goes into it: none is empty.
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
        // Taken out, because `growing` borrows all of the writer.
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        match self.dtype {
            // The ids have been checked against the vocabulary, whose size decides on the type.
            TokenDtype::U16 => bytes.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            TokenDtype::U32 => bytes.extend(ids.iter().flat_map(|&id| id.to_le_bytes())),
        }
        self.growing()?.tokens.append(&bytes)?;
        self.bytes = bytes;
        self.written.max_id = self.written.max_id.max(largest);
        self.written.growing.tokens += ids.len() as u64;
        self.written.totals.tokens += ids.len() as u64;
        Ok(())
    }

    /// Completes the shard that grows, if there is one.
    pub(super) fn finish_shard(&mut self) -> Result<()> {
        let Some(OpenShard { tokens, docs }) = self.open.take() else { return Ok(()) };
        let docs_blake3 = docs.blake3();
        let mut tokens = tokens.file;
        let mut docs = docs.file;
        let Totals { tokens: count, documents, bytes } = std::mem::take(&mut self.written.growing);
        tokens.overwrite(0, &npy_header(self.dtype, count as usize))?;
        // Durable before the journal lists the shard.
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
            docs_blake3,
        });
        Ok(())
    }

    /// What is written; safe once [`ShardWriter::sync`] has returned.
    pub(super) fn written(&mut self) -> &Written {
        if let Some(open) = &self.open {
            self.written.growing_blake3 = [open.tokens.blake3(), open.docs.blake3()];
        }
        &self.written
    }

    pub(super) fn totals(&self) -> Totals {
        self.written.totals
    }

    /// Compares the shards that a run before this one has finished with their hashes.
    ///
    /// # Errors
    /// [`Exit::Data`] naming a file that is gone or has changed.
    pub(super) fn check_finished(&self) -> Result<()> {
        self.written.shards.par_iter().try_for_each(|entry| {
            for (name, blake3) in [(entry.docs_name(), &entry.docs_blake3), (entry.name.clone(), &entry.blake3)] {
                let path = self.dir.join(name);
                if files::hash_file(&path)?.blake3 != *blake3 {
                    return Err(changed(&path));
                }
            }
            Ok(())
        })
    }

    /// Tokens that still fit into the first shard.
    pub(super) fn room_in_first(&self) -> u64 {
        if self.written.shards.is_empty() { self.shard_tokens - self.written.growing.tokens } else { 0 }
    }

    /// Makes all that is written durable.
    pub(super) fn sync(&mut self) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.tokens.file.sync()?;
        open.docs.file.sync()
    }

    /// Gives the full shards, which the journal now lists, their names. Those that have them already, from before an
    /// interruption, are left alone.
    pub(super) fn publish(&mut self) -> Result<()> {
        for entry in &self.written.shards[self.published..] {
            // Document starts first: a shard that can be seen has them.
            for name in [entry.docs_name(), entry.name.clone()] {
                let part = self.dir.join(format!("{PART_PREFIX}{name}"));
                let done = self.dir.join(&name);
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
