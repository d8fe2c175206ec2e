//! RMSNorm (Zhang & Sennrich 2019), alone and fused with the residual addition before it.
//!
//! `h = x + delta`, `r = 1 / sqrt(mean(h²) + eps)`, `y = h · r · w`. Saved: `h` (the residual stream, needed anyway) and `r`, one
//! number per row; `y` is recomputed from them in backward. With `ĥ = h · r` and `g = dy · w`:
//! `dh = dres + r (g - ĥ · mean(g · ĥ))`, where `dres` is what arrives over the residual path, and `dw += Σ_rows dy · ĥ`, summed first
//! inside fixed pieces of rows, then over the pieces in order.

use super::cpu;
use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

/// The same in candle's differentiable primitives.
pub fn reference(x: &Tensor, w_c: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(w_c)
}

/// What [`add_rms_norm`] returns.
pub struct Normed {
    /// The sum `x + delta` (…, c): the residual stream.
    pub h: Tensor,
    /// The normalised rows (…, c).
    pub y: Tensor,
    /// `1 / sqrt(mean(h²) + eps)` of each row (n).
    pub rstd: Tensor,
}

fn channels(op: &str, x: &Tensor, w: &Tensor) -> Result<usize> {
    let c = w.dims1()?;
    if x.dim(D::Minus1)? != c {
        bail!("{op}: x {:?} does not fit the weight of {c} channels", x.shape());
    }
    Ok(c)
}

#[inline(always)]
fn reciprocal_rms(h: &[f32], eps: f32) -> f32 {
    1.0 / (cpu::dot(h, h) / h.len() as f32 + eps).sqrt()
}

/// RMSNorm of `x + delta` (or of `x` alone), both (…, c), with weight `w` (c).
pub fn add_rms_norm(x: &Tensor, delta: Option<&Tensor>, w_c: &Tensor, eps: f64) -> Result<Normed> {
    let c = channels("rms_norm", x, w_c)?;
    let h = match delta {
        None => x.clone(),
        Some(delta) => add(x, delta)?,
    };
    let (y, rstd) = cpu::read("rms_norm", [&h, w_c], |[h, w]| {
        let (mut y, mut rstd) = (cpu::zeros(h.len()), cpu::zeros(h.len() / c));
        let rows = cpu::rows_per_piece(c);
        let pieces = y.par_chunks_mut(rows * c).zip(rstd.par_chunks_mut(rows)).zip(h.par_chunks(rows * c));
        pieces.for_each(|((y, rstd), h)| {
            cpu::simd(#[inline(always)] || {
                for ((y, r), h) in y.chunks_exact_mut(c).zip(rstd).zip(h.chunks_exact(c)) {
                    *r = reciprocal_rms(h, eps as f32);
                    scale_row(y, h, *r, w);
                }
            })
        });
        Ok((y, rstd))
    })?;
    let (y, rstd) = (cpu::tensor(y, x.dims())?, cpu::tensor(rstd, x.elem_count() / c)?);
    Ok(Normed { h, y, rstd })
}

#[inline(always)]
fn scale_row(y: &mut [f32], h: &[f32], r: f32, w: &[f32]) {
    for ((y, h), w) in y.iter_mut().zip(h).zip(w) {
        *y = h * r * w;
    }
}

/// `x + delta`, elementwise.
fn add(x: &Tensor, delta: &Tensor) -> Result<Tensor> {
    if x.dims() != delta.dims() {
        bail!("rms_norm: x {:?} and delta {:?} differ in shape", x.shape(), delta.shape());
    }
    let sum = cpu::read("rms_norm", [x, delta], |[x, delta]| {
        let mut sum = cpu::zeros(x.len());
        sum.par_chunks_mut(cpu::PIECE).zip(x.par_chunks(cpu::PIECE)).zip(delta.par_chunks(cpu::PIECE)).for_each(
            |((s, x), d)| {
                for ((s, x), d) in s.iter_mut().zip(x).zip(d) {
                    *s = x + d;
                }
            },
        );
        Ok(sum)
    })?;
    cpu::tensor(sum, x.dims())
}

/// The normalised rows again, from the saved `h` and `rstd`.
pub fn rms_norm_recompute(h: &Tensor, rstd_n: &Tensor, w_c: &Tensor) -> Result<Tensor> {
    let c = channels("rms_norm_recompute", h, w_c)?;
    let y = cpu::read("rms_norm_recompute", [h, rstd_n, w_c], |[h, rstd, w]| {
        let mut y = cpu::zeros(h.len());
        let rows = cpu::rows_per_piece(c);
        let pieces = y.par_chunks_mut(rows * c).zip(rstd.par_chunks(rows)).zip(h.par_chunks(rows * c));
        pieces.for_each(|((y, rstd), h)| {
            cpu::simd(#[inline(always)] || {
                for ((y, r), h) in y.chunks_exact_mut(c).zip(rstd).zip(h.chunks_exact(c)) {
                    scale_row(y, h, *r, w);
                }
            })
        });
        Ok(y)
    })?;
    cpu::tensor(y, h.dims())
}

/// Gradient of `h` (…, c): the norm's share plus `dres`, the gradient that reaches `h` past the norm. Accumulates `dw` (c).
pub fn rms_norm_backward(
    dy: &Tensor,
    h: &Tensor,
    rstd_n: &Tensor,
    w_c: &Tensor,
    dres: Option<&Tensor>,
    dw_c: &Tensor,
) -> Result<Tensor> {
    let c = channels("rms_norm_backward", h, w_c)?;
    if dy.dims() != h.dims() || dres.is_some_and(|d| d.dims() != h.dims()) {
        bail!("rms_norm_backward: gradients do not have the shape {:?} of h", h.shape());
    }
    let (dh, partials) = cpu::read("rms_norm_backward", [dy, h, rstd_n, w_c, dres.unwrap_or(dy)], |slices| {
        let [dy, h, rstd, w, dres_rows] = slices;
        let mut dh = cpu::zeros(h.len());
        let rows = cpu::rows_per_piece(c);
        let mut partials = cpu::zeros((h.len() / c).div_ceil(rows) * c);
        let pieces = dh
            .par_chunks_mut(rows * c)
            .zip(partials.par_chunks_mut(c))
            .zip(dy.par_chunks(rows * c))
            .zip(h.par_chunks(rows * c))
            .zip(rstd.par_chunks(rows))
            .zip(dres_rows.par_chunks(rows * c));
        pieces.for_each(|(((((dh, dw), dy), h), rstd), dres_rows)| {
            cpu::simd(#[inline(always)] || {
                for (i, &r) in rstd.iter().enumerate() {
                    let row = i * c..(i + 1) * c;
                    let dres_row = dres.map(|_| &dres_rows[row.clone()]);
                    backward_row(&mut dh[row.clone()], dw, &dy[row.clone()], &h[row], r, w, dres_row);
                }
            })
        });
        Ok((dh, partials))
    })?;
    cpu::update("rms_norm_backward", dw_c, |dw| {
        for partial in partials.chunks_exact(c) {
            for (dw, p) in dw.iter_mut().zip(partial) {
                *dw += p;
            }
        }
        Ok(())
    })?;
    cpu::tensor(dh, h.dims())
}

#[inline(always)]
fn backward_row(dh: &mut [f32], dw: &mut [f32], dy: &[f32], h: &[f32], r: f32, w: &[f32], dres: Option<&[f32]>) {
    // dh holds g = dy · w until its mean against ĥ is known.
    for ((g, dy), w) in dh.iter_mut().zip(dy).zip(w) {
        *g = dy * w;
    }
    let mean = cpu::dot(dh, h) * r / h.len() as f32;
    for (((dh, dw), dy), h) in dh.iter_mut().zip(dw).zip(dy).zip(h) {
        let normed = h * r;
        *dh = r * (*dh - normed * mean);
        *dw += dy * normed;
    }
    if let Some(dres) = dres {
        for (dh, d) in dh.iter_mut().zip(dres) {
            *dh += d;
        }
    }
}
