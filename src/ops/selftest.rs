//! Value and gradient of every op against the same formula in candle's differentiable primitives, on the user's own device.
//!
//! `cargo test` and `llama-lite doctor` run the same checks. The reference is candle's autograd. An op passes if its results
//! differ by at most [`TOLERANCE`] of the reference's largest element.

mod heads;
mod outcome;

pub use outcome::{Outcome, TOLERANCE};

use super::noise::Dropout;
use super::precision::Precision::{Bf16, F32};
use super::{adamw, bias, cross_entropy, embedding, linear, lora, rms_norm, swiglu};
use crate::ops::positions::DocumentStarts;
use candle_core::{DType, Device, Result, Tensor, Var};

type Check = fn(&mut Inputs) -> Result<f64>;

/// Every op of the training path with its check; a new op without an entry fails `tests/all/tidy.rs`.
const CHECKS: [(&str, Check); 12] = [
    ("embedding", check_embedding),
    ("linear", check_linear),
    ("linear in bf16", check_linear_in_bf16),
    ("bias", check_bias),
    ("lora", check_lora),
    ("rms_norm", check_rms_norm),
    ("qk_norm", heads::check_qk_norm),
    ("rope", heads::check_rope),
    ("swiglu", check_swiglu),
    ("attention", heads::check_attention),
    ("cross_entropy", check_cross_entropy),
    ("adamw", check_adamw),
];

/// Names of the ops that [`run`] checks.
pub fn names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|(name, _)| *name)
}

/// The outcomes of all ops, each as soon as it is asked for. An op that ends with an error is one that has failed.
pub fn run() -> impl Iterator<Item = Outcome> {
    let mut inputs = Inputs { state: 0x9e37_79b9_7f4a_7c15 };
    CHECKS.iter().map(move |&(op, check)| Outcome::new(op, check(&mut inputs)))
}

/// Pseudo-random test inputs from a small generator of our own, so that reports from all machines are about the same numbers.
struct Inputs {
    state: u64,
}

impl Inputs {
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// Values in [-1, 1).
    fn tensor(&mut self, shape: &[usize]) -> Result<Tensor> {
        let data: Vec<f32> =
            (0..shape.iter().product()).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
        Tensor::from_vec(data, shape, &Device::Cpu)
    }

    /// Values in [-1, 1) in a tensor whose memory is transposed: a strided input.
    fn strided(&mut self, rows: usize, cols: usize) -> Result<Tensor> {
        self.tensor(&[cols, rows])?.t()
    }

    fn ids(&mut self, n: usize, below: usize) -> Result<Tensor> {
        let data: Vec<u32> = (0..n).map(|_| (self.next() % below as u64) as u32).collect();
        Tensor::from_vec(data, n, &Device::Cpu)
    }

    /// Documents of random lengths, of one token up to the whole row.
    fn documents(&mut self, b: usize, t: usize) -> Result<DocumentStarts> {
        let mut starts = Vec::with_capacity(b * t);
        for _ in 0..b {
            let likely = 1 + self.next() % t as u64;
            let mut start = 0;
            starts.extend((0..t as u32).map(|i| {
                if self.next().is_multiple_of(likely) {
                    start = i;
                }
                start
            }));
        }
        DocumentStarts::new(starts, t)
    }
}

/// Largest difference relative to the largest element of `want`; not a number counts as infinite.
pub fn difference(got: &Tensor, want: &Tensor) -> Result<f64> {
    if got.dims() != want.dims() {
        return Ok(f64::INFINITY);
    }
    if got.elem_count() == 0 {
        return Ok(0.0);
    }
    let got = got.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let want = want.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let largest = want.iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
    let worst = got.iter().zip(&want).fold(0.0, |m: f64, (g, w)| {
        let d = (g - w).abs() / largest;
        // `f64::max` would lose a NaN.
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    });
    Ok(worst)
}

fn worst(pairs: &[(&Tensor, &Tensor)]) -> Result<f64> {
    pairs.iter().try_fold(0.0, |m: f64, (got, want)| Ok(m.max(difference(got, want)?)))
}

/// Gradients of `Σ y · dy` with respect to `vars`, by candle's autograd.
fn autograd(y: &Tensor, dy: &Tensor, vars: &[&Var]) -> Result<Vec<Tensor>> {
    let grads = (y * dy)?.sum_all()?.backward()?;
    vars.iter()
        .map(|v| {
            grads.get(v).cloned().ok_or_else(|| candle_core::Error::Msg("candle's autograd has no gradient".into()))
        })
        .collect()
}

fn zeros_like(t: &Tensor) -> Result<Tensor> {
    Tensor::zeros(t.shape(), t.dtype(), t.device())
}

fn check_embedding(inputs: &mut Inputs) -> Result<f64> {
    let mut found = 0.0f64;
    for (n, v, c) in [(1, 3, 1), (37, 11, 70), (128, 50, 96)] {
        let ids = inputs.ids(n, v)?;
        let table = Var::from_tensor(&inputs.tensor(&[v, c])?)?;
        let dy = inputs.tensor(&[n, c])?;
        let want = embedding::reference(&ids, &table)?;
        let expected = autograd(&want, &dy, &[&table])?;
        let dtable = zeros_like(&table)?;
        embedding::embedding_backward(&ids, &dy, &dtable)?;
        found = found.max(worst(&[(&embedding::embedding(&ids, &table)?, &want), (&dtable, &expected[0])])?);
    }
    Ok(found)
}

fn check_linear(inputs: &mut Inputs) -> Result<f64> {
    let mut found = 0.0f64;
    for (n, o, i) in [(1, 1, 1), (1, 70, 700), (3, 131, 33), (7, 13, 5), (65, 33, 130), (128, 256, 64)] {
        for strided in [false, true] {
            let x = if strided { inputs.strided(n, i)? } else { inputs.tensor(&[n, i])? };
            let x = Var::from_tensor(&x)?;
            let w = Var::from_tensor(&inputs.tensor(&[o, i])?)?;
            let dy = if strided { inputs.strided(n, o)? } else { inputs.tensor(&[n, o])? };
            let want = linear::reference(&x, &w)?;
            let expected = autograd(&want, &dy, &[&x, &w])?;
            // Not zeros: the op must add to what is there.
            let dw = Tensor::ones_like(&w)?;
            let dx = linear::linear_backward(&dy, &x, &w, &dw, F32)?;
            let dw = (dw - 1.0)?;
            found =
                found.max(worst(&[(&linear::linear(&x, &w, F32)?, &want), (&dx, &expected[0]), (&dw, &expected[1])])?);
        }
    }
    Ok(found)
}

/// An adapter whose parts have `rows` and the matrices `bs`.
fn adapter(a: &Tensor, rows: &[std::ops::Range<usize>], bs: &[Tensor]) -> lora::LoraAdapter {
    let parts = rows.iter().zip(bs).map(|(rows, b)| lora::LoraPart { rows: rows.clone(), b: b.clone() });
    lora::LoraAdapter { a: a.clone(), parts: parts.collect() }
}

/// Products in bf16, by whichever instructions, against those in f32 of operands that rounding leaves as they are.
fn check_linear_in_bf16(inputs: &mut Inputs) -> Result<f64> {
    let mut found = 0.0f64;
    for (n, i, o) in [(9, 5, 3), (65, 33, 17), (128, 600, 96)] {
        let rounded = [[n, i], [o, i], [n, o]].map(|shape| inputs.tensor(&shape)?.to_dtype(DType::BF16));
        let [x, w, dy] = rounded.map(|x| x?.to_dtype(DType::F32));
        let (x, w, dy) = (x?, w?, dy?);
        let [dw, exact_dw] = [zeros_like(&w)?, zeros_like(&w)?];
        linear::linear_backward_weight(&dy, &x, &dw, Bf16)?;
        linear::linear_backward_weight(&dy, &x, &exact_dw, F32)?;
        let y = linear::linear(&x, &w, Bf16)?;
        let dx = linear::linear_backward_input(&dy, &w, Bf16)?;
        let exact_y = linear::linear(&x, &w, F32)?;
        let exact_dx = linear::linear_backward_input(&dy, &w, F32)?;
        found = found.max(worst(&[(&y, &exact_y), (&dx, &exact_dx), (&dw, &exact_dw)])?);
    }
    Ok(found)
}

/// One, two and three projections with an adapter each inside a packed one, some rows without any; with and without dropout.
fn check_lora(inputs: &mut Inputs) -> Result<f64> {
    let mut found = 0.0f64;
    let shapes: [(usize, usize, usize, &[std::ops::Range<usize>]); 3] =
        [(3, 7, 2, &[0..2, 2..5]), (65, 33, 4, &[0..40, 60..72]), (128, 64, 16, &[0..64, 64..80, 80..96])];
    for (n, i, r, rows) in shapes {
        for p in [0.0, 0.3] {
            let o = rows.last().map_or(0, |rows| rows.end) + 3;
            let x = Var::from_tensor(&inputs.tensor(&[n, i])?)?;
            let w = inputs.tensor(&[o, i])?;
            let a = Var::from_tensor(&inputs.tensor(&[rows.len() * r, i])?)?;
            let bs: Vec<Var> =
                rows.iter().map(|rows| Var::from_tensor(&inputs.tensor(&[rows.len(), r])?)).collect::<Result<_>>()?;
            let weights = adapter(&a, rows, &bs.iter().map(|b| b.as_tensor().clone()).collect::<Vec<_>>());
            let dropout = Dropout { p, key: 5, first: 11 };
            let mask = Tensor::from_vec(dropout.apply(&vec![1.0; n * i]), (n, i), &Device::Cpu)?;
            let (dropout, mask) = if p > 0.0 { (Some(&dropout), Some(&mask)) } else { (None, None) };
            let want = lora::reference(&x, &w, &weights, 1.5, mask)?;
            let dy = inputs.tensor(&[n, o])?;
            let vars: Vec<&Var> = [&x, &a].into_iter().chain(&bs).collect();
            let expected = autograd(&want, &dy, &vars)?;
            let y = linear::linear(&x, &w, F32)?;
            lora::lora(&y, &x, &weights, 1.5, dropout, F32)?;
            let ones: Vec<Tensor> = bs.iter().map(|b| b.ones_like()).collect::<Result<_>>()?;
            let grads = adapter(&a.ones_like()?, rows, &ones);
            let dx = linear::linear_backward_input(&dy, &w, F32)?;
            lora::lora_backward(&dx, &dy, &x, &weights, &grads, 1.5, dropout, F32)?;
            let mut got = vec![dx, (grads.a - 1.0)?];
            got.extend(grads.parts.iter().map(|part| &part.b - 1.0).collect::<Result<Vec<_>>>()?);
            let pairs: Vec<_> = got.iter().zip(&expected).chain([(&y, &want)]).collect();
            found = found.max(worst(&pairs)?);
        }
    }
    Ok(found)
}

fn check_rms_norm(inputs: &mut Inputs) -> Result<f64> {
    let mut found = 0.0f64;
    let eps = 1e-5;
    for (n, c) in [(1, 1), (3, 17), (300, 128), (9, 500)] {
        let x = Var::from_tensor(&inputs.strided(n, c)?)?;
        let delta = inputs.tensor(&[n, c])?;
        let w = Var::from_tensor(&inputs.tensor(&[c])?)?;
        let dy = inputs.tensor(&[n, c])?;
        let dres = inputs.tensor(&[n, c])?;
        let h = (x.as_tensor() + &delta)?;
        let want = rms_norm::reference(&h, &w, eps)?;
        let through_both = ((&want * &dy)? + (&h * &dres)?)?;
        let expected = autograd(&through_both, &through_both.ones_like()?, &[&x, &w])?;
        let normed = rms_norm::add_rms_norm(&x, Some(&delta), &w, eps, F32)?;
        let dw = zeros_like(&w)?;
        let dx = rms_norm::rms_norm_backward(&dy, &normed.h, &normed.rstd, &w, Some(&dres), Some(&dw))?;
        let again = rms_norm::rms_norm_recompute(&normed.h, &normed.rstd, &w, F32)?;
        let alone = rms_norm::add_rms_norm(&h, None, &w, eps, F32)?.y;
        let pairs = [(&normed.y, &want), (&normed.h, &h), (&again, &want), (&alone, &want)];
        found = found.max(worst(&pairs)?).max(worst(&[(&dx, &expected[0]), (&dw, &expected[1])])?);
    }
    Ok(found)
}

fn check_bias(inputs: &mut Inputs) -> Result<f64> {
    let mut found = 0.0f64;
    for (n, c) in [(1, 1), (7, 13), (130, 600)] {
        let y = Var::from_tensor(&inputs.tensor(&[n, c])?)?;
        let b = Var::from_tensor(&inputs.tensor(&[c])?)?;
        let dy = inputs.tensor(&[n, c])?;
        let want = bias::reference(&y, &b)?;
        let expected = autograd(&want, &dy, &[&b])?;
        let got = y.as_tensor().copy()?;
        bias::add_bias(&got, &b)?;
        let db = Tensor::ones_like(&b)?;
        bias::bias_backward(&dy, &db)?;
        found = found.max(worst(&[(&got, &want), (&(db - 1.0)?, &expected[0])])?);
    }
    Ok(found)
}

fn check_swiglu(inputs: &mut Inputs) -> Result<f64> {
    let mut found = 0.0f64;
    for (n, f) in [(1, 1), (5, 7), (130, 344)] {
        let packed = (inputs.strided(n, 2 * f)? * 6.0)?;
        let packed = Var::from_tensor(&packed)?;
        let dy = inputs.tensor(&[n, f])?;
        let want = swiglu::reference(&packed)?;
        let expected = autograd(&want, &dy, &[&packed])?;
        let got = swiglu::swiglu(&packed, F32)?;
        let grad = swiglu::swiglu_backward(&packed, &dy, F32)?;
        found = found.max(worst(&[(&got, &want), (&grad, &expected[0])])?);
    }
    Ok(found)
}

fn check_cross_entropy(inputs: &mut Inputs) -> Result<f64> {
    let mut found = 0.0f64;
    let scale = 0.25f32;
    for (n, c, v) in [(1, 1, 2), (9, 17, 31), (70, 32, 1000)] {
        let x = Var::from_tensor(&inputs.strided(n, c)?)?;
        let w = Var::from_tensor(&inputs.tensor(&[v, c])?)?;
        let targets = inputs.ids(n, v)?;
        let want = cross_entropy::reference(&x, &w, &targets)?;
        let expected = autograd(&want, &(want.ones_like()? * scale as f64)?, &[&x, &w])?;
        let dw = zeros_like(&w)?;
        let (losses, dx) = cross_entropy::cross_entropy_and_backward(&x, &w, &targets, scale, Some(&dw), F32)?;
        let alone = cross_entropy::cross_entropy(&x, &w, &targets, F32)?;
        let squares = Tensor::new(cross_entropy::logit_squares(&x, &w, F32)?, &Device::Cpu)?;
        let want_squares = x.matmul(&w.t()?)?.sqr()?.sum_all()?;
        found = found.max(difference(&squares, &want_squares)?);
        let pairs = [(&losses, &want), (&alone, &want), (&dx, &expected[0]), (&dw, &expected[1])];
        found = found.max(worst(&pairs)?);
    }
    Ok(found)
}

fn check_adamw(inputs: &mut Inputs) -> Result<f64> {
    let n = 1003;
    let [p, g, m] = [inputs.tensor(&[n])?, inputs.tensor(&[n])?, inputs.tensor(&[n])?];
    let v = inputs.tensor(&[n])?.abs()?;
    let hyper =
        adamw::Hyper { lr: 1e-2, betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1, t: 7, clip: 0.3, rounding: None };
    let mut found = 0.0f64;
    for decay in [true, false] {
        let want = adamw::reference(&p, &g, &m, &v, &hyper, decay)?;
        let p = p.copy()?;
        let m = m.copy()?;
        let v = v.copy()?;
        let flat = adamw::Flat { param: &p, grad: &g, exp_avg: &m, exp_avg_sq: &v, copy: None, first: 0 };
        adamw::adamw(&flat, &[adamw::Range { start: 0, len: n, decay }], &hyper)?;
        found = found.max(worst(&[(&p, &want[0]), (&m, &want[1]), (&v, &want[2])])?);
    }
    let norm = Tensor::new(&[adamw::global_norm(&g)?], &Device::Cpu)?;
    let want = g.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?.reshape(1)?;
    Ok(found.max(difference(&norm, &want)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_agrees_with_autograd() {
        for outcome in run() {
            assert!(outcome.passed(), "{}: relative difference {:.2e}", outcome.op, outcome.difference);
        }
    }

    #[test]
    fn a_wrong_result_is_noticed() {
        let a = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let b = Tensor::new(&[1f32, 2.001], &Device::Cpu).unwrap();
        assert!(difference(&a, &b).unwrap() > TOLERANCE);
        let nan = Tensor::new(&[1f32, f32::NAN], &Device::Cpu).unwrap();
        assert_eq!(difference(&nan, &a).unwrap(), f64::INFINITY);
    }
}
