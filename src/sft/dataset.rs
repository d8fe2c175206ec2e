//! Conversations as a run's data, and the validation rows of the data that the base model was trained on.

use crate::config::Config;
use crate::corpus::source::ReadOptions;
use crate::data::dataset::{Conversations, Dataset, evaluation_tokens};
use crate::data::eval_set::EvalSet;
use crate::runtime::files::read_bounded;
use crate::sft::SftData;
use crate::sft::open::open as open_sft;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::Path;

/// Largest trainer_state.json that is read, in bytes.
const MAX_STATE: u64 = 256 << 20;

/// The data set of a fine-tuning run, and what pretraining has no counterpart for. `resumed` is the checkpoint's tokenizer.
///
/// # Errors
/// Those of reading the conversations; [`Exit::Config`](crate::runtime::error::Exit::Config) where data and model do not fit.
pub fn open(config: &Config, resumed: Option<Tokenizer>) -> Result<(Dataset, SftData)> {
    let mut sft = open_sft(config, resumed)?;
    let tokenizer = sft.tokenizer.clone();
    let dataset = Dataset {
        base_val: base_val(config, &document_tokenizer(config, &tokenizer))?,
        val: sft.val.take().map(EvalSet::examples),
        conversations: Some(Conversations { rows: sft.train.clone(), tokens: sft.mask_report.tokens }),
        tokenizer,
        train: Vec::new(),
        boundary: None,
        floor: None,
        stories: None,
        notes: Vec::new(),
    };
    dataset.check_vocabulary(config)?;
    Ok((dataset, sft))
}

/// The rows that show what the model forgets: those of `sft.base_val`, else the validation rows of the run that made the
/// base model.
fn base_val(config: &Config, tokenizer: &Tokenizer) -> Result<Option<EvalSet>> {
    let named = &config.sft.base_val;
    if !named.is_empty() {
        let (tokens, _) = evaluation_tokens(named, tokenizer, config.model.vocab_size, &ReadOptions::default())?;
        return Ok(Some(EvalSet::windows(tokens, config.train.sequence_length, config.eval.val_tokens)));
    }
    let Some(mut base) = config_of(Path::new(config.sft.base.as_deref().unwrap_or_default())) else {
        return Ok(None);
    };
    if base.is_sft() {
        return Ok(None);
    }
    if base.data.source.is_some() {
        base.data.stories = Some(1); // its training stories are not needed
    }
    // The base model's data may be gone. That is no reason to refuse the run.
    Ok(Dataset::open(&base, Some(tokenizer.clone())).ok().and_then(|dataset| dataset.val))
}

/// The tokenizer of the base model's documents: without new tokens, because shards name the tokenizer that made them. It gives a document
/// the same ids as `tokenizer`, which stands for it where the base model is gone.
fn document_tokenizer(config: &Config, tokenizer: &Tokenizer) -> Tokenizer {
    let base = config.sft.base.as_deref().filter(|_| !config.sft.new_tokens.is_empty());
    base.and_then(|base| Tokenizer::from_dir(Path::new(base)).ok()).unwrap_or_else(|| tokenizer.clone())
}

/// The configuration of the run of which `dir` is a checkpoint.
fn config_of(dir: &Path) -> Option<Config> {
    let state = read_bounded(&dir.join("trainer_state.json"), MAX_STATE, false).ok()?;
    let state: serde_json::Value = serde_json::from_slice(&state).ok()?;
    Config::from_toml_str(state["config"].as_str()?, "the model's config").ok()
}
