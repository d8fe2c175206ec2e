//! Linear layer without bias, `y = x Wᵀ`, with `W` stored (out, in) as Hugging Face does.
//!
//! Backward: `dx = dy W`, `dW += dyᵀ x`. The weight gradient accumulates in f32 inside the GEMM itself (beta = 1), so gradient
//! accumulation over micro-batches costs no extra pass.

use super::cpu;
use super::gemm::{Into, Mat, matmul};
use candle_core::{D, Result, Tensor, bail};

/// The same in candle's differentiable primitives.
pub fn reference(x: &Tensor, w_oi: &Tensor) -> Result<Tensor> {
    let (o, i) = w_oi.dims2()?;
    let mut shape = x.dims().to_vec();
    let rows = x.elem_count() / i;
    *shape.last_mut().ok_or_else(|| candle_core::Error::Msg("linear: x is a scalar".into()))? = o;
    x.reshape((rows, i))?.matmul(&w_oi.t()?)?.reshape(shape)
}

/// Rows of `x` (…, in) and the sizes of `w` (out, in).
fn sizes(op: &str, x: &Tensor, x_dim: usize, w_oi: &Tensor) -> Result<(usize, usize, usize)> {
    let (o, i) = w_oi.dims2()?;
    let inner = x.dim(D::Minus1)?;
    if inner != [o, i][x_dim] {
        bail!("{op}: last dimension {inner} does not fit the weight {:?}", w_oi.shape());
    }
    Ok((x.elem_count() / inner, o, i))
}

fn with_last_dim(x: &Tensor, last: usize) -> Vec<usize> {
    let mut shape = x.dims().to_vec();
    if let Some(d) = shape.last_mut() {
        *d = last;
    }
    shape
}

/// `x (…, in) Wᵀ (in, out)` → (…, out).
pub fn linear(x: &Tensor, w_oi: &Tensor) -> Result<Tensor> {
    let (rows, o, i) = sizes("linear", x, 1, w_oi)?;
    let y = cpu::read("linear", [x, w_oi], |[x, w]| {
        let mut y = cpu::zeros(rows * o);
        matmul(&mut y, o, Into::Overwrite, 1.0, Mat::new(x, rows, i, i), Mat::new(w, o, i, i).t());
        Ok(y)
    })?;
    cpu::tensor(y, with_last_dim(x, o))
}

/// Gradient of the input: `dy (…, out) W (out, in)` → (…, in).
pub fn linear_backward_input(dy: &Tensor, w_oi: &Tensor) -> Result<Tensor> {
    let (rows, o, i) = sizes("linear_backward_input", dy, 0, w_oi)?;
    let dx = cpu::read("linear_backward_input", [dy, w_oi], |[dy, w]| {
        let mut dx = cpu::zeros(rows * i);
        matmul(&mut dx, i, Into::Overwrite, 1.0, Mat::new(dy, rows, o, o), Mat::new(w, o, i, i));
        Ok(dx)
    })?;
    cpu::tensor(dx, with_last_dim(dy, i))
}

/// Gradient of the weight: `dW (out, in) += dyᵀ x`.
pub fn linear_backward_weight(dy: &Tensor, x: &Tensor, dw_oi: &Tensor) -> Result<()> {
    let (rows, o, i) = sizes("linear_backward_weight", x, 1, dw_oi)?;
    if dy.elem_count() != rows * o {
        bail!("linear_backward_weight: dy {:?} does not fit x {:?}", dy.shape(), x.shape());
    }
    cpu::read("linear_backward_weight", [dy, x], |[dy, x]| {
        cpu::update("linear_backward_weight", dw_oi, |dw| {
            matmul(dw, i, Into::Accumulate, 1.0, Mat::new(dy, rows, o, o).t(), Mat::new(x, rows, i, i));
            Ok(())
        })
    })
}

/// Both gradients: accumulates `dW` and returns `dx`.
pub fn linear_backward(dy: &Tensor, x: &Tensor, w_oi: &Tensor, dw_oi: &Tensor) -> Result<Tensor> {
    linear_backward_weight(dy, x, dw_oi)?;
    linear_backward_input(dy, w_oi)
}
