//! RoPE's scaling in a GGUF file: as keys, or as a tensor of what each frequency is divided by.

use anyhow::Result;

use super::header::GgufHeader;
use super::model_refusal;
use crate::config::{ModelConfig, RopeScaling, YarnScaling};
use crate::model::rope::frequencies;
use crate::ops::rope::Frequencies;

/// The name of the tensor.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// Writes the keys of `scaling`, which begin with `architecture`.
///
/// # Errors
/// [`Exit::Config`](crate::runtime::error::Exit::Config) for what llama.cpp cannot be told.
pub(super) fn describe(header: &mut GgufHeader, architecture: &str, scaling: &RopeScaling) -> Result<()> {
    let (name, factor) = match scaling {
        // All of it is in the tensor.
        RopeScaling::Llama3(_) => return Ok(()),
        RopeScaling::Linear { factor } => ("linear", *factor),
        RopeScaling::Yarn(yarn) => ("yarn", usual_yarn(yarn)?.factor),
        RopeScaling::Dynamic { .. } => {
            return Err(model_refusal("its rope_scaling is dynamic, which llama.cpp does not have"));
        }
    };
    header.string(&format!("{architecture}.rope.scaling.type"), name);
    header.float(&format!("{architecture}.rope.scaling.factor"), factor as f32);
    if let RopeScaling::Yarn(yarn) = scaling {
        let original = yarn.original_max_position_embeddings as u32;
        header.number(&format!("{architecture}.rope.scaling.original_context_length"), original);
    }
    Ok(())
}

/// `yarn`, if all but its factor and its length are the defaults: llama.cpp reads nothing else of it.
fn usual_yarn(yarn: &YarnScaling) -> Result<&YarnScaling> {
    let usual = YarnScaling {
        factor: yarn.factor,
        original_max_position_embeddings: yarn.original_max_position_embeddings,
        attention_factor: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    };
    if *yarn == usual { Ok(yarn) } else { Err(model_refusal("its yarn has settings that llama.cpp cannot be told")) }
}

/// What each frequency is divided by, if the model's scaling is one that is written so.
pub(super) fn factors(model: &ModelConfig) -> Option<Vec<f32>> {
    if !matches!(model.rope_scaling, Some(RopeScaling::Llama3(_))) {
        return None;
    }
    let scaled = frequencies(model);
    let plain = Frequencies::plain(model.head_dim, model.rope_theta);
    Some(plain.at(0).into_iter().zip(scaled.at(0)).map(|(plain, scaled)| plain / scaled).collect())
}
