//! `data prepare`: text files into token shards.
//!
//! sources -> records -> train or validation -> encode (in parallel, a batch at a time) -> shards, and `shards.json`
//! last.
//!
//! Memory is bounded by a batch and the shard being built in each split. Everything but encoding is sequential and the
//! batches do not depend on the number of threads, so neither does a byte of the output. Every record read ends as
//! used, empty or quarantined; the three are counted and add up.

pub mod expand;
mod job;
mod json_lines;
mod quarantine;
pub mod source;
pub mod split;
#[cfg(test)]
mod tests;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::data::shards::manifest::{MANIFEST_FILE, Manifest};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files;

use job::Job;
use split::Rule;

pub use crate::data::shards::PREPARE_FILE;
pub use expand::expand;
pub use quarantine::QUARANTINE_FILE;
pub use source::{Document, documents};

/// A shard is built in memory.
const MAX_SHARD_TOKENS: usize = 1_000_000_000;

/// A tokenizer, as far as preparing needs it.
pub trait Encode: Sync {
    /// The ids of each text, in which strings that look like special tokens are ordinary text. Called from many
    /// threads.
    fn encode_ordinary_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>>;
    /// The id put before every document.
    fn separator(&self) -> u32;
    /// Number of ids; every id is below it.
    fn vocab_size(&self) -> usize;
    /// Identifies the tokenizer: equal fingerprints, equal encodings.
    fn fingerprint(&self) -> String;
}

/// What to prepare, and how.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Files, globs and directories of `.txt` and `.jsonl`.
    pub inputs: Vec<String>,
    /// Output directory; created if missing.
    pub out: PathBuf,
    /// JSON field that holds the text.
    pub text_field: String,
    /// Share of the corpus for validation, 0 (none) to below 1.
    pub val_fraction: f64,
    /// Tokens per shard.
    pub shard_tokens: usize,
    /// Go on however many records are bad.
    pub allow_bad: bool,
}

impl PrepareOptions {
    /// The defaults.
    pub fn new(inputs: Vec<String>, out: PathBuf) -> Self {
        Self {
            inputs,
            out,
            text_field: "text".into(),
            val_fraction: 0.005,
            shard_tokens: 100_000_000,
            allow_bad: false,
        }
    }

    fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.val_fraction) {
            let message = format!("--val-fraction {} is not at least 0 and below 1", self.val_fraction);
            return Err(fail(Exit::Config, message).hint("0.005 is the default, 0 makes no validation split").into());
        }
        if !(1..=MAX_SHARD_TOKENS).contains(&self.shard_tokens) {
            let message = format!("--shard-tokens {} is not between 1 and {MAX_SHARD_TOKENS}", self.shard_tokens);
            return Err(fail(Exit::Config, message).hint("100000000 is the default").into());
        }
        Ok(())
    }
}

/// How far preparing has come; reported after every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the sources read.
    pub bytes_read: u64,
    /// Bytes of all sources.
    pub bytes_total: u64,
    /// Documents written or in a shard being built.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Summary {
    /// As written to `shards.json`.
    pub manifest: Manifest,
    /// What the user should be told (on stderr).
    pub notes: Vec<String>,
}

/// Prepares `opts.inputs` into `opts.out`.
///
/// # Errors
/// [`Exit::Config`] for impossible options or an output directory that is taken; [`Exit::Data`] if more than 0.1 % of
/// the records are bad or a file ends within one (unless `allow_bad`), or if there is no text; [`Exit::Io`] if reading
/// or writing fails; [`Exit::Busy`] if another process prepares into the same directory.
pub fn prepare(opts: &PrepareOptions, tok: &dyn Encode, progress: &dyn Fn(Progress)) -> Result<Summary> {
    opts.check()?;
    let (separator, vocab_size) = (tok.separator(), tok.vocab_size());
    if separator as usize >= vocab_size {
        let message = format!("the tokenizer's separator {separator} is not among its {vocab_size} ids");
        return Err(fail(Exit::Internal, message).into());
    }
    let paths = expand(&opts.inputs)?;
    // Looked at before anything is touched, and again once no other process can interfere.
    leftovers(&opts.out)?;
    files::create_dirs(&opts.out)?;
    let _lock = files::lock(&opts.out.join("prepare.lock"))?;
    for path in leftovers(&opts.out)? {
        fs::remove_file(&path).map_err(|e| files::io_failure("remove", &path, &e))?;
    }
    let rule = Rule::choose(&paths, &opts.text_field, opts.val_fraction)?;
    let note = serde_json::json!({ "inputs": opts.inputs, "text_field": opts.text_field, "tokenizer": tok.fingerprint(),
        "val_fraction": opts.val_fraction, "shard_tokens": opts.shard_tokens });
    files::write_atomic(&opts.out.join(PREPARE_FILE), format!("{note:#}\n").as_bytes())?;

    let mut job = Job::new(opts, tok, progress, rule, &paths)?;
    for path in &paths {
        job.file(path)?;
    }
    job.finish()
}

/// Whether `data prepare` gives files such a name; nothing else is ever removed.
fn ours(name: &str) -> bool {
    // A temporary name goes on behind the final one.
    let (name, temporary) = name.strip_prefix(files::TEMP_PREFIX).map_or((name, false), |rest| (rest, true));
    let is = |kind: &str, of: &str| kind == of || (temporary && kind.starts_with(&format!("{of}-")));
    let numbered = name.strip_prefix("train-").or_else(|| name.strip_prefix("val-")).and_then(|n| n.split_once('.'));
    let shard = numbered.is_some_and(|(number, kind)| {
        let counted = number.len() >= 5 && number.bytes().all(|b| b.is_ascii_digit());
        counted && (is(kind, "npy") || is(kind, "docs"))
    });
    shard || is(name, QUARANTINE_FILE)
}

/// What an interrupted run of ours has left in `out`. Refuses a directory that holds finished or foreign shards.
fn leftovers(out: &Path) -> Result<Vec<PathBuf>> {
    let taken = |what: &str| fail(Exit::Config, format!("{}: {what}", out.display())).hint("choose another --out");
    if out.join(MANIFEST_FILE).exists() {
        return Err(taken("already holds a finished output").into());
    }
    let mut found = Vec::new();
    if out.exists() {
        let io_failure = |e| files::io_failure("list the directory", out, &e);
        for entry in fs::read_dir(out).map_err(io_failure)? {
            let path = entry.map_err(io_failure)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if ours(&name) {
                found.push(path);
            }
        }
    }
    if !found.is_empty() && !out.join(PREPARE_FILE).exists() {
        return Err(taken("already holds shards that `data prepare` did not make").into());
    }
    Ok(found)
}
