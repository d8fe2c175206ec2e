//! How much memory a run takes, known before it takes any.

use crate::config::Config;
use crate::model::lora;
use std::fmt;

/// Bytes by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Weights, gradients and two moments in f32.
    pub state: u64,
    /// The copy that a checkpoint is written from while training goes on.
    pub snapshot: u64,
    /// What forward saves for the backward pass of one micro-batch, and the head's chunk of logits.
    pub activations: u64,
}

/// Largest chunk of logits held at once, in bytes: `ops/cross_entropy.rs`.
const LOGITS: u64 = 128 << 20;

/// Parameters that are trained.
pub fn trained_params(config: &Config) -> u64 {
    if config.lora.is_absent() { config.model.n_params() } else { lora::n_params(&config.model, &config.lora) }
}

/// A checkpoint's tensors, in memory or on the disk: what is trained and two moments in f32.
pub fn checkpoint_bytes(config: &Config) -> u64 {
    trained_params(config).saturating_mul(12)
}

impl Footprint {
    /// Of training with `config`.
    pub fn of(config: &Config) -> Self {
        let (m, train) = (&config.model, &config.train);
        let size = |n: usize| n as u64;
        let tokens = size(train.micro_batch_size).saturating_mul(size(train.sequence_length));
        let heads = size(m.num_attention_heads);
        let qkv = (heads + 2 * size(m.num_key_value_heads)) * size(m.head_dim);
        // Per token and block, as `model/block.rs` saves them: x, h; qkv; attention's output and log-sum; gate and up.
        let block = 2 * size(m.hidden_size) + qkv + heads * size(m.head_dim) + heads + 2 * size(m.intermediate_size);
        // The block at work holds about as much again in gradients and recomputed values.
        let saved = tokens.saturating_mul(4 * block).saturating_mul(size(m.num_hidden_layers) + 2);
        let logits = tokens.saturating_mul(4 * size(m.vocab_size)).min(LOGITS).saturating_mul(2);
        let trained = trained_params(config);
        let frozen = if config.lora.is_absent() { 0 } else { m.n_params() };
        Self {
            state: trained.saturating_mul(16).saturating_add(frozen.saturating_mul(4)),
            snapshot: if config.checkpoint.background { checkpoint_bytes(config) } else { 0 },
            activations: saved.saturating_add(logits),
        }
    }

    /// What training cannot do without.
    pub fn needed(&self) -> u64 {
        self.state.saturating_add(self.activations)
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.needed().saturating_add(self.snapshot);
        match bytes {
            0..1_000_000_000 => write!(f, "about {} MB", bytes.div_ceil(1_000_000)),
            _ => write!(f, "about {:.1} GB", bytes as f64 / 1e9),
        }
    }
}
