//! RMSNorm of each query and key head, before rotation, in place on packed QKV (Qwen3).
//!
//! For each of the h query heads and k key heads of a row: `y = x / sqrt(mean(x²) + eps) · w`, over the head's d channels, with one weight for
//! all query heads and one for all key heads. Value heads stay as they are. Saved is `x` of the normed heads; the statistics are cheap to
//! compute again. Backward, with `r = 1 / sqrt(mean(x²) + eps)`, `g = dy · w`: `dx = r (g - x r² mean(g · x))`, `dw += Σ dy · x r`.

use super::heads::Heads;
pub use super::heads::QkNorm;
use super::rms_norm::{self, reciprocal_rms};
use super::{cpu, on_gpu};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// The same in candle's differentiable primitives, for packed (b, t, (h + 2k)·d).
pub fn reference(qkv: &Tensor, weights: QkNorm, heads: Heads, eps: f64) -> Result<Tensor> {
    let (b, t, width) = qkv.dims3()?;
    let Heads { q, kv, dim } = heads;
    let split = qkv.reshape((b, t, width / dim, dim))?;
    let queries = rms_norm::reference(&split.narrow(2, 0, q)?, weights.q_norm, eps)?;
    let keys = rms_norm::reference(&split.narrow(2, q, kv)?, weights.k_norm, eps)?;
    Tensor::cat(&[queries, keys, split.narrow(2, q + kv, kv)?], 2)?.reshape((b, t, width))
}

fn check(op: &str, qkv: &Tensor, weights: QkNorm, heads: Heads) -> Result<(usize, usize)> {
    let dim = heads.dim;
    if weights.q_norm.dims() != [dim] || weights.k_norm.dims() != [dim] {
        bail!("{op}: weights of {:?} and {:?} for heads of {dim}", weights.q_norm.shape(), weights.k_norm.shape());
    }
    heads.check(op, qkv)
}

/// Norms the query and key heads of packed `qkv` (b, t, (h + 2k)·d) in place; returns what they were, (b, t, (h + k)·d).
pub fn qk_norm(qkv: &Tensor, weights: QkNorm, heads: Heads, eps: f64) -> Result<Tensor> {
    let (b, t) = check("qk_norm", qkv, weights, heads)?;
    on_gpu!(qkv, super::cuda::qk_norm(qkv, weights, heads, eps));
    let normed_width = heads.normed();
    let mut before = cpu::output(b * t * normed_width);
    cpu::read("qk_norm", [weights.q_norm, weights.k_norm], |[q_norm, k_norm]| {
        cpu::update("qk_norm", qkv, |qkv| {
            let width = heads.packed();
            let rows = cpu::rows_per_piece(width);
            let pieces = qkv.par_chunks_mut(rows * width).zip(before.par_chunks_mut(rows * normed_width));
            pieces.for_each(|(qkv, before)| {
                cpu::simd!({
                    for (row, before) in qkv.chunks_exact_mut(width).zip(before.chunks_exact_mut(normed_width)) {
                        before.copy_from_slice(&row[..normed_width]);
                        for (i, head) in row[..normed_width].chunks_exact_mut(heads.dim).enumerate() {
                            let r = reciprocal_rms(head, eps as f32);
                            let w = if i < heads.q { q_norm } else { k_norm };
                            head.iter_mut().zip(w).for_each(|(x, w)| *x = *x * r * w);
                        }
                    }
                })
            });
            Ok(())
        })
    })?;
    cpu::tensor(before, (b, t, normed_width))
}

/// Turns the gradient of normed packed `qkv` into that of its value before, in place. `before` is what [`qk_norm`] returned. Accumulates the
/// gradients of the weights; without `grads` they are frozen.
pub fn qk_norm_backward(
    dqkv: &Tensor,
    before: &Tensor,
    weights: QkNorm,
    heads: Heads,
    eps: f64,
    grads: Option<QkNorm>,
) -> Result<()> {
    let (b, t) = check("qk_norm_backward", dqkv, weights, heads)?;
    if before.dims() != [b, t, heads.normed()] {
        bail!("qk_norm_backward: {:?} is not what was normed in {:?}", before.shape(), dqkv.shape());
    }
    on_gpu!(dqkv, super::cuda::qk_norm_backward(dqkv, before, weights, heads, eps, grads));
    let partials = cpu::read("qk_norm_backward", [before, weights.q_norm, weights.k_norm], |slices| {
        let mut partials = Vec::new();
        cpu::update("qk_norm_backward", dqkv, |dqkv| {
            partials = backward_pieces(dqkv, slices, heads, eps as f32);
            Ok(())
        })?;
        Ok(partials)
    })?;
    let Some(grads) = grads else { return Ok(()) };
    for (half, grad) in [grads.q_norm, grads.k_norm].into_iter().enumerate() {
        cpu::update("qk_norm_backward", grad, |grad| {
            // In the order of the pieces, whatever the threads.
            for partial in partials.chunks_exact(2 * heads.dim) {
                let partial = &partial[half * heads.dim..][..heads.dim];
                grad.iter_mut().zip(partial).for_each(|(sum, p)| *sum += p);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The gradient of every piece of rows; returns each piece's sums for the weights of queries and of keys, 2d.
fn backward_pieces(dqkv: &mut [f32], [before, q_norm, k_norm]: [&[f32]; 3], heads: Heads, eps: f32) -> Vec<f32> {
    let dim = heads.dim;
    let width = heads.packed();
    let normed_width = heads.normed();
    let rows = cpu::rows_per_piece(width);
    let mut partials = cpu::zeros((dqkv.len() / width).div_ceil(rows) * 2 * dim);
    let pieces = dqkv.par_chunks_mut(rows * width).zip(before.par_chunks(rows * normed_width));
    pieces.zip(partials.par_chunks_mut(2 * dim)).for_each(|((dqkv, before), dw)| {
        let (dq_norm, dk_norm) = dw.split_at_mut(dim);
        cpu::simd!({
            for (row, before) in dqkv.chunks_exact_mut(width).zip(before.chunks_exact(normed_width)) {
                let heads_of_row = row[..normed_width].chunks_exact_mut(dim).zip(before.chunks_exact(dim));
                for (i, (dy, x)) in heads_of_row.enumerate() {
                    if i < heads.q {
                        backward_head(dy, x, q_norm, dq_norm, eps);
                    } else {
                        backward_head(dy, x, k_norm, dk_norm, eps);
                    }
                }
            }
        })
    });
    partials
}

/// `dy` becomes `dx`; adds to `dw`.
#[inline(always)]
fn backward_head(dy: &mut [f32], x: &[f32], w: &[f32], dw: &mut [f32], eps: f32) {
    let r = reciprocal_rms(x, eps);
    for (((dy, x), w), dw) in dy.iter_mut().zip(x).zip(w).zip(dw) {
        *dw += *dy * x * r;
        *dy *= w;
    }
    let mean = cpu::dot(dy, x) * r / x.len() as f32;
    dy.iter_mut().zip(x).for_each(|(g, x)| *g = r * (*g - x * r * mean));
}
