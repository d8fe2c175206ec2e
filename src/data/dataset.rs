//! What a configuration's `[data]` section stands for: the tokenizer, the training tokens, the validation rows and, for the
//! built-in corpus, the exact floor of the validation loss.
//!
//! Raw text and stories are tokenised when the program starts and held in memory; what does not fit there belongs into shards.

mod shards;
mod stories;
mod text;

use super::Tokens;
use super::boundary::Boundary;
use super::loader::{Loader, Plan, Source};
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
    pub train: Vec<Source>,
    /// How documents are told apart in all of it; none if sources differ.
    pub boundary: Option<Boundary>,
    /// What is validated on; none if the data have no validation split.
    pub val: Option<EvalSet>,
    /// The least validation loss possible, where it is known.
    pub floor: Option<Floor>,
    /// Training stories used, for the built-in corpus.
    pub stories: Option<u64>,
    /// Conversations, of a fine-tuning run: they take the place of `train`.
    pub conversations: Option<Conversations>,
    /// Validation rows of the data that a fine-tuned model was made from.
    pub base_val: Option<EvalSet>,
    /// Files that were found and are not trained on: held out, ignored, not read.
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
        let corpus = if config.data.source.is_some() {
            stories::open(config, tokenizer)?
        } else if let Some(train) = shards::paths_of_each(&config.data.train, ShardSplit::Train, &mut notes)? {
            shards::open(config, tokenizer, train, notes)?
        } else {
            text::open(config, tokenizer)?
        };
        if config.data.document_mask && corpus.boundary.is_none() {
            return Err(mixed_separators().into());
        }
        corpus.check_vocabulary(config)?;
        Ok(corpus)
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
    /// Those of [`Loader::new`] and [`Loader::of_examples`].
    pub fn loader(&self, config: &Config) -> Result<Loader> {
        let data = &config.data;
        if let Some(conversations) = &self.conversations {
            return Loader::of_examples(conversations.rows.clone(), data.seed, data.shuffle);
        }
        let plan = Plan {
            sequence_length: config.train.sequence_length,
            seed: data.seed,
            shuffle: data.shuffle,
            weights: data.weights.clone(),
            boundary: self.boundary.filter(|_| data.document_mask),
        };
        Loader::new(self.train.clone(), &plan)
    }

    /// Whether the training data of `config` are shards, which are there without being read as text first.
    ///
    /// # Errors
    /// [`Exit::Io`] and [`Exit::Config`] for paths that lead nowhere.
    pub fn of_shards(config: &Config) -> Result<bool> {
        let text = config.is_sft() || config.data.source.is_some();
        Ok(!text && shards::paths_of_each(&config.data.train, ShardSplit::Train, &mut Vec::new())?.is_some())
    }

    /// Training tokens of all sources.
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

/// The failure of a tokenizer that is neither built in nor there; a name on the Hub is told from a path by its form.
pub fn missing_tokenizer(name: &str) -> Failure {
    let repository = name.strip_prefix("hub:").unwrap_or(name);
    let is_word = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
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

/// How documents are told apart in all of `sources`; none if they differ.
fn boundary(sources: &[Source], separator: u32) -> Option<Boundary> {
    let after = sources.first()?.tokens.separator_after()?;
    let same = sources.iter().all(|source| source.tokens.separator_after() == Some(after));
    same.then_some(Boundary { separator, after })
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
