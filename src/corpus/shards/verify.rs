//! `data verify`: a directory of shards, checked in full.

use std::fmt;
use std::path::Path;

use anyhow::Result;

use crate::corpus::npy::TokenFile;
use crate::corpus::shards::blocks::Blocks;
use crate::corpus::shards::manifest::{Eot, MANIFEST_FILE, ShardEntry, ShardManifest};
use crate::corpus::shards::{PREPARE_FILE, check_ids, token_files};
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files;
use crate::tokenizer::Tokenizer;

/// Tokens read at a time.
const CHUNK: usize = 1 << 16;

/// What [`verify`] has checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    pub shards: usize,
    pub tokens: u64,
    /// Documents; `None` without a manifest.
    pub documents: Option<u64>,
    pub max_id: u32,
}

/// One line for the terminal.
impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} shards, {} tokens, largest id {}", self.shards, self.tokens, self.max_id)?;
        match self.documents {
            Some(n) => write!(f, ", {n} documents: sizes, hashes, ids and document starts are right"),
            None => write!(f, ": readable (no {MANIFEST_FILE}, so nothing to compare with)"),
        }
    }
}

/// Reads every shard of `dir` in full. With a `shards.json`: sizes, types, hashes, ids below the vocabulary, document
/// starts, and that every shard there is listed. Without one: that headers and sizes are right.
///
/// # Errors
/// The first fault: [`Exit::Data`] naming the shard, and the token where there is one; [`Exit::Io`] if a file cannot be
/// read.
pub fn verify(dir: &Path) -> Result<VerifyReport> {
    let manifest = ShardManifest::load(dir)?;
    let present = token_files(dir)?;
    let Some(manifest) = manifest else {
        if dir.join(PREPARE_FILE).exists() || present.is_empty() {
            let message = format!("{}: has no {MANIFEST_FILE} and is no finished output", dir.display());
            return Err(fail(Exit::Data, message).hint("run `data prepare` (again) with this --out").into());
        }
        let mut report = VerifyReport::default();
        for (_, path) in &present {
            report.add(&TokenFile::open(path)?, usize::MAX, None)?;
        }
        return Ok(report);
    };
    if let Some((_, path)) = present.iter().find(|(name, _)| manifest.shards.iter().all(|e| e.name != *name)) {
        let message = format!("{}: is not listed in {MANIFEST_FILE}", path.display());
        return Err(fail(Exit::Data, message).hint("move it elsewhere").into());
    }
    let mut report = VerifyReport { documents: Some(0), ..VerifyReport::default() };
    for entry in &manifest.shards {
        let file = TokenFile::open(&dir.join(&entry.name))?;
        entry.matches(&file)?;
        // Before the hashes, because a bad id has the narrowest place to name.
        let separator = manifest.tokenizer.separator;
        let TokenStats { max_id, separators } = report.add(&file, manifest.tokenizer.vocab_size, Some(separator))?;
        if max_id != entry.max_id {
            let what = format!("its largest id is {max_id}, shards.json says {}", entry.max_id);
            return Err(damaged(file.path(), &what).into());
        }
        Blocks::new(entry).check(&file, 0..file.size())?;
        if file.blake3()? != entry.blake3 {
            return Err(damaged(file.path(), "its content does not match its hash in shards.json").into());
        }
        let at_starts = check_docs(dir, entry, &file, separator, manifest.recipe.eot)?;
        if separators != at_starts {
            let what = format!("{separators} tokens are the separator {separator}, but {at_starts} documents have one");
            return Err(fail(Exit::Data, format!("{}: {what}", file.path().display()))
                .hint("the text of a document gave the separator: run `data prepare` again, with this version")
                .into());
        }
        report.documents = report.documents.map(|n| n + entry.documents);
    }
    Ok(report)
}

/// What was found in the tokens of a shard.
struct TokenStats {
    max_id: u32,
    /// How many are the separator.
    separators: u64,
}

impl VerifyReport {
    fn add(&mut self, file: &TokenFile, vocab_size: usize, separator: Option<u32>) -> Result<TokenStats> {
        let mut max_id = 0;
        let mut separators = 0;
        let mut ids = vec![0; CHUNK];
        for offset in (0..file.len()).step_by(CHUNK) {
            let ids = &mut ids[..CHUNK.min(file.len() - offset)];
            file.read(offset, ids)?;
            check_ids(file, offset, ids, vocab_size)?;
            max_id = ids.iter().copied().fold(max_id, u32::max);
            separators += ids.iter().filter(|id| Some(**id) == separator).count() as u64;
        }
        self.max_id = self.max_id.max(max_id);
        self.shards += 1;
        self.tokens += file.len() as u64;
        Ok(TokenStats { max_id, separators })
    }
}

/// The tokenizer beside the shards of `dir`. It must be the one that the manifest names, if there is a manifest.
///
/// # Errors
/// [`Exit::Data`] if it is another one or damaged, [`Exit::Io`] if it is gone.
pub fn tokenizer_beside(dir: &Path) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::from_dir(dir)?;
    match ShardManifest::load(dir)? {
        Some(manifest) if manifest.tokenizer.blake3 != tokenizer.fingerprint() => {
            Err(damaged(&dir.join("tokenizer.json"), "is not the tokenizer that made the shards").into())
        }
        _ => Ok(tokenizer),
    }
}

/// Checks the document starts: as many as the manifest says, rising, inside the shard, and at separators or behind them.
/// Returns how many tokens of the shard must be separators.
fn check_docs(dir: &Path, entry: &ShardEntry, file: &TokenFile, separator: u32, eot: Eot) -> Result<u64> {
    let path = dir.join(entry.docs_name());
    // At most one start per token, so the bound follows from the shard's own size, which has been checked.
    let bytes = files::read_bounded(&path, entry.documents.saturating_mul(8), true)?;
    if bytes.len() as u64 != entry.documents * 8 {
        return Err(damaged(&path, &format!("{} bytes for {} documents", bytes.len(), entry.documents)).into());
    }
    if blake3::hash(&bytes).to_hex().as_str() != entry.docs_blake3 {
        return Err(damaged(&path, "its content does not match its hash in shards.json").into());
    }
    let mut least = 0;
    let mut separators = 0;
    for raw in bytes.as_chunks::<8>().0 {
        let start = u64::from_le_bytes(*raw);
        if start < least || start >= entry.tokens {
            return Err(damaged(&path, &format!("a document cannot start at token {start}")).into());
        }
        least = start + 1;
        let place = match eot {
            Eot::Before => start,
            Eot::After if start > 0 => start - 1,
            // The separator ends the shard before.
            Eot::After => continue,
        };
        let mut id = [0];
        file.read(place as usize, &mut id)?;
        if id[0] != separator {
            let what = format!("token {place} of {} is {}, not the separator {separator}", entry.name, id[0]);
            return Err(damaged(&path, &what).into());
        }
        separators += 1;
    }
    // The one that ends the shard ends a document, too; the next begins in another shard.
    let mut last = [0];
    if eot == Eot::After && entry.tokens > 0 {
        file.read(entry.tokens as usize - 1, &mut last)?;
        separators += u64::from(last[0] == separator);
    }
    Ok(separators)
}

fn damaged(path: &Path, what: &str) -> Failure {
    fail(Exit::Data, format!("{}: {what}", path.display()))
        .hint("restore it from a good copy, or run `data prepare` again")
}
