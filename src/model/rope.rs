//! The RoPE of a model, by its configuration.

use crate::config::{ModelConfig, RopeScaling};
use crate::ops::rope::{Frequencies, Rope, Yarn};

/// RoPE for all positions that a model of `config` can be run on.
pub fn rope(config: &ModelConfig) -> Rope {
    Rope::with_frequencies(frequencies(config), config.context_length())
}

/// The frequencies of a model of `config`.
pub fn frequencies(config: &ModelConfig) -> Frequencies {
    let head_dim = config.head_dim;
    let theta = config.rope_theta;
    match config.rope_scaling {
        None => Frequencies::plain(head_dim, theta),
        Some(RopeScaling::Linear { factor }) => Frequencies::linear(head_dim, theta, factor),
        Some(RopeScaling::Dynamic { factor }) => {
            // transformers takes the model's own length for the original one here, whatever else the file says.
            Frequencies::Dynamic { head_dim, theta, factor, original: config.max_position_embeddings }
        }
        Some(RopeScaling::Llama3(llama3)) => {
            let bounds = [llama3.low_freq_factor, llama3.high_freq_factor];
            Frequencies::llama3(head_dim, theta, llama3.factor, bounds, llama3.original_max_position_embeddings)
        }
        Some(RopeScaling::Yarn(yarn)) => {
            let settings = Yarn {
                factor: yarn.factor,
                original: yarn.original_max_position_embeddings,
                attention_factor: yarn.attention_factor,
                beta_fast: yarn.beta_fast,
                beta_slow: yarn.beta_slow,
                mscale: yarn.mscale,
                mscale_all_dim: yarn.mscale_all_dim,
                truncate: yarn.truncate,
            };
            settings.frequencies(head_dim, theta)
        }
    }
}
