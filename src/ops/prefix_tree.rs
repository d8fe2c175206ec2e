//! Sequences that share prefixes, laid out as one row of tokens in which every shared part stands once.
//!
//! The choices of one question share the question, and the questions of one subject share their examples. Each shared part is a node;
//! a token attends to the nodes above its own, and to its own node up to itself. Evaluation computes every part once and pads nothing.

use candle_core::{Result, bail};

/// Consecutive tokens of the row that continue the same prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where its first token stands in the row.
    pub start: usize,
    /// Its number of tokens, at least one.
    pub len: usize,
    /// The node that it continues, one of those before it; none for a root.
    pub parent: Option<usize>,
    /// Position of its first token in its sequence.
    pub position: usize,
}

/// All nodes of a row, in its order and without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixTree {
    nodes: Vec<Node>,
    positions: Vec<u32>,
}

impl PrefixTree {
    /// Adds the next `len` tokens of the row, which continue `parent`; returns the new node's number.
    ///
    /// # Errors
    /// If there are no tokens or no such parent.
    pub fn push(&mut self, len: usize, parent: Option<usize>) -> Result<usize> {
        if len == 0 || parent.is_some_and(|p| p >= self.nodes.len()) {
            bail!("a node of {len} tokens cannot continue {parent:?} of {}", self.nodes.len());
        }
        let position = parent.map_or(0, |p| self.nodes[p].position + self.nodes[p].len);
        self.nodes.push(Node { start: self.positions.len(), len, parent, position });
        self.positions.extend((position..position + len).map(|p| p as u32));
        Ok(self.nodes.len() - 1)
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Number of tokens of the row.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Position of token `i` of the row in its sequence.
    pub fn position(&self, i: usize) -> usize {
        self.positions[i] as usize
    }

    /// The largest position, for the size of tables.
    pub fn longest(&self) -> usize {
        self.positions.iter().copied().max().unwrap_or(0) as usize
    }

    /// The nodes that the tokens of `node` see, from the root to itself.
    pub fn path(&self, node: usize) -> Vec<Node> {
        let mut path: Vec<Node> =
            std::iter::successors(Some(self.nodes[node]), |n| n.parent.map(|p| self.nodes[p])).collect();
        path.reverse();
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_continue_those_of_the_parent() {
        let mut tree = PrefixTree::default();
        let root = tree.push(3, None).unwrap();
        let (a, _) = (tree.push(2, Some(root)).unwrap(), tree.push(1, Some(root)).unwrap());
        let leaf = tree.push(1, Some(a)).unwrap();
        tree.push(2, None).unwrap();
        let positions: Vec<_> = (0..tree.len()).map(|i| tree.position(i)).collect();
        assert_eq!(positions, [0, 1, 2, 3, 4, 3, 5, 0, 1]);
        assert_eq!(tree.path(leaf).iter().map(|n| n.start).collect::<Vec<_>>(), [0, 3, 6]);
        assert_eq!((tree.longest(), tree.len(), tree.is_empty()), (5, 9, false));
        assert!(tree.push(0, None).is_err() && tree.push(1, Some(9)).is_err());
    }
}
