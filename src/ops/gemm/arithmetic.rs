//! How the operands of a product are multiplied: what a packed word holds, and with it the order of sums.

use super::kernel::{KC, MR};
use crate::ops::precision::Precision;
use crate::ops::simd::SimdLevel;

/// Terms that one instruction of AMX multiplies.
pub(super) const TILE_TERMS: usize = 32;
/// Terms of one chain of sums in AMX's tiles: 32 packed rows are then 32 KiB, a part of the first cache, and the sums leave their registers
/// seldom.
pub(super) const TILE_CHAIN: usize = 512;
/// Rows of the destination that a kernel of AMX computes at once.
pub(super) const TILE_ROWS: usize = 32;

/// Packed operands consist of 32-bit words; a kernel multiplies words and adds in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    /// A word is an f32.
    #[default]
    F32,
    /// A word is an f32 that was rounded to bf16: for processors that do not multiply bf16.
    Rounded,
    /// A word holds two bf16 of successive terms (AVX512_BF16).
    Pairs,
    /// The same words, multiplied 32 terms at a time (AMX).
    Tiles,
}

impl Arithmetic {
    /// The fastest for `precision` on this processor.
    pub(super) fn new(precision: Precision) -> Self {
        match (precision, SimdLevel::in_use()) {
            (Precision::F32, _) => Self::F32,
            (Precision::Bf16, SimdLevel::Amx) => Self::Tiles,
            (Precision::Bf16, SimdLevel::Avx512Bf16) => Self::Pairs,
            (Precision::Bf16, _) => Self::Rounded,
        }
    }

    /// 32-bit words of a packed operand for `terms` of its inner dimension.
    pub(super) fn words(self, terms: usize) -> usize {
        match self {
            Self::F32 | Self::Rounded => terms,
            Self::Pairs => terms.div_ceil(2),
            // Whole steps of the kernel; what no term fills is 0.
            Self::Tiles => terms.div_ceil(TILE_TERMS) * TILE_TERMS / 2,
        }
    }

    /// Whether a product may begin at term `at` of a packed operand.
    pub(super) fn can_begin_at(self, at: usize) -> bool {
        match self {
            Self::F32 | Self::Rounded => true,
            Self::Pairs => at.is_multiple_of(2),
            Self::Tiles => at.is_multiple_of(TILE_TERMS),
        }
    }

    /// Terms whose products are one chain of sums: a part of the definition of a product's bits.
    pub(super) fn chain(self) -> usize {
        match self {
            Self::Tiles => TILE_CHAIN,
            _ => KC,
        }
    }

    /// Rows of the largest tile that a kernel computes.
    pub(super) fn tile_rows(self) -> usize {
        match self {
            Self::Tiles => TILE_ROWS,
            _ => MR,
        }
    }
}
