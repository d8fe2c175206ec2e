//! Packing for kernels that multiply pairs of bf16: a 32-bit word holds a pair of successive terms, the first in its low half.
//!
//! Words are in the order of f32 terms elsewhere, so that blocks do not depend on the arithmetic. A term missing at the end of an odd inner
//! dimension is 0. Rounding is to nearest even; denormal numbers become 0, as in the processor's conversion.

use super::Mat;
use super::kernel::{KC, MR, NR, Order, lane_mask};
use super::transpose::transpose_16;
use super::words::Pack;
use std::arch::x86_64::*;

/// One tile of a left operand, `[MR][KC]` or `[words][MR]` words.
///
/// # Safety
/// The processor has AVX512_BF16.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
pub(super) unsafe fn lhs_tile<T: Pack>(panel: &mut [f32], lhs: &Mat<T>, order: Order) {
    match order {
        Order::Columns => {
            for (w, group) in panel.chunks_exact_mut(MR).take(lhs.cols.div_ceil(2)).enumerate() {
                pairs_across(group, lhs.column(2 * w), lhs.column(2 * w + 1));
            }
        }
        Order::Rows => {
            for (i, words) in panel.chunks_exact_mut(KC).take(lhs.rows).enumerate() {
                lhs.with_row(i, |row| pairs_in_run(&mut words[..row.len().div_ceil(2)], row));
            }
        }
    }
}

/// One panel of a right operand, `[words][NR]`, from its first column on; missing columns and terms are 0.
///
/// # Safety
/// The processor has AVX512_BF16.
#[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
pub(super) unsafe fn rhs_panel<T: Pack>(panel: &mut [f32], rhs: &Mat<T>) {
    if rhs.col_stride == 1 {
        for (w, group) in panel.chunks_exact_mut(NR).enumerate() {
            pairs_across(group, rhs.row(2 * w), rhs.row(2 * w + 1));
        }
        return;
    }
    // Columns are contiguous (with rare exceptions): 16 words of 16 columns at a time, then transposed.
    for (first, block) in panel.chunks_mut(16 * NR).enumerate() {
        let terms = rhs.rows.min(32 * first)..rhs.rows.min(32 * first + 32);
        for half in [0, 16] {
            // Zero, so that missing columns and terms become padding.
            let mut words = [0f32; 256];
            for (words, j) in words.chunks_exact_mut(16).zip(half..rhs.cols) {
                rhs.t().with_row(j, |column| {
                    let column = &column[terms.clone()];
                    pairs_in_run(&mut words[..column.len().div_ceil(2)], column);
                });
            }
            transpose(&words, &mut block[half..]);
        }
    }
}

/// Writes 16 columns of 16 words to as many rows, [`NR`] apart, as `out` has.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
fn transpose(words: &[f32; 256], out: &mut [f32]) {
    if out.len() >= 15 * NR + 16 {
        // SAFETY: `words` is 16 x 16, `out` has 16 rows of 16; the features are here.
        return unsafe { transpose_16(words.as_ptr(), 16, out.as_mut_ptr(), NR) };
    }
    for (w, row) in out.chunks_mut(NR).enumerate() {
        for (j, x) in row[..16].iter_mut().enumerate() {
            *x = words[j * 16 + w];
        }
    }
}

/// Pairs of neighbours: word `w` is `(run[2 w], run[2 w + 1])`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
pub(super) fn pairs_in_run<T: Pack>(words: &mut [f32], run: &[T]) {
    assert!(words.len() == run.len().div_ceil(2));
    for at in (0..run.len()).step_by(32) {
        let left = run.len() - at;
        // SAFETY: so many elements are left of the run; the mask keeps the store within the words.
        unsafe {
            let pairs = T::neighbours(run.as_ptr().add(at), left);
            _mm512_mask_storeu_ps(
                words.as_mut_ptr().add(at / 2),
                lane_mask(left.div_ceil(2)),
                _mm512_castsi512_ps(pairs),
            );
        }
    }
}

/// Pairs across two runs: word `j` is `(first[j], second[j])`; what a run lacks is 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
pub(super) fn pairs_across<T: Pack>(words: &mut [f32], first: &[T], second: &[T]) {
    for at in (0..words.len()).step_by(16) {
        let n = first.len().saturating_sub(at);
        let m = second.len().saturating_sub(at);
        // SAFETY: so many elements are left of the runs; the mask keeps the store within the words.
        unsafe {
            let pairs = T::across(first.as_ptr().wrapping_add(at), n, second.as_ptr().wrapping_add(at), m);
            _mm512_mask_storeu_ps(words.as_mut_ptr().add(at), lane_mask(words.len() - at), _mm512_castsi512_ps(pairs));
        }
    }
}
