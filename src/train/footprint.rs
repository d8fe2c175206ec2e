//! How much memory a run takes, known before it takes any.

use crate::config::{Config, ModelConfig};
use crate::model::lora;
use std::fmt;

/// Bytes by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Weights that are trained or frozen, f32.
    pub weights: u64,
    /// Gradients of what is trained, f32.
    pub gradients: u64,
    /// Its two moments, f32.
    pub moments: u64,
    /// What forward saves for the backward pass of one micro-batch.
    pub activations: u64,
    /// The block at work, and the head's chunk of logits.
    pub workspace: u64,
    /// The copy that a checkpoint is written from while training goes on.
    pub snapshot: u64,
    /// The program itself: code, threads, tokenizer, the allocator's slack.
    pub program: u64,
}

/// Largest chunk of logits held at once, in bytes: `ops/cross_entropy.rs`.
const LOGITS: u64 = 128 << 20;

/// Measured: what a run of next to nothing takes.
const PROGRAM: u64 = 72_000_000;

/// Parameters that are trained.
pub fn trained_params(config: &Config) -> u64 {
    if config.lora.is_absent() { config.model.n_params() } else { lora::n_params(&config.model, &config.lora) }
}

/// A checkpoint's tensors, in memory or on the disk: what is trained and two moments in f32.
pub fn checkpoint_bytes(config: &Config) -> u64 {
    trained_params(config).saturating_mul(12)
}

/// Bytes that a block's forward saves for one token, as `model/block.rs` has it: x, h; qkv; attention's output and log-sum; gate and up.
fn saved_per_token(m: &ModelConfig) -> u64 {
    let size = |n: usize| n as u64;
    let heads = size(m.num_attention_heads);
    let qkv = (heads + 2 * size(m.num_key_value_heads)) * size(m.head_dim);
    4 * (2 * size(m.hidden_size) + qkv + heads * size(m.head_dim) + heads + 2 * size(m.intermediate_size))
}

impl Footprint {
    /// Of training with `config`.
    pub fn of(config: &Config) -> Self {
        let (m, train) = (&config.model, &config.train);
        let tokens = (train.micro_batch_size as u64).saturating_mul(train.sequence_length as u64);
        let saved = tokens.saturating_mul(saved_per_token(m));
        let logits = tokens.saturating_mul(4 * m.vocab_size as u64).min(LOGITS);
        let trained = trained_params(config);
        let frozen = if config.lora.is_absent() { 0 } else { m.n_params() };
        Self {
            weights: trained.saturating_add(frozen).saturating_mul(4),
            gradients: trained.saturating_mul(4),
            moments: trained.saturating_mul(8),
            activations: saved.saturating_mul(m.num_hidden_layers as u64),
            // The block at work holds about as much again twice, in gradients and recomputed values; half of it more is lost between
            // buffers of different sizes after some steps (measured).
            workspace: saved.saturating_mul(5).saturating_div(2).saturating_add(logits),
            snapshot: if config.checkpoint.background { checkpoint_bytes(config) } else { 0 },
            program: PROGRAM,
        }
    }

    /// What training cannot do without.
    pub fn needed(&self) -> u64 {
        let parts = [self.weights, self.gradients, self.moments, self.activations, self.workspace, self.program];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// All of it.
    pub fn peak(&self) -> u64 {
        self.needed().saturating_add(self.snapshot)
    }

    /// Every class with its name.
    pub fn classes(&self) -> [(&'static str, u64); 7] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("activations", self.activations),
            ("workspace", self.workspace),
            ("copy being saved", self.snapshot),
            ("program", self.program),
        ]
    }
}

/// Bytes as people read them.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000_000_000 => format!("{} MB", n.div_ceil(1_000_000)),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "about {}", bytes(self.peak()))
    }
}
