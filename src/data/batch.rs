//! The sequences of a step, as the model takes them.

use super::boundary::Boundary;

/// The target of a position that is not trained or scored.
pub const IGNORE: u32 = u32::MAX;

/// Rows of inputs and targets, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// T, the positions of a row.
    pub length: usize,
    pub inputs: Vec<u32>,
    /// The ids to be predicted; [`IGNORE`] where nothing is trained.
    pub targets: Vec<u32>,
    /// For every position, the position in its row where its context begins; none if a row is one context.
    pub starts: Option<Vec<u32>>,
}

impl Batch {
    /// Windows of T + 1 tokens, one after the other: inputs and targets overlap by T. `boundary` keeps documents apart.
    pub fn windows(sequences: &[u32], length: usize, boundary: Option<Boundary>) -> Self {
        let rows = sequences.chunks_exact(length + 1);
        let inputs: Vec<u32> = rows.clone().flat_map(|row| &row[..length]).copied().collect();
        let targets = rows.flat_map(|row| &row[1..]).copied().collect();
        let starts = boundary.map(|b| inputs.chunks_exact(length).flat_map(|row| b.starts(row)).collect());
        Self { length, inputs, targets, starts }
    }

    pub fn rows(&self) -> usize {
        self.inputs.len() / self.length
    }

    /// Number of targets that are trained.
    pub fn trained(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE).count()
    }

    /// Rows `first..first + count`, or as many of them as there are.
    pub fn part(&self, first: usize, count: usize) -> Self {
        let last = (first + count).min(self.rows());
        let range = first * self.length..last * self.length;
        Self {
            length: self.length,
            inputs: self.inputs[range.clone()].to_vec(),
            targets: self.targets[range.clone()].to_vec(),
            starts: self.starts.as_ref().map(|starts| starts[range].to_vec()),
        }
    }

    /// The ids that identify a row: its T + 1 tokens; where the targets are not just the next tokens, these too.
    pub fn identity(&self, row: usize) -> Vec<u32> {
        let range = row * self.length..(row + 1) * self.length;
        let inputs = &self.inputs[range.clone()];
        let targets = &self.targets[range];
        let mut ids = inputs.to_vec();
        // Targets that are the inputs shifted by one add their last id and nothing else.
        if inputs[1..] == targets[..self.length - 1] {
            ids.extend(targets.last());
        } else {
            ids.extend(targets);
        }
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_overlap_and_are_identified_by_their_tokens() {
        let batch = Batch::windows(&[1, 2, 3, 3, 9, 4], 2, Some(Boundary { separator: 9, after: false }));
        assert_eq!((batch.inputs.as_slice(), batch.targets.as_slice()), (&[1, 2, 3, 9][..], &[2, 3, 9, 4][..]));
        assert_eq!(batch.starts, Some(vec![0, 0, 0, 1]));
        assert_eq!((batch.identity(0), batch.identity(1)), (vec![1, 2, 3], vec![3, 9, 4]));
        assert_eq!(batch.part(1, 5), Batch::windows(&[3, 9, 4], 2, Some(Boundary { separator: 9, after: false })));
        let masked = Batch { targets: vec![IGNORE, 3, 9, 4], ..batch };
        assert_eq!((masked.trained(), masked.identity(0)), (3, vec![1, 2, IGNORE, 3]));
    }
}
