//! Head and cross-entropy: launches of `cross_entropy.cu` between products, over chunks of rows.

use super::gpu::{Arg, Grid, Matrix, empty, int, launch, list, pointer, pointer_or_null, product, suffix};
use crate::ops::targets::Scored;
use candle_core::{DType, Result, Tensor};

const THREADS: usize = 512;

/// Logits held at once: 256 Mi elements, half a gigabyte of bf16.
const CHUNK_ELEMENTS: usize = 256 << 20;

/// The head over all rows. Logits exist for one chunk of rows at a time.
struct Chunks<'a> {
    x: &'a Tensor,
    w: &'a Tensor,
    logits: Tensor,
    vocab: usize,
    n: usize,
    rows: usize,
}

impl<'a> Chunks<'a> {
    fn new(x: &'a Tensor, w: &'a Tensor) -> Result<Self> {
        let n = x.dim(0)?;
        let vocab = w.dim(0)?;
        let rows = (CHUNK_ELEMENTS / vocab).max(64).min(n);
        Ok(Self { x, w, logits: empty(&[rows, vocab], x.dtype(), x.device())?, vocab, n, rows })
    }

    /// (first row, rows) of every chunk.
    fn each(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let n = self.n;
        let step = self.rows;
        (0..n).step_by(step.max(1)).map(move |from| (from, step.min(n - from)))
    }

    /// Fills `logits` with those of rows `from..from + n`.
    fn fill(&self, (from, n): (usize, usize)) -> Result<Matrix> {
        let c = self.w.dim(1)?;
        let z = Matrix::view(&self.logits, self.vocab)?.narrow(0, n);
        product(self.x.device(), z, false, Matrix::view(self.x, c)?.narrow(from, n), Matrix::view(self.w, c)?.t())?;
        Ok(z)
    }

    /// Queues `kernel` with a block for each row of the chunk, and `args` after the logits.
    fn launch(&self, kernel: &str, rows: usize, args: &[Arg]) -> Result<()> {
        let args = [&[pointer(&self.logits)?], args].concat();
        launch(self.x.device(), &format!("{kernel}_{}", suffix(&self.logits)?), Grid::linear(rows, THREADS), &args)
    }
}

/// The losses that are computed from the logits.
struct Losses<'a> {
    chunks: &'a Chunks<'a>,
    targets: Tensor,
    losses: Tensor,
    best: Option<Tensor>,
}

impl<'a> Losses<'a> {
    fn new(chunks: &'a Chunks<'a>, targets: &[u32], best: bool) -> Result<Self> {
        let n = targets.len();
        let device = chunks.x.device();
        let best = best.then(|| empty(&[n], DType::U32, device)).transpose()?;
        let losses = empty(&[n], DType::F32, device)?;
        Ok(Self { chunks, targets: list(targets, device)?, losses, best })
    }

    /// Computes the losses of a chunk; with `scale`, the gradient of its logits replaces them.
    fn run(&self, (from, n): (usize, usize), scale: Option<f32>) -> Result<Matrix> {
        let z = self.chunks.fill((from, n))?;
        let best = self.best.as_ref().map(|best| best.narrow(0, from, n)).transpose()?;
        let args = [
            pointer(&self.targets.narrow(0, from, n)?)?,
            pointer(&self.losses.narrow(0, from, n)?)?,
            pointer_or_null(best.as_ref())?,
            int(self.chunks.vocab)?,
            Arg::F32(scale.unwrap_or(0.0)),
            int(usize::from(scale.is_some()))?,
        ];
        self.chunks.launch("cross_entropy", n, &args)?;
        Ok(z)
    }
}

/// See [`cross_entropy`](crate::ops::cross_entropy::cross_entropy).
pub(in crate::ops) fn cross_entropy(x_nc: &Tensor, w_vc: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let chunks = Chunks::new(x_nc, w_vc)?;
    let all = Losses::new(&chunks, targets, false)?;
    for part in chunks.each() {
        all.run(part, None)?;
    }
    Ok(all.losses)
}

/// See [`score`](crate::ops::cross_entropy::score).
pub(in crate::ops) fn score(x_nc: &Tensor, w_vc: &Tensor, targets: &[u32]) -> Result<Vec<Scored>> {
    let chunks = Chunks::new(x_nc, w_vc)?;
    let all = Losses::new(&chunks, targets, true)?;
    for part in chunks.each() {
        all.run(part, None)?;
    }
    let best = all.best.map_or(Ok(Vec::new()), |best| best.to_vec1::<u32>())?;
    let pairs = all.losses.to_vec1::<f32>()?.into_iter().zip(best);
    Ok(pairs.map(|(loss, best)| Scored { loss, best: best != 0 }).collect())
}

/// See [`logit_squares`](crate::ops::cross_entropy::logit_squares).
pub(in crate::ops) fn logit_squares(x_nc: &Tensor, w_vc: &Tensor) -> Result<f64> {
    let chunks = Chunks::new(x_nc, w_vc)?;
    let sums = empty(&[chunks.n], DType::F32, x_nc.device())?;
    for (from, n) in chunks.each() {
        chunks.fill((from, n))?;
        chunks.launch("logit_squares", n, &[pointer(&sums.narrow(0, from, n)?)?, int(chunks.vocab)?])?;
    }
    Ok(sums.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
}

/// See [`cross_entropy_and_backward`](crate::ops::cross_entropy::cross_entropy_and_backward).
pub(in crate::ops) fn cross_entropy_and_backward(
    x_nc: &Tensor,
    w_vc: &Tensor,
    targets: &[u32],
    scale: f32,
    dw_vc: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let c = w_vc.dim(1)?;
    let device = x_nc.device();
    let dx = empty(x_nc.dims(), x_nc.dtype(), device)?;
    let chunks = Chunks::new(x_nc, w_vc)?;
    let all = Losses::new(&chunks, targets, false)?;
    for (from, n) in chunks.each() {
        // The kernel has put the gradient in the place of the logits.
        let dz = all.run((from, n), Some(scale))?;
        product(device, Matrix::view(&dx, c)?.narrow(from, n), false, dz, Matrix::view(w_vc, c)?)?;
        if let Some(dw) = dw_vc {
            product(device, Matrix::view(dw, c)?, true, dz.t(), Matrix::view(x_nc, c)?.narrow(from, n))?;
        }
    }
    Ok((all.losses, dx))
}
