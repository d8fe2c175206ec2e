//! Right operands in packed form.

use super::arithmetic::Arithmetic;
use super::kernel::NR;
use super::words::Pack;
use super::{Mat, pack};
use crate::ops::precision::Precision;
use std::ops::Range;

/// Words for packed operands, where vectors of them do not cross the lines of a cache. Never shrinks: the next product is most likely as
/// large. What an earlier one left is overwritten or not read.
#[derive(Default)]
pub(super) struct Buffer(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Buffer {
    /// Makes room for `len` words.
    pub(super) fn grow(&mut self, len: usize) {
        if self.0.len() < len.div_ceil(16) {
            self.0.resize(len.div_ceil(16), Line([0.0; 16]));
        }
    }

    pub(super) fn words(&self) -> &[f32] {
        // SAFETY: a line consists of 16 floats and nothing else.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), 16 * self.0.len()) }
    }

    pub(super) fn words_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; this borrow is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), 16 * self.0.len()) }
    }
}

/// A right operand in packed form, or a part of one.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub(super) data: &'a [f32],
    pub(super) arithmetic: Arithmetic,
    /// Words of a panel's column.
    pub(super) len: usize,
    /// The first term of the inner dimension that is used, and their number.
    pub(super) terms: (usize, usize),
    pub(super) cols: usize,
}

/// The columns of a packed panel: where [`Panels::columns`] may begin. Parts of the terms may begin at multiples of it as well.
pub(crate) const PANEL: usize = NR;

impl Panels<'_> {
    /// The terms `range` of the inner dimension only, which begins at a multiple of [`PANEL`] (in f32, anywhere).
    pub(crate) fn terms(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.terms.1 && self.arithmetic.can_begin_at(self.terms.0 + range.start));
        Self { terms: (self.terms.0 + range.start, range.len()), ..self }
    }

    /// The columns `range` only, which begins with a panel.
    pub(crate) fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start.is_multiple_of(NR) && range.end <= self.cols);
        Self { data: &self.data[range.start * self.len..], cols: range.len(), ..self }
    }
}

/// A right operand, packed once to be used several times.
#[derive(Default)]
pub(crate) struct Packed {
    pub(super) data: Buffer,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) arithmetic: Arithmetic,
}

impl Packed {
    /// Packs `rhs` into memory of its own.
    pub(crate) fn new<T: Pack>(rhs: Mat<T>, precision: Precision) -> Self {
        let mut packed = Self::default();
        packed.pack(rhs, precision);
        packed
    }

    /// Packs `rhs`, reusing the memory of what was packed here before.
    pub(crate) fn pack<T: Pack>(&mut self, rhs: Mat<T>, precision: Precision) {
        self.pack_as(rhs, Arithmetic::new(precision));
    }

    pub(super) fn pack_as<T: Pack>(&mut self, rhs: Mat<T>, arithmetic: Arithmetic) {
        (self.rows, self.cols, self.arithmetic) = (rhs.rows, rhs.cols, arithmetic);
        let len = rhs.cols.div_ceil(NR) * NR * arithmetic.words(rhs.rows);
        self.data.grow(len);
        if len > 0 {
            pack::rhs(&mut self.data.words_mut()[..len], &rhs, 0, (0, rhs.rows), arithmetic);
        }
    }

    pub(crate) fn panels(&self) -> Panels<'_> {
        Panels {
            data: self.data.words(),
            arithmetic: self.arithmetic,
            len: self.arithmetic.words(self.rows),
            terms: (0, self.rows),
            cols: self.cols,
        }
    }
}
