//! What a configuration's `[data]` section stands for: the tokenizer, the training tokens, the validation rows and, for the
//! built-in corpus, the exact floor of the validation loss.
//!
//! Raw text and stories are tokenised when the program starts and held in memory; larger data belong into shards.

mod shards;
mod stories;
mod text;

use super::Tokens;
use super::boundary::Boundary;
use super::loader::{Loader, LoaderConfig, TokenSource};
use super::packed_rows::PackedRows;
use crate::config::{Config, NameOrPath, TokenizerName};
use crate::corpus::shards::manifest::Split as ShardSplit;
use crate::corpus::source::ReadOptions;
use crate::data::eval_set::EvalSet;
use crate::runtime::error::{Exit, Failure, fail, note};
use crate::runtime::home::expand_home_text;
use crate::stories::Floor;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::Path;
use std::sync::Arc;

pub use text::tokenize_text;

/// All that a run reads.
pub struct Dataset {
    pub tokenizer: Tokenizer,
    /// What is trained on: one source, or several to be mixed by `data.weights`.
    pub train: Vec<TokenSource>,
    /// The separator between documents in all sources; none if sources differ.
    pub boundary: Option<Boundary>,
    /// What is validated on; none if the data have no validation split.
    pub val: Option<EvalSet>,
    /// The least validation loss possible, where it is known.
    pub floor: Option<Floor>,
    /// Training stories used, for the built-in corpus.
    pub stories: Option<u64>,
    /// Conversations of a fine-tuning run, instead of `train`.
    pub conversations: Option<Conversations>,
    /// Validation rows of the data that a fine-tuned model was made from.
    pub base_val: Option<EvalSet>,
    /// Notes for the user about files that are not trained on: held out, ignored, not read.
    pub notes: Vec<String>,
}

/// Conversations that are trained on.
pub struct Conversations {
    pub rows: Arc<PackedRows>,
    /// Ids of all conversations, trained or not.
    pub tokens: u64,
}

impl Dataset {
    /// Opens the data of `config`. `tokenizer` is the checkpoint's on resume; otherwise `data.tokenizer` decides.
    ///
    /// # Errors
    /// [`Exit::Io`] and [`Exit::Data`] from the files, [`Exit::Config`] where data and configuration do not fit.
    pub fn open(config: &Config, tokenizer: Option<Tokenizer>) -> Result<Self> {
        let mut notes = Vec::new();
        let dataset = if config.data.source.is_some() {
            stories::open(config, tokenizer)?
        } else if let Some(train) = shards::paths_of_each(&config.data.train, ShardSplit::Train, &mut notes)? {
            shards::open(config, tokenizer, train, notes)?
        } else {
            text::open(config, tokenizer)?
        };
        if config.data.document_mask && dataset.boundary.is_none() {
            return Err(mixed_separators().into());
        }
        dataset.check_vocabulary(config)?;
        Ok(dataset)
    }

    /// Refuses a tokenizer with more ids than the model has rows.
    ///
    /// # Errors
    /// [`Exit::Config`].
    pub fn check_vocabulary(&self, config: &Config) -> Result<()> {
        let ids = self.tokenizer.vocab_size();
        let rows = config.model.vocab_size;
        if ids > rows {
            return Err(fail(Exit::Config, format!("the tokenizer has {ids} ids, model.vocab_size is {rows}"))
                .hint(format!("set model.vocab_size to {ids} or more (multiples of 64 are fastest)"))
                .into());
        }
        Ok(())
    }

    /// The training sequences in the order of the run.
    ///
    /// # Errors
    /// Those of [`Loader::new`] and [`Loader::from_examples`].
    pub fn loader(&self, config: &Config) -> Result<Loader> {
        let data = &config.data;
        if let Some(conversations) = &self.conversations {
            return Loader::from_examples(conversations.rows.clone(), data.seed, data.shuffle);
        }
        let loader = LoaderConfig {
            sequence_length: config.train.sequence_length,
            seed: data.seed,
            shuffle: data.shuffle,
            weights: data.weights.clone(),
            boundary: self.boundary.filter(|_| data.document_mask),
        };
        Loader::new(self.train.clone(), &loader)
    }

    /// Whether the training data of `config` are shards, which can be opened without reading and encoding text first.
    ///
    /// # Errors
    /// [`Exit::Io`] and [`Exit::Config`] for paths that lead nowhere.
    pub fn is_sharded(config: &Config) -> Result<bool> {
        let text = config.is_sft() || config.data.source.is_some();
        Ok(!text && shards::paths_of_each(&config.data.train, ShardSplit::Train, &mut Vec::new())?.is_some())
    }

    /// Number of training tokens of all sources.
    pub fn train_tokens(&self) -> u64 {
        let conversations = self.conversations.as_ref().map_or(0, |conversations| conversations.tokens);
        conversations + self.train.iter().map(|source| source.tokens.total()).sum::<u64>()
    }

    /// Identifies training and validation tokens: a resume refuses other ones.
    ///
    /// # Errors
    /// Those of reading shards.
    pub fn fingerprint(&self) -> Result<String> {
        let mut train = self.train.iter().map(|source| source.tokens.fingerprint()).collect::<Result<Vec<_>>>()?;
        train.extend(self.conversations.as_ref().map(|conversations| conversations.rows.fingerprint()));
        let train = train.join(" ");
        let val = self.val.as_ref().map(EvalSet::fingerprint).transpose()?.unwrap_or_default();
        let both = format!("{train} {val}");
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
    match &config.data.tokenizer {
        NameOrPath::Name(TokenizerName::Train) => Tokenizer::train(texts, config.model.vocab_size),
        choice => named_tokenizer(choice),
    }
}

/// The tokenizer that `choice` names: GPT-2's, or that of a `tokenizer.json` or of a directory with one.
///
/// # Errors
/// Those of loading the file.
pub fn named_tokenizer(choice: &NameOrPath<TokenizerName>) -> Result<Tokenizer> {
    let path = match choice {
        NameOrPath::Name(TokenizerName::Gpt2) => return Tokenizer::gpt2(),
        NameOrPath::Name(TokenizerName::Train) => {
            return Err(fail(Exit::Config, "a tokenizer is learned by a training run, not here")
                .hint("pretrain with data.tokenizer = \"train\", then name RUN/checkpoints/step-.../tokenizer.json")
                .into());
        }
        NameOrPath::Path(path) => expand_home_text(path),
    };
    match Path::new(&path) {
        file if !file.exists() => Err(missing_tokenizer(&path).into()),
        dir if dir.is_dir() => Tokenizer::from_dir(dir),
        file => Tokenizer::from_file(file),
    }
}

/// The failure for a tokenizer that is neither built in nor a file. A `name` that looks like one on the Hub gets a hint to
/// download it.
pub fn missing_tokenizer(name: &str) -> Failure {
    let repository = name.strip_prefix("hub:").unwrap_or(name);
    fn is_word(part: &str) -> bool {
        let is_plain = part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        is_plain && !part.is_empty() && !part.starts_with('.')
    }
    let hint = match repository.split_once('/') {
        Some((owner, model)) if is_word(owner) && is_word(model) && !model.ends_with(".json") => format!(
            "tokenizers are not downloaded; one that is on the Hugging Face Hub is fetched with `hf download {repository} \
             tokenizer.json tokenizer_config.json --local-dir {model}` and then named {model}/tokenizer.json"
        ),
        _ => "give gpt2 (built in), or the path of a tokenizer.json or of a directory that holds one".to_owned(),
    };
    fail(Exit::Io, format!("{name}: no such tokenizer file or directory")).hint(hint)
}

/// The entries of `data.train` that make up a source each: all together, or one by one where they have weights.
fn groups(config: &Config) -> Vec<&[String]> {
    let data = &config.data;
    if data.weights.is_empty() { vec![&data.train] } else { data.train.iter().map(std::slice::from_ref).collect() }
}

/// The separator between documents in all of `sources`; none if they differ.
fn boundary(sources: &[TokenSource], separator: u32) -> Option<Boundary> {
    let after = sources.first()?.tokens.separator_after()?;
    let same = sources.iter().all(|source| source.tokens.separator_after() == Some(after));
    same.then_some(Boundary { separator, after })
}

/// The validation tokens of `data.val`: shards or text.
fn named_val(config: &Config, tokenizer: &Tokenizer, notes: &mut Vec<String>) -> Result<Tokens> {
    match shards::paths(&config.data.val, ShardSplit::Val, notes)? {
        Some(paths) => shards::tokens(&paths, tokenizer, config.model.vocab_size),
        None => {
            let files = text::files(&config.data.val, notes)?;
            Ok(tokenize_text(tokenizer, &files, &text::read_options(&config.data))?.0)
        }
    }
}

fn mixed_separators() -> Failure {
    fail(Exit::Config, "data.document_mask: some shards put separators before documents, others after")
        .hint("prepare all sources with the same --eot")
}

fn val_rows(config: &Config, tokens: Tokens, separator: u32) -> Result<EvalSet> {
    let after = tokens.separator_after();
    let mut rows = EvalSet::windows(tokens, config.train.sequence_length, config.eval.val_tokens);
    if rows.is_empty() {
        return Err(fail(Exit::Data, "the validation data hold no text").hint("give another data.val").into());
    }
    if config.data.document_mask {
        let after = after.ok_or_else(mixed_separators)?;
        rows.boundary = Some(Boundary { separator, after });
    }
    Ok(rows)
}

/// Tokens of `patterns` for evaluation: shards as they are (with no text bytes), text with its bytes.
///
/// # Errors
/// Those of reading and encoding.
pub fn evaluation_tokens(
    patterns: &[String],
    tokenizer: &Tokenizer,
    vocab_size: usize,
    options: &ReadOptions,
) -> Result<(Tokens, Option<u64>)> {
    // A directory without a validation split is scored whole.
    let mut notes = Vec::new();
    let shards = match shards::paths(patterns, ShardSplit::Val, &mut notes) {
        Err(_) => shards::paths(patterns, ShardSplit::Train, &mut notes)?,
        found => found?,
    };
    match shards {
        Some(paths) => Ok((shards::tokens(&paths, tokenizer, vocab_size)?, None)),
        None => {
            let files = text::files(patterns, &mut notes)?;
            notes.iter().for_each(|line| note(line));
            let (tokens, bytes) = tokenize_text(tokenizer, &files, options)?;
            Ok((tokens, Some(bytes)))
        }
    }
}
