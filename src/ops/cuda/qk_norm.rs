//! Norms of query and key heads: launches of `qk_norm.cu`.

use super::gpu::{Arg, Grid, empty, int, launch, pointer, pointer_or_null, suffix};
use super::rms_norm::add_columns;
use crate::ops::heads::{Heads, QkNorm};
use candle_core::{DType, Result, Tensor};

const WARPS: usize = 4;
const WARP: usize = 32;

/// Blocks that share the rows in backward; fixed, so that the sums do not depend on the GPU.
const BLOCKS: usize = 512;

/// See [`qk_norm`](crate::ops::qk_norm::qk_norm).
pub(in crate::ops) fn qk_norm(qkv: &Tensor, weights: QkNorm, heads: Heads, eps: f64) -> Result<Tensor> {
    let (b, t, _) = qkv.dims3()?;
    let before = empty(&[b, t, heads.normed()], qkv.dtype(), qkv.device())?;
    let args = [
        pointer(qkv)?,
        pointer(&before)?,
        pointer(weights.q_norm)?,
        pointer(weights.k_norm)?,
        int(heads.q)?,
        int(heads.kv)?,
        int(heads.dim)?,
        Arg::F32(eps as f32),
    ];
    launch(qkv.device(), &format!("qk_norm_{}", suffix(qkv)?), Grid::linear(b * t, WARPS * WARP), &args)?;
    Ok(before)
}

/// See [`qk_norm_backward`](crate::ops::qk_norm::qk_norm_backward).
pub(in crate::ops) fn qk_norm_backward(
    dqkv: &Tensor,
    before: &Tensor,
    weights: QkNorm,
    heads: Heads,
    eps: f64,
    grads: Option<QkNorm>,
) -> Result<()> {
    let (b, t, _) = dqkv.dims3()?;
    let device = dqkv.device();
    let dim = heads.dim;
    let blocks = (b * t).min(BLOCKS);
    let partials = grads.map(|_| empty(&[2, blocks, dim], DType::F32, device)).transpose()?;
    let args = [
        pointer(dqkv)?,
        pointer(before)?,
        pointer(weights.q_norm)?,
        pointer(weights.k_norm)?,
        pointer_or_null(partials.as_ref())?,
        int(b * t)?,
        int(heads.q)?,
        int(heads.kv)?,
        int(dim)?,
        Arg::F32(eps as f32),
    ];
    let grid = Grid { shared: 4 * WARPS * 2 * dim, ..Grid::linear(blocks, WARPS * WARP) };
    launch(device, &format!("qk_norm_backward_{}", suffix(dqkv)?), grid, &args)?;
    if let (Some(grads), Some(partials)) = (grads, &partials) {
        add_columns(&partials.get(0)?, grads.q_norm)?;
        add_columns(&partials.get(1)?, grads.k_norm)?;
    }
    Ok(())
}
