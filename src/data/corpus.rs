//! What a configuration's `[data]` section stands for: the tokenizer, the training tokens, the validation rows and, for the
//! built-in corpus, the exact floor of the validation loss.
//!
//! Raw text and stories are tokenised when the program starts and held in memory; what does not fit there belongs into shards.

use super::Tokens;
use super::prepare::{documents, expand, split::Rule};
use super::rows::Rows;
use super::shards::manifest::Split as ShardSplit;
use super::shards::{ShardSet, split_files};
use super::stories::{Floor, Split, Stories, Story, floor};
use super::tokenizer::Tokenizer;
use crate::config::Config;
use crate::runtime::error::{Exit, fail};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Stories a tokenizer is trained on: about 2 MB, more changes no merge that matters.
const TOKENIZER_STORIES: u64 = 4096;

/// Stories tokenised at a time.
const STORY_BATCH: u64 = 4096;

/// Tokens of stories made if none are asked for: a run that reads more reads them again.
const MAX_STORY_TOKENS: u64 = 100_000_000;

/// Raw text beyond this is refused: tokenise it once with `data prepare` instead of at every start.
const MAX_RAW_BYTES: u64 = 4 << 30;

/// All that a run reads.
pub struct Corpus {
    /// The run's tokenizer.
    pub tokenizer: Tokenizer,
    /// What is trained on.
    pub train: Tokens,
    /// What is validated on; none if the data have no validation split.
    pub val: Option<Rows>,
    /// The least validation loss possible, where it is known.
    pub floor: Option<Floor>,
    /// Training stories used, for the built-in corpus.
    pub stories: Option<u64>,
}

impl Corpus {
    /// Opens the data of `config`. `tokenizer` is the checkpoint's on resume; otherwise `data.tokenizer` decides.
    ///
    /// # Errors
    /// [`Exit::Io`] and [`Exit::Data`] from the files, [`Exit::Config`] where data and configuration do not fit.
    pub fn open(config: &Config, tokenizer: Option<Tokenizer>) -> Result<Self> {
        let corpus = if config.data.source.is_some() {
            from_stories(config, tokenizer)?
        } else if let Some(train) = shard_paths(&config.data.train, ShardSplit::Train)? {
            from_shards(config, tokenizer, &train)?
        } else {
            from_text(config, tokenizer)?
        };
        let (ids, rows) = (corpus.tokenizer.vocab_size(), config.model.vocab_size);
        if ids > rows {
            return Err(fail(Exit::Config, format!("the tokenizer has {ids} ids, model.vocab_size is {rows}"))
                .hint(format!("set model.vocab_size to {ids} or more (multiples of 64 are fastest)"))
                .into());
        }
        Ok(corpus)
    }

    /// Identifies training and validation tokens: a resume refuses other ones.
    ///
    /// # Errors
    /// Those of reading shards.
    pub fn fingerprint(&self) -> Result<String> {
        let val = self.val.as_ref().map(Rows::fingerprint).transpose()?.unwrap_or_default();
        let both = format!("{} {val}", self.train.fingerprint()?);
        Ok(blake3::hash(both.as_bytes()).to_hex().to_string())
    }
}

/// The id that stands between documents.
///
/// # Errors
/// [`Exit::Config`] for a tokenizer without an end of text.
pub fn separator(tokenizer: &Tokenizer) -> Result<u32> {
    tokenizer.eos_id().ok_or_else(|| {
        fail(Exit::Config, "the tokenizer has no end-of-text token to put between documents")
            .hint("name one as eos_token in the tokenizer_config.json beside the tokenizer.json")
            .into()
    })
}

/// A tokenizer as `data.tokenizer` names it: built in, trained on `texts`, or a file.
fn make_tokenizer<'a>(config: &Config, texts: impl Iterator<Item = &'a str>) -> Result<Tokenizer> {
    match config.data.tokenizer.as_str() {
        "train" => Tokenizer::train(texts, config.model.vocab_size),
        name => named_tokenizer(name),
    }
}

/// The tokenizer called `name`: "gpt2", or the path of a `tokenizer.json` or of a directory with one.
///
/// # Errors
/// Those of loading the file.
pub fn named_tokenizer(name: &str) -> Result<Tokenizer> {
    match name {
        "gpt2" => Tokenizer::gpt2(),
        "train" => Err(fail(Exit::Config, "a tokenizer is learned by a training run, not here")
            .hint("pretrain with data.tokenizer = \"train\", then name RUN/checkpoints/step-.../tokenizer.json")
            .into()),
        path if Path::new(path).is_dir() => Tokenizer::from_dir(Path::new(path)),
        path => Tokenizer::from_file(Path::new(path)),
    }
}

fn from_stories(config: &Config, tokenizer: Option<Tokenizer>) -> Result<Corpus> {
    let stories = Stories::new(config.data.seed);
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer,
        None => {
            let texts: Vec<String> = (0..TOKENIZER_STORIES).map(|i| stories.story(Split::Train, i).text).collect();
            make_tokenizer(config, texts.iter().map(String::as_str))?
        }
    };
    let separator = separator(&tokenizer)?;
    let wanted = config.train.steps.saturating_mul(config.train.tokens_per_step as u64).min(MAX_STORY_TOKENS) + 1;
    let (mut ids, mut count) = (vec![], 0u64);
    while config.data.stories.map_or((ids.len() as u64) < wanted, |n| count < n) {
        let batch = config.data.stories.map_or(STORY_BATCH, |n| STORY_BATCH.min(n - count));
        let texts: Vec<String> = (count..count + batch).map(|i| stories.story(Split::Train, i).text).collect();
        append_encoded(&tokenizer, &texts, separator, &mut ids)?;
        count += batch;
    }
    let val: Vec<Story> = (0..config.data.val_stories).map(|i| stories.story(Split::Val, i)).collect();
    let texts: Vec<&str> = val.iter().map(|s| s.text.as_str()).collect();
    let mut encoded = tokenizer.encode_ordinary_batch(&texts)?;
    encoded.truncate(stories_within(&encoded, config.eval.val_tokens));
    let floor = floor(val[..encoded.len()].iter());
    let mut rows = Rows::packed(&encoded, separator, config.train.sequence_length);
    rows.text_bytes = Some(floor.bytes as u64);
    Ok(Corpus {
        tokenizer,
        train: Tokens::Memory(Arc::new(ids)),
        val: Some(rows),
        floor: Some(floor),
        stories: Some(count),
    })
}

/// How many of the first documents have at most `limit` targets together; at least one.
fn stories_within(encoded: &[Vec<u32>], limit: u64) -> usize {
    let mut targets = 0;
    let fits = encoded.iter().take_while(|ids| {
        targets += ids.len() as u64 + 1;
        targets <= limit
    });
    fits.count().max(1)
}

fn append_encoded<S: AsRef<str>>(tokenizer: &Tokenizer, texts: &[S], separator: u32, ids: &mut Vec<u32>) -> Result<()> {
    let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    for document in tokenizer.encode_ordinary_batch(&texts)? {
        ids.push(separator);
        ids.extend(document);
    }
    Ok(())
}

/// The shards that `patterns` stand for; none if they stand for text. A prepared directory gives its shards of `split`.
fn shard_paths(patterns: &[String], split: ShardSplit) -> Result<Option<Vec<PathBuf>>> {
    let (mut shards, mut text) = (Vec::new(), None);
    for pattern in patterns {
        let path = Path::new(pattern);
        if path.is_dir() && is_prepared(path)? {
            let files = split_files(path, split)?;
            if files.is_empty() {
                return Err(fail(Exit::Config, format!("{pattern} has no {} shards", split.name()))
                    .hint("name its shard files, or another directory")
                    .into());
            }
            shards.extend(files);
        } else if pattern.ends_with(".npy") || pattern.ends_with(".bin") {
            shards.extend(expand(std::slice::from_ref(pattern))?);
        } else {
            text = Some(pattern);
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

fn is_prepared(dir: &Path) -> Result<bool> {
    Ok(!split_files(dir, ShardSplit::Train)?.is_empty() || !split_files(dir, ShardSplit::Val)?.is_empty())
}

/// Opens shards for a model of `vocab_size` ids, and refuses those that say another tokenizer made them.
fn open_shards(paths: &[PathBuf], tokenizer: &Tokenizer, vocab_size: usize) -> Result<Tokens> {
    let set = ShardSet::open(paths)?;
    if let Some(made_by) = set.tokenizer().filter(|t| t.blake3 != tokenizer.fingerprint()) {
        let first = paths.first().map(|p| p.display().to_string()).unwrap_or_default();
        let message = format!("{first}: made with another tokenizer ({} ids) than this one", made_by.vocab_size);
        return Err(fail(Exit::Config, message)
            .hint("use the tokenizer that was given to `data prepare`, or prepare the text again with this one")
            .into());
    }
    Ok(Tokens::Shards(Arc::new(set), vocab_size))
}

/// The validation tokens of `data.val`: shards or text.
fn named_val(config: &Config, tokenizer: &Tokenizer) -> Result<Tokens> {
    match shard_paths(&config.data.val, ShardSplit::Val)? {
        Some(paths) => open_shards(&paths, tokenizer, config.model.vocab_size),
        None => Ok(tokenize_text(tokenizer, &raw_files(&config.data.val)?, &config.data.text_field)?.0),
    }
}

/// The validation shards beside the training shards: those of prepared directories in `data.train`, never a training shard.
fn val_beside(config: &Config, train: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in config.data.train.iter().map(Path::new).filter(|p| p.is_dir()) {
        found.extend(split_files(path, ShardSplit::Val)?);
    }
    found.retain(|path| !train.contains(path));
    Ok(found)
}

fn val_rows(config: &Config, tokens: Tokens) -> Result<Rows> {
    let rows = Rows::windows(tokens, config.train.sequence_length, config.eval.val_tokens);
    if rows.is_empty() {
        return Err(fail(Exit::Data, "the validation data hold no text").hint("give another data.val").into());
    }
    Ok(rows)
}

fn from_shards(config: &Config, tokenizer: Option<Tokenizer>, train: &[PathBuf]) -> Result<Corpus> {
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer,
        None if config.data.tokenizer == "train" => {
            return Err(fail(Exit::Config, "data.tokenizer = \"train\", but the data are tokens already")
                .hint("name the tokenizer that made the shards: \"gpt2\" or the path of its tokenizer.json")
                .into());
        }
        None => named_tokenizer(&config.data.tokenizer)?,
    };
    let vocab = config.model.vocab_size;
    let beside = val_beside(config, train)?;
    let val = match (config.data.val.is_empty(), beside.is_empty()) {
        (false, _) => Some(named_val(config, &tokenizer)?),
        (true, false) => Some(open_shards(&beside, &tokenizer, vocab)?),
        (true, true) => None,
    };
    let val = val.map(|tokens| val_rows(config, tokens)).transpose()?;
    Ok(Corpus { train: open_shards(train, &tokenizer, vocab)?, val, floor: None, stories: None, tokenizer })
}

fn from_text(config: &Config, tokenizer: Option<Tokenizer>) -> Result<Corpus> {
    let paths = raw_files(&config.data.train)?;
    let fraction = if config.data.val.is_empty() { config.data.val_fraction } else { 0.0 };
    let mut rule = Rule::choose(&paths, &config.data.text_field, fraction)?;
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for document in documents(&paths, &config.data.text_field) {
        let text = document?.text;
        let (a, b) = rule.divide(&text);
        for (part, list) in [(a, &mut train), (b, &mut held_out)] {
            if !part.is_empty() {
                list.push(part.to_string());
            }
        }
    }
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer,
        None => make_tokenizer(config, train.iter().map(String::as_str))?,
    };
    let separator = separator(&tokenizer)?;
    let mut ids = Vec::new();
    append_encoded(&tokenizer, &train, separator, &mut ids)?;
    let val = if config.data.val.is_empty() {
        let mut ids = Vec::new();
        append_encoded(&tokenizer, &held_out, separator, &mut ids)?;
        (ids.len() > 1).then(|| Tokens::Memory(Arc::new(ids)))
    } else {
        Some(named_val(config, &tokenizer)?)
    };
    let val = val.map(|tokens| val_rows(config, tokens)).transpose()?;
    Ok(Corpus { tokenizer, train: Tokens::Memory(Arc::new(ids)), val, floor: None, stories: None })
}

/// The text files that `patterns` stand for, if they are of a size to be held in memory.
fn raw_files(patterns: &[String]) -> Result<Vec<PathBuf>> {
    let paths = expand(patterns)?;
    let bytes: u64 = paths.iter().filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum();
    if bytes > MAX_RAW_BYTES {
        let message = format!("the text files hold {:.1} GB, too much to tokenise at every start", bytes as f64 / 1e9);
        return Err(fail(Exit::Config, message).hint("make shards once with `data prepare` and train on them").into());
    }
    Ok(paths)
}

/// The documents of `paths` as tokens, each after a separator and one more at the end; and their UTF-8 bytes.
///
/// # Errors
/// Those of reading and encoding.
pub fn tokenize_text(tokenizer: &Tokenizer, paths: &[PathBuf], text_field: &str) -> Result<(Tokens, u64)> {
    let texts = documents(paths, text_field).map(|d| Ok(d?.text)).collect::<Result<Vec<String>>>()?;
    let (separator, mut ids) = (separator(tokenizer)?, Vec::new());
    append_encoded(tokenizer, &texts, separator, &mut ids)?;
    ids.push(separator);
    Ok((Tokens::Memory(Arc::new(ids)), texts.iter().map(|t| t.len() as u64).sum()))
}

/// Tokens of `patterns` for evaluation: shards as they are (with no text bytes), text with its bytes.
///
/// # Errors
/// Those of reading and encoding.
pub fn evaluation_tokens(
    patterns: &[String],
    tokenizer: &Tokenizer,
    vocab_size: usize,
    text_field: &str,
) -> Result<(Tokens, Option<u64>)> {
    // A directory without a validation split is scored whole.
    let shards = match shard_paths(patterns, ShardSplit::Val) {
        Err(_) => shard_paths(patterns, ShardSplit::Train)?,
        found => found?,
    };
    match shards {
        Some(paths) => Ok((open_shards(&paths, tokenizer, vocab_size)?, None)),
        None => {
            let (tokens, bytes) = tokenize_text(tokenizer, &raw_files(patterns)?, text_field)?;
            Ok((tokens, Some(bytes)))
        }
    }
}
