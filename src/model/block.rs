//! One transformer block, forward and backward side by side; what forward saves, backward consumes.
//!
//! ```text
//! x  = x + pending (of the block below)  n1 = RMSNorm(x)  qkv = n1 Wqkvᵀ, rotated  a = attention(qkv)  o = a Woᵀ
//! h  = x + o                             n2 = RMSNorm(h)  gu = n2 Wguᵀ             s = swiglu(gu)      out = s Wdᵀ
//! ```
//! Architectures differ by little: biases on products, a norm of each query and key head before rotation, blocks without rotation, a window.
//! The residual stream travels as a pair (h, pending = out), so that each addition happens inside the next norm's pass. Training,
//! evaluation over prefix trees and generation over a cache share this forward pass; [`Attend`] is all that differs. What backward finds
//! saved and what it computes again, to the same bits, is [`Recompute`]'s choice. Letters of shapes are those of `ops.rs`, but H and K
//! for the numbers of query and of key/value heads, since `h` is the stream.

pub use super::block_weights::BlockWeights;
use super::layer_cache::LayerCache;
use super::lora::BlockAdapters;
use super::noise::Noise;
use crate::config::{ModelConfig, Product};
use crate::ops::attention::{
    Heads, Mask, attention, attention_backward, attention_cached, attention_prefix_tree, max_logit,
};
use crate::ops::bias::{add_bias, bias_backward};
use crate::ops::linear::{linear, linear_backward, linear_backward_input, linear_saved};
use crate::ops::lora::{LoraAdapter, lora, lora_backward};
use crate::ops::noise::Dropout;
use crate::ops::positions::{DocumentStarts, Positions};
use crate::ops::precision::Precision;
use crate::ops::prefix_tree::PrefixTree;
use crate::ops::qk_norm::{qk_norm, qk_norm_backward};
use crate::ops::rms_norm::{Normed, add_rms_norm, rms_norm_backward, rms_norm_recompute};
use crate::ops::rope::{Rope, rope, rope_backward};
use crate::ops::swiglu::{swiglu, swiglu_backward};
use candle_core::{Result, Tensor, bail};

/// A block's weights and the constants its ops need.
#[derive(Clone, Debug)]
pub struct Block {
    /// Views of the model's flat buffer.
    pub weights: BlockWeights,
    pub heads: Heads,
    pub eps: f64,
    pub precision: Precision,
    /// Which block it is, from the bottom.
    pub index: usize,
    /// Whether queries and keys are rotated.
    pub rotates: bool,
    /// How many keys, its own included, a query sees; none: all.
    pub window: Option<usize>,
    /// LoRA's matrices beside the products, and the factor on what they add.
    pub adapters: Option<(BlockAdapters, f64)>,
}

/// What every layer of a pass over a batch shares.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub rope: &'a Rope,
    /// Where documents start in the rows of [`Attend::Batch`]; none: a row is one context.
    pub documents: Option<&'a DocumentStarts>,
    /// What is random about a training step.
    pub noise: Option<&'a Noise>,
}

/// The keys and values that the queries of a forward pass attend to.
pub enum Attend<'a> {
    /// Those of the batch itself. Only this pass has a backward pass.
    Batch,
    /// Those of one row of sequences that share prefixes.
    Tree(&'a PrefixTree),
    /// Those of older positions in a cache, which takes in the new ones.
    Cache(&'a mut LayerCache),
}

impl Attend<'_> {
    /// Where the tokens of the batch stand, before a cache takes them in.
    fn positions<'p>(&'p self, cx: Context<'p>) -> Positions<'p> {
        match self {
            Self::Batch => Positions::of_documents(cx.documents),
            Self::Tree(tree) => Positions::Tree(tree),
            Self::Cache(cache) => Positions::From(cache.len()),
        }
    }
}

/// Gradients of the trained parameters of a block.
#[derive(Clone, Copy)]
pub enum BlockGrads<'a> {
    Weights(&'a BlockWeights),
    /// Its adapters; the weights are frozen.
    Adapters(&'a BlockAdapters),
}

/// What backward computes again instead of having it kept since forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    None,
    /// Norms and SwiGLU, which cost one pass over memory: a third of the activations for next to nothing.
    #[default]
    Selective,
    /// The whole block but its last product: all activations but the residual stream for a quarter more work.
    Full,
}

/// What a block computes on the way: (b, t, …) each, `n` rows for the statistics. What is none, backward computes again.
pub struct Activations {
    /// The block's input, the residual stream before its first norm.
    x: Tensor,
    rstd1: Tensor,
    n1: Option<Tensor>,
    /// Queries and keys before their norms, if there are such norms.
    qk: Option<Tensor>,
    qkv: Tensor,
    attn: Tensor,
    /// Log-sum-exp of attention; only with [`Attend::Batch`].
    lse: Option<Tensor>,
    h: Tensor,
    rstd2: Tensor,
    n2: Option<Tensor>,
    gate_up: Tensor,
    act: Option<Tensor>,
}

/// What backward needs from forward. Taken by value: gone when used.
pub enum SavedForward {
    /// The block's input alone: the rest is computed again.
    Input(Tensor),
    Activations(Activations),
}

impl SavedForward {
    /// What `recompute` keeps of `activations`; the rest is freed.
    pub fn new(activations: Activations, recompute: Recompute) -> Self {
        match recompute {
            Recompute::None => Self::Activations(activations),
            Recompute::Selective => Self::Activations(Activations { n1: None, n2: None, act: None, ..activations }),
            Recompute::Full => Self::Input(activations.x),
        }
    }
}

/// The residual stream between blocks: its value is `h + pending`.
pub struct Residual {
    /// (b, t, c)
    pub h: Tensor,
    /// The last feed-forward's output, which the next norm adds; none before the first block.
    pub pending: Option<Tensor>,
}

impl Block {
    /// Block `index` of a model, counted from the bottom, with products in f32 and without adapters.
    pub(super) fn new(config: &ModelConfig, index: usize, weights: BlockWeights) -> Self {
        let heads = Heads { q: config.num_attention_heads, kv: config.num_key_value_heads, dim: config.head_dim };
        Self {
            weights,
            heads,
            eps: config.rms_norm_eps,
            precision: Precision::F32,
            index,
            rotates: config.layer_rotates(index),
            window: config.layer_window(index),
            adapters: None,
        }
    }

    /// Whether the fused kernels of `decode.rs` compute this block; every addition to its forward pass must be excluded here.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn has_fused_decode(&self) -> bool {
        let has_additions = self.weights.qk_norm.is_some() || self.weights.biases.iter().any(Option::is_some);
        self.adapters.is_none() && self.rotates && self.window.is_none() && !has_additions
    }

    /// Heads that RoPE turns: those of queries and keys.
    fn rotated(&self) -> usize {
        self.heads.q + self.heads.kv
    }

    /// The type in memory of what only products read. Adapters read it as well, in f32.
    fn stored(&self) -> Precision {
        if self.adapters.is_some() { Precision::F32 } else { self.precision }
    }

    /// What hides keys from the queries of a batch.
    fn mask<'a>(&self, cx: Context<'a>) -> Mask<'a> {
        Mask { documents: cx.documents, window: self.window }
    }

    fn adapter(&self, product: Product) -> Option<(&LoraAdapter, f64)> {
        let (adapters, scale) = self.adapters.as_ref()?;
        adapters[product as usize].as_ref().map(|adapter| (adapter, *scale))
    }

    fn dropout(&self, product: Product, x: &Tensor, noise: Option<&Noise>) -> Option<Dropout> {
        noise?.dropout(self.index, product as usize, x)
    }

    /// One of the block's products of `x`, bias and adapters included.
    fn project(&self, product: Product, x: &Tensor, noise: Option<&Noise>) -> Result<Tensor> {
        let bias = self.weights.bias(product);
        if product == Product::GateUp && self.adapters.is_none() && bias.is_none() {
            // The largest of what forward saves.
            return linear_saved(x, self.weights.product(product), self.precision);
        }
        let y = linear(x, self.weights.product(product), self.precision)?;
        if let Some(bias) = bias {
            add_bias(&y, bias)?;
        }
        if let Some((adapter, scale)) = self.adapter(product) {
            lora(&y, x, adapter, scale, self.dropout(product, x, noise).as_ref(), self.precision)?;
        }
        Ok(y)
    }

    /// From the gradient of a product to that of its input `x`; accumulates what is trained into `grads`.
    fn project_backward(
        &self,
        product: Product,
        dy: &Tensor,
        x: &Tensor,
        noise: Option<&Noise>,
        grads: BlockGrads,
    ) -> Result<Tensor> {
        let adapters = match grads {
            BlockGrads::Weights(grads) => {
                if let Some(dbias) = grads.bias(product) {
                    bias_backward(dy, dbias)?;
                }
                return linear_backward(dy, x, self.weights.product(product), grads.product(product), self.precision);
            }
            BlockGrads::Adapters(grads) => grads,
        };
        let dx = linear_backward_input(dy, self.weights.product(product), self.precision)?;
        if let (Some((adapter, scale)), Some(grads)) = (self.adapter(product), &adapters[product as usize]) {
            // The mask of the forward pass, drawn again under the same key instead of being saved.
            let dropout = self.dropout(product, x, noise);
            lora_backward(&dx, dy, x, adapter, grads, scale, dropout.as_ref(), self.precision)?;
        }
        Ok(dx)
    }

    /// The stream above this block, and what was computed on the way.
    pub fn forward(&self, residual: Residual, cx: Context, attend: Attend) -> Result<(Residual, Activations)> {
        let w = &self.weights;
        let normed = add_rms_norm(&residual.h, residual.pending.as_ref(), &w.input_layernorm, self.eps, self.stored())?;
        let (activations, act) = self.up_to_activation(normed, cx, attend)?;
        // The next norm adds this while it reads the stream anyway: one pass over memory less.
        let pending = Some(self.project(Product::Down, &act, cx.noise)?);
        let above = Residual { h: activations.h.clone(), pending };
        Ok((above, Activations { act: Some(act), ..activations }))
    }

    /// From the first norm up to the input of the last product, which is returned beside the rest.
    fn up_to_activation(&self, normed: Normed, cx: Context, attend: Attend) -> Result<(Activations, Tensor)> {
        let Normed { h: x, y: n1, rstd: rstd1 } = normed;
        let qkv = self.project(Product::Qkv, &n1, cx.noise)?;
        let weights = self.weights.qk_norm();
        let qk = weights.map(|weights| qk_norm(&qkv, weights, self.heads, self.eps)).transpose()?;
        // Saved as rotated: attention's backward pass needs it so, and the gradient is turned back after it.
        if self.rotates {
            rope(&qkv, cx.rope, self.rotated(), attend.positions(cx))?;
        }
        let (attn, lse) = self.attention(&qkv, cx, attend)?;
        let o = self.project(Product::O, &attn, cx.noise)?;
        let Normed { h, y: n2, rstd: rstd2 } =
            add_rms_norm(&x, Some(&o), &self.weights.post_attention_layernorm, self.eps, self.stored())?;
        let gate_up = self.project(Product::GateUp, &n2, cx.noise)?;
        let act = swiglu(&gate_up, self.stored())?;
        let n1 = Some(n1);
        let n2 = Some(n2);
        Ok((Activations { x, rstd1, n1, qk, qkv, attn, lse, h, rstd2, n2, gate_up, act: None }, act))
    }

    /// Output (b, t, H·d) of attention from rotated `qkv`, and the log-sum-exp where there is a backward pass.
    fn attention(&self, qkv: &Tensor, cx: Context, attend: Attend) -> Result<(Tensor, Option<Tensor>)> {
        match attend {
            Attend::Batch => {
                let (out, lse) = attention(qkv, self.heads, self.mask(cx), self.precision)?;
                Ok((out, Some(lse)))
            }
            Attend::Tree(tree) => {
                Ok((attention_prefix_tree(qkv, tree, self.heads, self.window, self.precision)?, None))
            }
            Attend::Cache(cache) => {
                let q_width = self.heads.out();
                let kv_width = self.heads.kv * self.heads.dim;
                // Read before the new rows move it.
                let start = cache.len();
                cache.append(&qkv.narrow(2, q_width, kv_width)?, &qkv.narrow(2, q_width + kv_width, kv_width)?)?;
                let q = qkv.narrow(2, 0, q_width)?;
                Ok((attention_cached(&q, cache.keys(), cache.values(), self.heads, start, self.window)?, None))
            }
        }
    }

    /// What was computed on the way, once more from the block's input: the same bits.
    fn activations_again(&self, x: &Tensor, cx: Context) -> Result<Activations> {
        // `x` was saved after the addition, so nothing is pending.
        let normed = add_rms_norm(x, None, &self.weights.input_layernorm, self.eps, self.stored())?;
        let (activations, act) = self.up_to_activation(normed, cx, Attend::Batch)?;
        Ok(Activations { act: Some(act), ..activations })
    }

    /// The largest logit of the attention that left `saved`.
    pub fn max_logit(&self, saved: &SavedForward, cx: Context) -> Result<f32> {
        match saved {
            SavedForward::Activations(a) => max_logit(&a.qkv, self.heads, self.mask(cx)),
            SavedForward::Input(x) => max_logit(&self.activations_again(x, cx)?.qkv, self.heads, self.mask(cx)),
        }
    }

    /// From the gradient of what attention took, in place, to that of the product before: back through rotation and norms of heads.
    fn qk_backward(&self, dqkv: &Tensor, qk: Option<Tensor>, cx: Context, grads: BlockGrads) -> Result<()> {
        if self.rotates {
            rope_backward(dqkv, cx.rope, self.rotated(), Positions::of_documents(cx.documents))?;
        }
        let (Some(weights), Some(before)) = (self.weights.qk_norm(), qk) else { return Ok(()) };
        let grads = match grads {
            BlockGrads::Weights(grads) => grads.qk_norm(),
            BlockGrads::Adapters(_) => None,
        };
        qk_norm_backward(dqkv, &before, weights, self.heads, self.eps, grads)
    }

    /// From the gradient of the stream above to that of the stream below; accumulates what is trained into `grads`.
    pub fn backward(&self, saved: SavedForward, dy: Tensor, cx: Context, grads: BlockGrads) -> Result<Tensor> {
        let w = &self.weights;
        let activations = match saved {
            SavedForward::Activations(activations) => activations,
            SavedForward::Input(x) => self.activations_again(&x, cx)?,
        };
        let Activations { x, rstd1, n1, qk, qkv, attn, lse, h, rstd2, n2, gate_up, act } = activations;
        let Some(lse) = lse else { bail!("there is no backward pass of attention over a cache or a prefix tree") };
        let norms = match grads {
            BlockGrads::Weights(grads) => Some((&grads.input_layernorm, &grads.post_attention_layernorm)),
            BlockGrads::Adapters(_) => None,
        };

        // Each tensor is dropped after its last use: at the peak a block's activations and their gradients are there together.
        let act = act.map_or_else(|| swiglu(&gate_up, self.stored()), Ok)?;
        let ds = self.project_backward(Product::Down, &dy, &act, cx.noise, grads)?;
        drop(act);
        let dgate_up = swiglu_backward(&gate_up, &ds, self.stored())?;
        drop((gate_up, ds));
        let n2 = n2.map_or_else(|| rms_norm_recompute(&h, &rstd2, &w.post_attention_layernorm, self.stored()), Ok)?;
        let dn2 = self.project_backward(Product::GateUp, &dgate_up, &n2, cx.noise, grads)?;
        drop((dgate_up, n2));
        // The stream's gradient reaches `h` twice: through the feed-forward, and past it as `dy`.
        let dh =
            rms_norm_backward(&dn2, &h, &rstd2, &w.post_attention_layernorm, Some(&dy), norms.map(|(_, post)| post))?;
        drop((dn2, h, dy));

        let dattn = self.project_backward(Product::O, &dh, &attn, cx.noise, grads)?;
        let dqkv = attention_backward(&qkv, &attn, &lse, &dattn, self.heads, self.mask(cx), self.precision)?;
        drop((qkv, attn, dattn));
        self.qk_backward(&dqkv, qk, cx, grads)?;
        let n1 = n1.map_or_else(|| rms_norm_recompute(&x, &rstd1, &w.input_layernorm, self.stored()), Ok)?;
        let dn1 = self.project_backward(Product::Qkv, &dqkv, &n1, cx.noise, grads)?;
        rms_norm_backward(&dn1, &x, &rstd1, &w.input_layernorm, Some(&dh), norms.map(|(input, _)| input))
    }
}
