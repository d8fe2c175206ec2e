//! What to prepare, how, and how far it has come: the types between `data prepare` and its caller.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::corpus::expand::{ExpandedFiles, expand};
use crate::corpus::left_out::{LeftOut, shown};
use crate::corpus::shards::manifest::{Eot, Recipe, ShardManifest, ValSplit};
use crate::corpus::source::ReadOptions;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files;

/// Counts within a shard are held in memory-sized integers.
const MAX_SHARD_TOKENS: usize = 1_000_000_000;

/// A tokenizer, as far as preparing needs it.
pub trait Encode: Sync {
    /// The ids of each text, in which strings that look like special tokens are ordinary text. Called from many
    /// threads.
    fn encode_ordinary_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>>;
    /// The id that separates documents.
    fn separator(&self) -> u32;
    /// Number of ids; every id is below it.
    fn vocab_size(&self) -> usize;
    /// Identifies the tokenizer: equal fingerprints, equal encodings.
    fn fingerprint(&self) -> String;
    /// Names and contents of the files that make it anew, for the output directory.
    fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>>;
}

/// An input file, which need not be on this machine yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// What it is called, to the user and in `shards.json`: its path, or where it comes from.
    pub name: String,
    pub bytes: u64,
    /// Changes when its content does: the time it was last written, or a commit.
    pub version: String,
}

/// The corpus: files in order, and how to make them local.
#[derive(Clone)]
pub struct Inputs {
    pub list: Arc<[InputFile]>,
    /// Files beside them that are not read.
    pub left_out: Vec<LeftOut>,
    /// Makes the file of this index a local one and says where. It may take long; it is called from a thread of its
    /// own, one file ahead, again after an interruption, and more than once.
    pub fetch: Arc<dyn Fn(usize) -> Result<PathBuf> + Send + Sync>,
}

impl Inputs {
    /// The local files that `patterns` (files, globs, directories) stand for.
    ///
    /// # Errors
    /// Those of [`expand`], and [`Exit::Io`] for a file that cannot be looked at.
    pub fn local(patterns: &[String]) -> Result<Self> {
        let ExpandedFiles { files: paths, left_out } = expand(patterns)?;
        let list = paths.iter().map(|path| InputFile::local(path)).collect::<Result<_>>()?;
        Ok(Self { list, left_out, fetch: Arc::new(move |i| Ok(paths[i].clone())) })
    }
}

impl InputFile {
    fn local(path: &Path) -> Result<Self> {
        let meta = fs::metadata(path).map_err(|e| files::io_failure("read", path, &e))?;
        // A clock before 1970 is no reason to fail.
        let age = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let version = format!("written {}.{:09}", age.as_secs(), age.subsec_nanos());
        Ok(Self { name: shown(path), bytes: meta.len(), version })
    }
}

#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Output directory; created if missing.
    pub out: PathBuf,
    /// Where the text is in the input files.
    pub read: ReadOptions,
    pub val: ValSplit,
    /// Tokens in each shard of a split but its last.
    pub shard_tokens: usize,
    pub eot: Eot,
    /// Documents of fewer characters are left out.
    pub min_chars: u64,
    /// Leave out documents whose text, byte for byte, came before.
    pub dedup: bool,
    /// Continue however many records are bad.
    pub allow_bad: bool,
    pub grain: Grain,
}

/// How much is done at a time. It changes nothing in the output.
#[derive(Clone, Copy, Debug)]
pub struct Grain {
    /// A batch is full once its records have this many bytes...
    pub batch_bytes: u64,
    pub batch_records: usize,
    /// Shortest time between two records of progress. It grows so that recording takes at most a twentieth of the run.
    /// Zero: after each batch.
    pub journal: Duration,
    /// Hashes of texts held in memory by de-duplication; others are on disk.
    pub hashes: usize,
}

impl Default for Grain {
    fn default() -> Self {
        let journal = Duration::from_millis(500);
        Self { batch_bytes: 8 << 20, batch_records: 8192, journal, hashes: 3 << 20 }
    }
}

impl PrepareOptions {
    pub fn new(out: PathBuf) -> Self {
        Self {
            out,
            read: ReadOptions::default(),
            val: ValSplit::Fraction(0.005),
            shard_tokens: 100_000_000,
            eot: Eot::Before,
            min_chars: 0,
            dedup: false,
            allow_bad: false,
            grain: Grain::default(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let (message, hint) = match self.val {
            // NaN is not between them either.
            ValSplit::Fraction(x) if !(x > 0.0 && x < 1.0) => {
                (format!("the validation fraction {x} is not between 0 and 1"), "0.005 is the default")
            }
            ValSplit::Tokens(0) => ("a validation split of 0 tokens".into(), "give a number, or ask for none"),
            _ if !(1..=MAX_SHARD_TOKENS).contains(&self.shard_tokens) => (
                format!("--shard-tokens {} is not between 1 and {MAX_SHARD_TOKENS}", self.shard_tokens),
                "100000000 is the default",
            ),
            _ => return Ok(()),
        };
        Err(fail(Exit::Config, message).hint(hint).into())
    }

    pub(super) fn recipe(&self) -> Recipe {
        Recipe {
            text_field: self.read.text_field.clone(),
            text_separator: self.read.text_separator.clone(),
            eot: self.eot,
            min_chars: self.min_chars,
            dedup: self.dedup,
            val: self.val,
            shard_tokens: self.shard_tokens as u64,
            allow_bad: self.allow_bad,
        }
    }
}

/// How far preparing has come; reported after every batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrepareProgress {
    /// Bytes of the input files read, as they lie on disk (compressed).
    pub bytes_read: u64,
    /// Size of all input files.
    pub bytes_total: u64,
    /// Bytes of text of the documents used.
    pub text_bytes: u64,
    pub documents: u64,
    pub tokens: u64,
}

#[derive(Clone, Debug)]
pub struct Summary {
    /// As written to `shards.json`.
    pub manifest: ShardManifest,
    /// Notes for the user, for stderr.
    pub notes: Vec<String>,
}
