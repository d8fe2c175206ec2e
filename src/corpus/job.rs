//! The run of `data prepare` between the first record and `shards.json`: batches are read, outcomes decided, text encoded
//! and written, progress recorded.
//!
//! Parsing and encoding are spread over threads; outcomes and writing are sequential, in the order of the corpus, and so
//! do not depend on how it is cut into batches.

use std::time::{Duration, Instant};

use anyhow::Result;
use rayon::prelude::*;

use crate::corpus::batches::{Batches, RecordBatch};
use crate::corpus::dedup::Dedup;
use crate::corpus::journal::State;
use crate::corpus::npy::TokenDtype;
use crate::corpus::options::{Encode, Inputs, PrepareOptions, PrepareProgress, Summary};
use crate::corpus::outcomes::{AcceptedDocument, Outcomes};
use crate::corpus::output_dir;
use crate::corpus::quarantine::Quarantine;
use crate::corpus::shards::manifest::{
    Eot, MANIFEST_FILE, ShardManifest, SourceCounts, Split, TokenizerInfo, Totals, VERSION, ValSplit,
};
use crate::corpus::split::SplitRule;
use crate::corpus::writer::ShardWriter;
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files::{self, Lock};

/// Documents encoded by one call: small enough to balance the threads, large enough to hide the cost of a call.
const CALL_DOCUMENTS: usize = 16;

/// Files named one by one that could not be read to their end.
const MAX_UNREAD: usize = 5;

pub(super) struct Job<'a> {
    opts: &'a PrepareOptions,
    inputs: &'a Inputs,
    tok: &'a dyn Encode,
    progress: &'a dyn Fn(PrepareProgress),
    lock: &'a Lock,
    /// Up to date except for the lengths of the files.
    state: State,
    saved: State,
    outcomes: Outcomes,
    train: ShardWriter,
    val: ShardWriter,
    pace: Pace,
}

impl<'a> Job<'a> {
    /// Continues from `state`, in a directory whose lock is held.
    pub(super) fn new(
        opts: &'a PrepareOptions,
        inputs: &'a Inputs,
        tok: &'a dyn Encode,
        (progress, lock): (&'a dyn Fn(PrepareProgress), &'a Lock),
        mut state: State,
    ) -> Result<Self> {
        state.stopped = false;
        let saved = state.clone();
        let dtype = TokenDtype::for_vocab(tok.vocab_size());
        let written = std::mem::take(&mut state.train);
        let mut train = ShardWriter::open(&opts.out, Split::Train, dtype, opts.shard_tokens, written)?;
        let written = std::mem::take(&mut state.val);
        let mut val = ShardWriter::open(&opts.out, Split::Val, dtype, opts.shard_tokens, written)?;
        // The interruption may have come after the journal listed shards and before they were renamed.
        train.publish()?;
        val.publish()?;
        // No one reads finished shards again before training: what changed since the interruption must be found now.
        train.check_finished()?;
        val.check_finished()?;
        // At the end of the corpus the log of hashes may have been removed already.
        let at_end = state.place.file == inputs.list.len();
        let dedup =
            if opts.dedup && !at_end { Some(Dedup::open(&opts.out, opts.grain.hashes, state.hashes)?) } else { None };
        let outcomes = Outcomes::new(Quarantine::open(&opts.out, state.quarantine)?, dedup);
        let pace = Pace { least: opts.grain.journal, last: Instant::now(), cost: Duration::ZERO };
        Ok(Self { opts, inputs, tok, progress, lock, state, saved, outcomes, train, val, pace })
    }

    /// Reads the corpus to its end.
    pub(super) fn run(&mut self) -> Result<()> {
        if self.state.place.file == self.inputs.list.len() {
            return Ok(());
        }
        let mut batches = Batches::start(self.inputs, &self.opts.read, self.opts.grain, self.state.place)?;
        while self.state.place.file < self.inputs.list.len() {
            let batch = batches.next()?;
            self.batch(batch)?;
            self.report();
            if self.pace.is_due() {
                self.save()?;
            }
        }
        Ok(())
    }

    fn batch(&mut self, batch: RecordBatch) -> Result<()> {
        let documents = self.outcomes.decide(self.opts, &mut self.state, batch.records);
        let documents = documents.map_err(|e| self.record_stop(e))?;
        self.encode(&documents)?;
        self.state.place = batch.end;
        self.state.bytes_read = batch.bytes_read;
        Ok(())
    }

    fn encode(&mut self, documents: &[AcceptedDocument]) -> Result<()> {
        let mut pieces = Vec::with_capacity(documents.len());
        for document in documents {
            let (train, val) = document.text.split_at(document.cut);
            let parts = [(Split::Train, train), (Split::Val, val)];
            pieces.extend(parts.into_iter().filter(|(_, text)| !text.is_empty()).map(|part| (document.file, part)));
        }
        let tok = self.tok;
        let encoded: Vec<Vec<Vec<u32>>> =
            pieces.par_chunks(CALL_DOCUMENTS).map(|pieces| encode(tok, pieces)).collect::<Result<_>>()?;
        for ((file, (split, text)), ids) in pieces.into_iter().zip(encoded.into_iter().flatten()) {
            self.write(file, split, text.len() as u64, &ids)?;
        }
        Ok(())
    }

    /// Writes a document of `text_bytes` bytes of the file of index `file`.
    fn write(&mut self, file: usize, split: Split, text_bytes: u64, ids: &[u32]) -> Result<()> {
        self.state.sources[file].tokens += 1 + ids.len() as u64;
        self.state.text_bytes += text_bytes;
        let separator = &[self.tok.separator()][..];
        let parts = match self.opts.eot {
            Eot::Before => [separator, ids],
            Eot::After => [ids, separator],
        };
        if self.state.rule != SplitRule::FirstShard {
            let writer = if split == Split::Train { &mut self.train } else { &mut self.val };
            writer.begin_document(text_bytes)?;
            return parts.into_iter().try_for_each(|ids| writer.tokens(ids));
        }
        // A document counts in the split where it begins.
        let first = if self.val.room_in_first() > 0 { &mut self.val } else { &mut self.train };
        first.begin_document(text_bytes)?;
        for ids in parts {
            let (val, train) = ids.split_at(ids.len().min(self.val.room_in_first() as usize));
            self.val.tokens(val)?;
            self.train.tokens(train)?;
        }
        Ok(())
    }

    fn report(&self) {
        let train = self.train.totals();
        let val = self.val.totals();
        (self.progress)(PrepareProgress {
            bytes_read: self.state.bytes_read,
            bytes_total: self.inputs.list.iter().map(|input| input.bytes).sum(),
            text_bytes: self.state.text_bytes,
            documents: self.state.lines.used,
            tokens: train.tokens + val.tokens,
        });
    }

    /// Records how far the run has come, after what it counts is durable.
    fn save(&mut self) -> Result<()> {
        let began = Instant::now();
        // Without its lock another process may write the same files: nothing is recorded any more.
        self.lock.check()?;
        self.train.sync()?;
        self.val.sync()?;
        self.outcomes.sync()?;
        self.state.train = self.train.written().clone();
        self.state.val = self.val.written().clone();
        self.state.hashes = self.outcomes.hashes();
        self.state.quarantine = self.outcomes.quarantine.len();
        self.state.save(&self.opts.out)?;
        self.saved = self.state.clone();
        // After the journal: a shard with its final name is always one that the journal lists.
        self.train.publish()?;
        self.val.publish()?;
        self.pace.took(began);
        Ok(())
    }

    /// Records in the journal that the run has stopped because of bad input, if that is what `error` says. Returns it.
    fn record_stop(&mut self, error: anyhow::Error) -> anyhow::Error {
        if error.downcast_ref::<Failure>().is_none_or(|failure| failure.exit != Exit::Data) {
            return error;
        }
        // The state saved last and not the present one, whose counts are not durable.
        self.saved.stopped = true;
        // The quarantine file is made durable as well: the user will read it.
        match self.outcomes.sync().and_then(|()| self.saved.save(&self.opts.out)) {
            Ok(()) => error,
            Err(error) => error,
        }
    }

    /// Completes the last shards, and writes `shards.json` last.
    pub(super) fn finish(mut self) -> Result<Summary> {
        let checked = self.outcomes.check_share(self.opts, &self.state.lines).and_then(|()| self.check_has_text());
        checked.map_err(|e| self.record_stop(e))?;
        self.train.finish_shard()?;
        self.val.finish_shard()?;
        self.save()?;
        let notes = self.notes();
        let out = &self.opts.out;
        let mut shards = self.state.train.shards;
        shards.extend(self.state.val.shards);
        let manifest = ShardManifest {
            version: VERSION,
            tokenizer: TokenizerInfo {
                blake3: self.tok.fingerprint(),
                vocab_size: self.tok.vocab_size(),
                separator: self.tok.separator(),
            },
            recipe: self.opts.recipe(),
            val_rule: self.state.rule.name().into(),
            train: self.state.train.totals,
            val: self.state.val.totals,
            lines: self.state.lines,
            sources: self.state.sources,
            left_out: self.inputs.left_out.clone(),
            shards,
        };
        // Before the manifest, which makes the directory a finished output.
        output_dir::refuse_foreign(out, &manifest.shards)?;
        for (name, bytes) in self.tok.files()? {
            files::write_atomic(&out.join(name), &bytes)?;
        }
        files::write_atomic(&out.join(MANIFEST_FILE), &manifest.to_bytes()?)?;
        // After the manifest, and the state last: if the process dies in between, the next run finishes once more.
        output_dir::remove_working(out)?;
        Ok(Summary { manifest, notes })
    }

    /// Fails if there is nothing to train on.
    fn check_has_text(&self) -> Result<()> {
        if self.train.totals().tokens > 0 {
            return Ok(());
        }
        let (message, hint) = if self.val.totals().tokens > 0 {
            ("all of the text went to validation", "choose smaller shards, or a smaller validation split")
        } else {
            ("there is no text in the input", "check the files, and name the field of the text with --text-field NAME")
        };
        let first =
            self.state.lines.first_bad.as_ref().map_or_else(String::new, |bad| format!("; the first bad one, {bad}"));
        Err(fail(Exit::Data, format!("{message} ({}){first}", self.state.lines)).hint(hint).into())
    }

    fn notes(&self) -> Vec<String> {
        let train = self.state.train.totals;
        let val = self.state.val.totals;
        let mut notes = vec![self.state.lines.to_string()];
        if matches!(self.state.rule, SplitRule::Tail { .. }) {
            notes.push(format!(
                "the corpus has too few documents to choose whole ones for validation: the last {} of {} bytes of text \
                 are the validation split",
                val.bytes,
                val.bytes + train.bytes,
            ));
        } else if self.opts.val != ValSplit::None && val == Totals::default() {
            notes.push("no document fell to the validation split: it is empty".into());
        }
        if let (ValSplit::Tokens(asked), SplitRule::Hash(_)) = (self.opts.val, &self.state.rule) {
            notes.push(format!("the validation split has {} tokens, about {asked} were asked for", val.tokens));
        }
        if self.state.lines.bad() > 0 {
            let bad = self.state.lines.bad();
            let path = self.outcomes.quarantine.path().display();
            notes.push(format!("{bad} of {} records could not be used; they are in {path}", self.state.lines.read));
        }
        let unread: Vec<String> = self.state.sources.iter().filter_map(unread).collect();
        notes.extend(unread.iter().take(MAX_UNREAD).cloned());
        if unread.len() > MAX_UNREAD {
            notes.push(format!(
                "{} more files could not be read to their end: see {MANIFEST_FILE}",
                unread.len() - MAX_UNREAD
            ));
        }
        notes
    }
}

/// The note about a file whose rest, or all of it, could not be read.
fn unread(source: &SourceCounts) -> Option<String> {
    let why = source.unread.as_ref()?;
    let SourceCounts { path, lines, used, .. } = source;
    Some(format!("{path}: could not be read to its end: {why} ({used} of {lines} records counted were used)"))
}

/// The ids of each piece, all below the size of the vocabulary.
fn encode(tok: &dyn Encode, pieces: &[(usize, (Split, &str))]) -> Result<Vec<Vec<u32>>> {
    let texts: Vec<&str> = pieces.iter().map(|(_, (_, text))| *text).collect();
    let encoded = tok.encode_ordinary_batch(&texts)?;
    if encoded.len() != texts.len() {
        let message = format!("{} documents gave {} encodings", texts.len(), encoded.len());
        return Err(fail(Exit::Internal, message).into());
    }
    let vocab_size = tok.vocab_size();
    let largest = encoded.iter().flatten().copied().fold(0, u32::max);
    // Here, because the writer narrows ids to 16 bits without looking.
    if largest as usize >= vocab_size {
        let message = format!("the tokenizer gave the id {largest}, but has only {vocab_size}");
        return Err(fail(Exit::Internal, message).into());
    }
    Ok(encoded)
}

/// Decides when progress is recorded again.
struct Pace {
    least: Duration,
    last: Instant,
    /// How long recording took the last time.
    cost: Duration,
}

impl Pace {
    fn is_due(&self) -> bool {
        // However slow the disk: recording takes a twentieth of the time at most.
        self.last.elapsed() >= self.least.max(if self.least.is_zero() { Duration::ZERO } else { self.cost * 20 })
    }

    fn took(&mut self, began: Instant) {
        self.last = Instant::now();
        self.cost = self.last - began;
    }
}
