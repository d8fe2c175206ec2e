//! Token shards as a run's data: opened at the start, read as the run needs them.

use super::{Dataset, boundary, groups, named_tokenizer, named_val, separator, val_rows};
use crate::config::{Config, NameOrPath, TokenizerName};
use crate::corpus::shards::manifest::Split;
use crate::corpus::shards::verify::tokenizer_beside;
use crate::corpus::shards::{ShardSet, is_token_file, split_files, split_note};
use crate::corpus::{ExpandedFiles, FileKind, find, left_out};
use crate::data::Tokens;
use crate::data::loader::TokenSource;
use crate::hub::splits::FilesBySplit;
use crate::runtime::error::{Exit, fail};
use crate::runtime::home::expand_home;
use crate::runtime::shell::quoted;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The shards that each of `patterns` stands for; none if they stand for text. A prepared directory gives its shards of
/// `split`; a note about the other files there is added to `notes`.
pub(super) fn paths_of_each(
    patterns: &[String],
    split: Split,
    notes: &mut Vec<String>,
) -> Result<Option<Vec<Vec<PathBuf>>>> {
    let mut shards = Vec::new();
    let mut text = None;
    for pattern in patterns {
        match paths_of(pattern, split, notes)? {
            Some(paths) => shards.push(paths),
            None => text = Some(pattern),
        }
    }
    match (text, shards.is_empty()) {
        (Some(text), false) => {
            Err(fail(Exit::Config, format!("data: {text} is text, but other sources are token shards"))
                .hint("turn the text into shards with `data prepare`, or name sources of one kind")
                .into())
        }
        (_, empty) => Ok((!empty).then_some(shards)),
    }
}

/// All that [`paths_of_each`] finds, in one list.
pub(super) fn paths(patterns: &[String], split: Split, notes: &mut Vec<String>) -> Result<Option<Vec<PathBuf>>> {
    Ok(paths_of_each(patterns, split, notes)?.map(|each| each.concat()))
}

/// The shards of one pattern; none if it stands for text.
fn paths_of(pattern: &str, split: Split, notes: &mut Vec<String>) -> Result<Option<Vec<PathBuf>>> {
    if pattern.starts_with("hub:") {
        return Err(fail(Exit::Config, format!("{pattern}: training does not download data"))
            .hint(format!(
                "prepare it first: llama-lite data prepare --input {} --tokenizer gpt2 --out DIR",
                quoted(Path::new(pattern))
            ))
            .into());
    }
    let expanded = expand_home(Path::new(pattern));
    let path = expanded.as_path();
    if path.is_dir() {
        let files = split_files(path, split)?;
        if !files.is_empty() {
            if split == Split::Train {
                notes.extend(split_note(path)?);
            }
            return Ok(Some(files));
        }
        let other = if split == Split::Train { Split::Val } else { Split::Train };
        if !split_files(path, other)?.is_empty() {
            return Err(fail(Exit::Config, format!("{pattern} has no {} shards", split.name()))
                .hint("name its shard files, or another directory")
                .into());
        }
    }
    let patterns = [pattern.to_owned()];
    let found = if is_token_file(path) {
        find(&patterns, FileKind::Tokens)?
    } else if path.exists() || find(&patterns, FileKind::Text).is_ok() {
        return Ok(None);
    } else {
        // A glob that does not say what it stands for, such as `shards/*`.
        let Ok(found) = find(&patterns, FileKind::Tokens) else { return Ok(None) };
        found
    };
    let ExpandedFiles { files, left_out } = found;
    notes.extend(left_out::note(&left_out));
    if path.exists() { Ok(Some(files)) } else { Ok(Some(select_split(files, pattern, split, notes)?)) }
}

/// The files of the glob `pattern` that belong to `split`. If none does, the user means all of them.
fn select_split(files: Vec<PathBuf>, pattern: &str, split: Split, notes: &mut Vec<String>) -> Result<Vec<PathBuf>> {
    let divided = FilesBySplit::divide(files.clone(), Path::new(pattern))?;
    match split {
        Split::Train if !divided.train.is_empty() => {
            notes.extend(divided.note(pattern));
            Ok(divided.train)
        }
        Split::Val if !divided.val.is_empty() => Ok(divided.val),
        _ => Ok(files),
    }
}

/// Opens shards for a model of `vocab_size` ids. Refuses those whose manifest names another tokenizer.
pub(super) fn tokens(paths: &[PathBuf], tokenizer: &Tokenizer, vocab_size: usize) -> Result<Tokens> {
    let set = ShardSet::open(paths)?;
    let other = set.tokenizer().filter(|made_by| made_by.blake3 != tokenizer.fingerprint());
    if let Some(made_by) = other.filter(|_| !made_with_same(paths, tokenizer)) {
        let first = paths.first().map(|p| p.display().to_string()).unwrap_or_default();
        let message = format!("{first}: made with another tokenizer ({} ids) than this one", made_by.vocab_size);
        return Err(fail(Exit::Config, message)
            .hint("use the tokenizer that was given to `data prepare`, or prepare the text again with this one")
            .into());
    }
    Ok(Tokens::Shards(Arc::new(set), vocab_size))
}

/// Whether the tokenizer beside the shards is `tokenizer`, though its file is written in another way.
fn made_with_same(paths: &[PathBuf], tokenizer: &Tokenizer) -> bool {
    let beside = paths.first().and_then(|path| tokenizer_beside(path.parent()?).ok());
    beside.is_some_and(|beside| beside.is_same_as(tokenizer))
}

/// The validation shards beside the training shards: those of prepared directories in `data.train`, never a training shard.
fn val_beside(config: &Config, train: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in config.data.train.iter().map(|path| expand_home(Path::new(path))).filter(|p| p.is_dir()) {
        found.extend(split_files(&path, Split::Val)?);
    }
    // A validation shard may have been named as training data by hand.
    found.retain(|path| !train.contains(path));
    Ok(found)
}

/// `train`: the shards of each entry of `data.train`.
pub(super) fn open(
    config: &Config,
    tokenizer: Option<Tokenizer>,
    train: Vec<Vec<PathBuf>>,
    mut notes: Vec<String>,
) -> Result<Dataset> {
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer,
        None if config.data.tokenizer == NameOrPath::Name(TokenizerName::Train) => {
            return Err(fail(Exit::Config, "data.tokenizer = \"train\", but the data are tokens already")
                .hint("name the tokenizer that made the shards: \"gpt2\" or the path of its tokenizer.json")
                .into());
        }
        None => named_tokenizer(&config.data.tokenizer)?,
    };
    let vocab = config.model.vocab_size;
    let beside = val_beside(config, &train.concat())?;
    let val = match (config.data.val.is_empty(), beside.is_empty()) {
        (false, _) => Some(named_val(config, &tokenizer, &mut notes)?),
        (true, false) => Some(tokens(&beside, &tokenizer, vocab)?),
        (true, true) => None,
    };
    let separator = separator(&tokenizer)?;
    let val = val.map(|tokens| val_rows(config, tokens, separator)).transpose()?;
    let train = if config.data.weights.is_empty() { vec![train.concat()] } else { train };
    let train = train.iter().zip(groups(config)).map(|(paths, names)| {
        anyhow::Ok(TokenSource { name: names.join(" "), tokens: tokens(paths, &tokenizer, vocab)? })
    });
    let train = train.collect::<Result<Vec<_>>>()?;
    Ok(Dataset {
        boundary: boundary(&train, separator),
        train,
        val,
        floor: None,
        stories: None,
        tokenizer,
        conversations: None,
        base_val: None,
        notes,
    })
}
