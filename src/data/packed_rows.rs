//! Examples as rows of a batch: several in a row, each with a context of its own, or one in each.
//!
//! Best-fit decreasing (Johnson 1973: within 11/9 of the fewest rows possible): the longest example first, each into the row
//! that it fills best. Attention and positions stay within an example, so packing does not change what is computed for it.

use super::batch::IGNORE;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub ids: Vec<u32>,
    /// Which of them are trained. The first id never is: nothing predicts it.
    pub trained: Vec<bool>,
    /// The ids that end its answers, of those answers that are not cut off.
    pub ends: Vec<u32>,
    /// Whether the end of an answer was cut off.
    pub truncated: bool,
    /// Number of ids before any were cut off.
    pub length: usize,
}

impl Example {
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().filter(|&&trained| trained).count()
    }
}

/// Rows of inputs, targets and starts of contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedRows {
    length: usize,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    starts: Vec<u32>,
}

impl PackedRows {
    /// Puts `examples` into rows of `length` positions, several into one if `packing`. The input of unused positions is
    /// `filler`.
    ///
    /// An example of n ids takes n - 1 positions; the caller cuts those that are longer than a row.
    pub fn new(examples: &[Example], length: usize, packing: bool, filler: u32) -> Self {
        let rows = if packing {
            best_fit(&examples.iter().map(|e| e.ids.len().saturating_sub(1)).collect::<Vec<_>>(), length)
        } else {
            (0..examples.len()).map(|i| vec![i]).collect()
        };
        let mut packed = Self { length, inputs: Vec::new(), targets: Vec::new(), starts: Vec::new() };
        for row in rows {
            for i in row {
                packed.add(&examples[i]);
            }
            packed.fill(filler);
        }
        packed
    }

    fn add(&mut self, example: &Example) {
        let start = (self.inputs.len() % self.length) as u32;
        let pairs = example.ids.windows(2).zip(&example.trained[1..]);
        for (pair, trained) in pairs {
            self.inputs.push(pair[0]);
            self.targets.push(if *trained { pair[1] } else { IGNORE });
            self.starts.push(start);
        }
    }

    fn fill(&mut self, filler: u32) {
        let whole = self.inputs.len().next_multiple_of(self.length);
        let start = (self.inputs.len() % self.length) as u32;
        self.inputs.resize(whole, filler);
        self.targets.resize(whole, IGNORE);
        // Filler is a context of its own: no example sees it.
        self.starts.resize(whole, start);
    }

    pub fn len(&self) -> usize {
        self.inputs.len() / self.length
    }

    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// T, the positions of a row.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Number of targets that are trained.
    pub fn trained(&self) -> u64 {
        self.targets.iter().filter(|&&target| target != IGNORE).count() as u64
    }

    /// Inputs, targets and starts of rows `first..first + count`, row by row.
    pub fn read(&self, first: usize, count: usize) -> [&[u32]; 3] {
        let range = first * self.length..(first + count) * self.length;
        [&self.inputs, &self.targets, &self.starts].map(|list| &list[range.clone()])
    }

    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("llama-lite packed rows v1");
        hasher.update(&(self.length as u64).to_le_bytes());
        for list in [&self.inputs, &self.targets, &self.starts] {
            for piece in list.chunks(4096) {
                let bytes: Vec<u8> = piece.iter().flat_map(|id| id.to_le_bytes()).collect();
                hasher.update(&bytes);
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Rows of at most `length` positions, as the indices of `sizes` in each.
fn best_fit(sizes: &[usize], length: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    // Largest first, so that small ones fill what is left. The sort is stable: the same data make the same rows.
    order.sort_by_key(|&i| std::cmp::Reverse(sizes[i]));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // Number of free positions -> the rows that have so many, the oldest last.
    let mut free: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for i in order {
        let fitting = free.range_mut(sizes[i]..).next().map(|(&room, rows)| (room, rows.pop()));
        let (room, row) = match fitting {
            Some((room, Some(row))) => {
                if free.get(&room).is_some_and(Vec::is_empty) {
                    free.remove(&room);
                }
                (room, row)
            }
            _ => {
                rows.push(Vec::new());
                (length, rows.len() - 1)
            }
        };
        rows[row].push(i);
        free.entry(room.saturating_sub(sizes[i])).or_default().push(row);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(first: u32, n: usize) -> Example {
        let ids: Vec<u32> = (first..first + n as u32).collect();
        let trained = (0..n).map(|i| i > n / 2).collect();
        Example { ids, trained, ends: vec![], truncated: false, length: n }
    }

    #[test]
    fn every_example_is_in_one_row_whole_and_rows_are_full() {
        let sizes: Vec<usize> = (0..500).map(|i| 1 + (i * i * 31 + i * 7) % 64).collect();
        let rows = best_fit(&sizes, 64);
        let mut seen: Vec<usize> = rows.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..500).collect::<Vec<_>>());
        assert!(rows.iter().all(|row| row.iter().map(|&i| sizes[i]).sum::<usize>() <= 64));
        let least = sizes.iter().sum::<usize>().div_ceil(64);
        assert!(rows.len() <= least + least / 50 + 1, "{} rows, {least} would hold them", rows.len());
    }

    #[test]
    fn rows_hold_what_the_examples_do() {
        let examples = [example(10, 5), example(20, 9), example(40, 4)];
        let packed = PackedRows::new(&examples, 8, true, 99);
        assert_eq!(packed.len(), 2);
        let [inputs, targets, starts] = packed.read(1, 1);
        assert_eq!(inputs, [10, 11, 12, 13, 40, 41, 42, 99]);
        assert_eq!(targets, [IGNORE, IGNORE, 13, 14, IGNORE, IGNORE, 43, IGNORE]);
        assert_eq!(starts, [0, 0, 0, 0, 4, 4, 4, 7]);
        let padded = PackedRows::new(&examples, 8, false, 99);
        assert_eq!((padded.len(), padded.trained()), (3, packed.trained()));
        assert_eq!(padded.read(0, 1)[0], [10, 11, 12, 13, 99, 99, 99, 99]);
        assert_ne!(padded.fingerprint(), packed.fingerprint());
    }
}
