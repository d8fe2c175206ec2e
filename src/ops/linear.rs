//! Linear layer without bias, `y = x Wᵀ`, with `W` stored (out, in) as Hugging Face does.
//!
//! Backward: `dx = dy W`, `dW += dyᵀ x`. The weight gradient accumulates in f32 inside the GEMM itself (beta = 1), so gradient
//! accumulation over micro-batches costs no extra pass.

use super::cpu::{self, SharedMut};
use super::elements::{self, Element, for_elements};
use super::gemm::{Into, Operand, matmul, matmul_rounded};
use super::precision::Precision;
use super::{is_on_gpu, on_gpu};
use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

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

/// From this many rows on, packing the weight pays. With fewer (generation), reading the weight once is what takes the time.
const FEW_ROWS: usize = 8;

/// `x (…, in) Wᵀ (in, out)` → (…, out).
pub fn linear(x: &Tensor, w_oi: &Tensor, precision: Precision) -> Result<Tensor> {
    let (rows, o, i) = sizes("linear", x, 1, w_oi)?;
    on_gpu!(x, super::cuda::linear(x, w_oi, &with_last_dim(x, o)));
    let y = elements::read("linear", [x, w_oi], |[x, w]| {
        let mut y = cpu::output(rows * o);
        if rows < FEW_ROWS {
            let x = x.widened();
            for_elements!(w, |w| few_rows(&mut y, &x, w, i));
            return Ok(y);
        }
        matmul(&mut y, o, Into::Overwrite, 1.0, Operand::new(x, rows, i), Operand::new(w, o, i).t(), precision);
        Ok(y)
    })?;
    cpu::tensor(y, with_last_dim(x, o))
}

/// [`linear`] for a result that forward saves: with bf16 products on the CPU it is rounded to bf16.
pub fn linear_saved(x: &Tensor, w_oi: &Tensor, precision: Precision) -> Result<Tensor> {
    let (rows, o, i) = sizes("linear_saved", x, 1, w_oi)?;
    if precision == Precision::F32 || rows < FEW_ROWS || is_on_gpu(x) {
        return linear(x, w_oi, precision);
    }
    let y = elements::read("linear_saved", [x, w_oi], |[x, w]| {
        let mut y = cpu::output(rows * o);
        matmul_rounded(&mut y, Operand::new(x, rows, i), Operand::new(w, o, i).t(), precision);
        Ok(y)
    })?;
    cpu::tensor(y, with_last_dim(x, o))
}

/// Each row of the weight meets all rows of `x` while it is in the cache.
fn few_rows<W: Element>(y: &mut [f32], x: &[f32], w: &[W], inner: usize) {
    let outputs = w.len() / inner;
    let per_piece = cpu::rows_per_piece(inner);
    let y = SharedMut::new(y);
    // One piece at a time goes to another thread, so that all end together.
    w.par_chunks(per_piece * inner).enumerate().with_max_len(1).for_each(|(piece, w)| {
        cpu::simd!({
            for (o, w) in w.chunks_exact(inner).enumerate() {
                for (row, x) in x.chunks_exact(inner).enumerate() {
                    // SAFETY: this piece's outputs are this task's alone.
                    let y = unsafe { y.range(row * outputs + piece * per_piece + o, 1) };
                    y[0] = W::dot(x, w);
                }
            }
        })
    });
}

/// Gradient of the input: `dy (…, out) W (out, in)` → (…, in).
pub fn linear_backward_input(dy: &Tensor, w_oi: &Tensor, precision: Precision) -> Result<Tensor> {
    let (rows, o, i) = sizes("linear_backward_input", dy, 0, w_oi)?;
    on_gpu!(dy, super::cuda::linear_backward_input(dy, w_oi, &with_last_dim(dy, i)));
    let dx = elements::read("linear_backward_input", [dy, w_oi], |[dy, w]| {
        let mut dx = cpu::output(rows * i);
        matmul(&mut dx, i, Into::Overwrite, 1.0, Operand::new(dy, rows, o), Operand::new(w, o, i), precision);
        Ok(dx)
    })?;
    cpu::tensor(dx, with_last_dim(dy, i))
}

/// Gradient of the weight: `dW (out, in) += dyᵀ x`.
pub fn linear_backward_weight(dy: &Tensor, x: &Tensor, dw_oi: &Tensor, precision: Precision) -> Result<()> {
    let (rows, o, i) = sizes("linear_backward_weight", x, 1, dw_oi)?;
    if dy.elem_count() != rows * o {
        bail!("linear_backward_weight: dy {:?} does not fit x {:?}", dy.shape(), x.shape());
    }
    on_gpu!(dy, super::cuda::linear_backward_weight(dy, x, dw_oi));
    elements::read("linear_backward_weight", [dy, x], |[dy, x]| {
        cpu::update("linear_backward_weight", dw_oi, |dw| {
            matmul(dw, i, Into::Accumulate, 1.0, Operand::new(dy, rows, o).t(), Operand::new(x, rows, i), precision);
            Ok(())
        })
    })
}

/// Both gradients: accumulates `dW` and returns `dx`.
pub fn linear_backward(dy: &Tensor, x: &Tensor, w_oi: &Tensor, dw_oi: &Tensor, precision: Precision) -> Result<Tensor> {
    linear_backward_weight(dy, x, dw_oi, precision)?;
    linear_backward_input(dy, w_oi, precision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    /// With a weight in bf16, as with the same weight in f32: the same bits, on any number of threads.
    #[test]
    fn few_rows_take_a_weight_in_bf16_as_the_same_weight_in_f32() {
        let wave = |rows: usize, columns: usize, step: f32| {
            let values = (0..rows * columns).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
        };
        let bits = |y: Tensor| -> Vec<u32> {
            y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
        };
        // Several pieces, and an inner dimension that is no multiple of the lanes.
        let narrow = wave(600, 203, 0.71).to_dtype(DType::BF16).unwrap();
        let wide = narrow.to_dtype(DType::F32).unwrap();
        for rows in 1..FEW_ROWS {
            let x = wave(rows, 203, 0.37);
            let want = bits(linear(&x, &wide, Precision::F32).unwrap());
            for threads in [1, 2, 4] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let y = pool.install(|| linear(&x, &narrow, Precision::F32)).unwrap();
                assert!(bits(y) == want, "{rows} rows on {threads} threads");
            }
        }
    }
}
