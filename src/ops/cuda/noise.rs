//! Dropout and noise: launches of `noise.cu`.

use super::gpu::{Arg, Grid, empty, int, launch, list, pointer, suffix};
use crate::ops::noise::Dropout;
use candle_core::{Result, Tensor};

const THREADS: usize = 256;

/// Blocks of a loop over any number of elements.
const BLOCKS: usize = 4096;

/// Writes `x` after dropout to `y`, or adds it to `y`.
fn drop_into(dropout: &Dropout, x: &Tensor, y: &Tensor, add: bool) -> Result<()> {
    let n = x.elem_count();
    let args = [
        pointer(x)?,
        pointer(y)?,
        Arg::U64(dropout.key),
        Arg::U64(dropout.first),
        Arg::U64(dropout.limit()),
        Arg::F32(dropout.keep()),
        Arg::U64(n as u64),
        int(usize::from(add))?,
    ];
    let grid = Grid::linear(n.div_ceil(THREADS).min(BLOCKS), THREADS);
    launch(x.device(), &format!("dropout_{}", suffix(x)?), grid, &args)
}

/// `x` after dropout.
pub(super) fn dropped(dropout: Option<&Dropout>, x: &Tensor) -> Result<Tensor> {
    let Some(dropout) = dropout else { return Ok(x.clone()) };
    let y = empty(x.dims(), x.dtype(), x.device())?;
    drop_into(dropout, x, &y, false).map(|()| y)
}

/// Adds `x` after dropout to `y`.
pub(super) fn add_dropped(dropout: &Dropout, x: &Tensor, y: &Tensor) -> Result<()> {
    drop_into(dropout, x, y, true)
}

/// See [`add_noise`](crate::ops::noise::add_noise).
pub(in crate::ops) fn add_noise(x: &Tensor, most: &[f32], key: u64, first: u64) -> Result<()> {
    let on_device = list(most, x.device())?;
    let c = x.elem_count() / most.len().max(1);
    let args = [pointer(x)?, pointer(&on_device)?, Arg::U64(key), Arg::U64(first), int(c)?];
    launch(x.device(), &format!("add_noise_{}", suffix(x)?), Grid::linear(most.len(), THREADS), &args)
}
