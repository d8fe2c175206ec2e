//! What is checked before a run creates anything: the machine, and the weights that it starts from.

use super::footprint::{Fit, Hardware, RanksHere, largest_fits, what_to_shrink};
use super::identity::precision_on;
use super::session::Session;
use crate::checkpoint::Opened;
use crate::config::{Config, RopeScaling};
use crate::ops::attention::GPU_BF16_DIMS;
use crate::ops::precision::Precision;
use crate::runtime::error::{Exit, fail};
use crate::runtime::memory;
use anyhow::Result;

/// Refuses what this machine cannot do, with the numbers.
///
/// # Errors
/// [`Exit::Config`] for what has no implementation here, [`Exit::Memory`] for a run that does not fit.
pub fn check_machine(config: &Config, session: &Session) -> Result<()> {
    let device = &session.device;
    if !device.is_cpu() {
        return check_gpu(config);
    }
    let ranks = RanksHere::in_group(&session.group);
    let hardware = Hardware::here(device, ranks);
    let needed = Fit::of_config(config, &hardware).footprint.needed();
    let who = match ranks.ranks {
        1 => String::new(),
        all => format!(" on {} of {all} ranks", ranks.here),
    };
    let what = format!("training this model{who} (weights, gradients, moments, activations of a micro-batch)");
    memory::check(needed, &what, || remedy(config, &hardware)).map_err(Into::into)
}

/// What would fit into the memory that this machine can give.
fn remedy(config: &Config, hardware: &Hardware) -> String {
    let hardware = memory::usable().map_or(*hardware, |bytes| hardware.with_room(bytes));
    let fewer = if hardware.ranks.here > 1 { "start fewer ranks on this machine, or " } else { "" };
    match largest_fits(config, &hardware).first() {
        Some(fit) => format!("{fewer}--set train.micro_batch_size={} fits", fit.micro_batch_size),
        None => format!("{fewer}{}", what_to_shrink(config, &hardware)),
    }
}

/// Refuses what there are no kernels for on a GPU. Its memory is not checked: a step that has no room for itself is taken again with less.
///
/// # Errors
/// [`Exit::Config`].
pub fn check_gpu(config: &Config) -> Result<()> {
    let model = &config.model;
    let bf16 = precision_on(&config.train, true) == Precision::Bf16;
    let missing = if bf16 && !GPU_BF16_DIMS.contains(&model.head_dim) {
        format!("bf16 with model.head_dim = {}", model.head_dim)
    } else if !model.hidden_size.is_multiple_of(8) {
        "a model.hidden_size that is no multiple of 8".to_owned()
    } else if !model.intermediate_size.is_multiple_of(8) {
        "a model.intermediate_size that is no multiple of 8".to_owned()
    } else {
        return Ok(());
    };
    Err(fail(Exit::Config, format!("{missing} does not work on a GPU yet")).hint("use --device cpu").into())
}

/// Refuses weights of another shape than `config` has.
///
/// # Errors
/// [`Exit::Config`], with a line for each key that differs.
pub fn check_same_model(config: &Config, source: &Opened) -> Result<()> {
    let mut ours = config.model.clone();
    let mut theirs = source.model.clone();
    // The rows of new tokens are added to those of the weights.
    if !config.sft.new_tokens.is_empty() && theirs.vocab_size < ours.vocab_size {
        theirs.vocab_size = ours.vocab_size;
    }
    for model in [&mut ours, &mut theirs] {
        // These do not touch the shapes of weights.
        model.initializer_range = 0.02;
        model.residual_scaling = false;
        // Of dynamic RoPE it decides the frequencies.
        if !matches!(model.rope_scaling, Some(RopeScaling::Dynamic { .. })) {
            model.max_position_embeddings = 1;
        }
    }
    if ours == theirs {
        return Ok(());
    }
    let ours = serde_json::to_value(&ours)?;
    let theirs = serde_json::to_value(&theirs)?;
    let lines: Vec<String> = ours
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| theirs.get(key.as_str()) != Some(value))
        .map(|(key, value)| format!("model.{key} is {value}, {} has {}", source.dir.display(), theirs[key.as_str()]))
        .collect();
    Err(fail(Exit::Config, lines.join("\n"))
        .hint("give [model] the shape of the weights that --init-from names")
        .into())
}
