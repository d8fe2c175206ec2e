//! `shards.json`: what `data prepare` made, and from what.
//!
//! Untrusted like every input: names are plain file names, sums are checked, and a manifest whose parts do not add up
//! is refused as a whole. Unknown keys are ignored, an unknown version is not.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::corpus::npy::header::HEADER_LEN;
use crate::corpus::npy::{TokenDtype, TokenFile};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files;

/// Name of the manifest in a prepared directory. It is written last: without it the directory is not finished.
pub const MANIFEST_FILE: &str = "shards.json";

/// The version written and read. Version 1 had neither the recipe nor the hashes of blocks.
pub const VERSION: u32 = 2;

/// A shard file is hashed in pieces of this many bytes too, so that a part of it can be checked when it is first read.
pub const BLOCK_BYTES: usize = 1 << 20;

/// Hex digits kept of a block's BLAKE3: 128 bits.
pub const BLOCK_DIGITS: usize = 32;

/// Room for the block hashes of four trillion 16-bit tokens.
const MAX_BYTES: u64 = 256 << 20;

/// Which part of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Training tokens.
    Train,
    /// Validation tokens.
    Val,
}

impl Split {
    /// `train` or `val`, as in shard names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
        }
    }
}

/// The whole of `shards.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardManifest {
    /// Format version, [`VERSION`].
    pub version: u32,
    /// What turned text into ids.
    pub tokenizer: TokenizerInfo,
    pub recipe: Recipe,
    /// How the validation split was chosen in the end.
    pub val_rule: String,
    /// Sums over the training shards.
    pub train: Totals,
    /// Sums over the validation shards.
    pub val: Totals,
    /// What became of every line (or whole text file) that was read.
    pub lines: LineCounts,
    /// The input files, in the order read.
    pub sources: Vec<SourceCounts>,
    /// Files that lay among them and were not read.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    /// Every shard, in name order.
    pub shards: Vec<ShardEntry>,
}

/// Every option that decides what the shards hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// JSON field or parquet column that held the text.
    pub text_field: String,
    /// What divides a `.txt` file into documents.
    pub text_separator: Option<String>,
    /// Where a document's separator stands.
    pub eot: Eot,
    /// Documents of fewer characters were left out.
    pub min_chars: u64,
    /// Whether repetitions of a document were left out.
    pub dedup: bool,
    /// The validation split asked for.
    pub val: ValSplit,
    /// Tokens in every shard of a split but its last.
    pub shard_tokens: u64,
    /// Whether the run was to continue however many records were bad.
    pub allow_bad: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Eot {
    /// First token of its document.
    #[default]
    Before,
    /// Last token of its document.
    After,
}

/// The validation split to be made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValSplit {
    None,
    /// This share of the documents, above 0 and below 1, by their hash.
    Fraction(f64),
    /// Documents of about so many tokens, by their hash.
    Tokens(u64),
    /// The first tokens of the corpus, as many as a shard holds, cut inside a document if need be.
    FirstShard,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerInfo {
    pub blake3: String,
    pub vocab_size: usize,
    /// The id that separates documents.
    pub separator: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Tokens of text and separators.
    pub tokens: u64,
    pub documents: u64,
    /// UTF-8 bytes of the documents' text.
    pub bytes: u64,
}

/// What became of the records read; all other counts add up to `read`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineCounts {
    /// Lines, rows, elements of arrays, text files or their parts.
    pub read: u64,
    pub used: u64,
    pub empty: u64,
    /// Repeated the text of an earlier one.
    pub duplicate: u64,
    /// Were shorter than asked for.
    pub filtered: u64,
    /// Could not be used, by reason; they are listed in the quarantine file.
    pub quarantined: BTreeMap<String, u64>,
    /// The first quarantined record: file, line and fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_bad: Option<String>,
}

impl LineCounts {
    /// Records that could not be used, for whatever reason.
    pub fn bad(&self) -> u64 {
        self.quarantined.values().fold(0, |sum: u64, &n| sum.saturating_add(n))
    }

    /// Whether every quarantined record was one without text in the requested field.
    pub fn only_fields_missing(&self) -> bool {
        self.quarantined.keys().all(|reason| reason == "field") && !self.quarantined.is_empty()
    }
}

/// `9 read = 5 used + 1 empty + 1 duplicate + 0 filtered + 2 quarantined (json 1, utf8 1)`
impl fmt::Display for LineCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { read, used, empty, duplicate, filtered, quarantined, .. } = self;
        write!(f, "{read} read = {used} used + {empty} empty + {duplicate} duplicate + {filtered} filtered")?;
        write!(f, " + {} quarantined", self.bad())?;
        let reasons: Vec<_> = quarantined.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        if reasons.is_empty() { Ok(()) } else { write!(f, " ({})", reasons.join(", ")) }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCounts {
    /// Its path as given or found.
    pub path: String,
    pub bytes: u64,
    pub lines: u64,
    pub used: u64,
    /// Tokens of those, separators included.
    pub tokens: u64,
    /// Why its rest, or all of it, could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
}

/// Files that were found among the input and not read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// What they have in common, which is why.
    pub what: String,
    pub files: u64,
    pub names: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// File name, `train-00000.npy`; its document starts are in `train-00000.docs`.
    pub name: String,
    /// The split it belongs to.
    pub split: Split,
    pub tokens: u64,
    /// Documents that START in it; one that starts in the shard before is not counted.
    pub documents: u64,
    /// UTF-8 bytes of the text of the documents that start in it, whole, also where they end in a later shard.
    pub bytes: u64,
    pub dtype: TokenDtype,
    /// Its largest id; 0 if it has no token.
    pub max_id: u32,
    pub blake3: String,
    /// The first [`BLOCK_DIGITS`] hex digits of the BLAKE3 of each [`BLOCK_BYTES`] of the file, header included.
    pub blocks: String,
    /// BLAKE3 of the file of document starts.
    pub docs_blake3: String,
}

impl ShardEntry {
    /// Name of the file of document starts: little-endian u64 token offsets within the shard.
    pub fn docs_name(&self) -> String {
        format!("{}.docs", self.name.trim_end_matches(".npy"))
    }

    /// Size of the file; `None` if no file can be as large.
    pub fn file_bytes(&self) -> Option<u64> {
        self.tokens.checked_mul(self.dtype.width() as u64)?.checked_add(HEADER_LEN as u64)
    }

    /// Why this cannot be the entry of a shard made by `recipe` with `vocab_size` ids.
    fn check(&self, recipe: &Recipe, vocab_size: usize) -> Result<(), String> {
        let name = &self.name;
        let digits = self.file_bytes().map(|n| n.div_ceil(BLOCK_BYTES as u64) * BLOCK_DIGITS as u64);
        if !is_hex(&self.blake3, 64) || !is_hex(&self.docs_blake3, 64) {
            return Err(format!("gives the shard {name} a malformed hash"));
        }
        if digits.is_none_or(|n| !is_hex(&self.blocks, n)) {
            return Err(format!("gives the shard {name} malformed hashes of its blocks"));
        }
        let sizes_fit = self.documents <= self.tokens && self.tokens <= recipe.shard_tokens;
        let ids_fit = self.dtype == TokenDtype::for_vocab(vocab_size) && (self.max_id as usize) < vocab_size;
        if sizes_fit && ids_fit { Ok(()) } else { Err(format!("describes an impossible shard {name}")) }
    }

    /// Compares the header of the open shard with this entry.
    ///
    /// # Errors
    /// [`Exit::Data`] if it has another number or width of tokens.
    pub fn matches(&self, file: &TokenFile) -> Result<()> {
        if (file.len() as u64, file.dtype()) == (self.tokens, self.dtype) {
            return Ok(());
        }
        let message = format!(
            "{}: holds {} {} tokens, but shards.json says {} {}",
            file.path().display(),
            file.len(),
            file.dtype().descr(),
            self.tokens,
            self.dtype.descr()
        );
        Err(fail(Exit::Data, message).hint("restore the shard from a good copy, or run `data prepare` again").into())
    }
}

impl ShardManifest {
    /// The manifest of the directory `dir`; `None` if it has none.
    ///
    /// # Errors
    /// [`Exit::Io`] if it cannot be read, [`Exit::Data`] if it is malformed or contradicts itself.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(MANIFEST_FILE);
        if path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let bytes = files::read_bounded(&path, MAX_BYTES, true)?;
        match Self::parse(&bytes) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(what) => Err(fail(Exit::Data, format!("{}: {what}", path.display()))
                .hint(
                    "restore it from a good copy, or run `data prepare` again; \
                       shards are also read without any shards.json",
                )
                .into()),
        }
    }

    /// Parses and checks the content of a `shards.json`.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        // First, so that a newer format is called that and not "malformed".
        let Version { version } = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if version != VERSION {
            return Err(format!("has version {version}; this program reads version {VERSION}: prepare again"));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The bytes of `shards.json`.
    ///
    /// # Errors
    /// [`Exit::Internal`] if the parts do not add up or cannot be written as JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.check().map_err(|what| fail(Exit::Internal, format!("the new shards.json {what}")))?;
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn check(&self) -> Result<(), String> {
        let mut last = "";
        for entry in &self.shards {
            let name = &entry.name;
            if !is_plain_name(name) || !name.ends_with(".npy") {
                return Err(format!("lists a shard with the unsafe name {name:?}"));
            }
            if last >= name.as_str() {
                return Err(format!("lists the shard {name} twice or out of order"));
            }
            last = name;
            entry.check(&self.recipe, self.tokenizer.vocab_size)?;
        }
        for (split, total) in [(Split::Train, self.train), (Split::Val, self.val)] {
            if self.sum(split) != Some(total) {
                return Err(format!("has {} shards that do not add up to its totals", split.name()));
            }
        }
        let counts = &self.lines;
        let outcomes = [counts.used, counts.empty, counts.duplicate, counts.filtered];
        if add_up(counts.quarantined.values().copied().chain(outcomes)) != Some(counts.read) {
            return Err("has line counts that do not add up".into());
        }
        let tokens = self.train.tokens.checked_add(self.val.tokens);
        if add_up(self.sources.iter().map(|s| s.lines)) != Some(counts.read)
            || add_up(self.sources.iter().map(|s| s.used)) != Some(counts.used)
            || add_up(self.sources.iter().map(|s| s.tokens)) != tokens
        {
            return Err("has sources that do not add up to its totals".into());
        }
        Ok(())
    }

    fn sum(&self, split: Split) -> Option<Totals> {
        self.shards.iter().filter(|entry| entry.split == split).try_fold(Totals::default(), |sum, entry| {
            Some(Totals {
                tokens: sum.tokens.checked_add(entry.tokens)?,
                documents: sum.documents.checked_add(entry.documents)?,
                bytes: sum.bytes.checked_add(entry.bytes)?,
            })
        })
    }
}

/// Whether `name` can only be a file beside the manifest: no separators, no leading dot, nothing but `[A-Za-z0-9._-]`.
fn is_plain_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn add_up(mut counts: impl Iterator<Item = u64>) -> Option<u64> {
    counts.try_fold(0, u64::checked_add)
}

fn is_hex(hex: &str, digits: u64) -> bool {
    hex.len() as u64 == digits && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
