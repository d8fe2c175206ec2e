//! `shards.json`: what `data prepare` made, and from what.
//!
//! Untrusted like every input: names are plain file names, sums are checked, and a manifest whose parts do not add up
//! is refused as a whole. Unknown keys are ignored, an unknown version is not.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::data::npy::{Dtype, TokenFile};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files;

/// Name of the manifest in a prepared directory. It is written last: without it the directory is not finished.
pub const MANIFEST_FILE: &str = "shards.json";

/// The only version so far.
pub const VERSION: u32 = 1;

/// Room for over a hundred thousand shards.
const MAX_BYTES: u64 = 64 << 20;

/// Which part of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What is trained on.
    Train,
    /// What the validation loss is measured on.
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
pub struct Manifest {
    /// Format version, [`VERSION`].
    pub version: u32,
    /// What turned text into ids.
    pub tokenizer: TokenizerInfo,
    /// JSON field that held the text.
    pub text_field: String,
    /// Share of the corpus asked for as validation split.
    pub val_fraction: f64,
    /// How the validation split was chosen.
    pub val_rule: String,
    /// Sums over the training shards.
    pub train: Totals,
    /// Sums over the validation shards.
    pub val: Totals,
    /// What became of every line (or whole text file) that was read.
    pub lines: LineCounts,
    /// The input files, in the order read.
    pub sources: Vec<Source>,
    /// Every shard, in name order.
    pub shards: Vec<ShardEntry>,
}

/// Identity of a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerInfo {
    /// The tokenizer's fingerprint.
    pub blake3: String,
    /// Number of ids.
    pub vocab_size: usize,
    /// The id before every document.
    pub separator: u32,
}

/// Sizes of a split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Tokens, separators included.
    pub tokens: u64,
    /// Documents.
    pub documents: u64,
    /// UTF-8 bytes of the documents' text.
    pub bytes: u64,
}

/// Fates of the lines read. `used + empty` and all quarantined add up to `read`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineCounts {
    /// Lines of `.jsonl` files, and one for each `.txt` file.
    pub read: u64,
    /// Became a document.
    pub used: u64,
    /// Held no text.
    pub empty: u64,
    /// Could not be used, by reason; they are kept in the quarantine file.
    pub quarantined: BTreeMap<String, u64>,
}

impl LineCounts {
    /// Lines that could not be used, for whatever reason.
    pub fn bad(&self) -> u64 {
        self.quarantined.values().fold(0, |sum: u64, &n| sum.saturating_add(n))
    }
}

/// `9 read = 6 used + 1 empty + 2 quarantined (json 1, utf8 1)`
impl fmt::Display for LineCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { read, used, empty, quarantined } = self;
        write!(f, "{read} read = {used} used + {empty} empty + {} quarantined", self.bad())?;
        let reasons: Vec<_> = quarantined.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        if reasons.is_empty() { Ok(()) } else { write!(f, " ({})", reasons.join(", ")) }
    }
}

/// An input file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its path as given or found.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Lines read from it.
    pub lines: u64,
    /// Those that became documents.
    pub used: u64,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// File name, `train-00000.npy`; its document starts are in `train-00000.docs`.
    pub name: String,
    /// The split it belongs to.
    pub split: Split,
    /// Tokens in it.
    pub tokens: u64,
    /// Documents that START in it; one that began in the shard before is not counted.
    pub documents: u64,
    /// UTF-8 bytes of the text of the documents that start in it, whole, also where they end in a later shard.
    pub bytes: u64,
    /// Width of a token.
    pub dtype: Dtype,
    /// BLAKE3 of the file.
    pub blake3: String,
    /// BLAKE3 of the file of document starts.
    pub docs_blake3: String,
}

impl ShardEntry {
    /// Name of the file of document starts: little-endian u64 token offsets within the shard.
    pub fn docs_name(&self) -> String {
        format!("{}.docs", self.name.trim_end_matches(".npy"))
    }

    /// Compares the header of the open shard with this entry.
    ///
    /// # Errors
    /// [`Exit::Data`] if it has another number or width of tokens.
    pub fn matches(&self, file: &TokenFile) -> Result<()> {
        if (file.len() as u64, file.dtype()) == (self.tokens, self.dtype) {
            return Ok(());
        }
        let (path, n, t) = (file.path().display(), file.len(), file.dtype().descr());
        let message =
            format!("{path}: holds {n} {t} tokens, but shards.json says {} {}", self.tokens, self.dtype.descr());
        Err(fail(Exit::Data, message).hint("restore the shard from a good copy, or run `data prepare` again").into())
    }
}

impl Manifest {
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
            return Err(format!("has version {version}; this program reads version {VERSION}"));
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
            if !is_hash(&entry.blake3) || !is_hash(&entry.docs_blake3) {
                return Err(format!("gives the shard {name} a malformed hash"));
            }
            if entry.documents > entry.tokens || entry.dtype != Dtype::for_vocab(self.tokenizer.vocab_size) {
                return Err(format!("describes an impossible shard {name}"));
            }
        }
        for (split, said) in [(Split::Train, self.train), (Split::Val, self.val)] {
            if self.sum(split) != Some(said) {
                return Err(format!("has {} shards that do not add up to its totals", split.name()));
            }
        }
        let counts = &self.lines;
        let fates = counts.quarantined.values().chain([&counts.used, &counts.empty]);
        if fates.copied().try_fold(0, u64::checked_add) != Some(counts.read) {
            return Err("has line counts that do not add up".into());
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

fn is_hash(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let entry = |name: &str, split, tokens, documents, bytes| ShardEntry {
            name: name.into(),
            split,
            tokens,
            documents,
            bytes,
            dtype: Dtype::U16,
            blake3: "ab".repeat(32),
            docs_blake3: "01".repeat(32),
        };
        Manifest {
            version: VERSION,
            tokenizer: TokenizerInfo { blake3: "cd".repeat(32), vocab_size: 50257, separator: 50256 },
            text_field: "text".into(),
            val_fraction: 0.005,
            val_rule: "hash".into(),
            train: Totals { tokens: 30, documents: 4, bytes: 90 },
            val: Totals { tokens: 5, documents: 1, bytes: 11 },
            lines: LineCounts { read: 8, used: 5, empty: 1, quarantined: BTreeMap::from([("json".into(), 2)]) },
            sources: vec![Source { path: "a.jsonl".into(), bytes: 120, lines: 8, used: 5 }],
            shards: vec![
                entry("train-00000.npy", Split::Train, 20, 3, 70),
                entry("train-00001.npy", Split::Train, 10, 1, 20),
                entry("val-00000.npy", Split::Val, 5, 1, 11),
            ],
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(Manifest::parse(&sample().to_bytes().unwrap()).unwrap(), sample());
        assert_eq!(sample().shards[0].docs_name(), "train-00000.docs");
        assert_eq!(sample().lines.bad(), 2);
    }

    #[test]
    fn contradictions_are_refused() {
        type Spoil = fn(&mut Manifest);
        let cases: &[(&str, Spoil)] = &[
            ("add up", |m| m.train.tokens += 1),
            ("add up", |m| m.val.bytes -= 1),
            ("add up", |m| m.shards[0].split = Split::Val),
            ("line counts", |m| m.lines.read += 1),
            ("line counts", |m| m.lines.used = u64::MAX),
            ("unsafe name", |m| m.shards[2].name = "../val-00000.npy".into()),
            ("unsafe name", |m| m.shards[2].name = ".val.npy".into()),
            ("unsafe name", |m| m.shards[2].name = "val\0.npy".into()),
            ("unsafe name", |m| m.shards[2].name = "shards.json".into()),
            ("order", |m| m.shards.swap(0, 1)),
            ("order", |m| m.shards[1].name = "train-00000.npy".into()),
            ("hash", |m| m.shards[0].blake3.push('0')),
            ("hash", |m| m.shards[0].docs_blake3 = "zz".repeat(32)),
            ("impossible", |m| m.shards[0].documents = 21),
            ("impossible", |m| m.shards[0].dtype = Dtype::U32),
            ("version 2", |m| m.version = 2),
        ];
        for (reason, spoil) in cases {
            let mut manifest = sample();
            spoil(&mut manifest);
            let message = Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap_err();
            assert!(message.contains(reason), "{reason}: {message}");
        }
        let mut overflow = sample();
        overflow.shards[0].bytes = u64::MAX;
        assert!(overflow.to_bytes().is_err());
    }

    /// Any byte, any value of a few, and every truncation: never a panic, and what is accepted still adds up.
    #[test]
    fn every_accepted_mutation_is_consistent() {
        let good = sample().to_bytes().unwrap();
        let mut accepted = 0;
        for at in 0..good.len() {
            assert!(at == good.len() - 1 || Manifest::parse(&good[..at]).is_err(), "cut at {at}");
            for byte in [0, b'"', b'0', b'9', b'-', b'}', b',', b'e', 0x80, good[at] ^ 1, good[at] ^ 4] {
                let mut bytes = good.clone();
                bytes[at] = byte;
                if let Ok(manifest) = Manifest::parse(&bytes) {
                    assert_eq!(manifest.check(), Ok(()));
                    assert!(manifest.shards.iter().all(|e| !e.name.contains('/') && e.documents <= e.tokens));
                    accepted += 1;
                }
            }
        }
        assert!(accepted > 0 && accepted < good.len() * 8, "{accepted}");
    }
}
