//! Validation rows: a FIXED set of tokens, each predicted exactly once, whatever the batch size.

use super::Tokens;
use super::batch::IGNORE;
use super::boundary::Boundary;
use crate::data::packed_rows::PackedRows;
use anyhow::Result;
use std::sync::Arc;

/// Rows of T inputs and T targets each.
#[derive(Clone, Debug)]
pub struct EvalSet {
    rows: EvalRows,
    length: usize,
    len: usize,
    /// UTF-8 bytes of the text that the targets encode, where known.
    pub text_bytes: Option<u64>,
    /// The separator between documents, if attention stays inside a document.
    pub boundary: Option<Boundary>,
}

#[derive(Clone, Debug)]
enum EvalRows {
    /// Row i predicts tokens iT + 1 ..= (i + 1)T; at most so many targets in all.
    Windows { tokens: Tokens, targets: u64 },
    /// Whole documents, as many as fit into a row, so that each is read from its beginning.
    Packed { inputs: Vec<u32>, targets: Vec<u32> },
    /// Conversations, of which the answers are scored, each in a context of its own.
    Examples(Arc<PackedRows>),
}

impl EvalSet {
    /// Contiguous windows of `length` over `tokens` until `limit` targets; the last row may be short. Rows are not longer than
    /// there are targets: a short text costs little, however long the model's context.
    pub fn windows(tokens: Tokens, length: usize, limit: u64) -> Self {
        let targets = tokens.total().saturating_sub(1).min(limit);
        let length = length.min(targets.max(1) as usize);
        let len = targets.div_ceil(length as u64) as usize;
        Self { rows: EvalRows::Windows { tokens, targets }, length, len, text_bytes: None, boundary: None }
    }

    /// Rows of whole documents: `separator`, document, `separator`, ... A document longer than a row continues in the next.
    pub fn packed(documents: &[Vec<u32>], separator: u32, length: usize) -> Self {
        let mut packer = Packer { length, inputs: Vec::new(), targets: Vec::new() };
        for document in documents {
            packer.add(document, separator);
        }
        packer.pad();
        let len = packer.inputs.len() / length;
        let rows = EvalRows::Packed { inputs: packer.inputs, targets: packer.targets };
        Self { rows, length, len, text_bytes: None, boundary: None }
    }

    /// Conversations, of which the answers are scored.
    pub fn examples(rows: PackedRows) -> Self {
        let length = rows.length();
        let len = rows.len();
        Self { rows: EvalRows::Examples(Arc::new(rows)), length, len, text_bytes: None, boundary: None }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of tokens that are scored.
    pub fn targets(&self) -> u64 {
        match &self.rows {
            EvalRows::Windows { targets, .. } => *targets,
            EvalRows::Packed { targets, .. } => targets.iter().filter(|&&t| t != IGNORE).count() as u64,
            EvalRows::Examples(rows) => rows.trained(),
        }
    }

    /// T, the positions of a row.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Identifies the rows: equal fingerprints, equal inputs and targets.
    ///
    /// # Errors
    /// Those of reading shards.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new_derive_key("llama-lite validation rows v1");
        hasher.update(&(self.length as u64).to_le_bytes());
        match &self.rows {
            EvalRows::Windows { tokens, targets } => {
                hasher.update(&targets.to_le_bytes()).update(tokens.fingerprint()?.as_bytes());
            }
            EvalRows::Examples(rows) => {
                hasher.update(rows.fingerprint().as_bytes());
            }
            EvalRows::Packed { inputs, targets } => {
                for list in [inputs, targets] {
                    let bytes: Vec<u8> = list.iter().flat_map(|id| id.to_le_bytes()).collect();
                    hasher.update(&bytes);
                }
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// For every position of rows `first..first + count`, whose inputs are `inputs`, the position in its row where its context
    /// begins; none if a row is one context.
    pub fn starts(&self, first: usize, count: usize, inputs: &[u32]) -> Option<Vec<u32>> {
        if let EvalRows::Examples(rows) = &self.rows {
            return Some(rows.read(first, count)[2].to_vec());
        }
        self.boundary.map(|b| inputs.chunks_exact(self.length).flat_map(|row| b.starts(row)).collect())
    }

    /// Inputs and targets of rows `first..first + count`, row by row. Unscored positions have target [`IGNORE`].
    ///
    /// # Errors
    /// Those of reading shards.
    pub fn read(&self, first: usize, count: usize) -> Result<(Vec<u32>, Vec<u32>)> {
        match &self.rows {
            EvalRows::Examples(rows) => {
                let [inputs, targets, _] = rows.read(first, count);
                Ok((inputs.to_vec(), targets.to_vec()))
            }
            EvalRows::Packed { inputs, targets } => {
                let range = first * self.length..(first + count) * self.length;
                Ok((inputs[range.clone()].to_vec(), targets[range].to_vec()))
            }
            EvalRows::Windows { tokens, targets } => {
                let mut x = vec![0; count * self.length];
                let mut y = vec![IGNORE; count * self.length];
                let mut window = vec![0; self.length + 1];
                for (i, (x, y)) in x.chunks_exact_mut(self.length).zip(y.chunks_exact_mut(self.length)).enumerate() {
                    let start = (first + i) as u64 * self.length as u64;
                    let n = (targets - start).min(self.length as u64) as usize;
                    tokens.read(start, &mut window[..n + 1])?;
                    x[..n].copy_from_slice(&window[..n]);
                    y[..n].copy_from_slice(&window[1..n + 1]);
                }
                Ok((x, y))
            }
        }
    }
}

struct Packer {
    length: usize,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl Packer {
    /// Fills the last row up with unscored positions.
    fn pad(&mut self) {
        let whole = self.inputs.len().next_multiple_of(self.length);
        self.inputs.resize(whole, 0);
        self.targets.resize(whole, IGNORE);
    }

    /// Inputs: separator, document. Targets: document, separator.
    fn add(&mut self, document: &[u32], separator: u32) {
        if self.inputs.len() % self.length + document.len() + 1 > self.length {
            self.pad();
        }
        // A document is read after a separator, as in training.
        let mut previous = separator;
        for &id in document.iter().chain(std::iter::once(&separator)) {
            self.inputs.push(previous);
            self.targets.push(id);
            previous = id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(rows: &EvalSet) -> Vec<(u32, u32)> {
        let (x, y) = rows.read(0, rows.len()).unwrap();
        x.into_iter().zip(y).filter(|(_, target)| *target != IGNORE).collect()
    }

    #[test]
    fn windows_predict_each_token_once_from_the_one_before_it() {
        for total in 0..40u32 {
            let rows = EvalSet::windows(Tokens::Memory(Arc::new((0..total).collect())), 7, u64::MAX);
            assert_eq!(scored(&rows), (1..total).map(|i| (i - 1, i)).collect::<Vec<_>>());
            assert_eq!(rows.targets(), scored(&rows).len() as u64);
        }
        let rows = EvalSet::windows(Tokens::Memory(Arc::new((0..40).collect())), 7, 10);
        assert_eq!(scored(&rows).len(), 10);
    }

    #[test]
    fn packed_documents_begin_after_a_separator_and_end_with_one() {
        let documents = vec![vec![1, 2, 3], vec![4, 5], vec![6], (10..40).collect(), vec![7, 8]];
        let rows = EvalSet::packed(&documents, 99, 8);
        let pairs = scored(&rows);
        let mut want = Vec::new();
        for d in &documents {
            let mut previous = 99;
            for &id in d.iter().chain([&99]) {
                want.push((previous, id));
                previous = id;
            }
        }
        assert_eq!(pairs, want);
        assert_eq!(rows.targets(), pairs.len() as u64);
        // Documents that fit into a row are not cut.
        let (x, _) = rows.read(0, 1).unwrap();
        assert_eq!(x, [99, 1, 2, 3, 99, 4, 5, 0]);
    }
}
