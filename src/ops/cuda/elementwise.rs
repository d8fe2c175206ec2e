//! RoPE, SwiGLU, rounding and sums: launches of `elementwise.cu`.

use super::gpu::{Arg, Grid, address, empty, int, launch, list, pointer, pointer_or_null, suffix};
use crate::ops::positions::Positions;
use candle_core::{D, DType, Result, Tensor, bail};

const THREADS: usize = 256;

const WARP: usize = 32;

/// Blocks of a loop over any number of elements.
const BLOCKS: usize = 4096;

/// Widths of heads whose rotation has a kernel with accesses of 16 bytes: `rope_dDIM_TYPE`.
const ROPE_EIGHT_DIMS: [usize; 2] = [64, 128];

/// Rows of a grid's second dimension at most, on every GPU.
const MOST_GRID_ROWS: usize = 65_535;

/// The kernels that rotate. Both give the same bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RopeKernel {
    /// One pair a thread, heads of any width.
    General,
    /// Eight pairs a thread. General's accesses of two bytes and four integer divisions a pair keep it below the memory's speed: of the 1.7B
    /// model at 16 x 1024 tokens it is estimated to take 3 ms a micro-batch longer.
    Eight,
}

impl RopeKernel {
    fn fastest(qkv: &Tensor, (cos, sin): (&Tensor, &Tensor)) -> Result<Self> {
        let (b, _, width) = qkv.dims3()?;
        let fits = ROPE_EIGHT_DIMS.contains(&(2 * cos.dim(1)?)) && b <= MOST_GRID_ROWS;
        // Rows and views may begin anywhere; an access of 16 bytes may not.
        let row_bytes = (width * qkv.dtype().size_in_bytes()) as u64;
        let aligned = [row_bytes, address(qkv)?, address(cos)?, address(sin)?].iter().all(|n| n.is_multiple_of(16));
        Ok(if fits && aligned { Self::Eight } else { Self::General })
    }
}

/// Rotates the first `heads` heads of packed `qkv` (b, t, width) in place by `cos` and `sin` (positions, d/2); `sign` -1 turns back.
pub(in crate::ops) fn rope(
    qkv: &Tensor,
    tables: (&Tensor, &Tensor),
    positions: Positions,
    heads: usize,
    sign: f32,
) -> Result<()> {
    rope_by(RopeKernel::fastest(qkv, tables)?, qkv, tables, positions, heads, sign)
}

/// [`rope`] by a kernel that takes these tensors.
pub(super) fn rope_by(
    kernel: RopeKernel,
    qkv: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    positions: Positions,
    heads: usize,
    sign: f32,
) -> Result<()> {
    let (b, t, width) = qkv.dims3()?;
    let dim = 2 * cos.dim(1)?;
    let (start, each) = match positions {
        Positions::From(start) => (start, None),
        Positions::Documents(_) | Positions::Tree(_) => {
            let each: Vec<u32> = (0..b * t).map(|i| positions.position(i, t) as u32).collect();
            (0, Some(list(&each, qkv.device())?))
        }
    };
    let tensors = [pointer(qkv)?, pointer(cos)?, pointer(sin)?, pointer_or_null(each.as_ref())?, int(start)?];
    let kind = suffix(qkv)?;
    let (name, grid, sizes) = match kernel {
        RopeKernel::General => {
            let sizes = vec![int(t)?, int(width)?, int(heads)?, int(dim)?];
            (format!("rope_{kind}"), Grid::linear(b * t, THREADS), sizes)
        }
        RopeKernel::Eight => {
            let threads = (heads * dim / 16).next_multiple_of(WARP).clamp(WARP, THREADS);
            let grid = Grid { blocks: [t, b, 1], threads, shared: 0 };
            (format!("rope_d{dim}_{kind}"), grid, vec![int(width)?, int(heads)?])
        }
    };
    launch(qkv.device(), &name, grid, &[&tensors[..], &sizes, &[Arg::F32(sign)]].concat())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::test_tensors::{bits, numbers};
    use crate::ops::positions::DocumentStarts;
    use crate::ops::rope::Rope;
    use candle_core::Device;

    #[test]
    fn both_rope_kernels_give_the_same_bits() {
        let documents = DocumentStarts::new(vec![0, 0, 2, 3, 3, 0, 0, 0, 0, 4, 0, 1, 1, 3, 3], 5).unwrap();
        for (dim, heads, extra) in [(64, 1, 2), (64, 40, 8), (128, 3, 1), (128, 20, 0)] {
            let (cos, sin) = Rope::new(dim, 100.0, 40).tensors().unwrap();
            for dtype in [DType::F32, DType::BF16] {
                for positions in [Positions::From(7), Positions::Documents(&documents)] {
                    for sign in [1.0, -1.0] {
                        let general = numbers((3, 5, (heads + extra) * dim), 3, dtype);
                        let eight = general.copy().unwrap();
                        let before = bits(&general);
                        rope_by(RopeKernel::General, &general, (&cos, &sin), positions, heads, sign).unwrap();
                        rope_by(RopeKernel::Eight, &eight, (&cos, &sin), positions, heads, sign).unwrap();
                        assert_ne!(bits(&general), before);
                        assert_eq!(bits(&general), bits(&eight), "{heads} heads of {dim}, {dtype:?}, {positions:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn rope_by_eight_takes_what_fits_it() {
        let fastest = |b: usize, width: usize, dim: usize, dtype: DType, skipped: usize| {
            let all = Tensor::zeros(b * width + skipped, dtype, &Device::Cpu).unwrap();
            let qkv = all.narrow(0, skipped, b * width).unwrap().reshape((b, 1, width)).unwrap();
            let (cos, sin) = Rope::new(dim, 100.0, 4).tensors().unwrap();
            RopeKernel::fastest(&qkv, (&cos, &sin)).unwrap()
        };
        for dtype in [DType::F32, DType::BF16] {
            assert_eq!(fastest(3, 256, 64, dtype, 0), RopeKernel::Eight);
            assert_eq!(fastest(3, 256, 128, dtype, 0), RopeKernel::Eight);
            assert_eq!(fastest(3, 256, 32, dtype, 0), RopeKernel::General, "no kernel for the width");
            assert_eq!(fastest(3, 256, 64, dtype, 1), RopeKernel::General, "the first row is not aligned");
            assert_eq!(fastest(3, 257, 64, dtype, 0), RopeKernel::General, "the second row is not aligned");
            assert_eq!(fastest(65_536, 64, 64, dtype, 0), RopeKernel::General, "more rows than a grid has");
        }
    }
}
