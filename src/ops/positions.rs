//! Where the tokens of a batch stand in their contexts: it decides how RoPE turns them and what attention lets them see.
//!
//! Rows are windows of a long stream of documents. With [`DocumentStarts`], a token sees its own document only, and RoPE counts from
//! the document's first token; without, a row is one context.

use crate::ops::prefix_tree::PrefixTree;
use candle_core::{Result, bail};

/// Position of every token of a (b, t) batch in its context.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// One context per row; its first token is at this position.
    From(usize),
    /// Rows of several documents, each a context of its own.
    Documents(&'a DocumentStarts),
    /// One row of sequences that share prefixes.
    Tree(&'a PrefixTree),
}

impl<'a> Positions<'a> {
    /// Rows from position 0 on, cut into `documents` if there are any.
    pub fn of_documents(documents: Option<&'a DocumentStarts>) -> Self {
        documents.map_or(Self::From(0), Self::Documents)
    }

    /// Position of token `i` of the whole batch, whose rows have `t` tokens.
    #[inline(always)]
    pub(super) fn position(self, i: usize, t: usize) -> usize {
        match self {
            Self::From(start) => start + i % t,
            Self::Documents(documents) => documents.position(i),
            Self::Tree(tree) => tree.position(i),
        }
    }

    /// The largest position of a batch of `b` rows of `t`.
    ///
    /// # Errors
    /// If the documents or the tree are those of another batch; `op` is named in the message.
    pub(super) fn last(self, op: &str, b: usize, t: usize) -> Result<usize> {
        match self {
            Self::From(start) => Ok(start + t - 1),
            Self::Documents(documents) if documents.fits(b, t) => Ok(documents.longest()),
            Self::Tree(tree) if b == 1 && tree.len() == t => Ok(tree.longest()),
            Self::Documents(_) | Self::Tree(_) => bail!("{op}: documents of another batch than ({b}, {t})"),
        }
    }
}

/// For every token of a (b, t) batch, where its document begins in its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentStarts {
    starts: Vec<u32>,
    t: usize,
}

impl DocumentStarts {
    /// From `starts`, b rows of `t`.
    ///
    /// # Errors
    /// If a start is after its position, or not the start of its own document, or starts do not rise.
    pub fn new(starts: Vec<u32>, t: usize) -> Result<Self> {
        if t == 0 || !starts.len().is_multiple_of(t) {
            bail!("{} document starts do not make rows of {t}", starts.len());
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

    /// Position of token `i` of the whole batch within its document.
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
        let documents = DocumentStarts::new(vec![0, 0, 2, 2, 0, 1, 2, 2], 4).unwrap();
        let positions: Vec<_> = (0..8).map(|i| documents.position(i)).collect();
        assert_eq!((positions, documents.longest()), (vec![0, 1, 0, 1, 0, 0, 0, 1], 1));
        assert!(documents.fits(2, 4) && !documents.fits(4, 2));
        for wrong in [vec![1, 1], vec![0, 2], vec![0, 1, 0], vec![0, 0, 1]] {
            let t = wrong.len();
            assert!(DocumentStarts::new(wrong, t).is_err());
        }
        assert!(DocumentStarts::new(vec![0; 3], 2).is_err());
    }
}
