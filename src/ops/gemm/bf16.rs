//! Packing with rounding to bf16: a 32-bit word holds a pair of successive terms, the first in its low half.
//!
//! Words are in the order of f32 terms elsewhere, so kernels and blocks do not depend on the precision. A term missing at the end of an odd inner dimension
//! is 0. Rounding is to nearest even; denormal numbers become 0, as in the processor's conversion.

use super::Mat;
use super::kernel::Order;

/// One tile of a left operand, `[MR][KC]` or `[words][MR]` words.
///
/// # Panics
/// If this processor has no bf16.
pub(super) fn lhs_tile(panel: &mut [f32], lhs: &Mat, order: Order) {
    assert!(crate::ops::precision::Precision::Bf16.supported());
    #[cfg(target_arch = "x86_64")]
    // SAFETY: supported, as just asserted.
    unsafe {
        x86::lhs_tile(panel, lhs, order);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{} {} {order:?}", panel.len(), lhs.rows);
}

/// One panel of a right operand, `[words][NR]`, from its first column on; missing columns are 0.
///
/// # Panics
/// If this processor has no bf16.
pub(super) fn rhs_panel(panel: &mut [f32], rhs: &Mat) {
    assert!(crate::ops::precision::Precision::Bf16.supported());
    #[cfg(target_arch = "x86_64")]
    // SAFETY: supported, as just asserted.
    unsafe {
        x86::rhs_panel(panel, rhs);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{} {}", panel.len(), rhs.rows);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::kernel::{KC, MR, NR, Order, lane_mask};
    use super::super::{Mat, pack};
    use std::arch::x86_64::*;

    /// Column `k`, whose elements lie side by side; empty beyond the last.
    fn column_run<'a>(m: &Mat<'a>, k: usize) -> &'a [f32] {
        if k < m.cols { &m.data[k * m.col_stride..][..m.rows] } else { &[] }
    }

    /// Row `k`, whose elements lie side by side; empty beyond the last.
    fn row_run<'a>(m: &Mat<'a>, k: usize) -> &'a [f32] {
        if k < m.rows { &m.data[k * m.row_stride..][..m.cols] } else { &[] }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn lhs_tile(panel: &mut [f32], lhs: &Mat, order: Order) {
        match order {
            Order::Columns => {
                for (w, group) in panel.chunks_exact_mut(MR).take(lhs.cols.div_ceil(2)).enumerate() {
                    pairs_of_runs(group, column_run(lhs, 2 * w), column_run(lhs, 2 * w + 1));
                }
            }
            Order::Rows => {
                for (i, words) in panel.chunks_exact_mut(KC).take(lhs.rows).enumerate() {
                    let words = &mut words[..lhs.cols.div_ceil(2)];
                    if lhs.col_stride == 1 {
                        pairs_in_run(words, &lhs.data[i * lhs.row_stride..][..lhs.cols]);
                    } else {
                        // Neither direction is contiguous, which is rare: a copy is fast enough.
                        let row = (0..lhs.cols).map(|k| lhs.data[i * lhs.row_stride + k * lhs.col_stride]);
                        pairs_in_run(words, &row.collect::<Vec<_>>());
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn rhs_panel(panel: &mut [f32], rhs: &Mat) {
        if rhs.col_stride == 1 {
            for (w, group) in panel.chunks_exact_mut(NR).enumerate() {
                pairs_of_runs(group, row_run(rhs, 2 * w), row_run(rhs, 2 * w + 1));
            }
            return;
        }
        // Columns are contiguous (with rare exceptions): 16 words of 16 columns at a time, then transposed.
        for (first, block) in panel.chunks_mut(16 * NR).enumerate() {
            let terms = 32 * first..rhs.rows.min(32 * first + 32);
            for half in [0, 16] {
                // Zero, so that missing columns and terms become padding.
                let mut words = [0f32; 256];
                for (words, j) in words.chunks_exact_mut(16).zip(half..rhs.cols) {
                    let words = &mut words[..terms.len().div_ceil(2)];
                    if rhs.row_stride == 1 {
                        pairs_in_run(words, &rhs.data[j * rhs.col_stride..][terms.clone()]);
                    } else {
                        let column = terms.clone().map(|k| rhs.data[k * rhs.row_stride + j * rhs.col_stride]);
                        pairs_in_run(words, &column.collect::<Vec<_>>());
                    }
                }
                transpose(&words, &mut block[half..]);
            }
        }
    }

    /// Writes 16 columns of 16 words to as many rows, [`NR`] apart, as `out` has.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn transpose(words: &[f32; 256], out: &mut [f32]) {
        if out.len() >= 15 * NR + 16 {
            // SAFETY: `words` is 16 x 16, `out` has 16 rows of 16; the features are here.
            return unsafe { pack::transpose_16(words.as_ptr(), 16, out.as_mut_ptr()) };
        }
        for (w, row) in out.chunks_mut(NR).enumerate() {
            for (j, x) in row[..16].iter_mut().enumerate() {
                *x = words[j * 16 + w];
            }
        }
    }

    /// Pairs of neighbours: word `w` is `(run[2 w], run[2 w + 1])`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn pairs_in_run(words: &mut [f32], run: &[f32]) {
        assert!(words.len() == run.len().div_ceil(2));
        for at in (0..run.len()).step_by(32) {
            let left = run.len() - at;
            // SAFETY: the masks keep loads and the store within both slices; registers of the same size.
            unsafe {
                let from = run.as_ptr().add(at);
                let low = _mm512_maskz_loadu_ps(lane_mask(left), from);
                let high = _mm512_maskz_loadu_ps(lane_mask(left.saturating_sub(16)), from.wrapping_add(16));
                // The instruction's second operand becomes the lower half of the register, so terms keep their order.
                let both = std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_mask_storeu_ps(words.as_mut_ptr().add(at / 2), lane_mask(left.div_ceil(2)), both);
            }
        }
    }

    /// 16 elements of `run` from `at` on, each rounded to bf16 in the low half of a word; 0 beyond the last.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn low_halves(run: &[f32], at: usize) -> __m512i {
        // SAFETY: the mask keeps the load within the run; registers of the same size.
        unsafe {
            let x = _mm512_maskz_loadu_ps(lane_mask(run.len().saturating_sub(at)), run.as_ptr().wrapping_add(at));
            _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)))
        }
    }

    /// Pairs across two runs: word `j` is `(first[j], second[j])`; what a run lacks is 0.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn pairs_of_runs(words: &mut [f32], first: &[f32], second: &[f32]) {
        for at in (0..words.len()).step_by(16) {
            let both = _mm512_or_si512(low_halves(first, at), _mm512_slli_epi32::<16>(low_halves(second, at)));
            // SAFETY: the mask keeps the store within the words.
            unsafe {
                let to = words.as_mut_ptr().add(at);
                _mm512_mask_storeu_ps(to, lane_mask(words.len() - at), _mm512_castsi512_ps(both));
            }
        }
    }
}
