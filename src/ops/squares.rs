//! Sums of squares over ranges of the flat buffers: of gradients, weights, and the update that AdamW has just made of them.
//!
//! The update is not recorded while it is made: it follows from weights and moments after it.

use super::adamw::Range;
use super::{cpu, on_gpu};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Elements summed at a time. Fixed, so that sums do not depend on what computes them.
const PIECE: usize = 1 << 16;

/// Sums over a piece, a tensor or a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Squares {
    pub grad: f64,
    pub weight: f64,
    pub update: f64,
    /// Of `m̂ / (√v̂ + ε)`.
    pub adam: f64,
    pub n: f64,
}

impl Squares {
    /// This and `other` together.
    pub fn and(self, other: &Self) -> Self {
        Self {
            grad: self.grad + other.grad,
            weight: self.weight + other.weight,
            update: self.update + other.update,
            adam: self.adam + other.adam,
            n: self.n + other.n,
        }
    }
}

/// The constants of the last update that weights and moments do not tell.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// 1 - lr · weight decay, of ranges that decay.
    pub keep: f64,
    pub lr: f64,
    /// 1 / (1 - β₁ᵗ)
    pub inverse_correction1: f64,
    /// 1 / √(1 - β₂ᵗ)
    pub inverse_sqrt_correction2: f64,
    pub eps: f64,
}

/// Of every range, from the flat f32 buffers of weights, gradients and both moments.
pub fn squares(flats: [&Tensor; 4], ranges: &[Range], rule: &Rule) -> Result<Vec<Squares>> {
    let n = flats[0].elem_count();
    if flats.iter().any(|t| t.elem_count() != n) || ranges.iter().any(|r| r.start + r.len > n) {
        bail!("squares: buffers or ranges do not fit {n} parameters");
    }
    let pieces: Vec<Range> = ranges.iter().flat_map(pieces).collect();
    let sums = of_pieces(flats, &pieces, rule)?;
    let mut sums = sums.iter();
    // In the order of the pieces, whatever the number of threads.
    let sum = |range: &Range| {
        let mine = sums.by_ref().take(range.len.div_ceil(PIECE));
        mine.fold(Squares::default(), |all, piece| all.and(piece))
    };
    Ok(ranges.iter().map(sum).collect())
}

fn pieces(range: &Range) -> impl Iterator<Item = Range> + use<> {
    let Range { start, len, decay } = *range;
    (0..len).step_by(PIECE).map(move |from| Range { start: start + from, len: PIECE.min(len - from), decay })
}

fn of_pieces(flats: [&Tensor; 4], pieces: &[Range], rule: &Rule) -> Result<Vec<Squares>> {
    on_gpu!(flats[0], super::cuda::squares(flats, pieces, rule));
    cpu::read("squares", flats, |slices| {
        let of = |piece: &Range| {
            let keep = if piece.decay { rule.keep } else { 1.0 };
            of_piece(slices.map(|slice| &slice[piece.start..piece.start + piece.len]), keep, rule)
        };
        Ok(pieces.par_iter().map(of).collect())
    })
}

fn of_piece([w, g, m, v]: [&[f32]; 4], keep: f64, rule: &Rule) -> Squares {
    let mut sums = Squares { n: w.len() as f64, ..Squares::default() };
    for ((w, g), (m, v)) in w.iter().zip(g).zip(m.iter().zip(v)) {
        let (w, g, m, v) = (f64::from(*w), f64::from(*g), f64::from(*m), f64::from(*v));
        let direction = rule.inverse_correction1 * m / (v.sqrt() * rule.inverse_sqrt_correction2 + rule.eps);
        let before = (w + rule.lr * direction) / keep;
        sums.adam += direction * direction;
        sums.grad += g * g;
        sums.weight += w * w;
        sums.update += (w - before) * (w - before);
    }
    sums
}
