//! LoRA: products by cuBLAS over columns of packed projections, dropout by `noise.cu`.
//!
//! `u` and `du` hold the parts side by side; adapters have the type of the activations, their gradients are f32.

use super::gpu::{Matrix, empty, product, scaled_product};
use super::noise::{add_dropped, dropped};
use crate::ops::adapter::LoraAdapter;
use crate::ops::noise::Dropout;
use candle_core::{D, Result, Tensor};
use std::ops::Range;

/// Every part of an adapter with its columns of `u`.
fn parts(adapter: &LoraAdapter) -> Result<Vec<Range<usize>>> {
    let all = adapter.a.dim(0)?;
    let n = adapter.parts.len();
    Ok((0..n).map(|i| i * all / n..(i + 1) * all / n).collect())
}

/// `u = x Aᵀ`, (rows, n·r).
fn down(x: &Tensor, adapter: &LoraAdapter) -> Result<Tensor> {
    let (all, inner) = adapter.a.dims2()?;
    let u = empty(&[x.elem_count() / inner, all], x.dtype(), x.device())?;
    product(x.device(), Matrix::view(&u, all)?, false, Matrix::view(x, inner)?, Matrix::view(&adapter.a, inner)?.t())?;
    Ok(u)
}

/// See [`lora`](crate::ops::lora::lora).
pub(in crate::ops) fn lora(
    y: &Tensor,
    x: &Tensor,
    adapter: &LoraAdapter,
    scale: f32,
    dropout: Option<&Dropout>,
) -> Result<()> {
    let u = down(&dropped(dropout, x)?, adapter)?;
    let u = Matrix::view(&u, u.dim(1)?)?;
    let y_all = Matrix::view(y, y.dim(D::Minus1)?)?;
    for (part, columns) in adapter.parts.iter().zip(parts(adapter)?) {
        let b = Matrix::view(&part.b, columns.len())?.t();
        scaled_product(y.device(), y_all.columns(part.rows.clone()), true, scale, u.columns(columns), b)?;
    }
    Ok(())
}

/// See [`lora_backward`](crate::ops::lora::lora_backward).
pub(in crate::ops) fn lora_backward(
    dx: &Tensor,
    dy: &Tensor,
    x: &Tensor,
    (adapter, grads): (&LoraAdapter, &LoraAdapter),
    scale: f32,
    dropout: Option<&Dropout>,
) -> Result<()> {
    let device = dx.device();
    let (all, inner) = adapter.a.dims2()?;
    let x = dropped(dropout, x)?;
    let u = down(&x, adapter)?;
    let du = empty(u.dims(), u.dtype(), device)?;
    let u = Matrix::view(&u, all)?;
    let du_all = Matrix::view(&du, all)?;
    let dy = Matrix::view(dy, dy.dim(D::Minus1)?)?;
    for ((part, grad), columns) in adapter.parts.iter().zip(&grads.parts).zip(parts(adapter)?) {
        let mine = dy.columns(part.rows.clone());
        let rank = columns.len();
        scaled_product(device, Matrix::view(&grad.b, rank)?, true, scale, mine.t(), u.columns(columns.clone()))?;
        scaled_product(device, du_all.columns(columns), false, scale, mine, Matrix::view(&part.b, rank)?)?;
    }
    product(device, Matrix::view(&grads.a, inner)?, true, du_all.t(), Matrix::view(&x, inner)?)?;
    let a = Matrix::view(&adapter.a, inner)?;
    let Some(dropout) = dropout else { return product(device, Matrix::view(dx, inner)?, true, du_all, a) };
    let through = empty(x.dims(), x.dtype(), device)?;
    product(device, Matrix::view(&through, inner)?, false, du_all, a)?;
    add_dropped(dropout, &through, dx)
}
