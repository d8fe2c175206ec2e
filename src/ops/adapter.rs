//! The matrices of LoRA's adapters beside one packed projection.

use candle_core::Tensor;
use std::ops::Range;

/// The adapters of one packed projection: weights, or their gradients.
#[derive(Clone, Debug)]
pub struct LoraAdapter {
    /// (n·r, in): the `A` of its n parts, one below the other.
    pub a: Tensor,
    /// The parts, in the order of `a`.
    pub parts: Vec<LoraPart>,
}

/// The adapter of one projection inside a packed one.
#[derive(Clone, Debug)]
pub struct LoraPart {
    /// Its rows of the packed weight, which are its columns of the output.
    pub rows: Range<usize>,
    /// (rows, r)
    pub b: Tensor,
}
