//! LoRA adapters of a model: their names and shapes as PEFT has them, their flat buffer, its views, their initial values.
//!
//! The adapters of a model are parameters like its weights: one flat buffer each for values, gradients and moments, so that optimizer,
//! norm and checkpoints work on them as they do on a whole model. The model's own weights are frozen.

use super::params::{Cursor, Layout, ParamSpec};
use crate::config::{Choice as _, LoraConfig, ModelConfig, Parameter, ParameterRole, Product};
pub use crate::ops::lora::merged;
use crate::ops::lora::{LoraAdapter, LoraPart};
use candle_core::{Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Prefix of a module's name in PEFT's files.
pub const PREFIX: &str = "base_model.model.";

/// Suffix of the names of the matrices `A`.
pub const A: &str = ".lora_A.weight";

/// Suffix of the names of the matrices `B`.
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
        let layout = Layout::from_shapes(specs(model, config));
        let blocks = views(&flat, &layout, model, config)?;
        Ok(Self { config: config.clone(), layout, flat, blocks })
    }
}

/// `s` of `y = x Wᵀ + s (x Aᵀ) Bᵀ`: alpha / r, or alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023).
pub fn scale(config: &LoraConfig) -> f64 {
    let rank = config.rank as f64;
    config.alpha / if config.rslora { rank.sqrt() } else { rank }
}

/// The weights of a layer that are projections of `product`, in their order.
fn projections(model: &ModelConfig, product: Product) -> Vec<Parameter> {
    let mut parameters = model.layer_parameters();
    parameters.retain(|parameter| parameter.role == ParameterRole::Projection(product));
    parameters
}

fn has_adapter(config: &LoraConfig, parameter: &Parameter) -> bool {
    config.targets.iter().any(|target| parameter.module().ends_with(target.name()))
}

/// Names and shapes of all adapters of `model`, in the order of their buffer: per layer and product, all `A`, then all `B`.
pub fn specs(model: &ModelConfig, config: &LoraConfig) -> Vec<(String, Vec<usize>)> {
    let mut specs = Vec::new();
    for layer in 0..model.num_hidden_layers {
        for product in Product::ALL {
            let mut targets = projections(model, product);
            targets.retain(|parameter| has_adapter(config, parameter));
            for p in &targets {
                specs.push((format!("{PREFIX}model.layers.{layer}.{}{A}", p.module()), vec![config.rank, p.shape[1]]));
            }
            for p in &targets {
                specs.push((format!("{PREFIX}model.layers.{layer}.{}{B}", p.module()), vec![p.shape[0], config.rank]));
            }
        }
    }
    specs
}

/// Views of a flat buffer of this `layout`: values or gradients.
pub fn views(flat: &Tensor, layout: &Layout, model: &ModelConfig, config: &LoraConfig) -> Result<Vec<BlockAdapters>> {
    let mut cursor = Cursor::new(flat, layout)?;
    let mut blocks = Vec::with_capacity(model.num_hidden_layers);
    for _ in 0..model.num_hidden_layers {
        let mut block = BlockAdapters::default();
        for product in Product::ALL {
            block[product as usize] = product_views(&mut cursor, &projections(model, product), config)?;
        }
        blocks.push(block);
    }
    Ok(blocks)
}

/// The next views of `cursor` as the adapter of one product; none where none of its projections has one.
fn product_views(cursor: &mut Cursor, projections: &[Parameter], config: &LoraConfig) -> Result<Option<LoraAdapter>> {
    let mut rows = Vec::new();
    let mut start = 0;
    for parameter in projections {
        let end = start + parameter.shape[0];
        if has_adapter(config, parameter) {
            rows.push(start..end);
        }
        start = end;
    }
    if rows.is_empty() {
        return Ok(None);
    }
    // All A of a product lie side by side, so that one product with x serves all its adapters.
    let a = cursor.take(rows.len())?;
    let parts = rows.into_iter().map(|rows| Ok(LoraPart { rows, b: cursor.take(1)? })).collect::<Result<_>>()?;
    Ok(Some(LoraAdapter { a, parts }))
}

/// Number of parameters of the adapters of `model`.
pub fn n_params(model: &ModelConfig, config: &LoraConfig) -> u64 {
    Layout::from_shapes(specs(model, config)).total as u64
}

/// Fresh adapters, which change nothing: `B` is 0, `A` uniform within 1 / sqrt(in), as in PEFT. Each matrix draws from a stream of
/// its own, keyed by seed and name.
pub fn init(model: &ModelConfig, config: &LoraConfig, seed: u64, device: &Device) -> Result<Adapters> {
    let layout = Layout::from_shapes(specs(model, config));
    let matrices: Vec<Vec<f32>> = layout.specs.par_iter().map(|spec| fresh(spec, seed)).collect();
    let flat = Tensor::from_vec(matrices.concat(), layout.total, device)?;
    Adapters::new(model, config, flat)
}

fn fresh(spec: &ParamSpec, seed: u64) -> Vec<f32> {
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
