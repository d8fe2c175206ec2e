//! Llama: embed → blocks → norm → head; the whole training pass, forward and backward, on one screen.
//!
//! | file | holds |
//! |---|---|
//! | `block.rs` | one layer: forward for every use, backward |
//! | `block_weights.rs` | its weights: views of the flat buffer |
//! | `params.rs` | where each named parameter lies in the flat buffer; names and shapes are those of `config/shapes.rs` |
//! | `weights.rs` | the views of the whole model |
//! | `rope.rs` | RoPE by the configuration |
//! | `init.rs` | every initialisation rule |
//! | `generation.rs` | the pass over a cache: next tokens |
//! | `layer_cache.rs`, `kv_cache.rs` | keys and values of one layer, of all layers |
//! | `decode.rs` | one token per sequence on a GPU, recorded |
//! | `prefix_tree.rs` | the pass of evaluation |
//! | `streamed.rs` | the pass over weights that are never in memory together |
//! | `lora.rs` | adapters beside frozen weights |
//! | `noise.rs` | dropout, noise on embeddings |
//!
//! The model does no I/O and knows no optimizer.

pub mod block;
mod block_weights;
#[cfg(any(test, feature = "cuda"))]
mod decode;
mod generation;
pub mod init;
pub mod kv_cache;
mod layer_cache;
pub mod lora;
pub mod noise;
pub mod params;
pub mod prefix_tree;
pub mod rope;
pub mod streamed;
pub mod weights;

use crate::config::ModelConfig;
use crate::ops::cpu::on_first_pool_thread;
use crate::ops::cross_entropy::{cross_entropy, cross_entropy_and_backward, logit_squares};
use crate::ops::embedding::{embedding, embedding_backward};
use crate::ops::is_on_gpu;
use crate::ops::linear::linear;
use crate::ops::positions::DocumentStarts;
use crate::ops::precision::Precision;
use crate::ops::rms_norm::{Normed, add_rms_norm, rms_norm_backward};
use crate::ops::rope::Rope;
pub use block::Recompute;
use block::{Attend, Block, BlockGrads, Context, Residual, SavedForward};
use candle_core::{DType, Result, Tensor};
use lora::{Adapters, BlockAdapters};
use noise::Noise;
use params::Layout;
use std::time::{Duration, Instant};
use weights::Weights;

/// A LLaMA over one flat buffer of weights.
pub struct Llama {
    pub config: ModelConfig,
    /// Where each named tensor lies.
    pub layout: Layout,
    /// In f32, or bf16 ([`held_in_bf16`](Self::held_in_bf16)).
    pub flat: Tensor,
    weights: Weights,
    blocks: Vec<Block>,
    rope: Rope,
    precision: Precision,
    /// The weights rounded to bf16 for a GPU's products in that precision; norms and biases are used as they are.
    copy: Option<Tensor>,
    /// Adapters, which are trained instead of the weights.
    pub adapters: Option<Adapters>,
    /// The adapters rounded in the same way.
    adapters_copy: Option<Tensor>,
    /// What a training pass computes again instead of keeping it.
    pub recompute: Recompute,
}

/// Gradients of the trained parameters of a model: views of a flat buffer.
#[derive(Clone, Debug)]
pub enum Grads {
    Weights(Weights),
    Adapters(Vec<BlockAdapters>),
}

impl Grads {
    fn weights(&self) -> Option<&Weights> {
        if let Self::Weights(weights) = self { Some(weights) } else { None }
    }

    fn block(&self, i: usize) -> BlockGrads<'_> {
        match self {
            Self::Weights(weights) => BlockGrads::Weights(&weights.blocks[i]),
            Self::Adapters(blocks) => BlockGrads::Adapters(&blocks[i]),
        }
    }
}

/// What a training pass takes besides tokens.
#[derive(Clone, Copy, Default)]
pub struct TrainInput<'a> {
    /// Where documents start in the rows; none: a row is one context.
    pub documents: Option<&'a DocumentStarts>,
    /// Dropout and noise on embeddings; none without.
    pub noise: Option<&'a Noise>,
    /// Whether to measure [`ActivationStats`].
    pub observe: bool,
}

/// What a training pass returns besides gradients.
pub struct TrainOutput {
    /// Losses of every position (b·t), in nats.
    pub losses: Tensor,
    pub times: PassTimes,
    /// None unless `observe` was set.
    pub observed: Option<ActivationStats>,
}

/// The time of a pass by its parts. A GPU works on its own: there, it is the time to queue the work.
#[derive(Clone, Copy, Debug, Default)]
pub struct PassTimes {
    pub forward: Duration,
    /// Logits and loss, forward and backward in one.
    pub head: Duration,
    pub backward: Duration,
}

/// Statistics of a pass that show an instability early.
#[derive(Clone, Debug)]
pub struct ActivationStats {
    /// The largest logit of every block's attention.
    pub attention_logit_max: Vec<f32>,
    /// Sum of the squares of the head's logits.
    pub logit_squares: f64,
    /// Number of those logits.
    pub logit_count: f64,
}

impl ActivationStats {
    /// The statistics of the rows of both.
    pub fn merged(mut self, other: Self) -> Self {
        for (a, b) in self.attention_logit_max.iter_mut().zip(other.attention_logit_max) {
            *a = a.max(b);
        }
        Self {
            logit_squares: self.logit_squares + other.logit_squares,
            logit_count: self.logit_count + other.logit_count,
            ..self
        }
    }

    /// Root of the mean square of the head's logits.
    pub fn logit_rms(&self) -> f64 {
        (self.logit_squares / self.logit_count).sqrt()
    }
}

impl Llama {
    /// A model over `flat` (see [`Layout`]), which it shares: an update of the buffer is an update of the model.
    pub fn new(config: &ModelConfig, flat: Tensor) -> Result<Self> {
        let weights = Weights::views(&flat, config, &Layout::new(config))?;
        Self::with_weights(config, flat, weights)
    }

    /// A model for reading alone, on the CPU, over weights that are held in bf16: `flat`, as in [`new`](Self::new). `vectors` are the exact
    /// norms and biases, in the order of the layout.
    pub fn held_in_bf16(config: &ModelConfig, flat: Tensor, vectors: Vec<Tensor>) -> Result<Self> {
        let weights = Weights::views(&flat, config, &Layout::new(config))?.with_vectors(vectors)?;
        Self::with_weights(config, flat, weights)?.with_precision(Precision::Bf16)
    }

    fn with_weights(config: &ModelConfig, flat: Tensor, weights: Weights) -> Result<Self> {
        let layout = Layout::new(config);
        let blocks = weights.blocks.iter().enumerate();
        let blocks = blocks.map(|(index, weights)| Block::new(config, index, weights.clone())).collect();
        let rope = rope::rope(config).on(flat.device());
        Ok(Self {
            config: config.clone(),
            layout,
            flat,
            weights,
            blocks,
            rope,
            precision: Precision::F32,
            copy: None,
            adapters: None,
            adapters_copy: None,
            recompute: Recompute::default(),
        })
    }

    /// Whether products take weights that are in bf16 in memory.
    pub fn is_in_bf16(&self) -> bool {
        self.weights.lm_head.dtype() == DType::BF16
    }

    /// The same model with matrix products in `precision`; on a GPU, bf16 is also the type of weights and activations.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self> {
        self.precision = precision;
        self.blocks.iter_mut().for_each(|block| block.precision = precision);
        if precision == Precision::Bf16 && is_on_gpu(&self.flat) {
            // Norms and biases included, though their exact values are used: every tensor keeps its offset.
            let copy = Tensor::zeros(self.layout.total, DType::BF16, self.flat.device())?;
            self.weights = Weights::views(&copy, &self.config, &self.layout)?.with_vectors(self.weights.vectors())?;
            for (block, weights) in self.blocks.iter_mut().zip(&self.weights.blocks) {
                block.weights = weights.clone();
            }
            self.copy = Some(copy);
            self.round_copies()?;
        }
        Ok(self)
    }

    /// Rounds weights and adapters to bf16 again, where products use rounded copies. Every change of the weights needs it but the
    /// optimizer's, which updates the copy itself.
    pub fn round_copies(&self) -> Result<()> {
        #[cfg(any(test, feature = "cuda"))]
        {
            let flats = [Some(&self.flat), self.adapters.as_ref().map(|adapters| &adapters.flat)];
            for (flat, copy) in flats.into_iter().zip([&self.copy, &self.adapters_copy]) {
                if let (Some(flat), Some(copy)) = (flat, copy) {
                    crate::ops::cuda::round_to_bf16(flat, copy)?;
                }
            }
        }
        Ok(())
    }

    /// The rounded copy of what is trained, which an update must update as well.
    pub fn trained_copy(&self) -> Option<&Tensor> {
        if self.adapters.is_some() { self.adapters_copy.as_ref() } else { self.copy.as_ref() }
    }

    /// The same model with `adapters` beside its weights, which they share: an update of their buffer is an update of the model.
    pub fn with_adapters(mut self, adapters: Adapters) -> Result<Self> {
        let Adapters { config, layout, flat, mut blocks } = adapters;
        if self.copy.is_some() {
            let copy = Tensor::zeros(layout.total, DType::BF16, flat.device())?;
            blocks = lora::views(&copy, &layout, &self.config, &config)?;
            self.adapters_copy = Some(copy);
        }
        let scale = lora::scale(&config);
        for (block, adapters) in self.blocks.iter_mut().zip(&blocks) {
            block.adapters = Some((adapters.clone(), scale));
        }
        self.adapters = Some(Adapters { config, layout, flat, blocks });
        self.round_copies()?;
        Ok(self)
    }

    /// Layout and buffer of what is trained: the adapters if there are any, else the weights.
    pub fn trained(&self) -> (&Layout, &Tensor) {
        self.adapters.as_ref().map_or((&self.layout, &self.flat), |adapters| (&adapters.layout, &adapters.flat))
    }

    /// Views of `flat`, a buffer of gradients of what is trained.
    pub fn grads(&self, flat: &Tensor) -> Result<Grads> {
        match &self.adapters {
            None => Ok(Grads::Weights(Weights::views(flat, &self.config, &self.layout)?)),
            Some(adapters) => Ok(Grads::Adapters(lora::views(flat, &adapters.layout, &self.config, &adapters.config)?)),
        }
    }

    /// Runs a pass where its ops compute. From another thread each of them would move to a computing thread and back, and its tensors
    /// from one core's cache to another's.
    fn on_computing_thread<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        if is_on_gpu(&self.flat) { pass() } else { on_first_pool_thread(pass) }
    }

    /// A training pass: losses of every position, and the gradients of `scale · Σ losses` ADDED to `grads`.
    ///
    /// `inputs` (b, t) u32; `targets` (b·t) u32, [`IGNORE`](crate::ops::cross_entropy::IGNORE) where nothing is trained; a row
    /// is one context, or several documents, as `feed` says.
    pub fn loss_and_backward(
        &self,
        inputs: &Tensor,
        targets: &Tensor,
        feed: TrainInput,
        scale: f32,
        grads: &Grads,
    ) -> Result<TrainOutput> {
        let started = Instant::now();
        let mut output =
            self.on_computing_thread(|| self.training_pass(started, inputs, targets, feed, scale, grads))?;
        // Waking the other threads up is a part of forward, and waiting for them of backward.
        output.times.backward = started.elapsed() - output.times.forward - output.times.head;
        Ok(output)
    }

    fn training_pass(
        &self,
        started: Instant,
        inputs: &Tensor,
        targets: &Tensor,
        feed: TrainInput,
        scale: f32,
        grads: &Grads,
    ) -> Result<TrainOutput> {
        let TrainInput { documents, noise, observe } = feed;
        let mut times = PassTimes::default();
        let mut logit_max = Vec::new();
        let cx = Context { rope: &self.rope, documents, noise };
        // Frozen weights have no gradients.
        let weight_grads = grads.weights();
        let mut saved = Vec::with_capacity(self.blocks.len());
        let mut residual = self.embed(inputs)?;
        if let Some(noise) = noise {
            noise.on_embeddings(&residual.h, documents)?;
        }
        for block in &self.blocks {
            let (above, activations) = block.forward(residual, cx, Attend::Batch)?;
            let kept = SavedForward::new(activations, self.recompute);
            if observe {
                logit_max.push(block.max_logit(&kept, cx)?);
            }
            saved.push(kept);
            residual = above;
        }
        let Normed { h, y, rstd } = self.final_norm(&residual)?;
        // `h` is its sum; the addends would only take memory through the backward pass.
        drop(residual);
        let rows = y.flatten_to(1)?;
        times.forward = started.elapsed();
        let head = &self.weights.lm_head;
        let head_grad = weight_grads.map(|grads| &grads.lm_head);
        let (losses, dy) = cross_entropy_and_backward(&rows, head, targets, scale, head_grad, self.precision)?;
        // It multiplies by the head once more, so only steps that are observed pay for it.
        let observed = observe.then(|| self.observed(&rows, logit_max)).transpose()?;
        times.head = started.elapsed() - times.forward;
        let dy = dy.reshape(y.shape())?;
        let norm_grad = weight_grads.map(|grads| &grads.norm);
        let mut dx = rms_norm_backward(&dy, &h, &rstd, &self.weights.norm, None, norm_grad)?;
        // Now, because memory peaks in the backward pass of the blocks.
        drop((h, y, rows, dy));
        for (i, (block, saved)) in self.blocks.iter().zip(saved).enumerate().rev() {
            dx = block.backward(saved, dx, cx, grads.block(i))?;
        }
        if let Some(grads) = weight_grads {
            embedding_backward(inputs, &dx, &grads.embed_tokens)?;
        }
        Ok(TrainOutput { losses, times, observed })
    }

    fn observed(&self, rows: &Tensor, attention_logit_max: Vec<f32>) -> Result<ActivationStats> {
        let logit_squares = logit_squares(rows, &self.weights.lm_head, self.precision)?;
        Ok(ActivationStats {
            attention_logit_max,
            logit_squares,
            logit_count: (rows.dim(0)? * self.config.vocab_size) as f64,
        })
    }

    /// Losses of every position (b·t), without gradients and without saving activations.
    pub fn losses(&self, inputs: &Tensor, targets: &Tensor, documents: Option<&DocumentStarts>) -> Result<Tensor> {
        self.on_computing_thread(|| {
            let hidden = self.hidden(inputs, documents)?.flatten_to(1)?;
            cross_entropy(&hidden, &self.weights.lm_head, targets, self.precision)
        })
    }

    /// Logits of every position (b, t, v): for tests and small inputs; training and evaluation never hold them.
    pub fn logits(&self, inputs: &Tensor) -> Result<Tensor> {
        linear(&self.hidden(inputs, None)?, &self.weights.lm_head, self.precision)
    }

    /// Normed output of the last block (b, t, c).
    fn hidden(&self, inputs: &Tensor, documents: Option<&DocumentStarts>) -> Result<Tensor> {
        let cx = Context { rope: &self.rope, documents, noise: None };
        let mut residual = self.embed(inputs)?;
        for block in &self.blocks {
            residual = block.forward(residual, cx, Attend::Batch)?.0;
        }
        Ok(self.final_norm(&residual)?.y)
    }

    fn embed(&self, inputs: &Tensor) -> Result<Residual> {
        Ok(Residual { h: embedding(inputs, &self.weights.embed_tokens)?, pending: None })
    }

    fn final_norm(&self, residual: &Residual) -> Result<Normed> {
        let eps = self.config.rms_norm_eps;
        add_rms_norm(&residual.h, residual.pending.as_ref(), &self.weights.norm, eps, self.precision)
    }
}

#[cfg(test)]
pub(crate) mod tests;
