//! Biases: launches of `bias.cu`.

use super::gpu::{Grid, empty, int, launch, pointer, suffix};
use super::rms_norm::add_columns;
use candle_core::{DType, Result, Tensor};

const THREADS: usize = 256;

/// Blocks that share the rows in backward; fixed, so that the sums do not depend on the GPU.
const BLOCKS: usize = 256;

/// See [`add_bias`](crate::ops::bias::add_bias).
pub(in crate::ops) fn add_bias(y: &Tensor, bias_c: &Tensor) -> Result<()> {
    let c = bias_c.dims1()?;
    let grid = Grid { blocks: [y.elem_count() / c, c.div_ceil(THREADS), 1], threads: THREADS, shared: 0 };
    launch(y.device(), &format!("add_bias_{}", suffix(y)?), grid, &[pointer(y)?, pointer(bias_c)?, int(c)?])
}

/// See [`bias_backward`](crate::ops::bias::bias_backward).
pub(in crate::ops) fn bias_backward(dy: &Tensor, dbias_c: &Tensor) -> Result<()> {
    let c = dbias_c.dims1()?;
    let rows = dy.elem_count() / c;
    let blocks = rows.min(BLOCKS);
    let partials = empty(&[blocks, c], DType::F32, dy.device())?;
    let grid = Grid { blocks: [blocks, c.div_ceil(THREADS), 1], threads: THREADS, shared: 0 };
    let args = [pointer(dy)?, pointer(&partials)?, int(rows)?, int(c)?];
    launch(dy.device(), &format!("sum_rows_{}", suffix(dy)?), grid, &args)?;
    add_columns(&partials, dbias_c)
}
