//! Copies operands into the order in which the kernels read them.
//!
//! A left operand becomes panels of [`MR`] rows, `[MR][KC]` or `[kc][MR]`, whichever copies contiguous memory. A right operand becomes
//! panels of [`NR`] columns, `[k][NR]`; the last one is filled up with zeros.

use super::arithmetic::Arithmetic;
use super::kernel::{KC, MR, NR, Order};
#[cfg(target_arch = "x86_64")]
use super::pairs;
#[cfg(target_arch = "x86_64")]
use super::transpose::transpose_16;
use super::words::Pack;
use super::{Mat, round_to_bf16};
#[cfg(target_arch = "x86_64")]
use crate::ops::simd::SimdLevel;

/// The order in which a left operand is packed fastest.
pub(super) fn order<T: Pack>(lhs: &Mat<T>) -> Order {
    if lhs.row_stride == 1 && lhs.col_stride != 1 { Order::Columns } else { Order::Rows }
}

/// Floats of a packed left block of `rows` rows.
pub(super) fn lhs_len(rows: usize) -> usize {
    rows.div_ceil(MR) * MR * KC
}

/// Packs rows `first..first + rows` of `lhs`, terms `from..from + kc`, in the tiles of [`heights`].
pub(super) fn lhs<T: Pack>(
    out: &mut [f32],
    lhs: &Mat<T>,
    (first, rows): (usize, usize),
    (from, kc): (usize, usize),
    arithmetic: Arithmetic,
) {
    let order = order(lhs);
    for (tile, (start, height)) in heights(rows).enumerate() {
        // A lower last tile takes the room of a full one, so that a tile's place follows from its number alone.
        let panel = &mut out[tile * MR * KC..][..MR * KC];
        let part = lhs.part(first + start, height, from, kc);
        #[cfg(target_arch = "x86_64")]
        if arithmetic == Arithmetic::Pairs {
            // SAFETY: this arithmetic is chosen only for processors with AVX512_BF16.
            unsafe { pairs::lhs_tile(panel, &part, order) };
            continue;
        }
        lhs_tile(panel, &part, order);
        if arithmetic == Arithmetic::Rounded {
            round_to_bf16(panel);
        }
    }
}

/// One tile in f32, `[MR][KC]` or `[kc][MR]`.
fn lhs_tile<T: Pack>(panel: &mut [f32], lhs: &Mat<T>, order: Order) {
    match order {
        Order::Columns => {
            for (k, group) in panel.chunks_exact_mut(MR).take(lhs.cols).enumerate() {
                let column = lhs.column(k);
                match (T::as_f32(column), lhs.rows) {
                    (Some(column), MR) => group.copy_from_slice(&column[..MR]), // of a length that the compiler knows
                    _ => group.iter_mut().zip(column).for_each(|(to, x)| *to = x.to_f32()),
                }
            }
        }
        Order::Rows => {
            for (i, row) in panel.chunks_exact_mut(KC).take(lhs.rows).enumerate() {
                for (k, x) in row[..lhs.cols].iter_mut().enumerate() {
                    *x = lhs.data[i * lhs.row_stride + k * lhs.col_stride].to_f32();
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
pub(super) fn rhs<T: Pack>(
    out: &mut [f32],
    rhs: &Mat<T>,
    first: usize,
    (from, len): (usize, usize),
    arithmetic: Arithmetic,
) {
    for (i, panel) in out.chunks_exact_mut(arithmetic.words(len) * NR).enumerate() {
        let col = (first + i) * NR;
        let part = rhs.part(from, len, col, NR.min(rhs.cols - col));
        #[cfg(target_arch = "x86_64")]
        if matches!(arithmetic, Arithmetic::Pairs | Arithmetic::Tiles) {
            // SAFETY: these arithmetics are chosen only for processors with AVX512_BF16.
            unsafe { pairs::rhs_panel(panel, &part) };
            continue;
        }
        rhs_panel(panel, &part);
        if arithmetic == Arithmetic::Rounded {
            round_to_bf16(panel);
        }
    }
}

/// One panel in f32, `[k][NR]`. Padding is 0, so that kernels multiply whole panels without asking.
fn rhs_panel<T: Pack>(panel: &mut [f32], rhs: &Mat<T>) {
    match T::as_f32(rhs.data) {
        Some(data) if rhs.col_stride == 1 => rows_panel(panel, data, rhs.row_stride, rhs.cols),
        Some(data) if rhs.row_stride == 1 && rhs.cols == NR => columns_panel(panel, data, rhs.col_stride, rhs.rows),
        _ => {
            for (k, group) in panel.chunks_exact_mut(NR).enumerate() {
                for (j, x) in group.iter_mut().enumerate() {
                    let at = k * rhs.row_stride + j * rhs.col_stride;
                    *x = if j < rhs.cols { rhs.data[at].to_f32() } else { 0.0 };
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
    if SimdLevel::in_use() >= SimdLevel::Avx512 {
        done = len / 16 * 16;
        for (k, j) in (0..done).step_by(16).flat_map(|k| [(k, 0), (k, 16)]) {
            // SAFETY: 16 columns from j and 16 terms from k on are inside both by the assertion above; the processor can.
            unsafe { transpose_16(data.as_ptr().add(j * stride + k), stride, panel.as_mut_ptr().add(k * NR + j), NR) };
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
