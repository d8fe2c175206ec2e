//! LoRA adapters of a model: their names and shapes as PEFT has them, their flat buffer, its views, their beginning.
//!
//! The adapters of a model are parameters like its weights: one flat buffer each for values, gradients and moments, so that optimizer,
//! norm and checkpoints work on them as they do on a whole model. The weights they belong to stay as they are.

use super::names::tensor_specs;
use super::params::{Cursor, Layout, Spec};
use crate::config::{Choice as _, LoraConfig, ModelConfig};
pub use crate::ops::lora::merged;
use crate::ops::lora::{LoraAdapter, LoraPart};
use candle_core::{Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Modules that can have an adapter, in groups of one matrix product.
pub const MODULES: [&[&str]; 4] = [
    &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    &["self_attn.o_proj"],
    &["mlp.gate_proj", "mlp.up_proj"],
    &["mlp.down_proj"],
];

/// What PEFT puts before a module's name.
pub const PREFIX: &str = "base_model.model.";

/// Of the matrices that are `A` of an adapter.
pub const A: &str = ".lora_A.weight";

/// Of the matrices that are `B` of an adapter.
pub const B: &str = ".lora_B.weight";

/// The adapters of one block, or their gradients: of qkv, o, gate-up and down; none where nothing of it has one.
pub type BlockAdapters = [Option<LoraAdapter>; 4];

/// The adapters of a model.
#[derive(Clone, Debug)]
pub struct Adapters {
    pub config: LoraConfig,
    /// Where each named matrix lies.
    pub layout: Layout,
    pub flat: Tensor,
    /// Views of `flat`, or of its rounding where that is computed with.
    pub blocks: Vec<BlockAdapters>,
}

impl Adapters {
    /// Adapters over `flat`, which they share.
    pub fn new(model: &ModelConfig, config: &LoraConfig, flat: Tensor) -> Result<Self> {
        let layout = Layout::of(specs(model, config));
        let blocks = views(&flat, &layout, model, config)?;
        Ok(Self { config: config.clone(), layout, flat, blocks })
    }
}

/// `s` of `y = x Wᵀ + s (x Aᵀ) Bᵀ`: alpha / r, or alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023).
pub fn scale(config: &LoraConfig) -> f64 {
    let rank = config.rank as f64;
    config.alpha / if config.rslora { rank.sqrt() } else { rank }
}

/// Name of the module that the weight `name` belongs to, as [`MODULES`] has it; none for embeddings, norms and the head.
pub fn module(name: &str) -> Option<&str> {
    let inner = name.strip_prefix("model.layers.")?.split_once('.')?.1.strip_suffix(".weight")?;
    MODULES.iter().copied().flatten().copied().find(|module| *module == inner)
}

fn is_target(config: &LoraConfig, module: &str) -> bool {
    config.targets.iter().any(|target| module.ends_with(target.name()))
}

/// Names and shapes of all adapters of `model`, in the order of their buffer: per layer and product, all `A`, then all `B`.
pub fn specs(model: &ModelConfig, config: &LoraConfig) -> Vec<(String, Vec<usize>)> {
    let shapes: BTreeMap<_, _> = tensor_specs(model).into_iter().collect();
    let mut specs = Vec::new();
    for layer in 0..model.num_hidden_layers {
        for group in MODULES {
            let targets = || group.iter().filter(|module| is_target(config, module));
            let shape = |module: &str| &shapes[&format!("model.layers.{layer}.{module}.weight")];
            let name = |module: &str, matrix: &str| format!("{PREFIX}model.layers.{layer}.{module}{matrix}");
            specs.extend(targets().map(|module| (name(module, A), vec![config.rank, shape(module)[1]])));
            specs.extend(targets().map(|module| (name(module, B), vec![shape(module)[0], config.rank])));
        }
    }
    specs
}

/// Views of a flat buffer of this `layout`: values or gradients.
pub fn views(flat: &Tensor, layout: &Layout, model: &ModelConfig, config: &LoraConfig) -> Result<Vec<BlockAdapters>> {
    let mut cursor = Cursor::new(flat, layout)?;
    let (heads, kv) = (model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim);
    let widths: [&[usize]; 4] =
        [&[heads, kv, kv], &[model.hidden_size], &[model.intermediate_size; 2], &[model.hidden_size]];
    let mut group = |modules: &[&str], widths: &[usize]| -> Result<Option<LoraAdapter>> {
        let mut at = 0;
        let ranges = modules.iter().zip(widths).map(|(module, width)| {
            at += width;
            (module, at - width..at)
        });
        let ranges: Vec<_> = ranges.filter(|(module, _)| is_target(config, module)).map(|(_, rows)| rows).collect();
        if ranges.is_empty() {
            return Ok(None);
        }
        let a = cursor.take(ranges.len())?;
        let parts = ranges.into_iter().map(|rows| Ok(LoraPart { rows, b: cursor.take(1)? })).collect::<Result<_>>()?;
        Ok(Some(LoraAdapter { a, parts }))
    };
    let mut block = || -> Result<BlockAdapters> {
        let [qkv, o, gate_up, down] = std::array::from_fn(|i| group(MODULES[i], widths[i]));
        Ok([qkv?, o?, gate_up?, down?])
    };
    (0..model.num_hidden_layers).map(|_| block()).collect()
}

/// Number of parameters of the adapters of `model`.
pub fn n_params(model: &ModelConfig, config: &LoraConfig) -> u64 {
    Layout::of(specs(model, config)).total as u64
}

/// Fresh adapters, which change nothing: `B` is 0, `A` uniform within 1 / sqrt(in), as PEFT begins. Each matrix draws from a stream of
/// its own, keyed by seed and name.
pub fn init(model: &ModelConfig, config: &LoraConfig, seed: u64, device: &Device) -> Result<Adapters> {
    let layout = Layout::of(specs(model, config));
    let matrices: Vec<Vec<f32>> = layout.specs.par_iter().map(|spec| fresh(spec, seed)).collect();
    let flat = Tensor::from_vec(matrices.concat(), layout.total, device)?;
    Adapters::new(model, config, flat)
}

fn fresh(spec: &Spec, seed: u64) -> Vec<f32> {
    if spec.name.ends_with(B) {
        return vec![0.0; spec.len];
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"llama-lite lora").update(&seed.to_le_bytes()).update(spec.name.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
    let bound = 1.0 / (spec.shape[1] as f64).sqrt();
    (0..spec.len).map(|_| (rng.random_range(-bound..bound)) as f32).collect()
}

#[cfg(test)]
mod tests;
