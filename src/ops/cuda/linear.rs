//! Linear layers: products by cuBLAS, the weight's gradient accumulated in f32 by the product itself.

use super::gpu::{Matrix, empty, product};
use candle_core::{Result, Tensor};

/// `x (…, in) Wᵀ (in, out)` of this `shape`.
pub(in crate::ops) fn linear(x: &Tensor, w_oi: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let (o, i) = w_oi.dims2()?;
    let y = empty(shape, x.dtype(), x.device())?;
    product(x.device(), Matrix::view(&y, o)?, false, Matrix::view(x, i)?, Matrix::view(w_oi, i)?.t())?;
    Ok(y)
}

/// `dy (…, out) W (out, in)` of this `shape`.
pub(in crate::ops) fn linear_backward_input(dy: &Tensor, w_oi: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let (o, i) = w_oi.dims2()?;
    let dx = empty(shape, dy.dtype(), dy.device())?;
    product(dy.device(), Matrix::view(&dx, i)?, false, Matrix::view(dy, o)?, Matrix::view(w_oi, i)?)?;
    Ok(dx)
}

/// `dW (out, in) += dyᵀ x`, in f32.
pub(in crate::ops) fn linear_backward_weight(dy: &Tensor, x: &Tensor, dw_oi: &Tensor) -> Result<()> {
    let (o, i) = dw_oi.dims2()?;
    product(dy.device(), Matrix::view(dw_oi, i)?, true, Matrix::view(dy, o)?.t(), Matrix::view(x, i)?)
}
