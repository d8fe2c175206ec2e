//! Which queries see which keys, and where a head's rows lie.

use crate::ops::gemm::{Mat, PANEL};
use crate::ops::heads::Heads;
use std::ops::Range;

/// Number of queries in one block.
pub(super) const BLOCK: usize = 64;

/// One sequence's rows as a head sees them: rows of width `dim`, `stride` apart, from `from` on.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) from: usize,
    pub(super) stride: usize,
    pub(super) dim: usize,
}

impl<'a> Rows<'a> {
    /// Head `column` (query, key and value heads counted together) of a sequence of packed `qkv` (b, t, (h + 2k)·d).
    pub(super) fn packed(qkv: &'a [f32], heads: Heads, t: usize, sequence: usize, column: usize) -> Self {
        let stride = heads.packed();
        Self { data: qkv, from: sequence * t * stride + column * heads.dim, stride, dim: heads.dim }
    }

    /// Query head `head` of a sequence of `data` (b, t, h·d): queries, outputs or their gradients.
    pub(super) fn output(data: &'a [f32], heads: Heads, t: usize, sequence: usize, head: usize) -> Self {
        let stride = heads.out();
        Self { data, from: sequence * t * stride + head * heads.dim, stride, dim: heads.dim }
    }

    /// `n` rows from `first` on as a matrix.
    pub(super) fn mat(&self, first: usize, n: usize) -> Mat<'a> {
        Mat::new(&self.data[self.from + first * self.stride..], n, self.dim, self.stride)
    }

    pub(super) fn row(&self, i: usize) -> &'a [f32] {
        &self.data[self.from + i * self.stride..][..self.dim]
    }
}

/// Queries `first..first + rows` of a sequence against the keys `lo..lo + keys`: all that any of them sees, and perhaps a few before.
#[derive(Clone, Copy)]
pub(super) struct Span<'a> {
    pub(super) first: usize,
    pub(super) rows: usize,
    /// A packed panel begins here.
    pub(super) lo: usize,
    pub(super) keys: usize,
    /// Position of query 0 among the keys.
    offset: usize,
    /// The first key that each query sees; 0 without.
    starts: Option<&'a [u32]>,
}

impl<'a> Span<'a> {
    /// The block of queries that begins at `first`.
    pub(super) fn new(first: usize, queries: usize, offset: usize, starts: Option<&'a [u32]>) -> Self {
        let rows = BLOCK.min(queries - first);
        // Starts never decrease, so the first query's document begins first. Packed keys can only be cut at a panel:
        // up to 31 keys before that document are multiplied and then cleared.
        let lo = starts.map_or(0, |starts| starts[first] as usize / PANEL * PANEL);
        Self { first, rows, lo, keys: offset + first + rows - lo, offset, starts }
    }

    /// The same queries against at most `most` (whole panels) of the keys at a time.
    pub(super) fn parts(self, most: usize) -> impl Iterator<Item = Self> {
        let end = self.lo + self.keys;
        (self.lo..end).step_by(most).map(move |lo| Self { lo, keys: most.min(end - lo), ..self })
    }

    /// The part of the keys that query `i` of the block sees, counted from `lo`; perhaps empty.
    pub(super) fn seen(&self, i: usize) -> Range<usize> {
        let start = self.starts.map_or(0, |starts| starts[self.first + i] as usize);
        // Saturating: a part of the keys may lie after this query or before its document; it then sees none of them.
        let end = (self.offset + self.first + i + 1).saturating_sub(self.lo).min(self.keys);
        start.saturating_sub(self.lo).min(end)..end
    }
}

/// Sets all of `row` but `seen` to 0.
pub(super) fn clear_unseen(row: &mut [f32], seen: &Range<usize>) {
    row[..seen.start].fill(0.0);
    row[seen.end..].fill(0.0);
}
