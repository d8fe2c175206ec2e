//! Head and cross-entropy: launches of `cross_entropy.cu` between products, over chunks of rows.

use super::gpu::{Arg, Grid, Matrix, empty, int, launch, list, pointer, pointer_or_null, product, suffix};
use crate::ops::targets::Scored;
use crate::ops::transfer::to_host;
use candle_core::{DType, Result, Tensor};

const THREADS: usize = 512;

/// Logits held at once: 256 Mi elements, half a gigabyte of bf16.
const CHUNK_ELEMENTS: usize = 256 << 20;

/// Rows of a chunk are a multiple of this where that costs no memory: the tile of a matrix product.
const TILE_ROWS: usize = 128;

/// Rows of the head's chunks for `n` rows of logits: as few chunks as [`CHUNK_ELEMENTS`] allows, of nearly equal size. The last one is the
/// rest.
///
/// Chunks of the most rows would leave a short one: 16,384 rows of a vocabulary of 50,304 would be 3 of 5,336 and one of 376. The gradient of
/// 376 x 2,048 inputs is 24 tiles of 128 x 256 for 132 multiprocessors, as slow as 132 tiles: 10 waves in all, where 4 chunks of 4,096 take 8.
/// A wave of that product is estimated at 0.6 ms. The CPU's chunks are its own: their sizes decide its bits.
fn rows_per_chunk(n: usize, vocab: usize) -> usize {
    let most = (CHUNK_ELEMENTS / vocab).max(64);
    let even = n.div_ceil(n.div_ceil(most).max(1));
    let tiled = even.next_multiple_of(TILE_ROWS);
    if tiled <= most.min(n) { tiled } else { even }
}

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
        Self::of_rows(x, w, rows_per_chunk(x.dim(0)?, w.dim(0)?))
    }

    /// With `rows` rows in a chunk.
    fn of_rows(x: &'a Tensor, w: &'a Tensor, rows: usize) -> Result<Self> {
        let n = x.dim(0)?;
        let vocab = w.dim(0)?;
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
    let best = all.best.map_or(Ok(Vec::new()), |best| to_host(&best)?.to_vec1::<u32>())?;
    let pairs = to_host(&all.losses)?.to_vec1::<f32>()?.into_iter().zip(best);
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
    Ok(to_host(&sums)?.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
}

/// See [`cross_entropy_and_backward`](crate::ops::cross_entropy::cross_entropy_and_backward).
pub(in crate::ops) fn cross_entropy_and_backward(
    x_nc: &Tensor,
    w_vc: &Tensor,
    targets: &[u32],
    scale: f32,
    dw_vc: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    backward_by_chunks(&Chunks::new(x_nc, w_vc)?, targets, scale, dw_vc)
}

/// Losses and the gradient of `x`; that of `w` is added to `dw`.
fn backward_by_chunks(chunks: &Chunks, targets: &[u32], scale: f32, dw: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let Chunks { x, w, .. } = chunks;
    let c = w.dim(1)?;
    let device = x.device();
    let dx = empty(x.dims(), x.dtype(), device)?;
    let all = Losses::new(chunks, targets, false)?;
    for (from, n) in chunks.each() {
        // The kernel has put the gradient in the place of the logits.
        let dz = all.run((from, n), Some(scale))?;
        product(device, Matrix::view(&dx, c)?.narrow(from, n), false, dz, Matrix::view(w, c)?)?;
        if let Some(dw) = dw {
            product(device, Matrix::view(dw, c)?, true, dz.t(), Matrix::view(x, c)?.narrow(from, n))?;
        }
    }
    Ok((all.losses, dx))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::test_tensors::{numbers, values};
    use crate::ops::targets::IGNORE;
    use candle_core::Device;

    #[test]
    fn chunks_are_few_and_of_nearly_equal_size() {
        let sizes = |n: usize, vocab: usize| {
            let rows = rows_per_chunk(n, vocab);
            let chunks: Vec<usize> = (0..n).step_by(rows.max(1)).map(|from| rows.min(n - from)).collect();
            chunks
        };
        assert_eq!(sizes(16_384, 50_304), [4096; 4]);
        assert_eq!(sizes(32_768, 50_304), [[4736; 6].as_slice(), &[4352]].concat());
        assert_eq!(sizes(5336, 50_304), [5336], "one chunk of the most rows");
        assert_eq!(sizes(5337, 50_304), [2688, 2649]);
        assert_eq!(sizes(16_384, 4096), [16_384]);
        assert_eq!(sizes(70, 1000), [70], "fewer rows than a tile");
        assert_eq!(sizes(130, 4_000_000), [65, 65], "a tile would be more than the most");
        assert_eq!(sizes(1, 50_304), [1]);
        assert!(sizes(0, 50_304).is_empty());
        for vocab in [257, 50_304, 151_936, 5_000_000] {
            let most = (CHUNK_ELEMENTS / vocab).max(64);
            for n in (1..100_000).step_by(997) {
                let sizes = sizes(n, vocab);
                assert_eq!(sizes.iter().sum::<usize>(), n);
                assert_eq!(sizes.len(), n.div_ceil(most), "{n} rows of {vocab}: {sizes:?}");
                assert!(sizes.iter().all(|&rows| 0 < rows && rows <= most), "{n} rows of {vocab}: {sizes:?}");
                let last = sizes[sizes.len() - 1];
                assert!(sizes[0] - last < TILE_ROWS * sizes.len(), "{n} rows of {vocab}: {sizes:?}");
            }
        }
    }

    #[test]
    fn several_chunks_compute_what_one_does() {
        let (n, c, vocab) = (70, 16, 200);
        let targets: Vec<u32> = (0..n as u32).map(|i| if i == 5 { IGNORE } else { 7 * i % vocab as u32 }).collect();
        for dtype in [DType::F32, DType::BF16] {
            let x = numbers((n, c), 1, dtype);
            let w = numbers((vocab, c), 2, dtype);
            let results = |rows: usize| {
                let chunks = Chunks::of_rows(&x, &w, rows).unwrap();
                let dw = Tensor::zeros((vocab, c), DType::F32, &Device::Cpu).unwrap().copy().unwrap();
                let (losses, dx) = backward_by_chunks(&chunks, &targets, 0.25, Some(&dw)).unwrap();
                [losses, dx, dw].map(|t| values(&t))
            };
            let [losses, dx, dw] = results(n);
            assert!(losses.iter().all(|loss| loss.is_finite()) && dw.iter().any(|&g| g != 0.0));
            // Chunks that divide the rows and that leave a rest, of one row at the end too.
            for rows in [35, 32, 23, 1] {
                let several = results(rows);
                assert_eq!(several[0], losses, "losses, {rows} rows a chunk, {dtype:?}");
                assert_eq!(several[1], dx, "dx, {rows} rows a chunk, {dtype:?}");
                let largest = dw.iter().fold(0.0f32, |most, g| most.max(g.abs()));
                // The chunks' sums are added one after another: another order of the same terms.
                let apart = dw.iter().zip(&several[2]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(apart <= 2e-6 * largest, "dw, {rows} rows a chunk, {dtype:?}: {apart} of {largest}");
            }
        }
    }
}
