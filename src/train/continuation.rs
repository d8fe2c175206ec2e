//! The configuration with which a run goes on: that of its checkpoint, with what is changed on purpose. It is final before any state
//! is made of it.

use super::reset::{Piece, reset_config};
use super::state::Saved;
use crate::config::{Change, Config, NameOrPath};
use crate::runtime::error::{Exit, fail};
use crate::train::setup::make_paths_absolute;
use anyhow::Result;
use std::collections::BTreeSet;

/// What a resume changes on purpose.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Settings, as on the command line.
    pub sets: Vec<String>,
    /// Pieces of state given up.
    pub pieces: BTreeSet<Piece>,
    /// Sequences of data passed over.
    pub skip: u64,
}

impl Changes {
    /// Whether the state is no longer that of the checkpoint.
    pub(super) fn alter_state(&self) -> bool {
        !self.pieces.is_empty() || self.skip > 0
    }
}

/// A final configuration, and in what it differs from the stored one.
#[derive(Clone, Debug)]
pub struct Continuation {
    pub config: Config,
    /// The keys that changed, whatever changed them.
    pub changes: Vec<Change>,
}

impl Continuation {
    /// Of the run whose checkpoint is `saved`.
    ///
    /// # Errors
    /// [`Exit::Config`] for changes that cannot be made.
    pub fn new(saved: &Saved, wanted: &Changes) -> Result<Self> {
        let (stored, step) = (config_of(saved)?, saved.counters.step);
        let mut config = changed(&stored, &wanted.sets)?;
        refuse_changes(&config, &stored.differences(&config), step)?;
        reset_config(&mut config, &wanted.pieces, step);
        move_tail(&stored, &mut config, step);
        Ok(Self { changes: stored.differences(&config), config })
    }

    /// Of a run that has no checkpoint.
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

/// The configuration that a checkpoint was made with.
pub(crate) fn config_of(saved: &Saved) -> Result<Config> {
    let mut config = Config::from_toml_str(&saved.config, "the checkpoint's config")?;
    saved.schedule.complete(&mut config.schedule);
    Ok(config)
}

/// The tail of a wsd schedule that ends with the run moves to the new end of a longer run, while it has not begun: the rates so far
/// are then the same for either length. Once it has begun, moving it would make the rate jump back up.
fn move_tail(stored: &Config, config: &mut Config, step: u64) {
    let (stored_schedule, schedule) = (&stored.schedule, &mut config.schedule);
    let (Some(total), Some(decay)) = (schedule.total_steps, schedule.decay_steps) else { return };
    let start = schedule.start_step.unwrap_or(0);
    let end = start.saturating_add(total);
    let as_stored = schedule.kind == stored_schedule.kind && schedule.total_steps == stored_schedule.total_steps;
    let in_stable_phase = step <= end.saturating_sub(decay);
    if as_stored && in_stable_phase && end >= stored.train.steps && config.train.steps > end {
        schedule.total_steps = Some(config.train.steps.saturating_sub(start));
    }
}

/// Whether steps taken again after `change` come out otherwise.
pub(super) fn alters_numbers(change: &Change) -> bool {
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
    // The weights of a model that was moved are compared with those that the adapters began with.
    let base_moved = |key: &str| {
        config.adapter_base().is_some()
            && (key == "sft.base"
                || key == "data.tokenizer" && config.sft.base.as_deref() == Some(config.data.tokenizer.as_str()))
    };
    let tuned = |key: &str| (key.starts_with("sft.") || key.starts_with("lora.")) && !FREE.contains(&key);
    let fixed =
        |c: &&Change| (c.key.starts_with("model.") || FIXED.contains(&c.key) || tuned(c.key)) && !base_moved(c.key);
    if let Some(c) = changes.iter().find(fixed) {
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
