//! Sums of squares over ranges of the flat buffers: of gradients, weights, and the update that AdamW has just made of them.
//!
//! The update itself is not recorded: it is computed from the weights and moments after it.

use super::flat::Range;
pub use super::flat::{LastUpdate, Squares};
use super::{cpu, on_gpu};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Elements summed at a time. Fixed, so that sums do not depend on the device.
const PIECE: usize = 1 << 16;

/// The sums of every range, from the flat f32 buffers of weights, gradients and both moments.
pub fn squares(flats: [&Tensor; 4], ranges: &[Range], rule: &LastUpdate) -> Result<Vec<Squares>> {
    let n = flats[0].elem_count();
    if flats.iter().any(|t| t.elem_count() != n) || ranges.iter().any(|r| r.start + r.len > n) {
        bail!("squares: buffers or ranges do not fit {n} parameters");
    }
    let pieces: Vec<Range> = ranges.iter().flat_map(pieces).collect();
    let sums = piece_squares(flats, &pieces, rule)?;
    Ok(sums_of_ranges(ranges, &sums))
}

/// The sums of every range from those of its pieces.
pub fn sums_of_ranges(ranges: &[Range], pieces: &[Squares]) -> Vec<Squares> {
    let mut pieces = pieces.iter();
    // In the order of the pieces, whatever the number of threads.
    let sums = ranges.iter().map(|range| {
        let pieces = pieces.by_ref().take(range.len.div_ceil(PIECE));
        pieces.fold(Squares::default(), |sum, piece| sum.merged(piece))
    });
    sums.collect()
}

/// The pieces over which a range is summed, in order.
pub fn pieces(range: &Range) -> impl Iterator<Item = Range> + use<> {
    let Range { start, len, decay } = *range;
    (0..len).step_by(PIECE).map(move |from| Range { start: start + from, len: PIECE.min(len - from), decay })
}

/// The sums of every piece, from flat buffers of weights, gradients and both moments.
pub fn piece_squares(flats: [&Tensor; 4], pieces: &[Range], rule: &LastUpdate) -> Result<Vec<Squares>> {
    on_gpu!(flats[0], super::cuda::squares(flats, pieces, rule));
    cpu::read("squares", flats, |slices| {
        let sums = pieces.par_iter().map(|piece| {
            let keep = if piece.decay { rule.keep } else { 1.0 };
            let parts = slices.map(|slice| &slice[piece.start..piece.start + piece.len]);
            squares_of(parts, keep, rule)
        });
        Ok(sums.collect())
    })
}

fn squares_of([w, g, m, v]: [&[f32]; 4], keep: f64, rule: &LastUpdate) -> Squares {
    let mut sums = Squares { n: w.len() as f64, ..Squares::default() };
    for ((w, g), (m, v)) in w.iter().zip(g).zip(m.iter().zip(v)) {
        let w = f64::from(*w);
        let g = f64::from(*g);
        let m = f64::from(*m);
        let v = f64::from(*v);
        let direction = rule.inverse_correction1 * m / (v.sqrt() * rule.inverse_sqrt_correction2 + rule.eps);
        // AdamW's rule solved for the weight before the update.
        let before = (w + rule.lr * direction) / keep;
        sums.adam += direction * direction;
        sums.grad += g * g;
        sums.weight += w * w;
        sums.update += (w - before) * (w - before);
    }
    sums
}
