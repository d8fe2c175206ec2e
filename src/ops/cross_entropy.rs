//! The language-model head and its cross-entropy in one, over chunks of rows: the (n, v) logits never exist whole.
//!
//! Per row with target `y`: `loss = ln Σⱼ exp(zⱼ) - z_y`, `z = W x`. Backward in the same pass while a chunk of logits is at hand:
//! `dz = scale · (softmax(z) - onehot(y))`, `dx = dz W`, `dW += dzᵀ x`. `scale` is 1 / (trained tokens of the whole optimizer step), so that
//! gradient accumulation gives the mean over the step whatever the micro-batch. Rows whose target is [`IGNORE`] cost nothing and
//! train nothing.

use super::elements::{self, Elements};
use super::gemm::{Into, Mat, Operand, matmul};
use super::precision::Precision;
pub use super::targets::{IGNORE, Scored};
use super::{cpu, on_gpu};
use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

/// Logits held at once: 32 Mi elements, 128 MiB. Each chunk packs the head's weights and passes over their gradient once more.
const CHUNK_ELEMENTS: usize = 32 << 20;

/// Gradients of logits below this are set to 0: their products with weights and activations would be close to subnormal numbers.
const NEGLIGIBLE: f32 = 1e-30;

/// The same in candle's differentiable primitives: loss of each row, (n). No ignored targets.
pub fn reference(x_nc: &Tensor, w_vc: &Tensor, targets_n: &Tensor) -> Result<Tensor> {
    let logits = x_nc.matmul(&w_vc.t()?)?;
    // The shift cancels out, so autograd may take it as a constant.
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    let log_sum = shifted.exp()?.sum(D::Minus1)?.log()?;
    log_sum - shifted.gather(&targets_n.unsqueeze(1)?, 1)?.squeeze(1)
}

struct Head<'a> {
    x: Elements<'a>,
    w: Elements<'a>,
    targets: &'a [u32],
    channels: usize,
    vocab: usize,
    precision: Precision,
}

impl Head<'_> {
    /// Computes the logits of the rows from `from` on, one per element of `losses`. `row` turns each row of logits and its target into
    /// that element.
    fn chunk<T: Send>(
        &self,
        logits: &mut [f32],
        from: usize,
        losses: &mut [T],
        row: impl Fn(&mut [f32], u32) -> T + Sync,
    ) {
        let rows = losses.len();
        let c = self.channels;
        let v = self.vocab;
        let x = Operand::new(self.x.after(from * c), rows, c);
        matmul(logits, v, Into::Overwrite, 1.0, x, Operand::new(self.w, v, c).t(), self.precision);
        let per_piece = cpu::rows_per_piece(v);
        let targets = &self.targets[from..from + rows];
        logits
            .par_chunks_mut(per_piece * v)
            .zip(losses.par_chunks_mut(per_piece))
            .zip(targets.par_chunks(per_piece))
            .for_each(|((logits, losses), targets)| {
                for ((z, loss), &target) in logits.chunks_exact_mut(v).zip(losses).zip(targets) {
                    *loss = row(z, target);
                }
            });
    }

    fn rows_per_chunk(&self) -> usize {
        // With fewer rows a chunk would spend its time packing the head's weights.
        (CHUNK_ELEMENTS / self.vocab).max(64)
    }
}

/// Loss of one row; its logits become exponentials. Returns (loss, sum of exponentials).
fn row_loss(z: &mut [f32], target: u32) -> (f32, f32) {
    cpu::simd!({
        let top = cpu::max(z);
        // Before the logits become exponentials.
        let at_target = z[target as usize];
        let sum = cpu::exp_and_sum(z, top);
        // A NaN among the logits escapes `max` but not the sum.
        (sum.ln() + top - at_target, sum)
    })
}

fn check(op: &str, x: &Tensor, w: &Tensor, targets: &Tensor) -> Result<(usize, usize, usize, Vec<u32>)> {
    let (n, c) = x.dims2()?;
    let (v, wc) = w.dims2()?;
    let targets = cpu::ids(op, targets)?;
    if wc != c || targets.len() != n {
        bail!("{op}: x {:?}, head {:?} and {} targets do not fit", x.shape(), w.shape(), targets.len());
    }
    if let Some(bad) = targets.iter().find(|&&t| t != IGNORE && t as usize >= v) {
        bail!("{op}: target {bad} is outside the vocabulary of {v}");
    }
    Ok((n, c, v, targets))
}

/// Loss of each row, (n); 0 where ignored.
pub fn cross_entropy(x_nc: &Tensor, w_vc: &Tensor, targets_n: &Tensor, precision: Precision) -> Result<Tensor> {
    let (n, channels, vocab, targets) = check("cross_entropy", x_nc, w_vc, targets_n)?;
    on_gpu!(x_nc, super::cuda::cross_entropy(x_nc, w_vc, &targets));
    let losses = elements::read("cross_entropy", [x_nc, w_vc], |[x, w]| {
        let head = Head { x, w, targets: &targets, channels, vocab, precision };
        let step = head.rows_per_chunk();
        let mut losses = cpu::output(n);
        let mut logits = cpu::output(step.min(n) * vocab);
        for (i, losses) in losses.chunks_mut(step).enumerate() {
            let logits = &mut logits[..losses.len() * vocab];
            head.chunk(
                logits,
                i * step,
                losses,
                |z, target| if target == IGNORE { 0.0 } else { row_loss(z, target).0 },
            );
        }
        Ok(losses)
    })?;
    cpu::tensor(losses, n)
}

/// [`cross_entropy`] that also returns whether the target is the most likely token.
pub fn score(x_nc: &Tensor, w_vc: &Tensor, targets_n: &Tensor, precision: Precision) -> Result<Vec<Scored>> {
    let (n, channels, vocab, targets) = check("score", x_nc, w_vc, targets_n)?;
    on_gpu!(x_nc, super::cuda::score(x_nc, w_vc, &targets));
    elements::read("score", [x_nc, w_vc], |[x, w]| {
        let head = Head { x, w, targets: &targets, channels, vocab, precision };
        let step = head.rows_per_chunk();
        let mut scored = vec![Scored { loss: 0.0, best: false }; n];
        let mut logits = cpu::output(step.min(n) * vocab);
        for (i, scored) in scored.chunks_mut(step).enumerate() {
            let logits = &mut logits[..scored.len() * vocab];
            head.chunk(logits, i * step, scored, |z, target| {
                let at_target = z[target as usize];
                // The first of equal logits counts, as it does for argmax.
                let best = z.iter().position(|&other| other >= at_target) == Some(target as usize)
                    && z.iter().all(|&other| other <= at_target);
                Scored { loss: row_loss(z, target).0, best }
            });
        }
        Ok(scored)
    })
}

/// Sum of the squares of all logits.
pub fn logit_squares(x_nc: &Tensor, w_vc: &Tensor, precision: Precision) -> Result<f64> {
    let (n, channels) = x_nc.dims2()?;
    let vocab = w_vc.dim(0)?;
    on_gpu!(x_nc, super::cuda::logit_squares(x_nc, w_vc));
    // Every row of a chunk has a target; these are never looked at.
    let targets = vec![IGNORE; n];
    elements::read("logit_squares", [x_nc, w_vc], |[x, w]| {
        let head = Head { x, w, targets: &targets, channels, vocab, precision };
        let step = head.rows_per_chunk();
        // One sum for each row, added in their order: the number of threads changes nothing.
        let mut squares = vec![0f64; n];
        let mut logits = cpu::output(step.min(n) * vocab);
        for (i, squares) in squares.chunks_mut(step).enumerate() {
            let logits = &mut logits[..squares.len() * vocab];
            head.chunk(logits, i * step, squares, |z, _| cpu::simd!(f64::from(cpu::dot(z, z))));
        }
        Ok(squares.iter().sum())
    })
}

/// Loss of each row (n) and the gradient of `x` (n, c) for the loss `scale · Σ rows`; accumulates the head's gradient into `dw`;
/// without one the head is frozen.
pub fn cross_entropy_and_backward(
    x_nc: &Tensor,
    w_vc: &Tensor,
    targets_n: &Tensor,
    scale: f32,
    dw_vc: Option<&Tensor>,
    precision: Precision,
) -> Result<(Tensor, Tensor)> {
    let (n, c, vocab, targets) = check("cross_entropy", x_nc, w_vc, targets_n)?;
    on_gpu!(x_nc, super::cuda::cross_entropy_and_backward(x_nc, w_vc, &targets, scale, dw_vc));
    let mut losses = cpu::output(n);
    let dx = elements::read("cross_entropy", [x_nc, w_vc], |[x, w]| {
        let head = Head { x, w, targets: &targets, channels: c, vocab, precision };
        let step = head.rows_per_chunk();
        let mut dx = cpu::output(n * c);
        let mut logits = cpu::output(step.min(n) * vocab);
        for ((i, losses), dx) in losses.chunks_mut(step).enumerate().zip(dx.chunks_mut(step * c)) {
            let rows = losses.len();
            let from = i * step;
            let logits = &mut logits[..rows * vocab];
            head.chunk(logits, from, losses, |z, target| row_loss_and_gradient(z, target, scale));
            // Gradients have replaced the logits in place: one buffer of a chunk's size serves both.
            let dz = Mat::new(logits, rows, vocab, vocab);
            matmul(dx, c, Into::Overwrite, 1.0, dz, Operand::new(w, vocab, c), precision);
            let Some(dw_vc) = dw_vc else { continue };
            cpu::update("cross_entropy", dw_vc, |dw| {
                matmul(dw, c, Into::Accumulate, 1.0, dz.t(), Operand::new(x.after(from * c), rows, c), precision);
                Ok(())
            })?;
        }
        Ok(dx)
    })?;
    Ok((cpu::tensor(losses, n)?, cpu::tensor(dx, (n, c))?))
}

fn row_loss_and_gradient(z: &mut [f32], target: u32, scale: f32) -> f32 {
    if target == IGNORE {
        z.fill(0.0);
        return 0.0;
    }
    let (loss, sum) = row_loss(z, target);
    // Softmax's divisor and the step's scale in one factor: one division for each row.
    let factor = scale / sum;
    cpu::simd!(z.iter_mut().for_each(|z| {
        let dz = *z * factor;
        // When logits explode, nearly all of these would be subnormal, and the terms of both matrix products with them. Many processors
        // compute with subnormal numbers in microcode, many times as slowly. So small a value is lost in the sums anyway, beside the
        // target's `-scale` and the gradients of other rows.
        *z = if dz < NEGLIGIBLE { 0.0 } else { dz };
    }));
    z[target as usize] -= scale;
    loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Multiplying subnormal numbers takes many processors a hundred times as long: a run that explodes must not stand still as well.
    #[test]
    fn exploding_logits_leave_no_subnormal_gradients() {
        let (n, c, v) = (4, 8, 64);
        for size in [30.0, 100.0, 1e4, 1e8] {
            let wave =
                |len: usize, size: f32| (0..len).map(|i| size * ((i * i) as f32 * 0.37).sin()).collect::<Vec<_>>();
            let x = Tensor::from_vec(wave(n * c, size), (n, c), &Device::Cpu).unwrap();
            let w = Tensor::from_vec(wave(v * c, 1.0), (v, c), &Device::Cpu).unwrap();
            let targets = Tensor::from_vec(vec![1u32, 2, 3, 60], n, &Device::Cpu).unwrap();
            let dw = Tensor::zeros((v, c), candle_core::DType::F32, &Device::Cpu).unwrap();
            let (losses, dx) = cross_entropy_and_backward(&x, &w, &targets, 1e-3, Some(&dw), Precision::F32).unwrap();
            let losses = losses.to_vec1::<f32>().unwrap();
            assert!(losses.iter().all(|loss| loss.is_finite() && *loss >= 0.0), "{losses:?}");
            for gradient in [dx, dw] {
                let values = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(values.iter().any(|x| *x != 0.0));
                let subnormal = values.iter().filter(|x| x.is_subnormal()).count();
                assert_eq!(subnormal, 0, "of {}, with logits of about {size}", values.len());
            }
        }
    }
}
