//! One transformer block, forward and backward side by side; what forward saves, backward consumes.
//!
//! ```text
//! x  = x + branch (the block below)    n1 = RMSNorm(x)   qkv = n1 Wqkvᵀ, rotated   a = attention(qkv)   o = a Woᵀ
//! h  = x + o                           n2 = RMSNorm(h)   gu = n2 Wguᵀ              s = swiglu(gu)       out = s Wdᵀ
//! ```
//! The residual stream travels as a pair (h, out), so that each addition happens inside the next norm's pass. What of this backward finds
//! saved and what it computes again, to the same bits, is [`Recompute`]'s choice.

use super::kv_cache::LayerCache;
use super::lora::BlockAdapters;
use super::noise::Noise;
use super::params::BlockWeights;
use crate::ops::attention::{Heads, attention, attention_backward, attention_cached, max_logit};
use crate::ops::linear::{linear, linear_backward, linear_backward_input};
use crate::ops::lora::{LoraAdapter, lora, lora_backward};
use crate::ops::noise::Dropout;
use crate::ops::positions::Positions;
use crate::ops::precision::Precision;
use crate::ops::rms_norm::{Normed, add_rms_norm, rms_norm_backward, rms_norm_recompute};
use crate::ops::rope::{Rope, rope, rope_backward};
use crate::ops::swiglu::{swiglu, swiglu_backward};
use candle_core::{Result, Tensor};

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
    /// What is added to its products, and the factor of it.
    pub adapters: Option<(BlockAdapters, f64)>,
}

/// What a block's products are called: the order of [`BlockAdapters`].
#[derive(Clone, Copy, Debug)]
pub enum Product {
    /// q ‖ k ‖ v
    Qkv,
    O,
    GateUp,
    Down,
}

impl Product {
    /// Its weight, or the gradient of it.
    fn of(self, weights: &BlockWeights) -> &Tensor {
        match self {
            Self::Qkv => &weights.qkv_proj,
            Self::O => &weights.o_proj,
            Self::GateUp => &weights.gate_up_proj,
            Self::Down => &weights.down_proj,
        }
    }
}

/// Where a batch stands, and what is random about a training step.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub rope: &'a Rope,
    pub positions: Positions<'a>,
    pub noise: Option<&'a Noise>,
}

/// Gradients of what is trained of a block.
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

/// What backward needs from forward. Taken by value: gone when used.
pub struct Saved {
    /// (b, t, c)
    x: Tensor,
    /// None if it is computed again.
    inner: Option<Inner>,
}

/// What a block makes of its input: (b, t, …) each, `n` rows for the norms.
struct Inner {
    rstd1: Tensor,
    n1: Option<Tensor>,
    qkv: Tensor,
    attn: Tensor,
    lse: Tensor,
    h: Tensor,
    rstd2: Tensor,
    n2: Option<Tensor>,
    gate_up: Tensor,
    act: Option<Tensor>,
}

/// The residual stream between blocks: its value is `h + branch`.
pub struct Stream {
    /// (b, t, c)
    pub h: Tensor,
    /// The last feed-forward's output, not yet added; none before the first block.
    pub branch: Option<Tensor>,
}

impl Block {
    fn rotated(&self) -> usize {
        self.heads.q + self.heads.kv
    }

    fn adapter(&self, product: Product) -> Option<(&LoraAdapter, f64)> {
        let (adapters, scale) = self.adapters.as_ref()?;
        adapters[product as usize].as_ref().map(|adapter| (adapter, *scale))
    }

    fn dropout(&self, product: Product, x: &Tensor, noise: Option<&Noise>) -> Option<Dropout> {
        noise?.dropout(self.index, product as usize, x)
    }

    /// One of the block's products of `x`, adapters included.
    pub(super) fn project(&self, product: Product, x: &Tensor, noise: Option<&Noise>) -> Result<Tensor> {
        let y = linear(x, product.of(&self.weights), self.precision)?;
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
                return linear_backward(dy, x, product.of(&self.weights), product.of(grads), self.precision);
            }
            BlockGrads::Adapters(grads) => grads,
        };
        let dx = linear_backward_input(dy, product.of(&self.weights), self.precision)?;
        if let (Some((adapter, scale)), Some(grads)) = (self.adapter(product), &adapters[product as usize]) {
            let dropout = self.dropout(product, x, noise);
            lora_backward(&dx, dy, x, adapter, grads, scale, dropout.as_ref(), self.precision)?;
        }
        Ok(dx)
    }

    /// The stream above this block, and what backward will need.
    pub fn forward(&self, stream: Stream, cx: Context, recompute: Recompute) -> Result<(Stream, Saved)> {
        let normed = add_rms_norm(&stream.h, stream.branch.as_ref(), &self.weights.input_layernorm, self.eps)?;
        let (x, mut inner, act) = self.inner(normed, cx)?;
        let out = self.project(Product::Down, &act, cx.noise)?;
        let above = Stream { h: inner.h.clone(), branch: Some(out) };
        match recompute {
            Recompute::None => inner.act = Some(act),
            Recompute::Selective => (inner.n1, inner.n2) = (None, None),
            Recompute::Full => return Ok((above, Saved { x, inner: None })),
        }
        Ok((above, Saved { x, inner: Some(inner) }))
    }

    /// From the first norm up to the activation: the block's input, all but the activation, the activation.
    fn inner(&self, normed: Normed, cx: Context) -> Result<(Tensor, Inner, Tensor)> {
        let Normed { h: x, y: n1, rstd: rstd1 } = normed;
        let qkv = self.project(Product::Qkv, &n1, cx.noise)?;
        rope(&qkv, cx.rope, self.rotated(), cx.positions)?;
        let (attn, lse) = attention(&qkv, self.heads, cx.positions.documents(), self.precision)?;
        let o = self.project(Product::O, &attn, cx.noise)?;
        let Normed { h, y: n2, rstd: rstd2 } =
            add_rms_norm(&x, Some(&o), &self.weights.post_attention_layernorm, self.eps)?;
        let gate_up = self.project(Product::GateUp, &n2, cx.noise)?;
        let act = swiglu(&gate_up)?;
        let (n1, n2) = (Some(n1), Some(n2));
        Ok((x, Inner { rstd1, n1, qkv, attn, lse, h, rstd2, n2, gate_up, act: None }, act))
    }

    /// The same once more, from the block's input.
    fn inner_again(&self, x: &Tensor, cx: Context) -> Result<Inner> {
        let (_, inner, act) = self.inner(add_rms_norm(x, None, &self.weights.input_layernorm, self.eps)?, cx)?;
        Ok(Inner { act: Some(act), ..inner })
    }

    /// The largest logit of the attention that left `saved`.
    pub fn max_logit(&self, saved: &Saved, cx: Context) -> Result<f32> {
        let of = |inner: &Inner| max_logit(&inner.qkv, self.heads, cx.positions.documents());
        saved.inner.as_ref().map_or_else(|| of(&self.inner_again(&saved.x, cx)?), of)
    }

    /// From the gradient of the stream above to that of the stream below; accumulates what is trained into `grads`.
    pub fn backward(&self, saved: Saved, dy: Tensor, cx: Context, grads: BlockGrads) -> Result<Tensor> {
        let (w, x) = (&self.weights, saved.x);
        let inner = saved.inner.map_or_else(|| self.inner_again(&x, cx), Ok)?;
        let Inner { rstd1, n1, qkv, attn, lse, h, rstd2, n2, gate_up, act } = inner;

        let norms = match grads {
            BlockGrads::Weights(grads) => Some((&grads.input_layernorm, &grads.post_attention_layernorm)),
            BlockGrads::Adapters(_) => None,
        };

        let act = act.map_or_else(|| swiglu(&gate_up), Ok)?;
        let ds = self.project_backward(Product::Down, &dy, &act, cx.noise, grads)?;
        drop(act);
        let dgate_up = swiglu_backward(&gate_up, &ds)?;
        drop((gate_up, ds));
        let n2 = n2.map_or_else(|| rms_norm_recompute(&h, &rstd2, &w.post_attention_layernorm), Ok)?;
        let dn2 = self.project_backward(Product::GateUp, &dgate_up, &n2, cx.noise, grads)?;
        drop((dgate_up, n2));
        let dh =
            rms_norm_backward(&dn2, &h, &rstd2, &w.post_attention_layernorm, Some(&dy), norms.map(|(_, post)| post))?;
        drop((dn2, h, dy));

        let dattn = self.project_backward(Product::O, &dh, &attn, cx.noise, grads)?;
        let dqkv = attention_backward(&qkv, &attn, &lse, &dattn, self.heads, cx.positions.documents(), self.precision)?;
        drop((qkv, attn, dattn));
        rope_backward(&dqkv, cx.rope, self.rotated(), cx.positions)?;
        let n1 = n1.map_or_else(|| rms_norm_recompute(&x, &rstd1, &w.input_layernorm), Ok)?;
        let dn1 = self.project_backward(Product::Qkv, &dqkv, &n1, cx.noise, grads)?;
        rms_norm_backward(&dn1, &x, &rstd1, &w.input_layernorm, Some(&dh), norms.map(|(input, _)| input))
    }

    /// Forward for generation: new positions only, keys and values of the old ones from the cache, which takes the new ones in.
    pub fn forward_cached(&self, stream: Stream, tables: &Rope, cache: &mut LayerCache) -> Result<Stream> {
        let w = &self.weights;
        let start = cache.len();
        let Normed { h: x, y: n1, .. } = add_rms_norm(&stream.h, stream.branch.as_ref(), &w.input_layernorm, self.eps)?;
        let qkv = self.project(Product::Qkv, &n1, None)?;
        rope(&qkv, tables, self.rotated(), Positions::From(start))?;
        let (q_width, kv_width) = (self.heads.out(), self.heads.kv * self.heads.dim);
        let q = qkv.narrow(2, 0, q_width)?;
        cache.append(&qkv.narrow(2, q_width, kv_width)?, &qkv.narrow(2, q_width + kv_width, kv_width)?)?;
        let attn = attention_cached(&q, cache.keys(), cache.values(), self.heads, start)?;
        let o = self.project(Product::O, &attn, None)?;
        let Normed { h, y: n2, .. } = add_rms_norm(&x, Some(&o), &w.post_attention_layernorm, self.eps)?;
        let gate_up = self.project(Product::GateUp, &n2, None)?;
        let out = self.project(Product::Down, &swiglu(&gate_up)?, None)?;
        Ok(Stream { h, branch: Some(out) })
    }
}
