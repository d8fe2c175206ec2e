//! AdamW and the global norm: launches of `adamw.cu`.

use super::gpu::{Arg, Grid, empty, int, launch, list, pointer, pointer_or_null, suffix};
use crate::ops::flat::{Flat, GPU_NORM_PIECE, LastUpdate, Range, Squares};
use crate::ops::transfer::to_host;
use candle_core::{DType, Device, Result, Tensor, bail};

const THREADS: usize = 256;

/// Most blocks of an update, which share its elements.
const BLOCKS: usize = 8192;

/// One update of everything. `ranges` must cover the buffers in order, without gaps; `keep` has the factor on the weights of each;
/// `coefficients` are in the order of the kernel's struct; `rounding` is the key for moments in bf16.
pub(in crate::ops) fn adamw(
    flat: &Flat,
    ranges: &[Range],
    keep: &[f32],
    coefficients: [f32; 9],
    rounding: Option<u64>,
) -> Result<()> {
    if (flat.exp_avg.dtype() == DType::BF16) != rounding.is_some() || flat.exp_avg.dtype() != flat.exp_avg_sq.dtype() {
        bail!("adamw: moments of {:?} are rounded by {rounding:?}", flat.exp_avg.dtype());
    }
    let n = flat.param.elem_count();
    let device = flat.param.device();
    let ends: Vec<i64> = ranges.iter().map(|r| (r.start + r.len) as i64).collect();
    let ends = list(&ends, device)?;
    let keep = list(keep, device)?;
    let args = [
        pointer(flat.param)?,
        pointer(flat.grad)?,
        pointer(flat.exp_avg)?,
        pointer(flat.exp_avg_sq)?,
        pointer_or_null(flat.copy)?,
        pointer(&ends)?,
        pointer(&keep)?,
        int(ranges.len())?,
        Arg::U64(n as u64),
        Arg::F32s(coefficients),
        Arg::U64(rounding.unwrap_or(0)),
        Arg::U64(flat.first as u64),
    ];
    launch(
        device,
        &format!("adamw_{}", suffix(flat.exp_avg)?),
        Grid::linear(n.div_ceil(4 * THREADS).min(BLOCKS), THREADS),
        &args,
    )
}

/// See [`global_norm`](crate::ops::adamw::global_norm).
pub(in crate::ops) fn global_norm(grad: &Tensor) -> Result<f64> {
    norm_of_partials(&piece_sums(grad)?)
}

/// See [`norm_of_pieces`](crate::ops::adamw::norm_of_pieces).
pub(in crate::ops) fn norm_of_pieces(sums: &[f64], device: &Device) -> Result<f64> {
    norm_of_partials(&list(sums, device)?)
}

fn norm_of_partials(partials: &Tensor) -> Result<f64> {
    // Summed up on the GPU, so that one number crosses to the host.
    let total = empty(&[1], DType::F64, partials.device())?;
    let args = [pointer(partials)?, pointer(&total)?, int(partials.elem_count())?];
    launch(partials.device(), "sum_of_partials", Grid::linear(1, 1024), &args)?;
    Ok(to_host(&total)?.to_vec1::<f64>()?[0].sqrt())
}

/// See [`squares_of_pieces`](crate::ops::adamw::squares_of_pieces).
pub(in crate::ops) fn squares_of_pieces(grad: &Tensor) -> Result<Vec<f64>> {
    to_host(&piece_sums(grad)?)?.to_vec1::<f64>()
}

fn piece_sums(grad: &Tensor) -> Result<Tensor> {
    let n = grad.elem_count();
    let pieces = n.div_ceil(GPU_NORM_PIECE);
    let partials = empty(&[pieces], DType::F64, grad.device())?;
    let args = [pointer(grad)?, pointer(&partials)?, Arg::U64(n as u64), Arg::U64(GPU_NORM_PIECE as u64)];
    launch(grad.device(), "sum_of_squares", Grid::linear(pieces, 1024), &args)?;
    Ok(partials)
}

/// Sums over every piece: see [`squares`](crate::ops::squares::squares).
pub(in crate::ops) fn squares(flats: [&Tensor; 4], pieces: &[Range], rule: &LastUpdate) -> Result<Vec<Squares>> {
    let device = flats[0].device();
    let bounds: Vec<i64> = pieces.iter().flat_map(|r| [r.start as i64, r.len as i64, i64::from(r.decay)]).collect();
    let rule = [rule.keep, rule.lr, rule.inverse_correction1, rule.inverse_sqrt_correction2, rule.eps];
    let bounds = list(&bounds, device)?;
    let rule = list(&rule, device)?;
    let sums = empty(&[pieces.len(), 4], DType::F64, device)?;
    let mut args = flats.iter().map(|flat| pointer(flat)).collect::<Result<Vec<_>>>()?;
    args.extend([pointer(&bounds)?, pointer(&rule)?, pointer(&sums)?]);
    launch(device, &format!("squares_{}", suffix(flats[2])?), Grid::linear(pieces.len(), THREADS), &args)?;
    let sums = to_host(&sums)?.to_vec2::<f64>()?;
    let squares = sums.iter().zip(pieces).map(|(sum, piece)| Squares {
        grad: sum[0],
        weight: sum[1],
        update: sum[2],
        adam: sum[3],
        n: piece.len as f64,
    });
    Ok(squares.collect())
}
