//! SwiGLU on the packed output of the gate and up projections: `act = silu(gate) · up` with `silu(x) = x σ(x)` (Shazeer 2020).
//!
//! Packed rows are (gate ‖ up), each f wide, so that one GEMM feeds it. Backward, with `s = σ(gate)`:
//! `dgate = dact · up · s (1 + gate (1 - s))`, `dup = dact · silu(gate)`.

use super::elements::{self, Element, for_elements};
use super::precision::Precision;
use super::{cpu, on_gpu};
use candle_core::{D, Result, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

/// The same in candle's differentiable primitives.
pub fn reference(gate_up: &Tensor) -> Result<Tensor> {
    let f = half(gate_up)?;
    let gate = gate_up.narrow(D::Minus1, 0, f)?;
    let up = gate_up.narrow(D::Minus1, f, f)?;
    let sigmoid = (gate.neg()?.exp()? + 1.0)?.recip()?;
    (gate * sigmoid)? * up
}

fn half(gate_up: &Tensor) -> Result<usize> {
    let width = gate_up.dim(D::Minus1)?;
    if width % 2 != 0 {
        bail!("swiglu: the packed width {width} is odd");
    }
    Ok(width / 2)
}

/// (…, 2f) → (…, f), the operand of a product in `precision`: on the CPU it has that type, and so may the input have.
pub fn swiglu(gate_up: &Tensor, precision: Precision) -> Result<Tensor> {
    let f = half(gate_up)?;
    on_gpu!(gate_up, super::cuda::swiglu(gate_up));
    let mut shape = gate_up.dims().to_vec();
    if let Some(d) = shape.last_mut() {
        *d = f;
    }
    elements::read("swiglu", [gate_up], |[gate_up]| {
        for_elements!(gate_up, |gate_up| match precision {
            Precision::F32 => cpu::tensor(activation::<_, f32>(gate_up, f), shape),
            Precision::Bf16 => cpu::tensor(activation::<_, bf16>(gate_up, f), shape),
        })
    })
}

fn activation<I: Element, O: Element>(gate_up: &[I], f: usize) -> Vec<O> {
    let mut act = cpu::output::<O>(gate_up.len() / 2);
    let rows = cpu::rows_per_piece(f);
    act.par_chunks_mut(rows * f).zip(gate_up.par_chunks(rows * 2 * f)).for_each(|(act, gate_up)| {
        cpu::simd!({
            for (act, gate_up) in act.chunks_exact_mut(f).zip(gate_up.chunks_exact(2 * f)) {
                let (gate, up) = gate_up.split_at(f);
                for ((a, g), u) in act.iter_mut().zip(gate).zip(up) {
                    let g = g.to_f32();
                    *a = O::from_f32(g * cpu::sigmoid(g) * u.to_f32());
                }
            }
        })
    });
    act
}

/// Gradient of the packed input, (…, 2f), from `dact` (…, f); an operand of products in `precision`, as the output of [`swiglu`].
pub fn swiglu_backward(gate_up: &Tensor, dact: &Tensor, precision: Precision) -> Result<Tensor> {
    let f = half(gate_up)?;
    if dact.elem_count() * 2 != gate_up.elem_count() {
        bail!("swiglu_backward: dact {:?} does not fit {:?}", dact.shape(), gate_up.shape());
    }
    on_gpu!(gate_up, super::cuda::swiglu_backward(gate_up, dact));
    let shape = gate_up.dims();
    elements::read("swiglu_backward", [gate_up], |[gate_up]| {
        cpu::read("swiglu_backward", [dact], |[dact]| {
            for_elements!(gate_up, |gate_up| match precision {
                Precision::F32 => cpu::tensor(gradient::<_, f32>(gate_up, dact, f), shape),
                Precision::Bf16 => cpu::tensor(gradient::<_, bf16>(gate_up, dact, f), shape),
            })
        })
    })
}

fn gradient<I: Element, O: Element>(gate_up: &[I], dact: &[f32], f: usize) -> Vec<O> {
    let mut out = cpu::output::<O>(gate_up.len());
    let rows = cpu::rows_per_piece(2 * f);
    out.par_chunks_mut(rows * 2 * f).zip(gate_up.par_chunks(rows * 2 * f)).zip(dact.par_chunks(rows * f)).for_each(
        |((out, gate_up), dact)| {
            cpu::simd!({
                let rows = out.chunks_exact_mut(2 * f).zip(gate_up.chunks_exact(2 * f)).zip(dact.chunks_exact(f));
                for ((out, gate_up), dact) in rows {
                    let (gate, up) = gate_up.split_at(f);
                    let (dgate, dup) = out.split_at_mut(f);
                    for i in 0..f {
                        let g = gate[i].to_f32();
                        let s = cpu::sigmoid(g);
                        dgate[i] = O::from_f32(dact[i] * up[i].to_f32() * s * (1.0 + g * (1.0 - s)));
                        dup[i] = O::from_f32(dact[i] * g * s);
                    }
                }
            })
        },
    );
    out
}
