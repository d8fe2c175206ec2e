//! The configuration of a resumed run: that of its checkpoint with the changes that the user asks for. It is final before any state
//! is built from it.

use super::paths::make_paths_absolute;
use super::reset::{Piece, reset_config};
use super::trainer_state::TrainerStateFile;
use crate::config::{Change, Config, NameOrPath};
use crate::runtime::error::{Exit, fail};
use anyhow::Result;
use std::collections::BTreeSet;

/// What a resume changes on purpose.
#[derive(Clone, Debug, Default)]
pub struct RequestedChanges {
    /// Settings, as on the command line.
    pub sets: Vec<String>,
    /// Pieces of state given up.
    pub pieces: BTreeSet<Piece>,
    /// Sequences of data to skip.
    pub skip: u64,
}

impl RequestedChanges {
    /// Whether the state is no longer that of the checkpoint.
    pub fn alter_state(&self) -> bool {
        !self.pieces.is_empty() || self.skip > 0
    }
}

/// A final configuration, and how it differs from the stored one.
#[derive(Clone, Debug)]
pub struct ResumeConfig {
    pub config: Config,
    /// The keys that changed, whatever changed them.
    pub changes: Vec<Change>,
}

impl ResumeConfig {
    /// The configuration of the run whose checkpoint is `saved`.
    ///
    /// # Errors
    /// [`Exit::Config`] for changes that cannot be made.
    pub fn new(saved: &TrainerStateFile, requested: &RequestedChanges) -> Result<Self> {
        let stored = saved.run_config()?;
        let step = saved.state.step;
        let mut config = changed(&stored, &requested.sets)?;
        // Before a reset and the tail change keys that the user may not change by hand, such as the seed.
        refuse_changes(&config, &stored.differences(&config), step)?;
        reset_config(&mut config, &requested.pieces, step);
        move_tail(&stored, &mut config, step);
        Ok(Self { changes: stored.differences(&config), config })
    }

    /// The configuration of a run that has no checkpoint.
    ///
    /// # Errors
    /// [`Exit::Config`] for changes that cannot be made.
    pub fn at_step_zero(stored: Config, sets: &[String]) -> Result<Self> {
        let mut config = changed(&stored, sets)?;
        move_tail(&stored, &mut config, 0);
        Ok(Self { changes: stored.differences(&config), config })
    }
}

fn changed(stored: &Config, sets: &[String]) -> Result<Config> {
    let mut config = stored.clone();
    config.apply(sets)?;
    if stored.adapter_base().is_some()
        && config.data.tokenizer.as_str() == stored.sft.base.as_deref().unwrap_or_default()
    {
        // The model was moved, and its tokenizer with it.
        config.data.tokenizer = NameOrPath::from(config.sft.base.as_deref().unwrap_or_default());
    }
    // Here, too, or the next resume from another directory would look for them there.
    make_paths_absolute(&mut config)?;
    Ok(config)
}

/// The tail of a wsd schedule that ends with the run moves to the new end of a longer run, as long as it has not started: the rates so
/// far are then the same for either length. Once it has started, moving it would make the rate jump back up.
fn move_tail(stored: &Config, config: &mut Config, step: u64) {
    let stored_schedule = &stored.schedule;
    let schedule = &mut config.schedule;
    let (Some(total), Some(decay)) = (schedule.total_steps, schedule.decay_steps) else { return };
    let start = schedule.start_step.unwrap_or(0);
    let end = start.saturating_add(total);
    let as_stored = schedule.kind == stored_schedule.kind && schedule.total_steps == stored_schedule.total_steps;
    let in_stable_phase = step <= end.saturating_sub(decay);
    if as_stored && in_stable_phase && end >= stored.train.steps && config.train.steps > end {
        schedule.total_steps = Some(config.train.steps.saturating_sub(start));
    }
}

/// Whether steps that are repeated after `change` may give other numbers.
pub fn alters_numbers(change: &Change) -> bool {
    let section = change.key.split('.').next().unwrap_or_default();
    !["train.steps", "sft.base"].contains(&change.key) && !["checkpoint", "eval", "sample", "log"].contains(&section)
}

/// A resume cannot change what the checkpoint's tensors and counters mean, nor what has had its effect already.
fn refuse_changes(config: &Config, changes: &[Change], step: u64) -> Result<()> {
    const FIXED: [&str; 3] = ["train.sequence_length", "train.seed", "data.tokenizer"];
    const FREE: [&str; 6] = [
        "lora.dropout",
        "sft.neftune_alpha",
        "sft.max_truncated",
        "sft.judged_prompts",
        "sft.judged_tokens",
        "sft.base_val",
    ];
    const ORDER: [&str; 3] = ["data.seed", "data.shuffle", "data.weights"];
    let fixed = changes.iter().find(|c| {
        let section = c.key.split('.').next().unwrap_or_default();
        let of_model = section == "model" || FIXED.contains(&c.key);
        let of_sft = ["sft", "lora"].contains(&section) && !FREE.contains(&c.key);
        (of_model || of_sft) && !base_was_moved(config, c.key)
    });
    if let Some(c) = fixed {
        return Err(fail(Exit::Config, format!("{} cannot change on resume ({} -> {})", c.key, c.old, c.new))
            .hint("start a new run, with --init-from if it should begin with these weights")
            .into());
    }
    if let Some(c) = changes.iter().find(|c| ORDER.contains(&c.key)).filter(|_| !config.data.allow_change) {
        return Err(fail(
            Exit::Config,
            format!("{} would repeat and drop data in mid-run ({} -> {})", c.key, c.old, c.new),
        )
        .hint("if that is meant: --set data.allow_change=true")
        .into());
    }
    if config.train.steps < step {
        return Err(fail(
            Exit::Config,
            format!("train.steps is {}, but the run is at step {step} already", config.train.steps),
        )
        .hint("resume an earlier checkpoint, or set train.steps higher")
        .into());
    }
    Ok(())
}

/// Whether a change of `key` says that the base model of adapters was moved. That is allowed: its weights are compared with those
/// that the adapters were trained beside.
fn base_was_moved(config: &Config, key: &str) -> bool {
    let tokenizer_too = key == "data.tokenizer" && config.sft.base.as_deref() == Some(config.data.tokenizer.as_str());
    config.adapter_base().is_some() && (key == "sft.base" || tokenizer_too)
}
