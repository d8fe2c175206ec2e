//! RMSNorm (Zhang & Sennrich 2019), alone and fused with the residual addition before it.
//!
//! `h = x + delta`, `r = 1 / sqrt(mean(h²) + eps)`, `y = h · r · w`. Saved: `h` (the residual stream, needed anyway) and `r`, one
//! number per row; `y` is recomputed from them in backward. With `ĥ = h · r` and `g = dy · w`:
//! `dh = dres + r (g - ĥ · mean(g · ĥ))`, where `dres` is the gradient over the residual path, and `dw += Σ_rows dy · ĥ`, summed first
//! inside fixed pieces of rows, then over the pieces in order.

use super::elements::Element;
use super::precision::Precision;
use super::{cpu, on_gpu};
use candle_core::{D, Result, Tensor, bail};
use half::bf16;
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
    /// The normalised rows (…, c), which are operands of products: bf16 where these are.
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
pub(super) fn reciprocal_rms(h: &[f32], eps: f32) -> f32 {
    1.0 / (cpu::dot(h, h) / h.len() as f32 + eps).sqrt()
}

/// RMSNorm of `x + delta` (or of `x` alone), both (…, c), with weight `w` (c); `precision` is that of the products of the result.
pub fn add_rms_norm(
    x: &Tensor,
    delta: Option<&Tensor>,
    w_c: &Tensor,
    eps: f64,
    precision: Precision,
) -> Result<Normed> {
    let c = channels("rms_norm", x, w_c)?;
    if let Some(delta) = delta.filter(|delta| x.dims() != delta.dims()) {
        bail!("rms_norm: x {:?} and delta {:?} differ in shape", x.shape(), delta.shape());
    }
    on_gpu!(x, super::cuda::add_rms_norm(x, delta, w_c, eps));
    match (delta, precision) {
        (None, Precision::F32) => norm_alone::<f32>(x, w_c, eps as f32, c),
        (None, Precision::Bf16) => norm_alone::<bf16>(x, w_c, eps as f32, c),
        (Some(delta), Precision::F32) => norm_of_sum::<f32>(x, delta, w_c, eps as f32, c),
        (Some(delta), Precision::Bf16) => norm_of_sum::<bf16>(x, delta, w_c, eps as f32, c),
    }
}

fn norm_of_sum<T: Element>(x: &Tensor, delta: &Tensor, w_c: &Tensor, eps: f32, c: usize) -> Result<Normed> {
    let (h, y, rstd) = cpu::read("rms_norm", [x, delta, w_c], |[x, delta, w]| {
        let mut h = cpu::output(x.len());
        let mut y = cpu::output::<T>(x.len());
        let mut rstd = cpu::output(x.len() / c);
        let rows = cpu::rows_per_piece(c);
        let results = h.par_chunks_mut(rows * c).zip(y.par_chunks_mut(rows * c)).zip(rstd.par_chunks_mut(rows));
        let pieces = results.zip(x.par_chunks(rows * c)).zip(delta.par_chunks(rows * c));
        pieces.for_each(|((((h, y), rstd), x), delta)| {
            cpu::simd!({
                for ((h, x), d) in h.iter_mut().zip(x).zip(delta) {
                    *h = x + d;
                }
                // Piece by piece, while the sum is still in the cache.
                norm_rows(y, rstd, h, w, eps);
            })
        });
        Ok((h, y, rstd))
    })?;
    let rows = x.elem_count() / c;
    Ok(Normed { h: cpu::tensor(h, x.dims())?, y: cpu::tensor(y, x.dims())?, rstd: cpu::tensor(rstd, rows)? })
}

fn norm_alone<T: Element>(h: &Tensor, w_c: &Tensor, eps: f32, c: usize) -> Result<Normed> {
    let (y, rstd) = cpu::read("rms_norm", [h, w_c], |[h, w]| {
        let mut y = cpu::output::<T>(h.len());
        let mut rstd = cpu::output(h.len() / c);
        let rows = cpu::rows_per_piece(c);
        let pieces = y.par_chunks_mut(rows * c).zip(rstd.par_chunks_mut(rows)).zip(h.par_chunks(rows * c));
        pieces.for_each(|((y, rstd), h)| cpu::simd!(norm_rows(y, rstd, h, w, eps)));
        Ok((y, rstd))
    })?;
    let y = cpu::tensor(y, h.dims())?;
    let rstd = cpu::tensor(rstd, h.elem_count() / c)?;
    Ok(Normed { h: h.clone(), y, rstd })
}

#[inline(always)]
fn norm_rows<T: Element>(y: &mut [T], rstd: &mut [f32], h: &[f32], w: &[f32], eps: f32) {
    let c = w.len();
    for ((y, r), h) in y.chunks_exact_mut(c).zip(rstd).zip(h.chunks_exact(c)) {
        *r = reciprocal_rms(h, eps);
        scale_row(y, h, *r, w);
    }
}

#[inline(always)]
fn scale_row<T: Element>(y: &mut [T], h: &[f32], r: f32, w: &[f32]) {
    for ((y, h), w) in y.iter_mut().zip(h).zip(w) {
        *y = T::from_f32(h * r * w);
    }
}

/// The normalised rows again, from the saved `h` and `rstd`.
pub fn rms_norm_recompute(h: &Tensor, rstd_n: &Tensor, w_c: &Tensor, precision: Precision) -> Result<Tensor> {
    let c = channels("rms_norm_recompute", h, w_c)?;
    on_gpu!(h, super::cuda::rms_norm_recompute(h, rstd_n, w_c));
    match precision {
        Precision::F32 => norm_again::<f32>(h, rstd_n, w_c, c),
        Precision::Bf16 => norm_again::<bf16>(h, rstd_n, w_c, c),
    }
}

fn norm_again<T: Element>(h: &Tensor, rstd_n: &Tensor, w_c: &Tensor, c: usize) -> Result<Tensor> {
    let y = cpu::read("rms_norm_recompute", [h, rstd_n, w_c], |[h, rstd, w]| {
        let mut y = cpu::output::<T>(h.len());
        let rows = cpu::rows_per_piece(c);
        let pieces = y.par_chunks_mut(rows * c).zip(rstd.par_chunks(rows)).zip(h.par_chunks(rows * c));
        pieces.for_each(|((y, rstd), h)| {
            cpu::simd!({
                for ((y, r), h) in y.chunks_exact_mut(c).zip(rstd).zip(h.chunks_exact(c)) {
                    scale_row(y, h, *r, w);
                }
            })
        });
        Ok(y)
    })?;
    cpu::tensor(y, h.dims())
}

/// Gradient of `h` (…, c): the norm's share plus `dres`, the gradient that reaches `h` past the norm. Accumulates `dw` (c); without
/// one the weight is frozen.
pub fn rms_norm_backward(
    dy: &Tensor,
    h: &Tensor,
    rstd_n: &Tensor,
    w_c: &Tensor,
    dres: Option<&Tensor>,
    dw_c: Option<&Tensor>,
) -> Result<Tensor> {
    let c = channels("rms_norm_backward", h, w_c)?;
    if dy.dims() != h.dims() || dres.is_some_and(|d| d.dims() != h.dims()) {
        bail!("rms_norm_backward: gradients do not have the shape {:?} of h", h.shape());
    }
    on_gpu!(h, super::cuda::rms_norm_backward(dy, h, rstd_n, w_c, dres, dw_c));
    // The number of slices is fixed, so `dy` stands in for a `dres` that is not there. It is not read as one.
    let (dh, partials) = cpu::read("rms_norm_backward", [dy, h, rstd_n, w_c, dres.unwrap_or(dy)], |slices| {
        let [dy, h, rstd, w, dres_rows] = slices;
        let mut dh = cpu::output(h.len());
        let rows = cpu::rows_per_piece(c);
        // A row of dW for each piece: no two threads add to the same numbers, and the sum below has a fixed order.
        let mut partials = cpu::zeros((h.len() / c).div_ceil(rows) * c);
        let pieces = dh
            .par_chunks_mut(rows * c)
            .zip(partials.par_chunks_mut(c))
            .zip(dy.par_chunks(rows * c))
            .zip(h.par_chunks(rows * c))
            .zip(rstd.par_chunks(rows))
            .zip(dres_rows.par_chunks(rows * c));
        pieces.for_each(|(((((dh, dw), dy), h), rstd), dres_rows)| {
            cpu::simd!({
                for (i, &r) in rstd.iter().enumerate() {
                    let row = i * c..(i + 1) * c;
                    let dres_row = dres.map(|_| &dres_rows[row.clone()]);
                    backward_row(&mut dh[row.clone()], dw, &dy[row.clone()], &h[row], r, w, dres_row);
                }
            })
        });
        Ok((dh, partials))
    })?;
    let Some(dw_c) = dw_c else { return cpu::tensor(dh, h.dims()) };
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
