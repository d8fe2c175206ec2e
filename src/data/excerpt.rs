//! `data inspect` at one place: the tokens there, with their shard, document and position in the file.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;

use crate::corpus::shards::manifest::{ShardEntry, ShardManifest, Split};
use crate::corpus::shards::{ShardSet, split_files};
use crate::data::order::Order;
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files;

/// Where an excerpt begins, counted from 0 within a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExcerptStart {
    Token(u64),
    Document(u64),
    /// The training sequence of this index, as a run with these settings reads it.
    Sequence {
        /// Global index over all steps.
        index: u64,
        /// `train.sequence_length`.
        length: usize,
        /// `data.seed`; none if `data.shuffle` is false.
        seed: Option<u64>,
    },
}

/// Tokens, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// Split, token, shard and document in words.
    pub title: String,
    /// The token before, which decides how the first one is written as text; none at the beginning of a document.
    pub before: Option<u32>,
    pub ids: Vec<u32>,
}

/// The tokens of `dir` at `place` of `split`, at most `most` of them.
///
/// # Errors
/// [`Exit::Config`] for a place that the split does not have; those of reading shards.
pub fn excerpt(dir: &Path, split: Split, place: ExcerptStart, most: usize) -> Result<Excerpt> {
    let set = ShardSet::open(&split_files(dir, split)?)?;
    let documents = ShardManifest::load(dir)?.map(|manifest| Documents::new(dir, manifest, split));
    let total = set.total_tokens();
    let (start, end, what) = match place {
        ExcerptStart::Token(at) if at >= total => {
            return Err(beyond(format!("{} has {total} tokens, none is number {at}", split.name())).into());
        }
        ExcerptStart::Token(at) => (at, at.saturating_add(most as u64), String::new()),
        ExcerptStart::Document(number) => {
            let Some(documents) = &documents else {
                return Err(fail(Exit::Config, format!("{}: has no list of documents", dir.display()))
                    .hint("only shards made by `data prepare` have one; look at a token instead")
                    .into());
            };
            let Some(Range { start, end }) = documents.span(number)? else {
                let message = format!("{} has {} documents, none is number {number}", split.name(), documents.count());
                return Err(beyond(message).into());
            };
            (start, end.min(start.saturating_add(most as u64)), format!(", {} tokens long", end - start))
        }
        ExcerptStart::Sequence { index, length, seed } => {
            let windows = total.saturating_sub(1) / length.max(1) as u64;
            let (epoch, window) = Order::new(windows, seed.unwrap_or(0), seed.is_some())?.window(index);
            let start = window * length as u64;
            (
                start,
                start + (length as u64 + 1).min(most as u64),
                format!(", sequence {index}: pass {epoch}, window {window} of {windows}"),
            )
        }
    };
    let mut ids = vec![0; (end.min(total) - start) as usize];
    set.read(start, &mut ids, usize::MAX)?;
    let (shard, offset) = set.locate(start);
    let mut title = format!("{} token {start}: {shard} token {offset}", split.name());
    let document = documents.map(|documents| documents.containing(start)).transpose()?.flatten();
    let begins_document = document.is_some_and(|(_, from)| from == start);
    // At the beginning of a document, text is written as if nothing stood before it.
    let before = if begins_document { None } else { token_before(&set, start)? };
    if let Some((number, from)) = document {
        title += &match start - from {
            0 => format!(", the beginning of document {number}"),
            n => format!(", token {n} of document {number}"),
        };
    }
    Ok(Excerpt { title: title + &what, before, ids })
}

fn beyond(what: String) -> Failure {
    fail(Exit::Config, what).hint("places are counted from 0")
}

fn token_before(set: &ShardSet, at: u64) -> Result<Option<u32>> {
    let Some(at) = at.checked_sub(1) else { return Ok(None) };
    let mut token = [0];
    set.read(at, &mut token, usize::MAX)?;
    Ok(Some(token[0]))
}

/// Document starts of a split, read from the `.docs` files as needed.
struct Documents<'a> {
    dir: &'a Path,
    shards: Vec<ShardEntry>,
}

impl<'a> Documents<'a> {
    fn new(dir: &'a Path, manifest: ShardManifest, split: Split) -> Self {
        Self { dir, shards: manifest.shards.into_iter().filter(|e| e.split == split).collect() }
    }

    fn count(&self) -> u64 {
        self.shards.iter().map(|entry| entry.documents).sum()
    }

    /// The tokens of document `number`.
    fn span(&self, number: u64) -> Result<Option<Range<u64>>> {
        let Some(start) = self.start(number)? else { return Ok(None) };
        let total = self.shards.iter().map(|entry| entry.tokens).sum();
        Ok(Some(start..self.start(number + 1)?.unwrap_or(total)))
    }

    fn start(&self, number: u64) -> Result<Option<u64>> {
        let mut tokens = 0;
        let mut documents = 0;
        for entry in &self.shards {
            if number < documents + entry.documents {
                let starts = starts(self.dir, entry)?;
                return Ok(starts.get((number - documents) as usize).map(|offset| tokens + offset));
            }
            tokens += entry.tokens;
            documents += entry.documents;
        }
        Ok(None)
    }

    /// The number of the document that holds token `at`, and its first token.
    fn containing(&self, at: u64) -> Result<Option<(u64, u64)>> {
        let mut tokens = 0;
        let mut documents = 0;
        let mut last = None;
        for entry in &self.shards {
            if tokens > at {
                break;
            }
            // A document may begin several shards before; only the shard of the token itself needs a search.
            let starts = starts(self.dir, entry)?;
            let before = starts.partition_point(|offset| tokens + offset <= at);
            if let Some(offset) = before.checked_sub(1).and_then(|i| starts.get(i)) {
                last = Some((documents + before as u64 - 1, tokens + offset));
            }
            tokens += entry.tokens;
            documents += entry.documents;
        }
        Ok(last)
    }
}

/// The starts of the documents of one shard, as token offsets in it, strictly rising.
pub(super) fn starts(dir: &Path, entry: &ShardEntry) -> Result<Vec<u64>> {
    let path = dir.join(entry.docs_name());
    let bytes = files::read_bounded(&path, entry.documents.saturating_mul(8), true)?;
    let starts: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|raw| u64::from_le_bytes(*raw)).collect();
    let inside = starts.last().is_none_or(|&last| last < entry.tokens);
    if bytes.len() as u64 != entry.documents.saturating_mul(8) || !inside || !starts.is_sorted_by(|a, b| a < b) {
        return Err(fail(Exit::Data, format!("{}: is no list of {} document starts", path.display(), entry.documents))
            .hint("restore it from a good copy, or run `data prepare` again; `data verify` checks the whole directory")
            .into());
    }
    Ok(starts)
}
