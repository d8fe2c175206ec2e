//! Head and cross-entropy: launches of `cross_entropy.cu` between products, over chunks of rows.

use super::gpu::{Arg, Grid, Matrix, at, at_or_null, empty, int, launch, product, suffix};
use crate::ops::cross_entropy::Scored;
use candle_core::{DType, Result, Tensor};

const THREADS: usize = 512;

/// Logits held at once: 256 Mi elements, half a gigabyte of bf16.
const CHUNK_ELEMENTS: usize = 256 << 20;

/// Logits of some rows, and what is made of them.
struct Chunk<'a> {
    x: &'a Tensor,
    w: &'a Tensor,
    targets: Tensor,
    vocab: usize,
    rows: usize,
}

impl<'a> Chunk<'a> {
    fn new(x: &'a Tensor, w: &'a Tensor, targets: &[u32]) -> Result<Self> {
        let vocab = w.dim(0)?;
        let rows = (CHUNK_ELEMENTS / vocab).max(64).min(targets.len());
        Ok(Self { x, w, targets: Tensor::from_slice(targets, targets.len(), x.device())?, vocab, rows })
    }

    /// (first row, rows) of every chunk.
    fn each(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (n, step) = (self.targets.elem_count(), self.rows);
        (0..n).step_by(step.max(1)).map(move |from| (from, step.min(n - from)))
    }

    /// Fills `logits` with those of rows `from..from + n`, then runs the kernel: with `scale` they become their gradient.
    fn run(
        &self,
        logits: &Tensor,
        (from, n): (usize, usize),
        losses: &Tensor,
        best: Option<&Tensor>,
        scale: Option<f32>,
    ) -> Result<Matrix> {
        let c = self.w.dim(1)?;
        let z = Matrix::of(logits, self.vocab)?.narrow(0, n);
        product(self.x.device(), z, false, Matrix::of(self.x, c)?.narrow(from, n), Matrix::of(self.w, c)?.t())?;
        let best = best.map(|best| best.narrow(0, from, n)).transpose()?;
        let args = [
            at(logits)?,
            at(&self.targets.narrow(0, from, n)?)?,
            at(&losses.narrow(0, from, n)?)?,
            at_or_null(best.as_ref())?,
            int(self.vocab)?,
            Arg::F32(scale.unwrap_or(0.0)),
            int(usize::from(scale.is_some()))?,
        ];
        launch(self.x.device(), &format!("cross_entropy_{}", suffix(logits)?), Grid::of(n, THREADS), &args)?;
        Ok(z)
    }
}

/// See [`cross_entropy`](crate::ops::cross_entropy::cross_entropy).
pub(in crate::ops) fn cross_entropy(x_nc: &Tensor, w_vc: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let chunk = Chunk::new(x_nc, w_vc, targets)?;
    let losses = empty(&[targets.len()], DType::F32, x_nc.device())?;
    let logits = empty(&[chunk.rows, chunk.vocab], x_nc.dtype(), x_nc.device())?;
    for part in chunk.each() {
        chunk.run(&logits, part, &losses, None, None)?;
    }
    Ok(losses)
}

/// See [`score`](crate::ops::cross_entropy::score).
pub(in crate::ops) fn score(x_nc: &Tensor, w_vc: &Tensor, targets: &[u32]) -> Result<Vec<Scored>> {
    let chunk = Chunk::new(x_nc, w_vc, targets)?;
    let losses = empty(&[targets.len()], DType::F32, x_nc.device())?;
    let best = empty(&[targets.len()], DType::U32, x_nc.device())?;
    let logits = empty(&[chunk.rows, chunk.vocab], x_nc.dtype(), x_nc.device())?;
    for part in chunk.each() {
        chunk.run(&logits, part, &losses, Some(&best), None)?;
    }
    let (losses, best) = (losses.to_vec1::<f32>()?, best.to_vec1::<u32>()?);
    Ok(losses.into_iter().zip(best).map(|(loss, best)| Scored { loss, best: best != 0 }).collect())
}

/// See [`cross_entropy_and_backward`](crate::ops::cross_entropy::cross_entropy_and_backward).
pub(in crate::ops) fn cross_entropy_and_backward(
    x_nc: &Tensor,
    w_vc: &Tensor,
    targets: &[u32],
    scale: f32,
    dw_vc: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let (chunk, c, device) = (Chunk::new(x_nc, w_vc, targets)?, w_vc.dim(1)?, x_nc.device());
    let losses = empty(&[targets.len()], DType::F32, device)?;
    let dx = empty(x_nc.dims(), x_nc.dtype(), device)?;
    let logits = empty(&[chunk.rows, chunk.vocab], x_nc.dtype(), device)?;
    for (from, n) in chunk.each() {
        let dz = chunk.run(&logits, (from, n), &losses, None, Some(scale))?;
        product(device, Matrix::of(&dx, c)?.narrow(from, n), false, dz, Matrix::of(w_vc, c)?)?;
        if let Some(dw) = dw_vc {
            product(device, Matrix::of(dw, c)?, true, dz.t(), Matrix::of(x_nc, c)?.narrow(from, n))?;
        }
    }
    Ok((losses, dx))
}
