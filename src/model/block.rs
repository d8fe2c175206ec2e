//! One transformer block, forward and backward side by side; what forward saves, backward consumes.
//!
//! ```text
//! x  = x + branch (the block below)    n1 = RMSNorm(x)   qkv = n1 Wqkvᵀ, rotated   a = attention(qkv)   o = a Woᵀ
//! h  = x + o                           n2 = RMSNorm(h)   gu = n2 Wguᵀ              s = swiglu(gu)       out = s Wdᵀ
//! ```
//! The residual stream travels as a pair (h, out), so that each addition happens inside the next norm's pass. Norms and SwiGLU are
//! recomputed in backward: they cost one pass over memory, and saving them would cost as much and hold the memory meanwhile.

use super::kv_cache::LayerCache;
use super::params::BlockWeights;
use crate::ops::attention::{Heads, attention, attention_backward, attention_cached};
use crate::ops::linear::{linear, linear_backward};
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

    /// The stream above this block, and what backward will need.
    pub fn forward(&self, stream: Stream, tables: &Rope, places: Places) -> Result<(Stream, Saved)> {
        let w = &self.weights;
        let Normed { h: x, y: n1, rstd: rstd1 } =
            add_rms_norm(&stream.h, stream.branch.as_ref(), &w.input_layernorm, self.eps)?;
        let qkv = linear(&n1, &w.qkv_proj, self.precision)?;
        rope(&qkv, tables, self.rotated(), places)?;
        let (attn, lse) = attention(&qkv, self.heads, places.segments(), self.precision)?;
        let o = linear(&attn, &w.o_proj, self.precision)?;
        let Normed { h, y: n2, rstd: rstd2 } = add_rms_norm(&x, Some(&o), &w.post_attention_layernorm, self.eps)?;
        let gate_up = linear(&n2, &w.gate_up_proj, self.precision)?;
        let out = linear(&swiglu(&gate_up)?, &w.down_proj, self.precision)?;
        let above = Stream { h: h.clone(), branch: Some(out) };
        Ok((above, Saved { x, rstd1, qkv, attn, lse, h, rstd2, gate_up }))
    }

    /// From the gradient of the stream above to that of the stream below; accumulates the weights' gradients into `grads`.
    pub fn backward(
        &self,
        saved: Saved,
        dy: Tensor,
        (tables, places): (&Rope, Places),
        grads: &BlockWeights,
    ) -> Result<Tensor> {
        let w = &self.weights;
        let Saved { x, rstd1, qkv, attn, lse, h, rstd2, gate_up } = saved;

        let ds = linear_backward(&dy, &swiglu(&gate_up)?, &w.down_proj, &grads.down_proj, self.precision)?;
        let dgate_up = swiglu_backward(&gate_up, &ds)?;
        drop((gate_up, ds));
        let n2 = rms_norm_recompute(&h, &rstd2, &w.post_attention_layernorm)?;
        let dn2 = linear_backward(&dgate_up, &n2, &w.gate_up_proj, &grads.gate_up_proj, self.precision)?;
        drop((dgate_up, n2));
        let post_norm = (&w.post_attention_layernorm, &grads.post_attention_layernorm);
        let dh = rms_norm_backward(&dn2, &h, &rstd2, post_norm.0, Some(&dy), post_norm.1)?;
        drop((dn2, h, dy));

        let dattn = linear_backward(&dh, &attn, &w.o_proj, &grads.o_proj, self.precision)?;
        let dqkv = attention_backward(&qkv, &attn, &lse, &dattn, self.heads, places.segments(), self.precision)?;
        drop((qkv, attn, dattn));
        rope_backward(&dqkv, tables, self.rotated(), places)?;
        let n1 = rms_norm_recompute(&x, &rstd1, &w.input_layernorm)?;
        let dn1 = linear_backward(&dqkv, &n1, &w.qkv_proj, &grads.qkv_proj, self.precision)?;
        rms_norm_backward(&dn1, &x, &rstd1, &w.input_layernorm, Some(&dh), &grads.input_layernorm)
    }

    /// Forward for generation: new positions only, keys and values of the old ones from the cache, which takes the new ones in.
    pub fn forward_cached(&self, stream: Stream, tables: &Rope, cache: &mut LayerCache) -> Result<Stream> {
        let w = &self.weights;
        let start = cache.len();
        let Normed { h: x, y: n1, .. } = add_rms_norm(&stream.h, stream.branch.as_ref(), &w.input_layernorm, self.eps)?;
        let qkv = linear(&n1, &w.qkv_proj, self.precision)?;
        rope(&qkv, tables, self.rotated(), Places::From(start))?;
        let (q_width, kv_width) = (self.heads.out(), self.heads.kv * self.heads.dim);
        let q = qkv.narrow(2, 0, q_width)?;
        cache.append(&qkv.narrow(2, q_width, kv_width)?, &qkv.narrow(2, q_width + kv_width, kv_width)?)?;
        let attn = attention_cached(&q, cache.keys(), cache.values(), self.heads, start)?;
        let o = linear(&attn, &w.o_proj, self.precision)?;
        let Normed { h, y: n2, .. } = add_rms_norm(&x, Some(&o), &w.post_attention_layernorm, self.eps)?;
        let out = linear(&swiglu(&linear(&n2, &w.gate_up_proj, self.precision)?)?, &w.down_proj, self.precision)?;
        Ok(Stream { h, branch: Some(out) })
    }
}
