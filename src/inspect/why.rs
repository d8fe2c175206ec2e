//! `why`: which documents made up a step, and the model's loss on each.
//!
//! Nothing has to be recorded for this: the order of the data is a pure function of seed and sequence, and the sequences of a step follow from
//! the tokens logged so far and the offsets that rollbacks have left. So it works for any step of any run whose data are still there.

use crate::checkpoint::{self, Opened};
use crate::config::{Config, PrecisionSetting};
use crate::corpus::shards::manifest::Split;
use crate::data::batch::IGNORE;
use crate::data::excerpt::{ExcerptStart, excerpt};
use crate::data::loader::Loader;
use crate::eval::total_loss;
use crate::metrics::{Record, Sequences, read, read_log};
use crate::model::Llama;
use crate::runtime::error::{Exit, fail};
use crate::tokenizer::Tokenizer;
use crate::train::model_state::load_model;
use crate::train::run_data::RunData;
use crate::train::session::Session;
use crate::train::trainer_state::TrainerStateFile;
use anyhow::Result;
use std::path::Path;

/// A sequence of a step.
#[derive(Clone, Debug)]
pub struct ExplainedSequence {
    /// Its index over all steps of the run.
    pub sequence: u64,
    /// Where its tokens are, in words.
    pub place: String,
    pub text: String,
    /// Mean loss of its trained tokens, in nats.
    pub loss: f64,
}

#[derive(Clone, Debug)]
pub struct StepExplanation {
    /// Its sequences, the one with the largest loss first.
    pub sequences: Vec<ExplainedSequence>,
    /// The step of the checkpoint that computed the losses.
    pub loss_step: u64,
    /// The loss that was logged; none if it is not logged yet, or not finite.
    pub logged: Option<f64>,
    /// The losses of the sequences are those of the step itself: they were logged.
    pub exact: bool,
}

/// Explains step `step` of the run in `run_dir`; adapters are taken beside the model in `base`, if that is given.
///
/// # Errors
/// [`Exit::Config`] for a step that the run does not have, [`Exit::Data`] without a checkpoint or if the data have changed.
pub fn why(run_dir: &Path, step: u64, base: Option<&Path>, session: &Session) -> Result<StepExplanation> {
    let checkpoints = checkpoint::list_valid(run_dir)?;
    let Some(newest) = checkpoints.first() else {
        return Err(fail(Exit::Data, format!("{}: no checkpoint, so its tokenizer is not known", run_dir.display()))
            .hint("give the directory of a run that has saved")
            .into());
    };
    let source = Opened::open_beside(&newest.dir, base)?;
    let saved = TrainerStateFile::read(&source)?;
    let config = saved.run_config()?;
    if step == 0 || step > config.train.steps {
        return Err(fail(Exit::Config, format!("the run has steps 1 to {}, none is {step}", config.train.steps))
            .hint("give one of them")
            .into());
    }
    let (data, fingerprint) = RunData::open_for_checkpoint(&config, &source, session)?;
    if fingerprint != saved.data_fingerprint {
        return Err(fail(Exit::Data, "the training or validation data are not those of the run")
            .hint("restore them: the order of other data says nothing about this run")
            .into());
    }
    let loader = data.dataset.loader(&config)?;
    let (first, count, logged) = find_sequences(run_dir, &config, &saved, step)?;
    // The model as it stood before the step, or as near to it as what is kept comes.
    let before = checkpoints.iter().find(|valid| valid.manifest.step < step).or(checkpoints.last());
    let before = before.map_or(Ok(source), |valid| Opened::open_beside(&valid.dir, base))?;
    let loss_step = before.manifest.as_ref().map_or(0, |manifest| manifest.step);
    let logs: Vec<Sequences> = read_log(run_dir)?;
    let known = logs.into_iter().find(|log| (log.step, log.first, log.losses.len()) == (step, first, count));
    let losses = match known {
        Some(ref log) => log.losses.clone(),
        None => losses(&load_model(&before, &session.device, PrecisionSetting::Auto)?, &loader, first, count)?,
    };
    let mut sequences = (first..)
        .zip(losses)
        .map(|(sequence, loss)| explain(&loader, &data.dataset.tokenizer, sequence, loss))
        .collect::<Result<Vec<_>>>()?;
    sequences.sort_by(|a, b| b.loss.total_cmp(&a.loss));
    Ok(StepExplanation { sequences, loss_step, logged, exact: known.is_some() })
}

/// The first sequence of `step`, how many it has, and the loss that was logged.
fn find_sequences(
    run_dir: &Path,
    config: &Config,
    saved: &TrainerStateFile,
    step: u64,
) -> Result<(u64, usize, Option<f64>)> {
    let length = config.train.sequence_length as u64;
    // Step and tokens of the last record before the step.
    let mut before = (0, 0);
    let mut tokens_after = None;
    let mut loss = None;
    for record in read(&run_dir.join("metrics.jsonl"))? {
        let Record::Train(train) = record else { continue };
        if train.step < step {
            before = (train.step, train.tokens);
        } else if train.step == step {
            tokens_after = Some(train.tokens);
            loss = Some(train.loss).filter(|loss| loss.is_finite());
        }
    }
    // For steps that are still to come, the configuration gives the number of tokens.
    let each = config.train.tokens_per_step as u64;
    let start = before.1 + (step - 1 - before.0) * each;
    let count = tokens_after.map_or(each, |tokens| tokens.saturating_sub(start)) / length;
    // Rollbacks and resets have moved the data against the count of tokens.
    let moved: i128 = saved
        .state
        .data_offsets
        .iter()
        .filter(|offset| offset.step < step)
        .map(|offset| i128::from(offset.to) - i128::from(offset.from))
        .sum();
    let first = (i128::from(start / length) + moved).max(0) as u64;
    Ok((first, count as usize, loss))
}

fn losses(model: &Llama, loader: &Loader, first: u64, count: usize) -> Result<Vec<f64>> {
    let mut losses = Vec::with_capacity(count);
    for sequence in first..first + count as u64 {
        let batch = loader.batch(sequence, 1)?;
        let trained = batch.trained().max(1) as f64;
        losses.push(total_loss(model, batch)? / trained);
    }
    Ok(losses)
}

fn explain(loader: &Loader, tokenizer: &Tokenizer, sequence: u64, loss: f64) -> Result<ExplainedSequence> {
    let batch = loader.batch(sequence, 1)?;
    let (source, start) = loader.place(sequence);
    let of_shards = start.and_then(|at| excerpt(Path::new(source), Split::Train, ExcerptStart::Token(at), 1).ok());
    let place = match (of_shards, start) {
        (Some(excerpt), _) => format!("{source}: {}", excerpt.title),
        (None, Some(at)) => format!("{source}: token {at}"),
        (None, None) => source.to_owned(),
    };
    let mut ids = batch.inputs.clone();
    ids.extend(batch.targets.last().filter(|&&id| id != IGNORE));
    // Some decoders write a token differently at the beginning of a text.
    let before: Vec<u32> = loader.token_before(sequence)?.into_iter().collect();
    let text = tokenizer.decode_after(&before, &ids, false)?;
    Ok(ExplainedSequence { sequence, place, text, loss })
}
