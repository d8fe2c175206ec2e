//! Copies operands into the order in which the kernels read them.
//!
//! A left operand becomes panels of [`MR`] rows, `[MR][KC]` or `[kc][MR]`, whichever copies contiguous memory. A right operand becomes
//! panels of [`NR`] columns, `[k][NR]`; the last one is filled up with zeros.

use super::Mat;
use super::bf16;
use super::kernel::{KC, MR, NR, Order};
use crate::ops::precision::Precision;

/// The order in which a left operand is packed fastest.
pub(super) fn order(lhs: &Mat) -> Order {
    if lhs.row_stride == 1 && lhs.col_stride != 1 { Order::Columns } else { Order::Rows }
}

/// Floats of a packed left block of `rows` rows.
pub(super) fn lhs_len(rows: usize) -> usize {
    rows.div_ceil(MR) * MR * KC
}

/// Packs rows `first..first + rows` of `lhs`, terms `from..from + kc`, in the tiles of [`heights`].
pub(super) fn lhs(
    out: &mut [f32],
    lhs: &Mat,
    (first, rows): (usize, usize),
    (from, kc): (usize, usize),
    precision: Precision,
) {
    let order = order(lhs);
    for (tile, (start, height)) in heights(rows).enumerate() {
        // A lower last tile takes the room of a full one, so that a tile's place follows from its number alone.
        let panel = &mut out[tile * MR * KC..][..MR * KC];
        let at = (first + start) * lhs.row_stride + from * lhs.col_stride;
        if precision == Precision::Bf16 {
            let part = Mat { data: &lhs.data[at..], rows: height, cols: kc, ..*lhs };
            bf16::lhs_tile(panel, &part, order);
            continue;
        }
        match order {
            Order::Columns => {
                for (k, group) in panel.chunks_exact_mut(MR).take(kc).enumerate() {
                    let from = &lhs.data[at + k * lhs.col_stride..];
                    match height {
                        MR => group.copy_from_slice(&from[..MR]), // of a length that the compiler knows
                        _ => group[..height].copy_from_slice(&from[..height]),
                    }
                }
            }
            Order::Rows => {
                for (i, row) in panel.chunks_exact_mut(KC).take(height).enumerate() {
                    for (k, x) in row[..kc].iter_mut().enumerate() {
                        *x = lhs.data[at + i * lhs.row_stride + k * lhs.col_stride];
                    }
                }
            }
        }
    }
}

/// Tile number `tile` of a packed left block, and the distance of its rows or columns.
pub(super) fn tile(packed: &[f32], tile: usize, order: Order) -> (&[f32], usize) {
    (&packed[tile * MR * KC..][..MR * KC], if order == Order::Rows { KC } else { MR })
}

/// Splits `rows` into tiles of [`MR`], the last one lower: (first row, height) each.
pub(super) fn heights(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(MR).map(move |first| (first, MR.min(rows - first)))
}

/// Packs columns `first * NR..` of `rhs`, terms `from..from + len`, into as many panels as `out` holds.
pub(super) fn rhs(out: &mut [f32], rhs: &Mat, first: usize, (from, len): (usize, usize), precision: Precision) {
    for (i, panel) in out.chunks_exact_mut(precision.words(len) * NR).enumerate() {
        let col = (first + i) * NR;
        let width = NR.min(rhs.cols - col);
        let at = from * rhs.row_stride + col * rhs.col_stride;
        if precision == Precision::Bf16 {
            bf16::rhs_panel(panel, &Mat { data: &rhs.data[at..], rows: len, cols: width, ..*rhs });
            continue;
        }
        if rhs.col_stride == 1 {
            rows_panel(panel, &rhs.data[at..], rhs.row_stride, width);
        } else if rhs.row_stride == 1 && width == NR {
            columns_panel(panel, &rhs.data[at..], rhs.col_stride, len);
        } else {
            for (k, group) in panel.chunks_exact_mut(NR).enumerate() {
                for (j, x) in group.iter_mut().enumerate() {
                    // Padding is 0, so that kernels multiply whole panels without asking.
                    *x = if j < width { rhs.data[at + k * rhs.row_stride + j * rhs.col_stride] } else { 0.0 };
                }
            }
        }
    }
}

/// A panel from rows of contiguous columns.
fn rows_panel(panel: &mut [f32], data: &[f32], stride: usize, width: usize) {
    for (k, group) in panel.chunks_exact_mut(NR).enumerate() {
        let row = &data[k * stride..];
        if width == NR {
            group.copy_from_slice(&row[..NR]);
        } else {
            group[..width].copy_from_slice(&row[..width]);
            group[width..].fill(0.0);
        }
    }
}

/// A panel from columns that are contiguous in memory, `stride` apart: a transposition.
fn columns_panel(panel: &mut [f32], data: &[f32], stride: usize, len: usize) {
    assert!((NR - 1) * stride + len <= data.len() && panel.len() == len * NR);
    // Terms that the vector code has transposed; the loop at the end takes the others.
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        done = len / 16 * 16;
        for (k, j) in (0..done).step_by(16).flat_map(|k| [(k, 0), (k, 16)]) {
            // SAFETY: 16 columns from j and 16 terms from k on are inside both by the assertion above; the processor can.
            unsafe { transpose_16(data.as_ptr().add(j * stride + k), stride, panel.as_mut_ptr().add(k * NR + j)) };
        }
    }
    // Eight terms of all columns at a time, so that reads stay within their cache lines.
    for first in (done..len).step_by(8) {
        let last = (first + 8).min(len);
        for j in 0..NR {
            for k in first..last {
                panel[k * NR + j] = data[j * stride + k];
            }
        }
    }
}

/// Writes the transpose of a 16 x 16 block: 16 runs of 16 floats, `stride` apart, to 16 runs [`NR`] apart.
///
/// # Safety
/// Both blocks are valid for reading and writing; the processor has AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose_16(from: *const f32, stride: usize, to: *mut f32) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [_mm512_setzero_ps(); 16];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = _mm512_loadu_ps(from.add(i * stride));
        }
        // Pairs of rows, then fours, then eights, then all: after each stage a register holds as many rows' parts.
        let mut pairs = [_mm512_setzero_ps(); 16];
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
        }
        let mut fours = [_mm512_setzero_ps(); 16];
        for i in 0..4 {
            for h in 0..2 {
                let x = _mm512_castps_pd(pairs[4 * i + h]);
                let y = _mm512_castps_pd(pairs[4 * i + 2 + h]);
                fours[4 * i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
                fours[4 * i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
            }
        }
        // fours[4 i + c] holds, in its 128-bit lane l, rows 4 i .. 4 i + 4 of column 4 l + c.
        for c in 0..4 {
            // A column's four quarters lie in four registers; two rounds of shuffles bring them together.
            let x0 = fours[c];
            let x1 = fours[4 + c];
            let x2 = fours[8 + c];
            let x3 = fours[12 + c];
            let a = _mm512_shuffle_f32x4::<0x88>(x0, x1);
            let b = _mm512_shuffle_f32x4::<0x88>(x2, x3);
            let d = _mm512_shuffle_f32x4::<0xdd>(x0, x1);
            let e = _mm512_shuffle_f32x4::<0xdd>(x2, x3);
            _mm512_storeu_ps(to.add(c * NR), _mm512_shuffle_f32x4::<0x88>(a, b));
            _mm512_storeu_ps(to.add((8 + c) * NR), _mm512_shuffle_f32x4::<0xdd>(a, b));
            _mm512_storeu_ps(to.add((4 + c) * NR), _mm512_shuffle_f32x4::<0x88>(d, e));
            _mm512_storeu_ps(to.add((12 + c) * NR), _mm512_shuffle_f32x4::<0xdd>(d, e));
        }
    }
}
