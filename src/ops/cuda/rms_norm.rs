//! RMSNorm: launches of `rms_norm.cu`.

use super::gpu::{Arg, Grid, empty, int, launch, pointer, pointer_or_null, suffix};
use crate::ops::rms_norm::Normed;
use candle_core::{DType, Result, Tensor, bail};

/// Threads of a block: eight columns each at 2,048 channels.
const THREADS: usize = 256;

/// Blocks that share the rows in backward; each leaves a row of partial sums of the weight's gradient. Fixed, so that the sums do not
/// depend on the GPU.
const BLOCKS: usize = 512;

/// Bytes of shared memory that hold a row of partial sums.
const MOST_CHANNELS: usize = 12 << 10;

fn channels(w: &Tensor) -> Result<usize> {
    let c = w.dims1()?;
    if !c.is_multiple_of(8) || c > MOST_CHANNELS {
        bail!("rms_norm on a GPU: {c} channels are no multiple of 8, or more than {MOST_CHANNELS}");
    }
    Ok(c)
}

/// See [`add_rms_norm`](crate::ops::rms_norm::add_rms_norm).
pub(in crate::ops) fn add_rms_norm(x: &Tensor, delta: Option<&Tensor>, w_c: &Tensor, eps: f64) -> Result<Normed> {
    let c = channels(w_c)?;
    let device = x.device();
    let rows = x.elem_count() / c;
    let h = if delta.is_some() { empty(x.dims(), x.dtype(), device)? } else { x.clone() };
    let y = empty(x.dims(), x.dtype(), device)?;
    let rstd = empty(&[rows], DType::F32, device)?;
    let args = [
        pointer(x)?,
        pointer_or_null(delta)?,
        pointer(w_c)?,
        pointer(&h)?,
        pointer(&y)?,
        pointer(&rstd)?,
        int(c)?,
        Arg::F32(eps as f32),
    ];
    launch(device, &format!("rms_norm_{}", suffix(x)?), Grid::linear(rows, THREADS), &args)?;
    Ok(Normed { h, y, rstd })
}

/// See [`rms_norm_recompute`](crate::ops::rms_norm::rms_norm_recompute).
pub(in crate::ops) fn rms_norm_recompute(h: &Tensor, rstd_n: &Tensor, w_c: &Tensor) -> Result<Tensor> {
    let c = channels(w_c)?;
    let y = empty(h.dims(), h.dtype(), h.device())?;
    let args = [pointer(h)?, pointer(rstd_n)?, pointer(w_c)?, pointer(&y)?, int(c)?];
    let grid = Grid::linear(h.elem_count() / c, THREADS);
    launch(h.device(), &format!("rms_norm_recompute_{}", suffix(h)?), grid, &args)?;
    Ok(y)
}

/// See [`rms_norm_backward`](crate::ops::rms_norm::rms_norm_backward).
pub(in crate::ops) fn rms_norm_backward(
    dy: &Tensor,
    h: &Tensor,
    rstd_n: &Tensor,
    w_c: &Tensor,
    dres: Option<&Tensor>,
    dw_c: Option<&Tensor>,
) -> Result<Tensor> {
    let c = channels(w_c)?;
    let device = h.device();
    let rows = h.elem_count() / c;
    let blocks = rows.min(BLOCKS);
    let dh = empty(h.dims(), h.dtype(), device)?;
    let partials = dw_c.map(|_| empty(&[blocks, c], DType::F32, device)).transpose()?;
    let args = [
        pointer(dy)?,
        pointer(h)?,
        pointer(rstd_n)?,
        pointer(w_c)?,
        pointer_or_null(dres)?,
        pointer(&dh)?,
        pointer_or_null(partials.as_ref())?,
        int(rows)?,
        int(c)?,
    ];
    let grid = Grid { shared: 4 * c, ..Grid::linear(blocks, THREADS) };
    launch(device, &format!("rms_norm_backward_{}", suffix(h)?), grid, &args)?;
    if let (Some(dw), Some(partials)) = (dw_c, &partials) {
        add_columns(partials, dw)?;
    }
    Ok(dh)
}

/// `sum` (c) += the rows of `partials` (rows, c), in their order.
pub(super) fn add_columns(partials: &Tensor, sum_c: &Tensor) -> Result<()> {
    let (rows, c) = partials.dims2()?;
    let args = [pointer(partials)?, pointer(sum_c)?, int(rows)?, int(c)?];
    launch(sum_c.device(), "add_columns", Grid::linear(c.div_ceil(THREADS), THREADS), &args)
}
