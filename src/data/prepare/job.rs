//! The run of `data prepare` between opening the first file and `shards.json`: records in, batches encoded, fates
//! counted.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rayon::prelude::*;

use crate::data::npy::Dtype;
use crate::data::prepare::quarantine::{Entry, Quarantine, hex};
use crate::data::prepare::source::{Content, Reason, Record, records};
use crate::data::prepare::split::Rule;
use crate::data::prepare::writer::ShardWriter;
use crate::data::prepare::{Encode, PrepareOptions, Progress, Summary};
use crate::data::shards::manifest::{
    LineCounts, MANIFEST_FILE, Manifest, Source, Split, TokenizerInfo, Totals, VERSION,
};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files;

/// A batch is encoded once it holds this much text...
const BATCH_BYTES: usize = 8 << 20;
/// ...or this many documents.
pub(super) const BATCH_DOCUMENTS: usize = 8192;
/// Documents encoded by one call: small enough to balance the threads, large enough to hide the cost of a call.
const CALL_DOCUMENTS: usize = 16;
/// Largest share of bad records that is put up with, and from how many on it is judged before the end.
const MAX_BAD: f64 = 0.001;
const JUDGED_FROM: u64 = 100_000;
/// The state of preparing.
pub(super) struct Job<'a> {
    opts: &'a PrepareOptions,
    tok: &'a dyn Encode,
    progress: &'a dyn Fn(Progress),
    rule: Rule,
    batch: Vec<String>,
    batch_bytes: usize,
    train: ShardWriter,
    val: ShardWriter,
    quarantine: Quarantine,
    lines: LineCounts,
    sources: Vec<Source>,
    /// Index in `sources` of the file being read.
    current: usize,
    bytes_read: u64,
    bytes_total: u64,
}

impl<'a> Job<'a> {
    pub(super) fn new(
        opts: &'a PrepareOptions,
        tok: &'a dyn Encode,
        progress: &'a dyn Fn(Progress),
        rule: Rule,
        paths: &[PathBuf],
    ) -> Result<Self> {
        let source = |path: &PathBuf| -> Result<Source> {
            let meta = fs::metadata(path).map_err(|e| files::io_failure("read", path, &e))?;
            Ok(Source { path: path.display().to_string(), bytes: meta.len(), lines: 0, used: 0 })
        };
        let sources: Vec<Source> = paths.iter().map(source).collect::<Result<_>>()?;
        let dtype = Dtype::for_vocab(tok.vocab_size());
        Ok(Self {
            opts,
            tok,
            progress,
            rule,
            batch: Vec::new(),
            batch_bytes: 0,
            train: ShardWriter::new(&opts.out, Split::Train, dtype, opts.shard_tokens),
            val: ShardWriter::new(&opts.out, Split::Val, dtype, opts.shard_tokens),
            quarantine: Quarantine::new(&opts.out),
            lines: LineCounts::default(),
            bytes_total: sources.iter().map(|source| source.bytes).sum(),
            sources,
            current: 0,
            bytes_read: 0,
        })
    }

    /// Takes in the next file.
    pub(super) fn file(&mut self, path: &Path) -> Result<()> {
        for record in records(path, &self.opts.text_field)? {
            self.record(path, record?)?;
        }
        self.current += 1;
        Ok(())
    }

    fn record(&mut self, path: &Path, record: Record) -> Result<()> {
        let source = &mut self.sources[self.current];
        self.lines.read += 1;
        source.lines += 1;
        self.bytes_read += record.length;
        match record.content {
            Content::Empty => self.lines.empty += 1,
            Content::Text(text) => {
                self.lines.used += 1;
                source.used += 1;
                self.batch_bytes += text.len();
                self.batch.push(text);
                if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_DOCUMENTS {
                    self.encode_batch()?;
                }
            }
            Content::Bad { reason, detail, bytes } => {
                let Record { line, offset, length, .. } = record;
                let (detail, hex) = (&detail, hex(&bytes));
                self.quarantine.add(&Entry { file: path, line, offset, length, reason: reason.name(), detail, hex })?;
                *self.lines.quarantined.entry(reason.name().into()).or_default() += 1;
                if reason == Reason::CutOff && !self.opts.allow_bad {
                    let message = format!("{}:{line}: the file ends within a line ({detail})", path.display());
                    return Err(self.stop(message));
                }
                if self.lines.read >= JUDGED_FROM {
                    self.judge_bad()?;
                }
            }
        }
        Ok(())
    }

    fn encode_batch(&mut self) -> Result<()> {
        let texts = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let mut pieces = Vec::with_capacity(texts.len());
        for text in &texts {
            let (train, val) = self.rule.divide(text);
            let parts = [(Split::Train, train), (Split::Val, val)];
            pieces.extend(parts.into_iter().filter(|(_, text)| !text.is_empty()));
        }
        let parts: Vec<&str> = pieces.iter().map(|(_, text)| *text).collect();
        let encoded: Vec<Vec<Vec<u32>>> = parts
            .par_chunks(CALL_DOCUMENTS)
            .map(|texts| self.tok.encode_ordinary_batch(texts))
            .collect::<Result<_>>()?;
        let encoded: Vec<Vec<u32>> = encoded.into_iter().flatten().collect();
        if encoded.len() != pieces.len() {
            let message = format!("{} documents gave {} encodings", pieces.len(), encoded.len());
            return Err(fail(Exit::Internal, message).into());
        }
        let (separator, vocab_size) = (self.tok.separator(), self.tok.vocab_size());
        for ((split, text), ids) in pieces.into_iter().zip(encoded) {
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                let message = format!("the tokenizer gave the id {id}, but has only {vocab_size}");
                return Err(fail(Exit::Internal, message).into());
            }
            let writer = if split == Split::Train { &mut self.train } else { &mut self.val };
            writer.document(separator, &ids, text.len() as u64)?;
        }
        self.report();
        Ok(())
    }

    fn report(&self) {
        let (train, val) = (self.train.totals(), self.val.totals());
        (self.progress)(Progress {
            bytes_read: self.bytes_read.min(self.bytes_total),
            bytes_total: self.bytes_total,
            documents: train.documents + val.documents,
            tokens: train.tokens + val.tokens,
        });
    }

    /// Stops if too many of the records so far were bad.
    fn judge_bad(&mut self) -> Result<()> {
        let (bad, read) = (self.lines.bad(), self.lines.read);
        if self.opts.allow_bad || bad as f64 <= MAX_BAD * read as f64 {
            return Ok(());
        }
        Err(self.stop(format!("{bad} of {read} lines cannot be used, more than {} %", MAX_BAD * 100.0)))
    }

    /// The error for bad input, once the quarantine file that its hint points at is safe.
    fn stop(&mut self, message: String) -> anyhow::Error {
        if let Err(error) = self.quarantine.commit() {
            return error;
        }
        let path = self.quarantine.path().display();
        fail(Exit::Data, message)
            .hint(format!("the lines are in {path}: repair the input, or accept the loss with --allow-bad"))
            .into()
    }

    /// Writes what is left, and `shards.json` last.
    pub(super) fn finish(mut self) -> Result<Summary> {
        self.encode_batch()?;
        self.quarantine.commit()?;
        self.judge_bad()?;
        let notes = self.notes();
        let (mut shards, train) = self.train.finish()?;
        let (val_shards, val) = self.val.finish()?;
        shards.extend(val_shards);
        if train == Totals::default() {
            return Err(fail(Exit::Data, format!("no text to train on in {}", self.opts.inputs.join(" ")))
                .hint("check the files and --text-field")
                .into());
        }
        let manifest = Manifest {
            version: VERSION,
            tokenizer: TokenizerInfo {
                blake3: self.tok.fingerprint(),
                vocab_size: self.tok.vocab_size(),
                separator: self.tok.separator(),
            },
            text_field: self.opts.text_field.clone(),
            val_fraction: self.opts.val_fraction,
            val_rule: self.rule.name().into(),
            train,
            val,
            lines: self.lines,
            sources: self.sources,
            shards,
        };
        files::write_atomic(&self.opts.out.join(MANIFEST_FILE), &manifest.to_bytes()?)?;
        Ok(Summary { manifest, notes })
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if matches!(self.rule, Rule::Tail { .. }) {
            notes.push(format!(
                "the corpus has too few documents to choose whole ones for validation: the last {} of {} bytes of text \
                 are the validation split",
                self.val.totals().bytes,
                self.val.totals().bytes + self.train.totals().bytes,
            ));
        }
        if self.lines.bad() > 0 {
            let (bad, path) = (self.lines.bad(), self.quarantine.path().display());
            notes.push(format!("{bad} of {} lines could not be used; they are in {path}", self.lines.read));
        }
        notes
    }
}
