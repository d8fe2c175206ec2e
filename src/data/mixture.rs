//! Several sources by weight: which source gives the sequence of global index `k`, and which of its own sequences.
//!
//! Indices are divided into blocks of 4,096. Within a block every source has a fixed number of slots, the share of its weight,
//! and a keyed permutation assigns the slots to indices. So both answers are computed from `k` alone, the shares are exact over
//! every block, and each source is read in its own order, from its first sequence on, without gap or repetition.

use super::order::Permutation;
use crate::runtime::error::{Exit, fail};
use anyhow::Result;

/// Indices over which the shares are exact.
const BLOCK: u64 = 4096;

/// The assignment of sequences to sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Slots of source `i` in a block: `bounds[i]..bounds[i + 1]`.
    bounds: Vec<u64>,
    seed: u64,
}

impl Mixture {
    /// Sources in proportion to `weights`, which need not sum to 1. Every source gets at least one slot in a block.
    ///
    /// # Errors
    /// [`Exit::Config`] if a weight is not positive and finite, or if there are more sources than half the slots.
    pub fn new(weights: &[f64], seed: u64) -> Result<Self> {
        let sum: f64 = weights.iter().sum();
        if weights.is_empty() || !weights.iter().all(|w| *w > 0.0) || !sum.is_finite() {
            return Err(fail(Exit::Config, format!("data.weights {weights:?} are not all above 0"))
                .hint("leave a source out instead of giving it no weight")
                .into());
        }
        if weights.len() as u64 > BLOCK / 2 {
            return Err(fail(Exit::Config, format!("data.weights for {} sources", weights.len()))
                .hint(format!("at most {} sources can be mixed", BLOCK / 2))
                .into());
        }
        let mut bounds = vec![0];
        bounds.extend(slots_by_weight(weights, sum).iter().scan(0, |end, slots| {
            *end += slots;
            Some(*end)
        }));
        Ok(Self { bounds, seed })
    }

    /// Source of the sequence `k`, and its number among that source's sequences.
    pub fn place(&self, k: u64) -> (usize, u64) {
        let block = k / BLOCK;
        let index = k % BLOCK;
        self.in_block(&self.slots(block), block, index)
    }

    /// How many of the first `n` sequences each source gives.
    pub fn counts(&self, n: u64) -> Vec<u64> {
        let blocks = n / BLOCK;
        let rest = n % BLOCK;
        let mut counts: Vec<u64> = self.bounds.windows(2).map(|b| (b[1] - b[0]) * blocks).collect();
        let slots = self.slots(blocks);
        for index in 0..rest {
            counts[self.in_block(&slots, blocks, index).0] += 1;
        }
        counts
    }

    fn slots(&self, block: u64) -> Permutation {
        Permutation::new("llama-lite mixture of sources v1", BLOCK, self.seed, block)
    }

    fn in_block(&self, slots: &Permutation, block: u64, index: u64) -> (usize, u64) {
        let slot = slots.apply(index);
        let source = self.bounds.partition_point(|&b| b <= slot) - 1;
        let low = self.bounds[source];
        let high = self.bounds[source + 1];
        // A source has as many slots in every block, so nothing is counted up to `k`: a resume can begin anywhere.
        (source, block * (high - low) + slot - low)
    }
}

/// How many of [`BLOCK`] slots each source gets, by largest remainders, at least one.
fn slots_by_weight(weights: &[f64], sum: f64) -> Vec<u64> {
    let ideal: Vec<f64> = weights.iter().map(|w| w / sum * BLOCK as f64).collect();
    // At least one, or a source with a small weight would never be read.
    let mut slots: Vec<u64> = ideal.iter().map(|x| (*x as u64).max(1)).collect();
    let mut assigned: u64 = slots.iter().sum();
    while assigned < BLOCK {
        let missing = (0..slots.len()).map(|i| (i, ideal[i] - slots[i] as f64));
        let Some((i, _)) = missing.max_by(|a, b| a.1.total_cmp(&b.1)) else { break };
        slots[i] += 1;
        assigned += 1;
    }
    while assigned > BLOCK {
        // One of them has more than one slot: there are at most half as many sources as slots.
        let missing = (0..slots.len()).filter(|&i| slots[i] > 1).map(|i| (i, ideal[i] - slots[i] as f64));
        let Some((i, _)) = missing.min_by(|a, b| a.1.total_cmp(&b.1)) else { break };
        slots[i] -= 1;
        assigned -= 1;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_and_every_source_is_read_without_gap() {
        for weights in [vec![1.0], vec![0.7, 0.2, 0.1], vec![1e-9, 1.0], vec![3.0; 7], vec![1.0; 2048]] {
            let mixture = Mixture::new(&weights, 5).unwrap();
            let n = 3 * BLOCK + 1234;
            let mut drawn: Vec<Vec<u64>> = vec![Vec::new(); weights.len()];
            for k in 0..n {
                let (source, index) = mixture.place(k);
                drawn[source].push(index);
            }
            assert_eq!(drawn.iter().map(|d| d.len() as u64).collect::<Vec<_>>(), mixture.counts(n));
            let sum: f64 = weights.iter().sum();
            for (weight, counts) in weights.iter().zip(mixture.counts(BLOCK)) {
                assert!((weight / sum * BLOCK as f64 - counts as f64).abs() <= 1.0, "{weight} {counts}");
            }
            // Whole blocks give each source its first sequences, each once.
            let mut whole: Vec<Vec<u64>> = vec![Vec::new(); weights.len()];
            (0..3 * BLOCK).map(|k| mixture.place(k)).for_each(|(source, index)| whole[source].push(index));
            for list in &mut whole {
                list.sort_unstable();
                assert!(list.iter().enumerate().all(|(i, &index)| i as u64 == index));
            }
        }
    }

    #[test]
    fn sources_are_interleaved_and_the_seed_matters() {
        let runs = |seed| {
            let mixture = Mixture::new(&[1.0, 1.0], seed).unwrap();
            (0..2000).map(|k| mixture.place(k).0).collect::<Vec<_>>()
        };
        let changes = runs(1).windows(2).filter(|pair| pair[0] != pair[1]).count();
        // Binomial: mean 1000, standard deviation 22.
        assert!((850..1150).contains(&changes), "{changes}");
        assert_ne!(runs(1), runs(2));
    }

    #[test]
    fn every_block_is_dealt_anew() {
        let mixture = Mixture::new(&[1.0, 1.0], 1).unwrap();
        let block = |first: u64| (first..first + BLOCK).map(|k| mixture.place(k).0).collect::<Vec<_>>();
        let same = block(0).iter().zip(block(BLOCK)).filter(|(a, b)| *a == b).count();
        // Binomial: mean 2048, standard deviation 32.
        assert!((1850..2250).contains(&same), "{same}");
    }

    #[test]
    fn useless_weights_are_refused() {
        for weights in [vec![], vec![0.0, 1.0], vec![-1.0], vec![f64::NAN], vec![f64::INFINITY], vec![1.0; 2049]] {
            assert!(Mixture::new(&weights, 1).is_err(), "{weights:?}");
        }
    }
}
