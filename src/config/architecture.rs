//! In what the families of models differ: facts of each architecture, as the code of transformers has them.

use super::choices::Architecture;
use super::rope_scaling::{MOST_POSITIONS, RopeScaling};
use super::schema::ModelConfig;

impl Architecture {
    pub const ALL: [Self; 5] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::SmolLm3];

    /// The class of the whole model in transformers.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
        }
    }

    /// Whether `model.attention_bias` is a setting of it.
    pub fn takes_attention_bias(self) -> bool {
        matches!(self, Self::Llama | Self::Qwen3 | Self::SmolLm3)
    }

    /// Whether `model.mlp_bias` is a setting of it.
    pub fn takes_mlp_bias(self) -> bool {
        matches!(self, Self::Llama | Self::SmolLm3)
    }

    /// Whether `model.sliding_window` is a setting of it.
    pub fn takes_sliding_window(self) -> bool {
        matches!(self, Self::Mistral | Self::Qwen2 | Self::Qwen3)
    }

    /// Whether `model.max_window_layers` is a setting of it.
    pub fn takes_max_window_layers(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Qwen3)
    }
}

impl ModelConfig {
    /// Whether the projections to queries, keys and values have biases.
    pub fn has_qkv_bias(&self) -> bool {
        self.attention_bias || self.architecture == Architecture::Qwen2
    }

    /// Whether each head's query and key is normed before it is rotated.
    pub fn has_qk_norm(&self) -> bool {
        self.architecture == Architecture::Qwen3
    }

    /// Whether layer `i` rotates queries and keys.
    pub fn layer_rotates(&self, i: usize) -> bool {
        self.no_rope_layers.as_ref().and_then(|layers| layers.get(i)) != Some(&0)
    }

    /// How many positions back, its own included, a token of layer `i` sees; none: all.
    pub fn layer_window(&self, i: usize) -> Option<usize> {
        self.sliding_window.filter(|_| i >= self.max_window_layers)
    }

    /// SmolLM3's layers where nothing is said: every `interval`-th does not rotate.
    pub fn every_nth_without_rope(layers: usize, interval: usize) -> Vec<usize> {
        (1..=layers).map(|n| usize::from(!n.is_multiple_of(interval))).collect()
    }

    /// The largest number of positions that the model can be run on: beyond `max_position_embeddings` where RoPE is scaled for it.
    pub fn context_length(&self) -> usize {
        let longest = self.max_position_embeddings;
        let scaled = match self.rope_scaling {
            None | Some(RopeScaling::Llama3(_)) => 0.0,
            Some(RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor }) => longest as f64 * factor,
            Some(RopeScaling::Yarn(yarn)) => yarn.original_max_position_embeddings as f64 * yarn.factor,
        };
        // The cast saturates; the bound is that of max_position_embeddings.
        longest.max((scaled as usize).min(MOST_POSITIONS))
    }
}
