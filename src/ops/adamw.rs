//! AdamW (Loshchilov & Hutter 2019) over flat buffers in one pass, with the clip factor applied on the way, and the global norm.
//!
//! With `g` the clipped gradient and `t` the number of APPLIED updates: `m = β₁ m + (1 - β₁) g`, `v = β₂ v + (1 - β₂) g²`,
//! `p = p (1 - lr · wd)`, `p = p - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε)`: the order of operations of PyTorch's AdamW.

use super::flat::GPU_NORM_PIECE;
pub use super::flat::{Flat, Range};
use super::noise::draw;
use super::{cpu, is_on_gpu, on_gpu};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

#[derive(Clone, Copy, Debug)]
pub struct Hyper {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    pub eps: f64,
    /// Decoupled weight decay of the ranges that take it.
    pub weight_decay: f64,
    /// Which update this is, from 1.
    pub t: u64,
    /// Factor on the gradient: 1, or less when the global norm is clipped.
    pub clip: f64,
    /// Rounds the moments to bf16: up or down by chance, drawn per element under this key, so that they are right on average (Gupta
    /// et al. 2015). With rounding to nearest, small changes would be lost for good.
    pub rounding: Option<u64>,
}

/// Coefficients in f32, computed once in f64.
#[derive(Clone, Copy)]
struct Coefficients {
    clip: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    keep: f32,
    step_size: f32,
    inverse_sqrt_correction2: f32,
    eps: f32,
}

#[cfg(any(test, feature = "cuda"))]
impl Coefficients {
    /// The coefficients in the order of the kernel's struct.
    fn in_order(self) -> [f32; 9] {
        let Self { clip, beta1, beta2, one_minus_beta1, one_minus_beta2, keep, step_size, .. } = self;
        let last = [self.inverse_sqrt_correction2, self.eps];
        [clip, beta1, beta2, one_minus_beta1, one_minus_beta2, keep, step_size, last[0], last[1]]
    }
}

impl Hyper {
    fn coefficients(&self, decay: bool) -> Coefficients {
        let (beta1, beta2) = self.betas;
        // `powi` takes an i32; by then a power of beta is 0 anyway.
        let exponent = self.t.min(i32::MAX as u64) as i32;
        let correction1 = 1.0 - beta1.powi(exponent);
        let correction2 = 1.0 - beta2.powi(exponent);
        let weight_decay = if decay { self.weight_decay } else { 0.0 };
        Coefficients {
            clip: self.clip as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            // Decay acts on the weight and not through the moments (Loshchilov & Hutter 2019).
            keep: (1.0 - self.lr * weight_decay) as f32,
            step_size: (self.lr / correction1) as f32,
            inverse_sqrt_correction2: (1.0 / correction2.sqrt()) as f32,
            eps: self.eps as f32,
        }
    }
}

/// The same in candle's primitives for one tensor: (param, exp_avg, exp_avg_sq) after the update.
pub fn reference(p: &Tensor, g: &Tensor, m: &Tensor, v: &Tensor, h: &Hyper, decay: bool) -> Result<[Tensor; 3]> {
    let g = (g * h.clip)?;
    let m = ((m * h.betas.0)? + (&g * (1.0 - h.betas.0))?)?;
    let v = ((v * h.betas.1)? + (g.sqr()? * (1.0 - h.betas.1))?)?;
    let c1 = 1.0 - h.betas.0.powf(h.t as f64);
    let c2 = 1.0 - h.betas.1.powf(h.t as f64);
    let denominator = ((v.sqrt()? / c2.sqrt())? + h.eps)?;
    let p = if decay { (p * (1.0 - h.lr * h.weight_decay))? } else { p.clone() };
    let p = (p - ((&m / denominator)? * (h.lr / c1))?)?;
    Ok([p, m, v])
}

/// One update of everything in `ranges`.
pub fn adamw(flat: &Flat, ranges: &[Range], hyper: &Hyper) -> Result<()> {
    let n = flat.param.elem_count();
    if [flat.grad, flat.exp_avg, flat.exp_avg_sq].iter().any(|t| t.elem_count() != n)
        || ranges.iter().any(|r| r.start + r.len > n)
    {
        bail!("adamw: buffers or ranges do not fit {n} parameters");
    }
    on_gpu!(flat.param, adamw_on_gpu(flat, ranges, hyper));
    let op = "adamw";
    cpu::read(op, [flat.grad], |[g]| {
        cpu::update(op, flat.param, |p| {
            cpu::update(op, flat.exp_avg, |m| {
                cpu::update(op, flat.exp_avg_sq, |v| {
                    for r in ranges {
                        let at = r.start..r.start + r.len;
                        let k = hyper.coefficients(r.decay);
                        update_range(&mut p[at.clone()], &g[at.clone()], &mut m[at.clone()], &mut v[at.clone()], k);
                        if let Some(key) = hyper.rounding {
                            round_range(key, (flat.first + r.start) as u64, &mut m[at.clone()], &mut v[at]);
                        }
                    }
                    Ok(())
                })
            })
        })
    })
}

/// [`adamw`] by one kernel. `ranges` must cover the buffers in order, without gaps.
#[cfg(any(test, feature = "cuda"))]
pub(super) fn adamw_on_gpu(flat: &Flat, ranges: &[Range], hyper: &Hyper) -> Result<()> {
    let keep: Vec<f32> = ranges.iter().map(|r| hyper.coefficients(r.decay).keep).collect();
    super::cuda::adamw(flat, ranges, &keep, hyper.coefficients(false).in_order(), hyper.rounding)
}

fn update_range(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], k: Coefficients) {
    let pieces = p
        .par_chunks_mut(cpu::PIECE)
        .zip(g.par_chunks(cpu::PIECE))
        .zip(m.par_chunks_mut(cpu::PIECE))
        .zip(v.par_chunks_mut(cpu::PIECE));
    pieces.for_each(|(((p, g), m), v)| {
        cpu::simd!({
            for (((p, g), m), v) in p.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()) {
                let g = g * k.clip;
                *m = k.beta1 * *m + k.one_minus_beta1 * g;
                *v = k.beta2 * *v + k.one_minus_beta2 * (g * g);
                // eps comes after the bias correction, as in PyTorch.
                let denominator = v.sqrt() * k.inverse_sqrt_correction2 + k.eps;
                *p = *p * k.keep - k.step_size * (*m / denominator);
            }
        })
    });
}

/// Rounds both moments to numbers of bf16. The draw of an element has enough bits for both.
fn round_range(key: u64, start: u64, m: &mut [f32], v: &mut [f32]) {
    let pieces = m.par_chunks_mut(cpu::PIECE).zip(v.par_chunks_mut(cpu::PIECE)).enumerate();
    pieces.for_each(|(piece, (m, v))| {
        for (place, (m, v)) in (start + (piece * cpu::PIECE) as u64..).zip(m.iter_mut().zip(v)) {
            let bits = draw(key, place);
            (*m, *v) = (rounded(*m, bits as u32), rounded(*v, (bits >> 32) as u32));
        }
    });
}

/// One of the two numbers of bf16 around `x`, by the lower half of `bits`: the nearer, the likelier.
fn rounded(x: f32, bits: u32) -> f32 {
    if !x.is_finite() {
        // Cut to its upper half, a NaN could become infinite or, by a carry, zero.
        return x;
    }
    // The addition carries into the upper half with a probability proportional to the part that is cut off.
    f32::from_bits(x.to_bits().wrapping_add(bits & 0xffff) & 0xffff_0000)
}

/// Square root of the sum of squares of all elements, summed in f64 over fixed pieces.
pub fn global_norm(grad: &Tensor) -> Result<f64> {
    on_gpu!(grad, super::cuda::global_norm(grad));
    norm_of_pieces(&squares_of_pieces(grad)?, grad)
}

/// Elements of a piece of [`squares_of_pieces`], a multiple of which every part of a buffer must begin at.
pub fn norm_piece(grad: &Tensor) -> usize {
    if is_on_gpu(grad) { GPU_NORM_PIECE } else { cpu::PIECE }
}

/// The sum of squares of every piece.
pub fn squares_of_pieces(grad: &Tensor) -> Result<Vec<f64>> {
    on_gpu!(grad, super::cuda::squares_of_pieces(grad));
    cpu::read("squares_of_pieces", [grad], |[g]| {
        // `collect` keeps the order of the pieces, whichever thread was first.
        Ok(g.par_chunks(cpu::PIECE).map(|piece| cpu::simd!(sum_of_squares(piece))).collect())
    })
}

/// [`global_norm`] from the sums of all pieces in order, wherever they were summed; `grad` says by which device.
pub fn norm_of_pieces(sums: &[f64], grad: &Tensor) -> Result<f64> {
    on_gpu!(grad, super::cuda::norm_of_pieces(sums, grad.device()));
    cpu::expect_f32("norm_of_pieces", grad)?;
    Ok(sums.iter().sum::<f64>().sqrt())
}

#[inline(always)]
fn sum_of_squares(piece: &[f32]) -> f64 {
    // Independent sums vectorise, and their number does not depend on the processor's registers. f64: squares of
    // hundreds of millions of elements are added.
    let mut lanes = [0f64; cpu::LANES];
    let chunks = piece.chunks_exact(cpu::LANES);
    for (l, x) in chunks.remainder().iter().enumerate() {
        lanes[l] += *x as f64 * *x as f64;
    }
    for x in chunks {
        for l in 0..cpu::LANES {
            lanes[l] += x[l] as f64 * x[l] as f64;
        }
    }
    lanes.iter().sum()
}

/// Adds `other` to `sum`, element by element.
pub fn add_assign(sum: &Tensor, other: &Tensor) -> Result<()> {
    on_gpu!(sum, super::cuda::add_assign(sum, other));
    cpu::read("add_assign", [other], |[other]| {
        cpu::update("add_assign", sum, |sum| {
            add_floats(sum, other);
            Ok(())
        })
    })
}

/// The same in the memory of the machine.
pub(crate) fn add_floats(sum: &mut [f32], other: &[f32]) {
    let pieces = sum.par_chunks_mut(cpu::PIECE).zip(other.par_chunks(cpu::PIECE));
    pieces.for_each(|(sum, other)| sum.iter_mut().zip(other).for_each(|(a, b)| *a += b));
}

/// Sets every element to 0.
pub fn zero(t: &Tensor) -> Result<()> {
    on_gpu!(t, super::cuda::zero(t));
    cpu::update("zero", t, |x| {
        x.par_chunks_mut(cpu::PIECE).for_each(|x| x.fill(0.0));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_by_chance_is_right_on_average_and_the_same_in_pieces() {
        for x in [1.003f32, -0.7, 3.0e-9, 0.0, 1.0] {
            let n = 200_000;
            let (mut m, mut v) = (vec![x; n], vec![x; n]);
            round_range(5, 0, &mut m, &mut v);
            for moments in [&m, &v] {
                let mean = moments.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
                // A step of bf16 is 2⁻⁷ of a number at most; the mean of n draws is within some 1 / sqrt(n) of that.
                assert!((mean - f64::from(x)).abs() <= f64::from(x.abs()) / 128.0 * 0.01, "{x}: {mean}");
                assert!(moments.iter().all(|x| x.to_bits() & 0xffff == 0 && x.is_finite()));
            }
            assert!(x == 0.0 || x == 1.0 || m != v, "draws of their own");
            let (mut part, mut other) = (vec![x; 1000], vec![x; 1000]);
            round_range(5, 70_000, &mut part, &mut other);
            assert_eq!((&part[..], &other[..]), (&m[70_000..71_000], &v[70_000..71_000]));
        }
        assert!(rounded(f32::NAN, 7).is_nan() && rounded(f32::INFINITY, 0xffff) == f32::INFINITY);
    }
}
