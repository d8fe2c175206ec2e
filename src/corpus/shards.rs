//! The shards of one split, joined in name order into one long array of tokens.
//!
//! Shards come from `data prepare`, with a `shards.json` beside them, or from other tools (build-nanogpt, llm.c),
//! without one; both are accepted. Without a manifest the same facts are derived from the files.

mod blocks;
pub mod manifest;
pub mod verify;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::corpus::list_dir::list_dir;
use crate::corpus::npy::TokenFile;
use crate::corpus::shards::blocks::Blocks;
use crate::corpus::shards::manifest::{Eot, ShardEntry, ShardManifest, Split, TokenizerInfo};
use crate::hub::splits::FilesBySplit;
use crate::runtime::error::{Exit, fail};

/// Written by `data prepare` before its first shard; a directory with it and without a manifest is unfinished.
pub const PREPARE_FILE: &str = "prepare.json";

/// The shards of one split, in order, as one array of tokens.
#[derive(Debug)]
pub struct ShardSet {
    shards: Vec<Shard>,
    total: u64,
    tokenizer: Option<TokenizerInfo>,
}

#[derive(Debug)]
struct Shard {
    file: TokenFile,
    name: String,
    /// Index of its first token in the joined array.
    start: u64,
    entry: Option<ShardEntry>,
    blocks: Option<Blocks>,
    eot: Eot,
}

impl ShardSet {
    /// Opens the shards `paths`, in the order of their paths. Headers and sizes are checked, and compared with the
    /// `shards.json` beside a shard that lists it; ids and block hashes are checked as tokens are first read.
    ///
    /// # Errors
    /// [`Exit::Io`] for a file that cannot be read; [`Exit::Data`] for one that is no token file or contradicts its
    /// manifest, for shards of different tokenizers, and if there is no shard at all.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        // The order of the data must not be that in which a shell or a directory lists files.
        paths.sort();
        let mut set = Self { shards: Vec::new(), total: 0, tokenizer: None };
        let mut beside: Option<(&Path, Option<ShardManifest>)> = None;
        for path in paths {
            let dir = path.parent().unwrap_or(Path::new(""));
            if beside.as_ref().is_none_or(|(of, _)| *of != dir) {
                beside = Some((dir, ShardManifest::load(dir)?));
            }
            let manifest = beside.as_ref().and_then(|(_, manifest)| manifest.as_ref());
            set.push(path, manifest)?;
        }
        if set.shards.is_empty() {
            return Err(fail(Exit::Data, "no token shards were given").hint("make them with `data prepare`").into());
        }
        Ok(set)
    }

    fn push(&mut self, path: &Path, manifest: Option<&ShardManifest>) -> Result<()> {
        let file = TokenFile::open(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let listed = manifest.and_then(|manifest| Some((manifest, manifest.shards.iter().find(|e| e.name == name)?)));
        if let Some((manifest, entry)) = listed {
            entry.matches(&file)?;
            match &self.tokenizer {
                Some(known) if *known != manifest.tokenizer => return Err(mixed_tokenizers(path)),
                _ => self.tokenizer = Some(manifest.tokenizer.clone()),
            }
        }
        let len = file.len() as u64;
        let entry = listed.map(|(_, entry)| entry.clone());
        let eot = listed.map_or(Eot::Before, |(manifest, _)| manifest.recipe.eot);
        let blocks = entry.as_ref().map(Blocks::new);
        self.shards.push(Shard { file, name, start: self.total, entry, blocks, eot });
        // Sizes of files that exist: their sum cannot reach 2^64.
        self.total += len;
        Ok(())
    }

    /// Tokens of all shards together.
    pub fn total_tokens(&self) -> u64 {
        self.total
    }

    /// UTF-8 bytes of the text behind the tokens; `None` if a shard has no manifest that says so.
    #[cfg(test)]
    pub(super) fn text_bytes(&self) -> Option<u64> {
        self.shards.iter().map(|shard| Some(shard.entry.as_ref()?.bytes)).sum()
    }

    /// The tokenizer that made the tokens, if a manifest names it.
    pub fn tokenizer(&self) -> Option<&TokenizerInfo> {
        self.tokenizer.as_ref()
    }

    /// Whether the separator ends documents instead of beginning them; `None` if shards differ. Without a manifest it begins
    /// them, as other tools write it.
    pub fn separator_after(&self) -> Option<bool> {
        let first = self.shards.first().map_or(Eot::Before, |shard| shard.eot);
        self.shards.iter().all(|shard| shard.eot == first).then_some(first == Eot::After)
    }

    /// Fills `out` with the tokens from `start` on, across shard borders.
    ///
    /// # Errors
    /// [`Exit::Data`] if a shard has shrunk or changed, or holds an id that is not below `vocab_size`, naming shard and offset;
    /// [`Exit::Io`] if it cannot be read; [`Exit::Internal`] if the range does not lie within the set.
    pub fn read(&self, start: u64, mut out: &mut [u32], vocab_size: usize) -> Result<()> {
        if start.checked_add(out.len() as u64).is_none_or(|end| end > self.total) {
            let message = format!("{} tokens from {start} were asked of {}", out.len(), self.total);
            return Err(fail(Exit::Internal, message).into());
        }
        let first = self.shards.partition_point(|shard| shard.start <= start).saturating_sub(1);
        let mut at = start;
        for shard in &self.shards[first..] {
            let offset = (at - shard.start) as usize;
            let (part, rest) = out.split_at_mut((shard.file.len() - offset).min(out.len()));
            // Before a token is used; each block is hashed once.
            if let Some(blocks) = &shard.blocks {
                blocks.check(&shard.file, shard.file.bytes_of(offset, part.len()))?;
            }
            shard.file.read(offset, part)?;
            check_ids(&shard.file, offset, part, vocab_size)?;
            at += part.len() as u64;
            out = rest;
            if out.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Name of the shard that holds the token `at`, and the token's index there.
    pub fn locate(&self, at: u64) -> (&str, u64) {
        let index = self.shards.partition_point(|shard| shard.start <= at).saturating_sub(1);
        self.shards.get(index).map_or(("", at), |shard| (shard.name.as_str(), at - shard.start))
    }

    /// Identifies the tokens and their order: a hash over each shard's name, token count and BLAKE3. Without a manifest
    /// the files are read to compute theirs, so that adding or losing the manifest does not change the fingerprint.
    ///
    /// # Errors
    /// [`Exit::Io`] if a shard cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new_derive_key("llama-lite shard set v1");
        for shard in &self.shards {
            let hash = match &shard.entry {
                Some(entry) => entry.blake3.clone(),
                None => shard.file.blake3()?,
            };
            // Names without directories: data that were moved are the same data. Each field comes after its length, so
            // that no two lists of fields run together into the same bytes.
            for field in [shard.name.as_str(), &shard.file.len().to_string(), &hash] {
                hasher.update(&(field.len() as u64).to_le_bytes()).update(field.as_bytes());
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

fn mixed_tokenizers(path: &Path) -> anyhow::Error {
    fail(Exit::Data, format!("{}: made with another tokenizer than the shards before it", path.display()))
        .hint("train on the output of one `data prepare`, or prepare all sources with one tokenizer")
        .into()
}

/// Refuses the first of `ids`, read from `offset` of `file` on, that is not below `vocab_size`.
fn check_ids(file: &TokenFile, offset: usize, ids: &[u32], vocab_size: usize) -> Result<()> {
    let Some(i) = ids.iter().position(|&id| id as usize >= vocab_size) else { return Ok(()) };
    let place = format!("{}: token {}", file.path().display(), offset + i);
    Err(fail(Exit::Data, format!("{place} is {}, outside the vocabulary of {vocab_size} ids", ids[i]))
        .hint("the shard was made with another tokenizer or is damaged: try `data verify` on its directory")
        .into())
}

/// The shards of `split` in the directory `dir`: those its manifest lists, in order. Without a manifest, the `.npy` and
/// `.bin` files that have `train` or `val` among the words of their names, as build-nanogpt and llm.c name them; if no name
/// has, all are training shards ([`FilesBySplit`]). Empty if the directory has none.
///
/// # Errors
/// [`Exit::Io`] if the directory cannot be read; [`Exit::Data`] if its manifest is damaged or an interrupted
/// `data prepare` has left it unfinished; [`Exit::Config`] if a name could mean either split.
pub fn split_files(dir: &Path, split: Split) -> Result<Vec<PathBuf>> {
    if let Some(manifest) = ShardManifest::load(dir)? {
        return Ok(manifest.shards.iter().filter(|e| e.split == split).map(|e| dir.join(&e.name)).collect());
    }
    if dir.join(PREPARE_FILE).exists() {
        return Err(fail(Exit::Data, format!("{}: `data prepare` has not finished there", dir.display()))
            .hint("run `data prepare` again with the same --out")
            .into());
    }
    let divided = divide(dir)?;
    Ok(match split {
        Split::Train => divided.train,
        Split::Val => divided.val,
    })
}

/// What becomes of the files of a directory without a manifest, where some are not trained on.
///
/// # Errors
/// Those of [`split_files`].
pub fn split_note(dir: &Path) -> Result<Option<String>> {
    let has_manifest = ShardManifest::load(dir)?.is_some();
    if has_manifest { Ok(None) } else { Ok(divide(dir)?.note(&dir.display().to_string())) }
}

fn divide(dir: &Path) -> Result<FilesBySplit> {
    let paths = token_files(dir)?.into_iter().map(|(_, path)| path).collect();
    Ok(FilesBySplit::divide(paths, dir)?)
}

/// Whether the name of `path` is that of a token file.
pub fn is_token_file(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("npy") || suffix.eq_ignore_ascii_case("bin"))
}

/// Names and paths of the `.npy` and `.bin` files of a directory, sorted.
pub(crate) fn token_files(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = list_dir(dir)?.into_iter().map(|(name, path)| (name.to_string_lossy().into_owned(), path));
    let mut files: Vec<_> = entries.filter(|(name, path)| !name.starts_with('.') && is_token_file(path)).collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::npy::{TokenDtype, npy_bytes};
    use crate::runtime::error::Failure;
    use std::fs;

    fn exit_of(error: &anyhow::Error) -> Exit {
        error.downcast_ref::<Failure>().unwrap().exit
    }

    fn write(dir: &Path, name: &str, tokens: &[u32]) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, npy_bytes(tokens, TokenDtype::U16).unwrap()).unwrap();
        path
    }

    #[test]
    fn reads_across_borders_in_name_order() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<u32> = (0..25).map(|i| i * 31 % 97).collect();
        let paths = [
            write(dir.path(), "train-2.npy", &all[17..]),
            write(dir.path(), "train-0.npy", &all[..10]),
            write(dir.path(), "train-1.npy", &all[10..17]),
            write(dir.path(), "train-1b.npy", &[]),
        ];
        let set = ShardSet::open(&paths).unwrap();
        assert_eq!((set.total_tokens(), set.text_bytes()), (25, None));
        for start in 0..=25 {
            for end in start..=25 {
                let mut out = vec![0; end - start];
                set.read(start as u64, &mut out, 97).unwrap();
                assert_eq!(out, all[start..end], "{start}..{end}");
            }
        }
        assert_eq!(exit_of(&set.read(20, &mut [0; 6], 97).unwrap_err()), Exit::Internal);
        assert_eq!(exit_of(&set.read(u64::MAX, &mut [0; 6], 97).unwrap_err()), Exit::Internal);
    }

    #[test]
    fn an_id_outside_the_vocabulary_names_shard_and_offset() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [write(dir.path(), "a.npy", &[1, 2, 3]), write(dir.path(), "b.npy", &[4, 5, 50257])];
        let set = ShardSet::open(&paths).unwrap();
        set.read(0, &mut [0; 6], 50258).unwrap();
        let error = set.read(1, &mut [0; 5], 50257).unwrap_err();
        assert_eq!(exit_of(&error), Exit::Data);
        assert!(error.to_string().contains("b.npy: token 2 is 50257"), "{error}");
    }

    #[test]
    fn fingerprint_follows_content_names_and_count() {
        let dir = tempfile::tempdir().unwrap();
        let print = |paths: &[PathBuf]| ShardSet::open(paths).unwrap().fingerprint().unwrap();
        let (a, b) = (write(dir.path(), "a.npy", &[1, 2]), write(dir.path(), "b.npy", &[3]));
        let base = print(&[a.clone(), b.clone()]);
        assert_eq!(base, print(&[b.clone(), a.clone()]));
        assert_ne!(base, print(std::slice::from_ref(&a)));
        // Same names and sizes, other content.
        write(dir.path(), "b.npy", &[4]);
        assert_ne!(base, print(&[a.clone(), b.clone()]));
        let elsewhere = tempfile::tempdir().unwrap();
        let moved = [write(elsewhere.path(), "a.npy", &[1, 2]), write(elsewhere.path(), "b.npy", &[3])];
        assert_eq!(base, print(&moved));
    }

    #[test]
    fn splits_of_directories_without_a_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let names = |split| -> Vec<String> {
            let files = split_files(dir.path(), split).unwrap();
            files.iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        write(dir.path(), "x_1.npy", &[1]);
        write(dir.path(), "x_0.npy", &[1]);
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        assert_eq!((names(Split::Train), names(Split::Val)), (vec!["x_0.npy".into(), "x_1.npy".into()], vec![]));
        write(dir.path(), "edufineweb_val_000000.npy", &[1]);
        write(dir.path(), "edufineweb_train_000001.npy", &[1]);
        assert_eq!(names(Split::Train), ["edufineweb_train_000001.npy"]);
        assert_eq!(names(Split::Val), ["edufineweb_val_000000.npy"]);
        fs::write(dir.path().join(PREPARE_FILE), "{}").unwrap();
        assert_eq!(exit_of(&split_files(dir.path(), Split::Train).unwrap_err()), Exit::Data);
        assert_eq!(exit_of(&split_files(&dir.path().join("absent"), Split::Val).unwrap_err()), Exit::Io);
    }

    #[test]
    fn no_shards_is_an_error() {
        assert_eq!(exit_of(&ShardSet::open(&[]).unwrap_err()), Exit::Data);
    }
}
