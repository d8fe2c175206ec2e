//! Llama: embed → blocks → norm → head, with the whole chain of forward and backward on one screen.
//!
//! | file | holds |
//! |---|---|
//! | `block.rs` | one layer, forward and backward |
//! | `names.rs` | Hugging Face's names and shapes, in the order of buffers and files |
//! | `params.rs` | the flat buffer and its views |
//! | `init.rs` | every initialisation rule |
//! | `kv_cache.rs` | keys and values for generation |
//! | `decode.rs` | forward for generation on a GPU |
//! | `lora.rs` | adapters beside frozen weights |
//! | `noise.rs` | dropout, noise on embeddings |
//! | `tree.rs` | forward for evaluation |
//!
//! The model does no I/O and knows no optimizer.

pub mod block;
#[cfg(any(test, feature = "cuda"))]
mod decode;
pub mod init;
pub mod kv_cache;
pub mod lora;
pub mod names;
pub mod noise;
pub mod params;
pub mod prefix_tree;

use crate::config::ModelConfig;
use crate::ops::attention::Heads;
use crate::ops::cross_entropy::{cross_entropy, cross_entropy_and_backward, logit_squares};
use crate::ops::embedding::{embedding, embedding_backward};
use crate::ops::is_on_gpu;
use crate::ops::linear::linear;
use crate::ops::positions::{DocumentStarts, Positions};
use crate::ops::precision::Precision;
use crate::ops::rms_norm::{Normed, add_rms_norm, rms_norm_backward};
use crate::ops::rope::Rope;
pub use block::Recompute;
use block::{Block, BlockGrads, Context, Stream};
use candle_core::{DType, Result, Tensor, bail};
use kv_cache::KvCache;
use lora::{Adapters, BlockAdapters};
use noise::Noise;
use params::{Layout, Weights};
use std::time::{Duration, Instant};

/// A LLaMA over one flat buffer of weights.
pub struct Llama {
    pub config: ModelConfig,
    /// Where each named tensor lies.
    pub layout: Layout,
    pub flat: Tensor,
    weights: Weights,
    blocks: Vec<Block>,
    rope: Rope,
    precision: Precision,
    /// The weights rounded to bf16, which a GPU computes with in that precision; the norms' are not taken from it.
    copy: Option<Tensor>,
    /// Trained beside the weights, which are then frozen.
    pub adapters: Option<Adapters>,
    /// The adapters rounded in the same way.
    adapters_copy: Option<Tensor>,
    /// What a training pass computes again instead of keeping it.
    pub recompute: Recompute,
}

/// Gradients of what is trained of a model: views of a flat buffer.
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

/// What a training step feeds besides tokens.
#[derive(Clone, Copy, Default)]
pub struct TrainInput<'a> {
    /// Documents in the rows; none: a row is one context.
    pub documents: Option<&'a DocumentStarts>,
    /// What is random about it.
    pub noise: Option<&'a Noise>,
    /// Whether to look at [`ActivationStats`] on the way.
    pub observe: bool,
}

/// What a training pass leaves besides gradients.
pub struct TrainOutput {
    /// Losses of every position (b·t), in nats.
    pub losses: Tensor,
    pub times: PassTimes,
    /// If it was asked for.
    pub observed: Option<ActivationStats>,
}

/// The time of a pass by its parts. On a device that works on its own it is that of giving it the work.
#[derive(Clone, Copy, Debug, Default)]
pub struct PassTimes {
    pub forward: Duration,
    /// Logits and loss, forward and backward in one.
    pub head: Duration,
    pub backward: Duration,
}

/// What a pass has seen that shows trouble early.
#[derive(Clone, Debug)]
pub struct ActivationStats {
    /// The largest logit of every block's attention.
    pub attention_logit_max: Vec<f32>,
    /// Sum of the squares of the head's logits.
    pub logit_squares: f64,
    pub logits: f64,
}

impl ActivationStats {
    /// This and `other`, of other rows.
    pub fn and(mut self, other: Self) -> Self {
        for (a, b) in self.attention_logit_max.iter_mut().zip(other.attention_logit_max) {
            *a = a.max(b);
        }
        Self { logit_squares: self.logit_squares + other.logit_squares, logits: self.logits + other.logits, ..self }
    }

    /// Root of the mean square of the head's logits.
    pub fn logit_rms(&self) -> f64 {
        (self.logit_squares / self.logits).sqrt()
    }
}

impl Llama {
    /// A model over `flat` (see [`Layout`]), which it shares: an update of the buffer is an update of the model.
    pub fn new(config: &ModelConfig, flat: Tensor) -> Result<Self> {
        let layout = Layout::new(config);
        let weights = Weights::views(&flat, config, &layout)?;
        let heads = Heads { q: config.num_attention_heads, kv: config.num_key_value_heads, dim: config.head_dim };
        let block = |(index, w): (usize, &params::BlockWeights)| Block {
            weights: w.clone(),
            heads,
            eps: config.rms_norm_eps,
            precision: Precision::F32,
            index,
            adapters: None,
        };
        let blocks = weights.blocks.iter().enumerate().map(block).collect();
        let rope = Rope::new(config.head_dim, config.rope_theta, config.max_position_embeddings).on(flat.device());
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

    /// The same model with matrix products in `precision`; on a GPU bf16 is that of weights and activations, too.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self> {
        self.precision = precision;
        self.blocks.iter_mut().for_each(|block| block.precision = precision);
        if precision == Precision::Bf16 && is_on_gpu(&self.flat) {
            let copy = Tensor::zeros(self.layout.total, DType::BF16, self.flat.device())?;
            self.weights = Weights::views(&copy, &self.config, &self.layout)?.with_norms_of(&self.weights);
            for (block, weights) in self.blocks.iter_mut().zip(&self.weights.blocks) {
                block.weights = weights.clone();
            }
            self.copy = Some(copy);
            self.refresh()?;
        }
        Ok(self)
    }

    /// Rounds weights and adapters anew, where they are computed with rounded: after every change but those by the optimizer.
    pub fn refresh(&self) -> Result<()> {
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

    /// The rounding of what is trained, which an update must keep in step.
    pub fn copy(&self) -> Option<&Tensor> {
        if self.adapters.is_some() { self.adapters_copy.as_ref() } else { self.copy.as_ref() }
    }

    /// An empty cache for `batch` sequences of up to `capacity` positions.
    pub fn cache(&self, batch: usize, capacity: usize) -> Result<KvCache> {
        let dtype = self.copy.as_ref().map_or(DType::F32, Tensor::dtype);
        KvCache::new(&self.config, batch, capacity, dtype, self.flat.device())
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
        self.refresh()?;
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

    /// A training pass: losses of every position, and the gradients of `scale · Σ losses` ADDED to `grads`.
    ///
    /// `inputs` (b, t) u32; `targets` (b·t) u32, [`IGNORE`](crate::ops::cross_entropy::IGNORE) where nothing is trained; a row
    /// is one context, or several documents apart from each other as `feed` says.
    pub fn loss_and_backward(
        &self,
        inputs: &Tensor,
        targets: &Tensor,
        feed: TrainInput,
        scale: f32,
        grads: &Grads,
    ) -> Result<TrainOutput> {
        let TrainInput { documents, noise, observe } = feed;
        let (begun, mut times) = (Instant::now(), PassTimes::default());
        let mut logit_max = Vec::new();
        let cx = Context { rope: &self.rope, positions: Positions::of_documents(documents), noise };
        let all = grads.weights();
        let mut saved = Vec::with_capacity(self.blocks.len());
        let mut stream = self.embed(inputs)?;
        if let Some(noise) = noise {
            noise.on_embeddings(&stream.h, cx.positions)?;
        }
        for block in &self.blocks {
            let (above, s) = block.forward(stream, cx, self.recompute)?;
            if observe {
                logit_max.push(block.max_logit(&s, cx)?);
            }
            saved.push(s);
            stream = above;
        }
        let Normed { h, y, rstd } = self.final_norm(&stream)?;
        drop(stream);
        let rows = y.flatten_to(1)?;
        times.forward = begun.elapsed();
        let (head, dhead) = (&self.weights.lm_head, all.map(|grads| &grads.lm_head));
        let (losses, dy) = cross_entropy_and_backward(&rows, head, targets, scale, dhead, self.precision)?;
        let observed = observe.then(|| self.observed(&rows, logit_max)).transpose()?;
        times.head = begun.elapsed() - times.forward;
        let dy = dy.reshape(y.shape())?;
        let mut dx = rms_norm_backward(&dy, &h, &rstd, &self.weights.norm, None, all.map(|grads| &grads.norm))?;
        drop((h, y, rows, dy));
        for (i, (block, s)) in self.blocks.iter().zip(saved).enumerate().rev() {
            dx = block.backward(s, dx, cx, grads.block(i))?;
        }
        if let Some(grads) = all {
            embedding_backward(inputs, &dx, &grads.embed_tokens)?;
        }
        times.backward = begun.elapsed() - times.forward - times.head;
        Ok(TrainOutput { losses, times, observed })
    }

    fn observed(&self, rows: &Tensor, attention_logit_max: Vec<f32>) -> Result<ActivationStats> {
        let logit_squares = logit_squares(rows, &self.weights.lm_head, self.precision)?;
        Ok(ActivationStats {
            attention_logit_max,
            logit_squares,
            logits: (rows.dim(0)? * self.config.vocab_size) as f64,
        })
    }

    /// Losses of every position (b·t), without gradients and without saving activations.
    pub fn losses(&self, inputs: &Tensor, targets: &Tensor, documents: Option<&DocumentStarts>) -> Result<Tensor> {
        let hidden = self.hidden(inputs, Positions::of_documents(documents))?.flatten_to(1)?;
        cross_entropy(&hidden, &self.weights.lm_head, targets, self.precision)
    }

    /// Logits of every position (b, t, v): for tests and small inputs; training and evaluation never hold them.
    pub fn logits(&self, inputs: &Tensor) -> Result<Tensor> {
        linear(&self.hidden(inputs, Positions::From(0))?, &self.weights.lm_head, self.precision)
    }

    /// Feeds `inputs` (b, t) after what the cache holds; logits (b, v) of the last position.
    pub fn next_logits(&self, inputs: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let t = inputs.dim(1)?;
        if t == 0 {
            bail!("nothing to feed");
        }
        #[cfg(any(test, feature = "cuda"))]
        if is_on_gpu(&self.flat)
            && let Some(logits) = self.decode(inputs, cache)?
        {
            return Ok(logits);
        }
        let mut stream = self.embed(inputs)?;
        for (block, cache) in self.blocks.iter().zip(&mut cache.layers) {
            stream = block.forward_cached(stream, &self.rope, cache)?;
        }
        let last = |x: &Tensor| x.narrow(1, t - 1, 1)?.contiguous();
        let stream = Stream { h: last(&stream.h)?, branch: stream.branch.as_ref().map(last).transpose()? };
        linear(&self.final_norm(&stream)?.y, &self.weights.lm_head, self.precision)?.squeeze(1)?.to_dtype(DType::F32)
    }

    /// Normed output of the last block (b, t, c).
    fn hidden(&self, inputs: &Tensor, positions: Positions) -> Result<Tensor> {
        let cx = Context { rope: &self.rope, positions, noise: None };
        let mut stream = self.embed(inputs)?;
        for block in &self.blocks {
            stream = block.forward(stream, cx, Recompute::Full)?.0;
        }
        Ok(self.final_norm(&stream)?.y)
    }

    fn embed(&self, inputs: &Tensor) -> Result<Stream> {
        Ok(Stream { h: embedding(inputs, &self.weights.embed_tokens)?, branch: None })
    }

    fn final_norm(&self, stream: &Stream) -> Result<Normed> {
        add_rms_norm(&stream.h, stream.branch.as_ref(), &self.weights.norm, self.config.rms_norm_eps)
    }
}

#[cfg(test)]
pub(crate) mod tests;
