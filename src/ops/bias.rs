//! The bias of a linear layer: `y += b` on every row, in place. Backward: `db += Σ dy` over the rows.

use super::elements::{self, Element, for_elements};
use super::{cpu, on_gpu};
use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

/// The same in candle's differentiable primitives.
pub fn reference(y: &Tensor, bias_c: &Tensor) -> Result<Tensor> {
    y.broadcast_add(bias_c)
}

fn channels(op: &str, y: &Tensor, bias_c: &Tensor) -> Result<usize> {
    let c = bias_c.dims1()?;
    if y.dim(D::Minus1)? != c {
        bail!("{op}: rows of {:?} do not fit a bias of {c}", y.shape());
    }
    Ok(c)
}

/// Adds `bias` (c) to every row of `y` (…, c), in place.
pub fn add_bias(y: &Tensor, bias_c: &Tensor) -> Result<()> {
    let c = channels("add_bias", y, bias_c)?;
    on_gpu!(y, super::cuda::add_bias(y, bias_c));
    cpu::read("add_bias", [bias_c], |[bias]| {
        cpu::update("add_bias", y, |y| {
            y.par_chunks_mut(cpu::rows_per_piece(c) * c).for_each(|rows| {
                cpu::simd!({
                    for row in rows.chunks_exact_mut(c) {
                        row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                    }
                })
            });
            Ok(())
        })
    })
}

/// Accumulates the gradient of a bias, `db` (c) += the sum of the rows of `dy` (…, c).
pub fn bias_backward(dy: &Tensor, dbias_c: &Tensor) -> Result<()> {
    let c = channels("bias_backward", dy, dbias_c)?;
    on_gpu!(dy, super::cuda::bias_backward(dy, dbias_c));
    elements::read("bias_backward", [dy], |[dy]| {
        let partials = for_elements!(dy, |dy| sums_of_pieces(dy, c));
        cpu::update("bias_backward", dbias_c, |dbias| {
            for partial in partials.chunks_exact(c) {
                dbias.iter_mut().zip(partial).for_each(|(sum, p)| *sum += p);
            }
            Ok(())
        })
    })
}

/// The sum of the rows of each piece of `dy`: pieces are added in their order, whatever the threads.
fn sums_of_pieces<T: Element>(dy: &[T], c: usize) -> Vec<f32> {
    let rows = cpu::rows_per_piece(c);
    let mut partials = cpu::zeros((dy.len() / c).div_ceil(rows) * c);
    partials.par_chunks_mut(c).zip(dy.par_chunks(rows * c)).for_each(|(sum, dy)| {
        cpu::simd!({
            for row in dy.chunks_exact(c) {
                sum.iter_mut().zip(row).for_each(|(sum, y)| *sum += y.to_f32());
            }
        })
    });
    partials
}
