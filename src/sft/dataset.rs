//! Conversations as a run's data, and what is watched of the model that they change.

use crate::config::Config;
use crate::corpus::source::ReadOptions;
use crate::data::dataset::{Conversations, Dataset, evaluation_tokens};
use crate::data::eval_set::EvalSet;
use crate::runtime::files::read_bounded;
use crate::sft::SftData;
use crate::sft::open::open as open_tuning;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::Path;

/// As large as a trainer's state can be.
const MAX_STATE: u64 = 256 << 20;

/// The data of a fine-tuning run, and what it has beyond those of pretraining. `resumed` is the checkpoint's tokenizer.
///
/// # Errors
/// Those of reading the conversations; [`Exit::Config`](crate::runtime::error::Exit::Config) where data and model do not fit.
pub fn open(config: &Config, resumed: Option<Tokenizer>) -> Result<(Dataset, SftData)> {
    let mut tuning = open_tuning(config, resumed)?;
    let tokenizer = tuning.tokenizer.clone();
    let corpus = Dataset {
        base_val: base_val(config, &tokenizer)?,
        val: tuning.val.take().map(EvalSet::examples),
        conversations: Some(Conversations { rows: tuning.train.clone(), tokens: tuning.proof.tokens }),
        tokenizer,
        train: Vec::new(),
        boundary: None,
        floor: None,
        stories: None,
        notes: Vec::new(),
    };
    corpus.check_vocabulary(config)?;
    Ok((corpus, tuning))
}

/// EvalSet on which it is seen what the model forgets: those that are named, else the validation rows of the run it comes from.
fn base_val(config: &Config, tokenizer: &Tokenizer) -> Result<Option<EvalSet>> {
    let named = &config.sft.base_val;
    if !named.is_empty() {
        let (tokens, _) = evaluation_tokens(named, tokenizer, config.model.vocab_size, &ReadOptions::default())?;
        return Ok(Some(EvalSet::windows(tokens, config.train.sequence_length, config.eval.val_tokens)));
    }
    let Some(mut of_base) = config_of(Path::new(config.sft.base.as_deref().unwrap_or_default())) else {
        return Ok(None);
    };
    if of_base.is_sft() {
        return Ok(None);
    }
    if of_base.data.source.is_some() {
        of_base.data.stories = Some(1); // its training stories are not needed
    }
    // Data that are no longer there are only not watched.
    Ok(Dataset::open(&of_base, Some(tokenizer.clone())).ok().and_then(|corpus| corpus.val))
}

/// The configuration of the run of which `dir` is a checkpoint.
fn config_of(dir: &Path) -> Option<Config> {
    let state = read_bounded(&dir.join("trainer_state.json"), MAX_STATE, false).ok()?;
    let state: serde_json::Value = serde_json::from_slice(&state).ok()?;
    Config::from_toml_str(state["config"].as_str()?, "the model's config").ok()
}
