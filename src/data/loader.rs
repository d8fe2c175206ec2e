//! Training sequences. Sequence `k` of a run is one window of T + 1 tokens (inputs and targets overlap by T), chosen by the keyed order;
//! nothing is remembered but `k`, so a resume repeats and drops nothing.

use super::Tokens;
use super::order::Order;
use anyhow::Result;

/// The training sequences of a run.
#[derive(Clone, Debug)]
pub struct Loader {
    tokens: Tokens,
    order: Order,
    sequence_length: usize,
}

impl Loader {
    /// Windows of `sequence_length` targets over `tokens`, in the order of `seed`, or of the file if not `shuffle`.
    ///
    /// # Errors
    /// [`Exit::Data`](crate::runtime::error::Exit::Data) if there is not one whole window.
    pub fn new(tokens: Tokens, sequence_length: usize, seed: u64, shuffle: bool) -> Result<Self> {
        let windows = tokens.total().saturating_sub(1) / sequence_length as u64;
        Ok(Self { order: Order::new(windows, seed, shuffle)?, tokens, sequence_length })
    }

    /// Windows in one pass over the data.
    pub fn windows(&self) -> u64 {
        self.order.windows()
    }

    /// Sequences `first..first + count` of the run, T + 1 tokens each, one after the other.
    ///
    /// # Errors
    /// Those of reading shards.
    pub fn sequences(&self, first: u64, count: usize) -> Result<Vec<u32>> {
        let width = self.sequence_length + 1;
        let mut rows = vec![0; count * width];
        for (k, row) in (first..).zip(rows.chunks_exact_mut(width)) {
            let (_, window) = self.order.window(k);
            self.tokens.read(window * self.sequence_length as u64, row)?;
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn an_epoch_predicts_every_token_but_the_first_and_the_remainder_once() {
        let tokens = Tokens::Memory(Arc::new((0..105).collect()));
        for shuffle in [true, false] {
            let loader = Loader::new(tokens.clone(), 8, 3, shuffle).unwrap();
            assert_eq!(loader.windows(), 13);
            for epoch in 0..3 {
                let rows = loader.sequences(epoch * 13, 13).unwrap();
                let mut targets: Vec<u32> = rows.chunks_exact(9).flat_map(|row| row[1..].to_vec()).collect();
                assert_eq!(targets.is_sorted(), !shuffle);
                targets.sort_unstable();
                assert_eq!(targets, (1..105).collect::<Vec<_>>());
            }
        }
    }
}
