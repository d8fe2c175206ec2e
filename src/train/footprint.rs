//! How much memory a run takes, known before it takes any.

use super::identity::precision;
use super::optimizer::{state_element_size, state_elements};
use crate::config::{Config, ModelConfig, RecomputeSetting};
use crate::model::{Recompute, lora};
use crate::ops::device;
use crate::ops::precision::Precision;
use crate::runtime::memory;
use candle_core::Device;
use std::fmt;
use std::sync::OnceLock;

/// Bytes that training takes, by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Weights that are trained or frozen, f32.
    pub weights: u64,
    /// Gradients of what is trained, f32.
    pub gradients: u64,
    pub moments: u64,
    /// What forward saves for the backward pass of one micro-batch.
    pub activations: u64,
    /// The block at work, and the head's chunk of logits.
    pub workspace: u64,
    /// The copy that a checkpoint is written from while training continues.
    pub snapshot: u64,
    /// The program itself: code, threads, tokenizer, the allocator's slack.
    pub program: u64,
}

/// Largest chunk of logits held at once, in bytes: `ops/cross_entropy.rs`.
const LOGITS: u64 = 128 << 20;

/// Logits of a GPU held at once: `ops/cuda/cross_entropy.rs`.
const GPU_LOGITS: u64 = 256 << 20;

/// Measured: what a run of next to nothing takes.
const PROGRAM: u64 = 72_000_000;

/// Not measured yet: a context with its kernels, and cuBLAS's workspace.
const GPU_PROGRAM: u64 = 1_000_000_000;

pub fn trained_params(config: &Config) -> u64 {
    if config.lora.is_absent() { config.model.n_params() } else { lora::n_params(&config.model, &config.lora) }
}

/// Elements of the optimizer's state.
fn optimizer_state_elements(config: &Config) -> u64 {
    let trained =
        if config.lora.is_absent() { config.model.tensor_shapes() } else { lora::specs(&config.model, &config.lora) };
    state_elements(config.optimizer.kind, &trained)
}

/// A checkpoint's tensors, in memory or on the disk: what is trained and the optimizer's state, in f32.
pub fn checkpoint_bytes(config: &Config) -> u64 {
    trained_params(config).saturating_add(optimizer_state_elements(config)).saturating_mul(4)
}

/// Bytes of one token that a block keeps for backward, and those that it makes, as `model/block.rs` has it: x; h; qkv; attention's output
/// and log-sum; gate and up; and what is computed again otherwise, n1, n2 and the activation. `element` is the size of a number.
fn per_token(m: &ModelConfig, recompute: Recompute, element: u64) -> (u64, u64) {
    let c = m.hidden_size as u64;
    let f = m.intermediate_size as u64;
    let heads = m.num_attention_heads as u64;
    let head_dim = m.head_dim as u64;
    let qkv = (heads + 2 * m.num_key_value_heads as u64) * head_dim;
    let made = element * (2 * c + qkv + heads * head_dim + 2 * f) + 4 * heads;
    let kept = match recompute {
        Recompute::None => made + element * (2 * c + f),
        Recompute::Selective => made,
        Recompute::Full => element * c,
    };
    (kept, made)
}

/// Memory that training may take: of the GPU when it was chosen, or of this machine when first asked.
fn room() -> Option<u64> {
    static ROOM: OnceLock<Option<u64>> = OnceLock::new();
    // A GPU's allocator cannot use the last of it.
    *ROOM.get_or_init(|| device::memory().map(|free| free / 20 * 19).or_else(memory::available))
}

/// `train.recompute`, where "auto" is decided by the memory of this machine or GPU.
pub fn recompute(config: &Config, device: &Device) -> Recompute {
    recompute_within(config, room(), device)
}

/// The same where training may take `room` bytes.
pub fn recompute_within(config: &Config, room: Option<u64>, device: &Device) -> Recompute {
    match config.train.recompute {
        RecomputeSetting::None => Recompute::None,
        RecomputeSetting::Selective => Recompute::Selective,
        RecomputeSetting::Full => Recompute::Full,
        RecomputeSetting::Auto => {
            let selective = Footprint::with(config, Recompute::Selective, device).needed();
            if room.is_none_or(|room| selective <= room) { Recompute::Selective } else { Recompute::Full }
        }
    }
}

/// What training keeps on a device: the size of its numbers, and what besides tensors takes memory.
#[derive(Clone, Copy, Debug)]
struct DevicePolicy {
    /// Bytes of a number that forward saves.
    element: u64,
    /// Bytes of a rounded weight beside the exact one.
    copy: u64,
    /// Bytes of the largest chunk of logits.
    logits: u64,
    program: u64,
    gpu: bool,
}

impl DevicePolicy {
    fn new(config: &Config, device: &Device) -> Self {
        match (device.is_cpu(), precision(&config.train, device)) {
            (true, _) => Self { element: 4, copy: 0, logits: LOGITS, program: PROGRAM, gpu: false },
            (false, Precision::F32) => Self::gpu(4, 0),
            (false, Precision::Bf16) => Self::gpu(2, 2),
        }
    }

    fn gpu(element: u64, copy: u64) -> Self {
        Self { element, copy, logits: GPU_LOGITS * element, program: GPU_PROGRAM, gpu: true }
    }
}

impl Footprint {
    /// The memory of training with `config` on `device`.
    pub fn new(config: &Config, device: &Device) -> Self {
        Self::with(config, recompute(config, device), device)
    }

    /// The same with `recompute`, whatever the configuration says.
    pub fn with(config: &Config, recompute: Recompute, device: &Device) -> Self {
        Self::estimate(config, recompute, DevicePolicy::new(config, device))
    }

    /// The memory of training with `config` where it may take `room` bytes, as little computed again as that allows. It fits if
    /// [`needed`](Self::needed) does: the copy of a checkpoint is made if there is room for it, and otherwise saving interrupts
    /// training.
    pub fn within(config: &Config, room: u64, device: &Device) -> Self {
        Self::with(config, recompute_within(config, Some(room), device), device)
    }

    fn estimate(config: &Config, recompute: Recompute, policy: DevicePolicy) -> Self {
        let m = &config.model;
        let train = &config.train;
        let tokens = (train.micro_batch_size as u64).saturating_mul(train.sequence_length as u64);
        let (kept_per_token, made_per_token) = per_token(m, recompute, policy.element);
        let kept = tokens.saturating_mul(kept_per_token);
        let made = tokens.saturating_mul(made_per_token);
        let logits = tokens.saturating_mul(policy.element * m.vocab_size as u64).min(policy.logits);
        let trained = trained_params(config);
        let frozen = if config.lora.is_absent() { 0 } else { m.n_params() };
        // The block at work holds about as much again twice, in gradients and recomputed values; half of it more is lost between
        // buffers of different sizes after some steps (measured); a little less where few buffers are kept.
        let quarters = if recompute == Recompute::Full { 9 } else { 10 };
        let at_work = made.saturating_mul(quarters).saturating_div(4);
        // Of cuDNN's gradient of attention with a fixed order of sums.
        let library = if policy.gpu && cfg!(feature = "cudnn") && policy.element == 2 {
            tokens.saturating_mul(2 * (m.num_attention_heads * train.sequence_length) as u64)
        } else {
            0
        };
        Self {
            weights: trained.saturating_add(frozen).saturating_mul(4 + policy.copy),
            gradients: trained.saturating_mul(4),
            moments: optimizer_state_elements(config).saturating_mul(state_element_size(&config.optimizer, policy.gpu)),
            activations: kept.saturating_mul(m.num_hidden_layers as u64),
            workspace: at_work.saturating_add(logits).saturating_add(library),
            // The copy of a GPU's buffers lies in the machine's memory.
            snapshot: if config.checkpoint.background && !policy.gpu { checkpoint_bytes(config) } else { 0 },
            program: policy.program,
        }
    }

    /// What training cannot do without.
    pub fn needed(&self) -> u64 {
        let parts = [self.weights, self.gradients, self.moments, self.activations, self.workspace, self.program];
        parts.into_iter().fold(0, u64::saturating_add)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside frozen weights only adapters have gradients, moments and a copy to be saved.
    #[test]
    fn adapters_cost_what_is_trained() {
        let text = "[model]\nhidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 2\nnum_attention_heads = 4\nvocab_size = 512\n\
                    [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 64\nmicro_batch_size = 2\nsteps = 9\n";
        let mut config = Config::from_toml_str(text, "a.toml").unwrap();
        let whole = Footprint::with(&config, Recompute::Selective, &Device::Cpu);
        let targets = vec![crate::config::LoraTarget::QProj];
        config.lora = crate::config::LoraConfig { rank: 4, alpha: 8.0, dropout: 0.0, targets, rslora: false };
        // Two layers, each with a 4 x 64 and a 64 x 4 matrix.
        let (adapters, frozen) = (2 * 2 * 4 * 64, config.model.n_params());
        let part = Footprint::with(&config, Recompute::Selective, &Device::Cpu);
        assert_eq!(trained_params(&config), adapters);
        assert_eq!((part.weights, whole.weights), (4 * (frozen + adapters), 4 * frozen));
        assert_eq!((part.gradients, part.moments, part.snapshot), (4 * adapters, 8 * adapters, 12 * adapters));
    }

    /// The paper's model on a GPU in bf16: 18 bytes of state a parameter, 1.41 MB of activations a token, and what the card must have.
    #[test]
    fn the_large_model_is_known_to_fit() {
        let text = "[model]\npreset = \"1.7b\"\n[data]\nsource = \"stories\"\n[train]\nsequence_length = 1024\nmicro_batch_size = 16\nsteps = 9\n";
        let config = Config::from_toml_str(text, "a.toml").unwrap();
        let in_bf16 = |recompute| Footprint::estimate(&config, recompute, DevicePolicy::gpu(2, 2));
        let selective = in_bf16(Recompute::Selective);
        assert_eq!(selective.weights + selective.gradients + selective.moments, 18 * config.model.n_params());
        assert!((selective.activations as f64 / 16384.0 / 1.41e6 - 1.0).abs() < 0.01, "{selective:?}");
        assert!(selective.peak() < 60_000_000_000, "{selective:?}");
        assert!((in_bf16(Recompute::None).activations as f64 / 16384.0 / 2.07e6 - 1.0).abs() < 0.01);
        assert!((in_bf16(Recompute::Full).activations as f64 / 16384.0 / 0.15e6 - 1.0).abs() < 0.02);
        let f32 = Footprint::estimate(&config, Recompute::Selective, DevicePolicy::gpu(4, 0));
        assert!(f32.activations > selective.activations && f32.weights < selective.weights);
    }
}
