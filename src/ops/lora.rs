//! LoRA (Hu et al. 2021): a low-rank addition to a frozen linear layer, `y = x Wᵀ + s · (x' Aᵀ) Bᵀ`, `x' = dropout(x)`.
//!
//! Projections that are one product here (q ‖ k ‖ v, gate ‖ up) have an adapter each. Their `A` lie one below the other, so that
//! `u = x' Aᵀ` is one product for all of them; each `B` then fills its own rows of the output.
//!
//! Backward, with `dyᵢ` the columns of part `i`: `duᵢ = s · dyᵢ Bᵢ`, `dBᵢ += s · dyᵢᵀ uᵢ`, `dA += duᵀ x'`, `dx += dropout(du A)`. `u` is
//! computed again, which costs rank / outputs of the layer's product. The frozen weight has no gradient, which saves a third of the work
//! of full fine-tuning.

pub use super::adapter::{LoraAdapter, LoraPart};
use super::gemm::{Into, Mat, matmul};
use super::noise::Dropout;
use super::precision::Precision;
use super::{cpu, on_gpu};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// The whole layer in candle's differentiable primitives, `mask` (…, in) standing for dropout.
pub fn reference(
    x: &Tensor,
    w_oi: &Tensor,
    adapter: &LoraAdapter,
    scale: f64,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let dropped = mask.map_or_else(|| Ok(x.clone()), |mask| x * mask)?;
    let rank = adapter.a.dim(0)? / adapter.parts.len();
    let mut y = x.matmul(&w_oi.t()?)?;
    for (i, part) in adapter.parts.iter().enumerate() {
        let u = dropped.matmul(&adapter.a.narrow(0, i * rank, rank)?.t()?)?;
        let mine = (u.matmul(&part.b.t()?)? * scale)?;
        let before = part.rows.start;
        let after = w_oi.dim(0)? - part.rows.end;
        y = (y + mine.pad_with_zeros(1, before, after)?)?;
    }
    Ok(y)
}

/// Sizes of a product: rows of `x`, inputs, outputs, rank.
struct Sizes {
    rows: usize,
    inner: usize,
    outputs: usize,
    rank: usize,
}

fn sizes(op: &str, x: &Tensor, y: &Tensor, adapter: &LoraAdapter) -> Result<Sizes> {
    let (all, inner) = adapter.a.dims2()?;
    let outputs = y.dims().last().copied().unwrap_or(0);
    let rank = all / adapter.parts.len().max(1);
    let rows = x.elem_count() / inner.max(1);
    let layer_fits = x.dims().last() == Some(&inner) && y.elem_count() == rows * outputs;
    let parts_fit = adapter.parts.iter().all(|p| p.b.dims() == [p.rows.len(), rank] && p.rows.end <= outputs);
    if !layer_fits || rank * adapter.parts.len() != all || !parts_fit {
        bail!("{op}: x {:?}, y {:?} and A {:?} do not fit", x.shape(), y.shape(), adapter.a.shape());
    }
    Ok(Sizes { rows, inner, outputs, rank })
}

/// `u = x' Aᵀ`, (rows, n·r).
fn down(x: &[f32], a: &[f32], s: &Sizes, precision: Precision) -> Vec<f32> {
    let all = a.len() / s.inner;
    let mut u = cpu::output(s.rows * all);
    let x = Mat::new(x, s.rows, s.inner, s.inner);
    let a = Mat::new(a, all, s.inner, s.inner);
    matmul(&mut u, all, Into::Overwrite, 1.0, x, a.t(), precision);
    u
}

/// Adds the adapters' part to `y` (…, out), the frozen layer's output for `x` (…, in), in place.
pub fn lora(
    y: &Tensor,
    x: &Tensor,
    adapter: &LoraAdapter,
    scale: f64,
    dropout: Option<&Dropout>,
    precision: Precision,
) -> Result<()> {
    let s = sizes("lora", x, y, adapter)?;
    on_gpu!(y, super::cuda::lora(y, x, adapter, scale as f32, dropout));
    let x = Dropout::applied(dropout, x)?;
    // One product for all A; each B then serves its own rows of the output.
    let u = cpu::read("lora", [&x, &adapter.a], |[x, a]| Ok(down(x, a, &s, precision)))?;
    let all = s.rank * adapter.parts.len();
    cpu::update("lora", y, |y| {
        for (i, part) in adapter.parts.iter().enumerate() {
            cpu::read("lora", [&part.b], |[b]| {
                let u = Mat::new(&u[(i * s.rank).min(u.len())..], s.rows, s.rank, all);
                let b = Mat::new(b, part.rows.len(), s.rank, s.rank).t();
                matmul(&mut y[part.rows.start..], s.outputs, Into::Accumulate, scale as f32, u, b, precision);
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// Gradients for `dy` (…, out): accumulates those of the adapters into `grads` and adds that of the input to `dx` (…, in), in place.
#[allow(clippy::too_many_arguments)]
pub fn lora_backward(
    dx: &Tensor,
    dy: &Tensor,
    x: &Tensor,
    adapter: &LoraAdapter,
    grads: &LoraAdapter,
    scale: f64,
    dropout: Option<&Dropout>,
    precision: Precision,
) -> Result<()> {
    let s = sizes("lora_backward", x, dy, adapter)?;
    if sizes("lora_backward", x, dy, grads)?.rank != s.rank || dx.elem_count() != x.elem_count() {
        bail!("lora_backward: gradients do not have the shapes of what they belong to");
    }
    on_gpu!(dx, super::cuda::lora_backward(dx, dy, x, (adapter, grads), scale as f32, dropout));
    let x = Dropout::applied(dropout, x)?;
    let all = s.rank * adapter.parts.len();
    let scale = scale as f32;
    let through = cpu::read("lora_backward", [dy, &x, &adapter.a], |[dy, x, a]| {
        // Computed again: so few columns cost less than keeping them since the forward pass.
        let u = down(x, a, &s, precision);
        let mut du = cpu::output(s.rows * all);
        for (i, (part, grad)) in adapter.parts.iter().zip(&grads.parts).enumerate() {
            let dy = Mat::new(&dy[part.rows.start..], s.rows, part.rows.len(), s.outputs);
            let u = Mat::new(&u[i * s.rank..], s.rows, s.rank, all);
            cpu::update("lora_backward", &grad.b, |db| {
                matmul(db, s.rank, Into::Accumulate, scale, dy.t(), u, precision);
                Ok(())
            })?;
            cpu::read("lora_backward", [&part.b], |[b]| {
                let b = Mat::new(b, part.rows.len(), s.rank, s.rank);
                matmul(&mut du[i * s.rank..], all, Into::Overwrite, scale, dy, b, precision);
                Ok(())
            })?;
        }
        let du = Mat::new(&du, s.rows, all, all);
        cpu::update("lora_backward", &grads.a, |da| {
            let x = Mat::new(x, s.rows, s.inner, s.inner);
            matmul(da, s.inner, Into::Accumulate, 1.0, du.t(), x, precision);
            Ok(())
        })?;
        let mut through = cpu::output(s.rows * s.inner);
        let a = Mat::new(a, all, s.inner, s.inner);
        matmul(&mut through, s.inner, Into::Overwrite, 1.0, du, a, precision);
        Ok(through)
    })?;
    // Only the adapters' input was dropped: the mask must not touch what `dx` holds already.
    let through = dropout.map(|dropout| dropout.apply(&through)).unwrap_or(through);
    cpu::update("lora_backward", dx, |dx| {
        let pieces = dx.par_chunks_mut(cpu::PIECE).zip(through.par_chunks(cpu::PIECE));
        pieces.for_each(|(dx, more)| dx.iter_mut().zip(more).for_each(|(dx, more)| *dx += more));
        Ok(())
    })
}

/// `W + s · B A`, the weight (out, in) of the layer and its adapter in one.
pub fn merged(w_oi: &[f32], a_ri: &[f32], b_or: &[f32], rank: usize, scale: f64) -> Vec<f32> {
    let inner = a_ri.len() / rank;
    let outputs = b_or.len() / rank;
    let mut w = w_oi.to_vec();
    let a = Mat::new(a_ri, rank, inner, inner);
    let b = Mat::new(b_or, outputs, rank, rank);
    matmul(&mut w, inner, Into::Accumulate, scale as f32, b, a, Precision::F32);
    w
}
