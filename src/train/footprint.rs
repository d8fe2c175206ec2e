//! How much memory a run takes, known before it takes any.

mod fit;
mod hardware;
mod host;

use super::identity::precision_on;
use super::optimizer::{state_element_size, state_elements};
use crate::config::{Config, ModelConfig};
use crate::distributed::tree::CHUNK;
use crate::model::{Recompute, lora};
use crate::ops::precision::Precision;
pub use fit::{Fit, largest_fits, micro_batches, recompute, what_to_shrink};
pub use hardware::Hardware;
pub use host::{HostFootprint, RanksHere};

/// Bytes that training takes in one process, by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Weights that are trained or frozen, f32.
    pub weights: u64,
    /// Gradients of what is trained, f32.
    pub gradients: u64,
    /// Of the parameters that the rank updates.
    pub moments: u64,
    /// Gradients of lanes that wait to be joined with others: none where a rank has one lane.
    pub lane_sums: u64,
    /// What forward saves for the backward pass of one micro-batch.
    pub activations: u64,
    /// The block at work, and the head's chunk of logits.
    pub workspace: u64,
    /// The copy that a checkpoint is written from: whole, and on rank 0 alone.
    pub snapshot: u64,
    /// Whether there is no saving without the copy: with several ranks it is where their parts come together.
    copy_is_needed: bool,
    /// The program itself: code, threads, tokenizer, the allocator's slack.
    pub program: u64,
}

/// Largest chunk of logits held at once, in bytes: `ops/cross_entropy.rs`.
const LOGITS: u64 = 128 << 20;

/// Logits of a GPU held at once: `ops/cuda/cross_entropy.rs`.
const GPU_LOGITS: u64 = 256 << 20;

/// Measured: what a run of next to nothing takes.
const PROGRAM: u64 = 66_000_000;

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
/// and log-sum; gate and up; heads before their norms; and what is computed again otherwise, n1, n2 and the activation.
fn per_token(m: &ModelConfig, recompute: Recompute, policy: DevicePolicy) -> (u64, u64) {
    let DevicePolicy { element, rounded, .. } = policy;
    let c = m.hidden_size as u64;
    let f = m.intermediate_size as u64;
    let heads = m.num_attention_heads as u64;
    let head_dim = m.head_dim as u64;
    let qkv = (heads + 2 * m.num_key_value_heads as u64) * head_dim;
    let before_norms = if m.has_qk_norm() { (heads + m.num_key_value_heads as u64) * head_dim } else { 0 };
    // Biases are added before anything could be rounded.
    let gate_up = if m.mlp_bias { element } else { rounded };
    let made = element * (2 * c + qkv + heads * head_dim + before_norms) + gate_up * 2 * f + 4 * heads;
    let kept = match recompute {
        Recompute::None => made + rounded * (2 * c + f),
        Recompute::Selective => made,
        Recompute::Full => element * c,
    };
    (kept, made)
}

/// What training keeps on a device: the size of its numbers, and what besides tensors takes memory.
#[derive(Clone, Copy, Debug)]
struct DevicePolicy {
    /// Bytes of a number that forward saves.
    element: u64,
    /// Bytes of one that is kept as bf16 products take it: norms, gate and up, the activation.
    rounded: u64,
    /// Bytes of a rounded weight beside the exact one.
    copy: u64,
    /// Bytes of the largest chunk of logits.
    logits: u64,
    program: u64,
    gpu: bool,
    /// Whether attention's gradient takes the workspace of cuDNN.
    cudnn_workspace: bool,
}

impl DevicePolicy {
    fn new(config: &Config, hardware: &Hardware) -> Self {
        let precision = precision_on(&config.train, hardware.is_gpu);
        if hardware.is_gpu {
            return Self::gpu(precision, hardware.has_cudnn);
        }
        let is_rounded = precision == Precision::Bf16 && config.lora.is_absent();
        let rounded = if is_rounded { 2 } else { 4 };
        let cudnn_workspace = false;
        Self { element: 4, rounded, copy: 0, logits: LOGITS, program: PROGRAM, gpu: false, cudnn_workspace }
    }

    fn gpu(precision: Precision, has_cudnn: bool) -> Self {
        let is_bf16 = precision == Precision::Bf16;
        let element = if is_bf16 { 2 } else { 4 };
        Self {
            element,
            rounded: element,
            copy: if is_bf16 { 2 } else { 0 },
            logits: GPU_LOGITS * element,
            program: GPU_PROGRAM,
            gpu: true,
            cudnn_workspace: has_cudnn && is_bf16,
        }
    }

    /// Bytes of the buffers through which `trained` gradients and weights go to other ranks: `distributed/tree.rs`.
    fn exchange(&self, trained: u64, ranks: u64) -> u64 {
        // On a GPU what is sent, what is received, what it is added to and their sum are tensors of their own.
        let buffers = if self.gpu { 4 } else { 1 };
        // The first round is of half of all.
        if ranks > 1 { 4 * buffers * trained.div_ceil(2).min(CHUNK as u64) } else { 0 }
    }
}

/// Bytes of the block at work, of which `made` are its activations, and of the head's chunk of logits, for `tokens` at once.
fn workspace(config: &Config, recompute: Recompute, policy: DevicePolicy, tokens: u64, made: u64) -> u64 {
    let m = &config.model;
    let logits = tokens.saturating_mul(policy.element * m.vocab_size as u64).min(policy.logits);
    // The block at work holds about as much again twice, in gradients and recomputed values; half of it more is lost between
    // buffers of different sizes after some steps (measured); a little less where few buffers are kept.
    let quarters = if recompute == Recompute::Full { 9 } else { 10 };
    let at_work = made.saturating_mul(quarters).saturating_div(4);
    // Of cuDNN's gradient of attention with a fixed order of sums.
    let library = if policy.cudnn_workspace {
        tokens.saturating_mul(2 * (m.num_attention_heads * config.train.sequence_length) as u64)
    } else {
        0
    };
    at_work.saturating_add(logits).saturating_add(library)
}

/// One of how many ranks a footprint is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    ranks: u64,
    is_first: bool,
}

impl Footprint {
    fn estimate(config: &Config, recompute: Recompute, policy: DevicePolicy, place: Place) -> Self {
        let m = &config.model;
        let train = &config.train;
        let trained = trained_params(config);
        let frozen = if config.lora.is_absent() { 0 } else { m.n_params() };
        let gradients = trained.saturating_mul(4);
        let (kept_per_token, made_per_token) = per_token(m, recompute, policy);
        let tokens = (train.sequences_per_pass() as u64).saturating_mul(train.sequence_length as u64);
        let activations = tokens.saturating_mul(kept_per_token).saturating_mul(m.num_hidden_layers as u64);
        let passes = workspace(config, recompute, policy, tokens, tokens.saturating_mul(made_per_token));
        let exchange = policy.exchange(trained, place.ranks);
        let lanes = (train.lanes() as u64 / place.ranks).max(1);
        let state = optimizer_state_elements(config);
        // The copy of a GPU's buffers lies in the machine's memory.
        let is_copied = place.is_first && !policy.gpu && (config.checkpoint.background || place.ranks > 1);
        Self {
            weights: trained.saturating_add(frozen).saturating_mul(4 + policy.copy),
            gradients,
            moments: state.div_ceil(place.ranks).saturating_mul(state_element_size(&config.optimizer, policy.gpu)),
            lane_sums: gradients.saturating_mul(lanes.ilog2().into()),
            activations,
            // The allocator keeps what passes have freed, in pieces too small for what is received.
            workspace: passes.saturating_add(exchange),
            snapshot: if is_copied { checkpoint_bytes(config) } else { 0 },
            copy_is_needed: place.ranks > 1,
            program: policy.program,
        }
    }

    /// What training cannot do without.
    pub fn needed(&self) -> u64 {
        if self.copy_is_needed { self.peak() } else { self.peak().saturating_sub(self.snapshot) }
    }

    pub fn peak(&self) -> u64 {
        self.classes().iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Every class with its name.
    pub fn classes(&self) -> [(&'static str, u64); 8] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("lane sums", self.lane_sums),
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

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Hardware = Hardware { is_gpu: false, has_cudnn: false, room: None, ranks: RanksHere::ONE };

    fn alone(config: &Config, recompute: Recompute, policy: DevicePolicy) -> Footprint {
        Footprint::estimate(config, recompute, policy, Place { ranks: 1, is_first: true })
    }

    /// Beside frozen weights only adapters have gradients, moments and a copy to be saved.
    #[test]
    fn adapters_cost_what_is_trained() {
        let text = "[model]\nhidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 2\nnum_attention_heads = 4\nvocab_size = 512\n\
                    [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 64\nmicro_batch_size = 2\nsteps = 9\n";
        let mut config = Config::from_toml_str(text, "a.toml").unwrap();
        let whole = alone(&config, Recompute::Selective, DevicePolicy::new(&config, &CPU));
        let targets = vec![crate::config::LoraTarget::QProj];
        config.lora = crate::config::LoraConfig { rank: 4, alpha: 8.0, dropout: 0.0, targets, rslora: false };
        // Two layers, each with a 4 x 64 and a 64 x 4 matrix.
        let (adapters, frozen) = (2 * 2 * 4 * 64, config.model.n_params());
        let part = alone(&config, Recompute::Selective, DevicePolicy::new(&config, &CPU));
        assert_eq!(trained_params(&config), adapters);
        assert_eq!((part.weights, whole.weights), (4 * (frozen + adapters), 4 * frozen));
        assert_eq!((part.gradients, part.moments, part.snapshot), (4 * adapters, 8 * adapters, 12 * adapters));
    }

    /// Heads before their norms are kept beside those after them; gate and up with a bias are not rounded on a CPU.
    #[test]
    fn what_architectures_keep_besides() {
        let text = "[model]\nhidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 2\nnum_attention_heads = 4\nnum_key_value_heads = 2\n\
                    vocab_size = 512\n[data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 64\nmicro_batch_size = 2\n\
                    steps = 9\nprecision = \"bf16\"\n";
        let activations = |sets: &str| {
            let config = Config::from_toml_str(&text.replace("[data]", &format!("{sets}\n[data]")), "a.toml").unwrap();
            alone(&config, Recompute::Selective, DevicePolicy::new(&config, &CPU)).activations
        };
        let tokens_and_layers = 2 * 64 * 2;
        let plain = activations("");
        assert_eq!(activations("architecture = \"qwen3\"") - plain, tokens_and_layers * 4 * (4 + 2) * 16);
        assert_eq!(activations("mlp_bias = true") - plain, tokens_and_layers * (4 - 2) * 2 * 128);
        assert_eq!(activations("architecture = \"qwen2\""), plain);
    }

    /// The paper's model on a GPU in bf16: 18 bytes of state a parameter, 1.41 MB of activations a token, and what the card must have.
    #[test]
    fn the_large_model_is_known_to_fit() {
        let text = "[model]\npreset = \"1.7b\"\n[data]\nsource = \"stories\"\n[train]\nsequence_length = 1024\nmicro_batch_size = 16\nsteps = 9\n";
        let config = Config::from_toml_str(text, "a.toml").unwrap();
        let in_bf16 = |recompute| alone(&config, recompute, DevicePolicy::gpu(Precision::Bf16, false));
        let selective = in_bf16(Recompute::Selective);
        assert_eq!(selective.weights + selective.gradients + selective.moments, 18 * config.model.n_params());
        assert!((selective.activations as f64 / 16384.0 / 1.41e6 - 1.0).abs() < 0.01, "{selective:?}");
        assert!(selective.peak() < 60_000_000_000, "{selective:?}");
        assert!((in_bf16(Recompute::None).activations as f64 / 16384.0 / 2.07e6 - 1.0).abs() < 0.01);
        assert!((in_bf16(Recompute::Full).activations as f64 / 16384.0 / 0.15e6 - 1.0).abs() < 0.02);
        let f32 = alone(&config, Recompute::Selective, DevicePolicy::gpu(Precision::F32, false));
        assert!(f32.activations > selective.activations && f32.weights < selective.weights);
    }
}
