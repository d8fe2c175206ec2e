//! Documents within the rows of a batch: where attention is cut, and where positions begin again.
//!
//! Rows are windows of a long stream of documents. With segments, a token sees its own document only, and RoPE counts from
//! the document's first token; without, a row is one context.

use crate::ops::prefix_tree::Forest;
use candle_core::{Result, bail};

/// Where the rows of a batch stand.
#[derive(Clone, Copy, Debug)]
pub enum Places<'a> {
    /// One document per row, its first token at this position.
    From(usize),
    /// Several documents per row.
    Within(&'a Segments),
    /// One row of sequences that share their beginnings.
    In(&'a Forest),
}

impl<'a> Places<'a> {
    /// Rows from position 0 on, cut by `segments` if there are any.
    pub fn of(segments: Option<&'a Segments>) -> Self {
        segments.map_or(Self::From(0), Self::Within)
    }

    /// The documents of the rows, if there are several.
    pub fn segments(self) -> Option<&'a Segments> {
        if let Self::Within(segments) = self { Some(segments) } else { None }
    }
}

/// For every position of a (b, t) batch, the first position of its document in its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    starts: Vec<u32>,
    t: usize,
}

impl Segments {
    /// From `starts`, b rows of `t`.
    ///
    /// # Errors
    /// If a start is after its position, or not the start of its own document, or starts do not rise.
    pub fn new(starts: Vec<u32>, t: usize) -> Result<Self> {
        if t == 0 || !starts.len().is_multiple_of(t) {
            bail!("{} starts are no rows of {t}", starts.len());
        }
        for row in starts.chunks_exact(t) {
            for (i, &start) in row.iter().enumerate() {
                let previous = if i == 0 { 0 } else { row[i - 1] };
                if start != previous && start as usize != i {
                    bail!("position {i} cannot belong to a document that starts at {start}");
                }
            }
        }
        Ok(Self { starts, t })
    }

    /// Whether this describes a batch of `b` rows of `t`.
    pub fn fits(&self, b: usize, t: usize) -> bool {
        self.t == t && self.starts.len() == b * t
    }

    /// Starts of all rows, one after the other.
    pub fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Starts of row `i`; rising, each at most its position.
    pub fn row(&self, i: usize) -> &[u32] {
        &self.starts[i * self.t..][..self.t]
    }

    /// Position of place `i` of the whole batch within its document.
    pub fn position(&self, i: usize) -> usize {
        i % self.t - self.starts[i] as usize
    }

    /// The largest position, for the size of tables.
    pub fn longest(&self) -> usize {
        (0..self.starts.len()).map(|i| self.position(i)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_checked() {
        let segments = Segments::new(vec![0, 0, 2, 2, 0, 1, 2, 2], 4).unwrap();
        let positions: Vec<_> = (0..8).map(|i| segments.position(i)).collect();
        assert_eq!((positions, segments.longest()), (vec![0, 1, 0, 1, 0, 0, 0, 1], 1));
        assert!(segments.fits(2, 4) && !segments.fits(4, 2));
        for wrong in [vec![1, 1], vec![0, 2], vec![0, 1, 0], vec![0, 0, 1]] {
            let t = wrong.len();
            assert!(Segments::new(wrong, t).is_err());
        }
        assert!(Segments::new(vec![0; 3], 2).is_err());
    }
}
