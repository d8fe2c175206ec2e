//! What transformers takes absent keys of a `config.json` for: the defaults of each architecture's configuration class.

use crate::config::Architecture;

/// Values of keys that are absent.
pub(super) struct Defaults {
    /// None: as many as query heads.
    pub(super) num_key_value_heads: Option<usize>,
    /// None: hidden_size / num_attention_heads.
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: usize,
    pub(super) rope_theta: f64,
    pub(super) tie_word_embeddings: bool,
    /// Of an absent key; null is no window.
    pub(super) sliding_window: Option<usize>,
    pub(super) max_window_layers: usize,
}

impl Defaults {
    pub(super) fn new(architecture: Architecture) -> Self {
        let llama = Self {
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            rope_theta: 1e4,
            tie_word_embeddings: false,
            sliding_window: None,
            max_window_layers: 0,
        };
        let qwen2 = Self {
            num_key_value_heads: Some(32),
            max_position_embeddings: 32_768,
            sliding_window: Some(4096),
            max_window_layers: 28,
            ..llama
        };
        match architecture {
            Architecture::Llama => llama,
            Architecture::Mistral => Self {
                num_key_value_heads: Some(8),
                max_position_embeddings: 131_072,
                sliding_window: Some(4096),
                ..llama
            },
            Architecture::Qwen2 => qwen2,
            Architecture::Qwen3 => Self { head_dim: Some(128), ..qwen2 },
            Architecture::SmolLm3 => Self {
                num_key_value_heads: Some(4),
                max_position_embeddings: 32_768,
                rope_theta: 2e6,
                tie_word_embeddings: true,
                ..llama
            },
        }
    }
}
