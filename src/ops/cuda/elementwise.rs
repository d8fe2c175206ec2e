//! RoPE, SwiGLU, rounding and sums: launches of `elementwise.cu`.

use super::gpu::{Arg, Grid, empty, int, launch, list, pointer, pointer_or_null, suffix};
use crate::ops::positions::Positions;
use candle_core::{D, DType, Result, Tensor, bail};

const THREADS: usize = 256;

/// Blocks of a loop over any number of elements.
const BLOCKS: usize = 4096;

/// Rotates the first `heads` heads of packed `qkv` (b, t, width) in place by `cos` and `sin` (positions, d/2); `sign` -1 turns back.
pub(in crate::ops) fn rope(
    qkv: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    positions: Positions,
    heads: usize,
    sign: f32,
) -> Result<()> {
    let (b, t, width) = qkv.dims3()?;
    let half = cos.dim(1)?;
    let (start, each) = match positions {
        Positions::From(start) => (start, None),
        Positions::Documents(_) | Positions::Tree(_) => {
            let each: Vec<u32> = (0..b * t).map(|i| positions.position(i, t) as u32).collect();
            (0, Some(list(&each, qkv.device())?))
        }
    };
    let args = [
        pointer(qkv)?,
        pointer(cos)?,
        pointer(sin)?,
        pointer_or_null(each.as_ref())?,
        int(start)?,
        int(t)?,
        int(width)?,
        int(heads)?,
        int(2 * half)?,
        Arg::F32(sign),
    ];
    launch(qkv.device(), &format!("rope_{}", suffix(qkv)?), Grid::linear(b * t, THREADS), &args)
}

fn columns(gate_up: &Tensor) -> Result<(usize, Grid)> {
    let f = gate_up.dim(D::Minus1)? / 2;
    if !f.is_multiple_of(8) {
        bail!("swiglu on a GPU: {f} columns are no multiple of 8");
    }
    let rows = gate_up.elem_count() / (2 * f);
    Ok((f, Grid { blocks: [rows, f.div_ceil(8 * THREADS), 1], threads: THREADS, shared: 0 }))
}

/// See [`swiglu`](crate::ops::swiglu::swiglu).
pub(in crate::ops) fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let (f, grid) = columns(gate_up)?;
    let mut shape = gate_up.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = f;
    }
    let act = empty(&shape, gate_up.dtype(), gate_up.device())?;
    launch(
        gate_up.device(),
        &format!("swiglu_{}", suffix(gate_up)?),
        grid,
        &[pointer(gate_up)?, pointer(&act)?, int(f)?],
    )?;
    Ok(act)
}

/// See [`swiglu_backward`](crate::ops::swiglu::swiglu_backward).
pub(in crate::ops) fn swiglu_backward(gate_up: &Tensor, dact: &Tensor) -> Result<Tensor> {
    let (f, grid) = columns(gate_up)?;
    let dgate_up = empty(gate_up.dims(), gate_up.dtype(), gate_up.device())?;
    let args = [pointer(gate_up)?, pointer(dact)?, pointer(&dgate_up)?, int(f)?];
    launch(gate_up.device(), &format!("swiglu_backward_{}", suffix(gate_up)?), grid, &args)?;
    Ok(dgate_up)
}

/// Rounds the f32 elements of `from` into the bf16 tensor `to`.
pub(crate) fn round_to_bf16(from: &Tensor, to: &Tensor) -> Result<()> {
    let n = from.elem_count();
    if from.dtype() != DType::F32 || to.dtype() != DType::BF16 || to.elem_count() != n {
        bail!("round_to_bf16: {:?} does not fit {:?}", from.shape(), to.shape());
    }
    let grid = Grid::linear(n.div_ceil(THREADS).min(BLOCKS), THREADS);
    launch(from.device(), "round_to_bf16", grid, &[pointer(from)?, pointer(to)?, Arg::U64(n as u64)])
}

/// See [`add_assign`](crate::ops::adamw::add_assign).
pub(in crate::ops) fn add_assign(sum: &Tensor, other: &Tensor) -> Result<()> {
    let n = sum.elem_count();
    if sum.dtype() != DType::F32 || other.dtype() != DType::F32 || other.elem_count() != n {
        bail!("add_assign: {:?} does not fit {:?}", other.shape(), sum.shape());
    }
    let grid = Grid::linear(n.div_ceil(THREADS).min(BLOCKS), THREADS);
    launch(sum.device(), "add_assign", grid, &[pointer(sum)?, pointer(other)?, Arg::U64(n as u64)])
}
