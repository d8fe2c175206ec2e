//! Strided matrices.

use super::kernel::Order;
use super::words::Pack;
use crate::ops::elements::Elements;
use half::bf16;

/// A matrix inside a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T: Pack = f32> {
    pub(super) data: &'a [T],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

/// Index one past the last element of a strided matrix; 0 if it is empty.
pub(super) fn span(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

impl<'a, T: Pack> Mat<'a, T> {
    /// Row-major `rows x cols` whose rows are `row_stride` apart.
    pub(crate) fn new(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(span(rows, cols, row_stride, 1) <= data.len(), "matrix {rows}x{cols} does not fit its buffer");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Rows `row..row + rows` of columns `col..col + cols`.
    pub(super) fn part(&self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        assert!(row + rows <= self.rows && col + cols <= self.cols);
        Self { data: &self.data[row * self.row_stride + col * self.col_stride..], rows, cols, ..*self }
    }

    /// Row `i`, whose elements must lie side by side; empty beyond the last.
    pub(super) fn row(&self, i: usize) -> &'a [T] {
        debug_assert!(self.col_stride == 1);
        if i < self.rows { &self.data[i * self.row_stride..][..self.cols] } else { &[] }
    }

    /// Column `j`, whose elements must lie side by side; empty beyond the last.
    pub(super) fn column(&self, j: usize) -> &'a [T] {
        debug_assert!(self.row_stride == 1);
        if j < self.cols { &self.data[j * self.col_stride..][..self.rows] } else { &[] }
    }

    /// Calls `f` with row `i`, in a copy if its elements do not lie side by side.
    #[inline]
    pub(super) fn with_row(&self, i: usize, f: impl FnOnce(&[T])) {
        if self.col_stride == 1 {
            return f(self.row(i));
        }
        // Neither direction is contiguous, which is rare: a copy is fast enough.
        let row = (0..self.cols).map(|j| self.data[i * self.row_stride + j * self.col_stride]);
        f(&row.collect::<Vec<_>>());
    }

    /// A tile of it where it lies in memory, if it is of f32, and the distance of its rows or columns.
    pub(super) fn tile(&self, row: usize, rows: usize, term: usize, terms: usize, order: Order) -> (&'a [f32], usize) {
        let part = self.part(row, rows, term, terms);
        assert!(span(rows, terms, self.row_stride, self.col_stride) <= part.data.len());
        let data = T::as_f32(part.data).expect("bf16 is always packed");
        (data, if order == Order::Rows { self.row_stride } else { self.col_stride })
    }
}

/// A matrix of whichever elements its tensor has.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    F32(Mat<'a, f32>),
    Bf16(Mat<'a, bf16>),
}

/// Runs `$body` with the matrices of two operands.
macro_rules! for_operands {
    (|$lhs:ident, $rhs:ident| $body:expr) => {
        match ($lhs, $rhs) {
            (Operand::F32($lhs), Operand::F32($rhs)) => $body,
            (Operand::F32($lhs), Operand::Bf16($rhs)) => $body,
            (Operand::Bf16($lhs), Operand::F32($rhs)) => $body,
            (Operand::Bf16($lhs), Operand::Bf16($rhs)) => $body,
        }
    };
}
pub(super) use for_operands;

impl<'a> Operand<'a> {
    /// Row-major `rows x cols` without gaps.
    pub(crate) fn new(elements: Elements<'a>, rows: usize, cols: usize) -> Self {
        match elements {
            Elements::F32(data) => Self::F32(Mat::new(data, rows, cols, cols)),
            Elements::Bf16(data) => Self::Bf16(Mat::new(data, rows, cols, cols)),
        }
    }

    pub(crate) fn t(self) -> Self {
        match self {
            Self::F32(mat) => Self::F32(mat.t()),
            Self::Bf16(mat) => Self::Bf16(mat.t()),
        }
    }
}

impl<'a> From<Mat<'a>> for Operand<'a> {
    fn from(mat: Mat<'a>) -> Self {
        Self::F32(mat)
    }
}
