//! Products whose results are kept in bf16.

use super::arithmetic::Arithmetic;
use super::kernel::NR;
use super::mat::for_operands;
use super::packed::Panels;
use super::words::Pack;
use super::{Into, Mat, Operand, STRIPE, Target, block, height_of_blocks, pack_stripe, threads_for, with_scratch};
use crate::ops::cpu::{self, SharedMut};
use crate::ops::elements::Element;
use crate::ops::precision::Precision;
use half::bf16;
use rayon::prelude::*;

/// Rows and columns of the sums that are kept in f32 until they are complete: 768 KiB, a part of the second cache.
const ROWS: usize = 96;
const COLUMNS: usize = 2048;

/// `dst = lhs · rhs`, row-major without gaps: the bits of [`matmul`](super::matmul), rounded.
pub(crate) fn matmul_rounded(dst: &mut [bf16], lhs: Operand, rhs: Operand, precision: Precision) {
    let arithmetic = Arithmetic::new(precision);
    for_operands!(|lhs, rhs| matmul_as(dst, lhs, rhs, arithmetic))
}

pub(super) fn matmul_as<L: Pack, R: Pack>(dst: &mut [bf16], lhs: Mat<L>, rhs: Mat<R>, arithmetic: Arithmetic) {
    let m = lhs.rows;
    let n = rhs.cols;
    let k = lhs.cols;
    assert!(k == rhs.rows && dst.len() == m * n && k > 0, "a product does not fit");
    let threads = threads_for(m, n, k);
    let columns = (STRIPE / k / NR * NR).clamp(NR, COLUMNS);
    let height = height_of_blocks(m, threads, arithmetic).min(ROWS);
    let mut packed = with_scratch(|s| std::mem::take(&mut s.rhs));
    packed.arithmetic = arithmetic;
    for col in (0..n).step_by(columns) {
        let width = columns.min(n - col);
        pack_stripe(&mut packed, &rhs, (0, k), (col, width), threads);
        let panels = packed.panels();
        let rows_of = |(i, dst): (usize, &mut [bf16])| {
            let rows = dst.len() / n;
            rounded_block(dst, (n, col), lhs.part(i * height, rows, 0, k), panels);
        };
        if threads == 1 {
            dst.chunks_mut(height * n).enumerate().for_each(rows_of);
        } else {
            dst.par_chunks_mut(height * n).enumerate().for_each(rows_of);
        }
    }
    with_scratch(|s| s.rhs = packed);
}

/// The product of some rows with a stripe of columns, to the columns from `col` on of rows that are `stride` apart.
fn rounded_block<T: Pack>(dst: &mut [bf16], (stride, col): (usize, usize), lhs: Mat<T>, rhs: Panels) {
    let width = rhs.cols;
    let mut buffer = with_scratch(|s| std::mem::take(&mut s.sums));
    buffer.grow(lhs.rows * width);
    let sums = &mut buffer.words_mut()[..lhs.rows * width];
    let target = Target { dst: SharedMut::new(sums), stride: width, into: Into::Overwrite, alpha: 1.0 };
    block(target, lhs, (0, lhs.rows), 0, 0, rhs);
    cpu::simd!({
        for (dst, sums) in dst.chunks_mut(stride).zip(sums.chunks_exact(width)) {
            for (to, sum) in dst[col..col + width].iter_mut().zip(sums) {
                *to = <bf16 as Element>::from_f32(*sum);
            }
        }
    });
    with_scratch(|s| s.sums = buffer);
}
