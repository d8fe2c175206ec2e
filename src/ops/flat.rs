//! What AdamW and its measurements on the CPU and on a GPU share: the flat buffers, their ranges, and what is measured of them.

use candle_core::Tensor;

/// The four flat f32 buffers, of equal length; on a GPU rounded moments are bf16. They may be a part of larger buffers.
pub struct Flat<'a> {
    pub param: &'a Tensor,
    pub grad: &'a Tensor,
    pub exp_avg: &'a Tensor,
    pub exp_avg_sq: &'a Tensor,
    /// The weights rounded to bf16 for the products of a GPU, updated; none on the CPU.
    pub copy: Option<&'a Tensor>,
    /// Where they begin in the whole buffers: rounding is drawn by the place in those.
    pub first: usize,
}

/// A range of the flat buffers with one decay rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: usize,
    pub len: usize,
    pub decay: bool,
}

/// Elements of one partial sum of the norm on a GPU. Fixed, so that the sum does not depend on the GPU.
pub(crate) const GPU_NORM_PIECE: usize = 1 << 20;

impl Range {
    /// What of it lies in `part`, counted from the start of `part`.
    pub fn within(&self, part: &std::ops::Range<usize>) -> Option<Self> {
        let start = self.start.max(part.start);
        let end = (self.start + self.len).min(part.end);
        (start < end).then(|| Self { start: start - part.start, len: end - start, decay: self.decay })
    }
}

/// Sums of squares over a piece, a tensor or a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Squares {
    pub grad: f64,
    pub weight: f64,
    pub update: f64,
    /// Sum of the squares of AdamW's step before the learning rate, `m̂ / (√v̂ + ε)`.
    pub adam: f64,
    /// Number of values.
    pub n: f64,
}

impl Squares {
    /// The sums over both.
    pub fn merged(self, other: &Self) -> Self {
        Self {
            grad: self.grad + other.grad,
            weight: self.weight + other.weight,
            update: self.update + other.update,
            adam: self.adam + other.adam,
            n: self.n + other.n,
        }
    }
}

/// The constants of the last update, which cannot be read off weights and moments.
#[derive(Clone, Copy, Debug)]
pub struct LastUpdate {
    /// 1 - lr · weight decay, of ranges that decay.
    pub keep: f64,
    pub lr: f64,
    /// 1 / (1 - β₁ᵗ)
    pub inverse_correction1: f64,
    /// 1 / √(1 - β₂ᵗ)
    pub inverse_sqrt_correction2: f64,
    pub eps: f64,
}
