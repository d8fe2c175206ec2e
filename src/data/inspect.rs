//! `data inspect`: what a directory of shards holds, for people.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use crate::corpus::npy::TokenFile;
use crate::corpus::shards::manifest::{MANIFEST_FILE, ShardEntry, ShardManifest, Split, Totals};
use crate::corpus::shards::{PREPARE_FILE, token_files};
use crate::data::excerpt::starts;
use crate::runtime::error::{Exit, fail};

/// Characters of the longest bar of the histogram.
const BAR: u64 = 40;

/// A summary from the manifest and the lists of documents; without a manifest, from the headers. No token is read.
///
/// # Errors
/// [`Exit::Data`](crate::runtime::error::Exit::Data) or [`Exit::Io`](crate::runtime::error::Exit::Io) if the manifest, a list
/// or a header is damaged or cannot be read.
pub fn inspect(dir: &Path) -> Result<String> {
    let mut text = format!("{}\n", dir.display());
    match ShardManifest::load(dir)? {
        Some(manifest) => describe(&mut text, dir, &manifest)?,
        None => {
            let files = token_files(dir)?;
            if files.is_empty() || dir.join(PREPARE_FILE).exists() {
                return Err(fail(Exit::Data, format!("{}: holds no finished shards", dir.display()))
                    .hint("run `data prepare` (again) with this --out")
                    .into());
            }
            writeln!(text, "no {MANIFEST_FILE}; {} token files", files.len())?;
            for (name, path) in files {
                let file = TokenFile::open(&path)?;
                writeln!(text, "  {name:<32} {:>15} tokens  {}", file.len(), file.dtype().descr())?;
            }
        }
    }
    Ok(text)
}

fn describe(text: &mut String, dir: &Path, manifest: &ShardManifest) -> Result<()> {
    let tokenizer = &manifest.tokenizer;
    let id = tokenizer.blake3.get(..16).unwrap_or(&tokenizer.blake3);
    writeln!(text, "tokenizer  {id}  {} ids, separator {}", tokenizer.vocab_size, tokenizer.separator)?;
    for (name, totals) in [("train", manifest.train), ("val", manifest.val)] {
        let Totals { tokens, documents, bytes } = totals;
        let per_token = bytes as f64 / tokens.max(1) as f64;
        writeln!(
            text,
            "{name:<10} {tokens:>15} tokens {documents:>12} documents {bytes:>16} bytes  {per_token:.3} bytes/token"
        )?;
    }
    writeln!(text, "val split  {}", manifest.val_rule)?;
    writeln!(text, "records    {}", manifest.lines)?;
    writeln!(text, "sources    {} files", manifest.sources.len())?;
    for entry in &manifest.shards {
        let ShardEntry { name, tokens, documents, .. } = entry;
        let hash = entry.blake3.get(..16).unwrap_or_default();
        let dtype = entry.dtype.descr();
        writeln!(text, "  {name:<32} {tokens:>15} tokens  {dtype} {documents:>10} documents  {hash}")?;
    }
    for split in [Split::Train, Split::Val] {
        histogram(text, split, &Lengths::read(dir, manifest, split)?)?;
    }
    Ok(())
}

/// How long the documents of a split are, in tokens with their separator.
#[derive(Default)]
struct Lengths {
    /// Documents of 2^i to 2^(i + 1) - 1 tokens.
    bins: Vec<u64>,
    documents: u64,
    tokens: u64,
    longest: u64,
}

impl Lengths {
    fn read(dir: &Path, manifest: &ShardManifest, split: Split) -> Result<Self> {
        let mut lengths = Self::default();
        let mut base = 0;
        let mut previous = None;
        for entry in manifest.shards.iter().filter(|entry| entry.split == split) {
            for start in starts(dir, entry)? {
                lengths.add(previous.replace(base + start), base + start);
            }
            base += entry.tokens;
        }
        lengths.add(previous, base);
        Ok(lengths)
    }

    fn add(&mut self, start: Option<u64>, end: u64) {
        // Nothing to measure before the first document.
        let Some(length) = start.and_then(|start| end.checked_sub(start)).filter(|&length| length > 0) else { return };
        let bin = length.ilog2() as usize;
        self.bins.resize(self.bins.len().max(bin + 1), 0);
        self.bins[bin] += 1;
        self.documents += 1;
        self.tokens += length;
        self.longest = self.longest.max(length);
    }
}

fn histogram(text: &mut String, split: Split, lengths: &Lengths) -> Result<()> {
    let Lengths { bins, documents, tokens, longest } = lengths;
    let most = bins.iter().copied().max().unwrap_or(0);
    let (Some(first), Some(last)) = (bins.iter().position(|&n| n > 0), bins.iter().rposition(|&n| n > 0)) else {
        return Ok(());
    };
    let mean = *tokens as f64 / *documents as f64;
    writeln!(text, "{} documents by length in tokens: mean {mean:.0}, longest {longest}", split.name())?;
    for (i, &n) in bins.iter().enumerate().take(last + 1).skip(first) {
        let low = 1u64 << i;
        let high = (1u64 << i) | ((1u64 << i) - 1);
        let bar = "█".repeat((n * BAR).div_ceil(most) as usize);
        writeln!(text, "  {:>17} {n:>10} {bar}", format!("{low}-{high}"))?;
    }
    Ok(())
}
