//! One transformer block, forward and backward side by side; what forward saves, backward consumes.
//!
//! ```text
//! x  = x + branch (the block below)    n1 = RMSNorm(x)   qkv = n1 Wqkvᵀ, rotated   a = attention(qkv)   o = a Woᵀ
//! h  = x + o                           n2 = RMSNorm(h)   gu = n2 Wguᵀ              s = swiglu(gu)       out = s Wdᵀ
//! ```
//! The residual stream travels as a pair (h, out), so that each addition happens inside the next norm's pass. Norms and SwiGLU are
//! recomputed in backward: they cost one pass over memory, and saving them would cost as much and hold the memory meanwhile.

use super::kv_cache::LayerCache;
use super::lora::BlockAdapters;
use super::noise::Noise;
use super::params::BlockWeights;
use crate::ops::attention::{Heads, attention, attention_backward, attention_cached, max_logit};
use crate::ops::linear::{linear, linear_backward, linear_backward_input};
use crate::ops::lora::{Adapter, lora, lora_backward};
use crate::ops::noise::Dropout;
use crate::ops::precision::Precision;
use crate::ops::rms_norm::{Normed, add_rms_norm, rms_norm_backward, rms_norm_recompute};
use crate::ops::rope::{Rope, rope, rope_backward};
use crate::ops::segments::Places;
use crate::ops::swiglu::{swiglu, swiglu_backward};
use candle_core::{Result, Tensor};

/// A block's weights and the constants its ops need.
#[derive(Clone, Debug)]
pub struct Block {
    /// Views of the model's flat buffer.
    pub weights: BlockWeights,
    /// Head counts.
    pub heads: Heads,
    /// RMSNorm's epsilon.
    pub eps: f64,
    /// Of the matrix products.
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
    /// Attention's output.
    O,
    /// gate ‖ up
    GateUp,
    /// Of the feed-forward layer.
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
    /// Tables of rotations.
    pub rope: &'a Rope,
    /// Documents and positions.
    pub places: Places<'a>,
    /// None outside training.
    pub noise: Option<&'a Noise>,
}

/// Gradients of what is trained of a block.
#[derive(Clone, Copy)]
pub enum BlockGrads<'a> {
    /// Its weights.
    Weights(&'a BlockWeights),
    /// Its adapters; the weights are frozen.
    Adapters(&'a BlockAdapters),
}

/// What backward needs from forward; (b, t, …) each, `n` rows for the norms. Taken by value: gone when used.
pub struct Saved {
    x: Tensor,
    rstd1: Tensor,
    qkv: Tensor,
    attn: Tensor,
    lse: Tensor,
    h: Tensor,
    rstd2: Tensor,
    gate_up: Tensor,
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

    fn adapter(&self, product: Product) -> Option<(&Adapter, f64)> {
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
    pub fn forward(&self, stream: Stream, cx: Context) -> Result<(Stream, Saved)> {
        let w = &self.weights;
        let Normed { h: x, y: n1, rstd: rstd1 } =
            add_rms_norm(&stream.h, stream.branch.as_ref(), &w.input_layernorm, self.eps)?;
        let qkv = self.project(Product::Qkv, &n1, cx.noise)?;
        rope(&qkv, cx.rope, self.rotated(), cx.places)?;
        let (attn, lse) = attention(&qkv, self.heads, cx.places.segments(), self.precision)?;
        let o = self.project(Product::O, &attn, cx.noise)?;
        let Normed { h, y: n2, rstd: rstd2 } = add_rms_norm(&x, Some(&o), &w.post_attention_layernorm, self.eps)?;
        let gate_up = self.project(Product::GateUp, &n2, cx.noise)?;
        let out = self.project(Product::Down, &swiglu(&gate_up)?, cx.noise)?;
        let above = Stream { h: h.clone(), branch: Some(out) };
        Ok((above, Saved { x, rstd1, qkv, attn, lse, h, rstd2, gate_up }))
    }

    /// The largest logit of the attention that left `saved`.
    pub fn max_logit(&self, saved: &Saved, cx: Context) -> Result<f32> {
        max_logit(&saved.qkv, self.heads, cx.places.segments())
    }

    /// From the gradient of the stream above to that of the stream below; accumulates what is trained into `grads`.
    pub fn backward(&self, saved: Saved, dy: Tensor, cx: Context, grads: BlockGrads) -> Result<Tensor> {
        let w = &self.weights;
        let Saved { x, rstd1, qkv, attn, lse, h, rstd2, gate_up } = saved;

        let norms = match grads {
            BlockGrads::Weights(grads) => Some((&grads.input_layernorm, &grads.post_attention_layernorm)),
            BlockGrads::Adapters(_) => None,
        };

        let ds = self.project_backward(Product::Down, &dy, &swiglu(&gate_up)?, cx.noise, grads)?;
        let dgate_up = swiglu_backward(&gate_up, &ds)?;
        drop((gate_up, ds));
        let n2 = rms_norm_recompute(&h, &rstd2, &w.post_attention_layernorm)?;
        let dn2 = self.project_backward(Product::GateUp, &dgate_up, &n2, cx.noise, grads)?;
        drop((dgate_up, n2));
        let dh =
            rms_norm_backward(&dn2, &h, &rstd2, &w.post_attention_layernorm, Some(&dy), norms.map(|(_, post)| post))?;
        drop((dn2, h, dy));

        let dattn = self.project_backward(Product::O, &dh, &attn, cx.noise, grads)?;
        let dqkv = attention_backward(&qkv, &attn, &lse, &dattn, self.heads, cx.places.segments(), self.precision)?;
        drop((qkv, attn, dattn));
        rope_backward(&dqkv, cx.rope, self.rotated(), cx.places)?;
        let n1 = rms_norm_recompute(&x, &rstd1, &w.input_layernorm)?;
        let dn1 = self.project_backward(Product::Qkv, &dqkv, &n1, cx.noise, grads)?;
        rms_norm_backward(&dn1, &x, &rstd1, &w.input_layernorm, Some(&dh), norms.map(|(input, _)| input))
    }

    /// Forward for generation: new positions only, keys and values of the old ones from the cache, which takes the new ones in.
    pub fn forward_cached(&self, stream: Stream, tables: &Rope, cache: &mut LayerCache) -> Result<Stream> {
        let w = &self.weights;
        let start = cache.len();
        let Normed { h: x, y: n1, .. } = add_rms_norm(&stream.h, stream.branch.as_ref(), &w.input_layernorm, self.eps)?;
        let qkv = self.project(Product::Qkv, &n1, None)?;
        rope(&qkv, tables, self.rotated(), Places::From(start))?;
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
