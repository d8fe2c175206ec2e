//! Causal grouped-query attention on packed QKV, block by block, so that no T x T tensor ever exists (Dao 2023, adapted to the CPU).
//!
//! For query head `j` with key/value head `j / (h/k)`: `S = Q Kᵀ / √d`, masked to `key <= query`; `P = softmax(S)`; `O = P V`. Saved besides
//! QKV and `O`: the log-sum-exp of each row of `S`. Backward recomputes `P = exp(S - lse)` per block and uses, with
//! `δ = rowsum(dO · O)`: `dV = Pᵀ dO`, `dS = P · (dO Vᵀ - δ) / √d`, `dQ = dS K`, `dK = dSᵀ Q`.
//!
//! A block is 64 queries against all keys that they see: its softmax is exact in one pass, and the buffer is 64 x T per thread. A
//! [`Mask`] hides earlier keys: those of other documents, and those beyond a window. The keys of a block start near the first that its first
//! query sees. Keys and values are packed once for all blocks and heads that multiply by them.
//!
//! | file | holds |
//! |---|---|
//! | `span.rs` | which queries see which keys; a head's rows in memory |
//! | `forward.rs` | one head forward, block by block; few queries over a cache without packing |
//! | `backward.rs` | one key/value head backward |
//! | `tree.rs` | forward over sequences that share prefixes |

mod backward;
mod forward;
mod span;
mod tree;

use super::cpu::{self, SharedMut};
pub use super::heads::{GPU_BF16_DIMS, Heads};
pub use super::mask::Mask;
use super::mask::window_first_keys;
use super::on_gpu;
use super::precision::Precision;
use backward::backward_kv_head;
use candle_core::{D, Result, Tensor, bail};
use forward::{FEW, KeysAndValues, few_queries, forward_head, head_max_logit};
use rayon::prelude::*;
use span::Rows;
pub use tree::attention_prefix_tree;

/// The same in candle's differentiable primitives, with the whole score matrix.
pub fn reference(qkv: &Tensor, heads: Heads, mask: Mask) -> Result<Tensor> {
    let (b, t) = heads.check("attention reference", qkv)?;
    let (scores, v) = reference_scores(qkv, heads, mask)?;
    // Softmax does not depend on the shift, so autograd may take it as a constant.
    let shifted = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
    let p = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
    p.matmul(&v)?.transpose(1, 2)?.reshape((b, t, heads.out()))
}

/// Logits (b, h, t, t), -inf where a query does not see a key, and values (b, h, t, d).
pub(super) fn reference_scores(qkv: &Tensor, heads: Heads, mask: Mask) -> Result<(Tensor, Tensor)> {
    let (b, t) = heads.check("attention reference", qkv)?;
    let q = expanded_heads(qkv, heads, 0, heads.q)?;
    let k = expanded_heads(qkv, heads, heads.q, heads.kv)?;
    let v = expanded_heads(qkv, heads, heads.q + heads.kv, heads.kv)?;
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * heads.scale() as f64)?;
    let mut hidden = Vec::with_capacity(b * t * t);
    for sequence in 0..b {
        let first_keys = mask.first_keys(sequence, t);
        for query in 0..t {
            let first = first_keys.as_ref().map_or(0, |first| first[query] as usize);
            hidden.extend((0..t).map(|key| if (first..=query).contains(&key) { 0.0 } else { f32::NEG_INFINITY }));
        }
    }
    let scores = scores.broadcast_add(&Tensor::from_vec(hidden, (b, 1, t, t), qkv.device())?)?;
    Ok((scores, v))
}

/// Heads `from..from + n` of packed `qkv`, each repeated for all query heads of its group: (b, h, t, d).
fn expanded_heads(qkv: &Tensor, heads: Heads, from: usize, n: usize) -> Result<Tensor> {
    let (b, t, _) = qkv.dims3()?;
    let x = qkv.narrow(2, from * heads.dim, n * heads.dim)?.reshape((b, t, n, heads.dim))?.transpose(1, 2)?;
    let x = x.unsqueeze(2)?.broadcast_as((b, n, heads.q / n, t, heads.dim))?;
    x.reshape((b, heads.q, t, heads.dim))?.contiguous()
}

/// Packed `qkv` (b, t, (h + 2k)·d), already rotated → output (b, t, h·d) and log-sum-exp (b, h, t).
pub fn attention(qkv: &Tensor, heads: Heads, mask: Mask, precision: Precision) -> Result<(Tensor, Tensor)> {
    let (b, t) = heads.check("attention", qkv)?;
    mask.check("attention", b, t)?;
    on_gpu!(qkv, super::cuda::attention(qkv, heads, mask));
    let out_width = heads.out();
    let (out, lse) = cpu::read("attention", [qkv], |[qkv]| {
        let mut out = cpu::output(b * t * out_width);
        let mut lse = cpu::output(b * heads.q * t);
        let shared = SharedMut::new(&mut out);
        let first_keys: Vec<_> = (0..b).map(|sequence| mask.first_keys(sequence, t)).collect();
        // Keys and values are packed once: all blocks of all query heads of a group multiply by them.
        let packed: Vec<KeysAndValues> = (0..b * heads.kv)
            .into_par_iter()
            .map(|task| {
                let sequence = task / heads.kv;
                let k_column = heads.q + task % heads.kv;
                let keys = Rows::packed(qkv, heads, t, sequence, k_column);
                let values = Rows::packed(qkv, heads, t, sequence, k_column + heads.kv);
                KeysAndValues::pack(keys, values, t, precision)
            })
            .collect();
        lse.par_chunks_mut(t).enumerate().for_each(|(task, lse)| {
            let sequence = task / heads.q;
            let head = task % heads.q;
            let place = (sequence * t * out_width + head * heads.dim, out_width);
            let starts = first_keys[sequence].as_deref();
            let q = Rows::packed(qkv, heads, t, sequence, head);
            // Grouped-query attention (Ainslie et al. 2023): neighbouring query heads share a key/value head.
            let kv = &packed[sequence * heads.kv + head / heads.group()];
            forward_head(q, kv, (t, 0, heads.scale(), starts), shared, place, lse);
        });
        Ok((out, lse))
    })?;
    Ok((cpu::tensor(out, (b, t, out_width))?, cpu::tensor(lse, (b, heads.q, t))?))
}

/// The largest logit `q·k / √d` of a query and a key it sees, of packed `qkv` as [`attention`] takes it. Logits that grow without bound
/// make attention collapse onto single keys before the loss shows it (Dehghani et al. 2023).
pub fn max_logit(qkv: &Tensor, heads: Heads, mask: Mask) -> Result<f32> {
    let (b, t) = heads.check("max_logit", qkv)?;
    mask.check("max_logit", b, t)?;
    on_gpu!(qkv, super::cuda::max_logit(qkv, heads, mask));
    let first_keys: Vec<_> = (0..b).map(|sequence| mask.first_keys(sequence, t)).collect();
    cpu::read("max_logit", [qkv], |[qkv]| {
        let logits = (0..b * heads.q).into_par_iter().map(|task| {
            let sequence = task / heads.q;
            let head = task % heads.q;
            let q = Rows::packed(qkv, heads, t, sequence, head);
            let keys = Rows::packed(qkv, heads, t, sequence, heads.q + head / heads.group());
            head_max_logit(q, keys, t, heads.scale(), first_keys[sequence].as_deref())
        });
        // A maximum is the same in every order, so this reduction needs no fixed one.
        Ok(logits.reduce(|| f32::NEG_INFINITY, f32::max))
    })
}

/// Gradient of packed `qkv`, from its value, the output, the log-sum-exp and the output's gradient.
pub fn attention_backward(
    qkv: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    heads: Heads,
    mask: Mask,
    precision: Precision,
) -> Result<Tensor> {
    let (b, t) = heads.check("attention_backward", qkv)?;
    mask.check("attention_backward", b, t)?;
    if out.dims() != [b, t, heads.out()] || dout.dims() != out.dims() || lse.dims() != [b, heads.q, t] {
        bail!("attention_backward: shapes of output, gradient or log-sum-exp do not fit qkv {:?}", qkv.shape());
    }
    on_gpu!(qkv, super::cuda::attention_backward(qkv, out, lse, dout, heads, mask));
    let dqkv = cpu::read("attention_backward", [qkv, out, lse, dout], |slices| {
        let mut dqkv = cpu::output(b * t * heads.packed());
        let shared = SharedMut::new(&mut dqkv);
        let first_keys: Vec<_> = (0..b).map(|sequence| mask.first_keys(sequence, t)).collect();
        // One task per key/value head: dK and dV sum over all query heads of its group, and no other task writes them.
        (0..b * heads.kv).into_par_iter().for_each(|task| {
            let sequence = task / heads.kv;
            let kv = task % heads.kv;
            let starts = first_keys[sequence].as_deref();
            backward_kv_head(slices, shared, heads, t, (sequence, kv), starts, precision);
        });
        Ok(dqkv)
    })?;
    cpu::tensor(dqkv, qkv.dims())
}

/// Attention of new queries over a cache: `q` (b, t, h·d) stands at positions `start..start + t`; `k` and `v` (b, capacity, k·d)
/// hold at least `start + t` rows each, un-expanded; `window` is that of a [`Mask`]. → (b, t, h·d). Forward only.
pub fn attention_cached(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    start: usize,
    window: Option<usize>,
) -> Result<Tensor> {
    let (b, t, _) = q.dims3()?;
    let capacity = k.dim(1)?;
    let d = heads.dim;
    if q.dtype() != k.dtype() || k.dims() != [b, capacity, heads.kv * d] || v.dims() != k.dims() || start + t > capacity
    {
        bail!("attention_cached: q {:?} at {start} does not fit the cache {:?}", q.shape(), k.shape());
    }
    on_gpu!(q, super::cuda::attention_cached(q, k, v, heads, start, window));
    let q_width = heads.out();
    let out = cpu::read("attention_cached", [q, k, v], |[q, k, v]| {
        let mut out = cpu::output(b * t * q_width);
        let mut lse = cpu::output(b * heads.q * t);
        let shared = SharedMut::new(&mut out);
        let keys = start + t;
        let first_keys = window_first_keys(window, start, t);
        let starts = first_keys.as_deref();
        // For few queries, packing keys and values costs more than it saves.
        let packed: Vec<KeysAndValues> = match t {
            ..FEW => Vec::new(),
            _ => (0..b * heads.kv)
                .into_par_iter()
                .map(|task| {
                    let k = cached_rows(k, heads, capacity, task);
                    KeysAndValues::pack(k, cached_rows(v, heads, capacity, task), keys, Precision::F32)
                })
                .collect(),
        };
        lse.par_chunks_mut(t).enumerate().for_each(|(task, lse)| {
            let sequence = task / heads.q;
            let head = task % heads.q;
            let place = (sequence * t * q_width + head * d, q_width);
            let q = Rows::output(q, heads, t, sequence, head);
            let kv = sequence * heads.kv + head / heads.group();
            match packed.get(kv) {
                Some(kv) => forward_head(q, kv, (t, start, heads.scale(), starts), shared, place, lse),
                None => {
                    let k = cached_rows(k, heads, capacity, kv);
                    let v = cached_rows(v, heads, capacity, kv);
                    few_queries(q, k, v, (t, start, heads.scale(), starts), shared, place);
                }
            }
        });
        Ok(out)
    })?;
    cpu::tensor(out, (b, t, q_width))
}

/// Key/value head `task % k` of sequence `task / k` of a cache (b, capacity, k·d).
fn cached_rows(data: &[f32], heads: Heads, capacity: usize, task: usize) -> Rows<'_> {
    let stride = heads.kv * heads.dim;
    let from = task / heads.kv * capacity * stride + task % heads.kv * heads.dim;
    Rows { data, from, stride, dim: heads.dim }
}
