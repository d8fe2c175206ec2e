//! The order of the data as a pure function, and the hash of all data seen, which proves it.
//!
//! Sequence `k` of a run (counted over all steps) is window `permutation(seed, k / n)[k % n]` of the `n`
//! windows of the corpus. The permutation is computed, not stored: a Feistel network over the smallest even number of
//! bits that holds `0..n`, walked until it lands inside (Black and Rogaway, "Ciphers with arbitrary finite domains",
//! CT-RSA 2002). So a cursor is one integer, resuming costs nothing, and neither a resume nor the
//! micro-batch can repeat or drop a window.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;

use crate::runtime::error::{Exit, Failure, fail};

/// Four rounds of a random function make a pseudo-random permutation (Luby and Rackoff, 1988); ours is only a mixer, so
/// there are twice as many.
const ROUNDS: usize = 8;

/// At least this many bits per half: with less, the network reaches few of the permutations of a small corpus.
const MIN_HALF_BITS: u32 = 4;

/// Purpose of the permutation; a change of it changes the data of every run.
const ORDER: &str = "llama-lite data order v1";

/// The order in which the windows of a corpus are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    n: u64,
    seed: u64,
    shuffle: bool,
}

impl Order {
    /// The order of `n` windows under `data.seed`; without `shuffle`, every epoch is `0..n`.
    ///
    /// # Errors
    /// [`Exit::Data`] if `n` is 0.
    pub fn new(n: u64, seed: u64, shuffle: bool) -> Result<Self> {
        if n == 0 {
            return Err(fail(Exit::Data, "the training data do not hold one complete window of tokens")
                .hint("give more data, or lower train.sequence_length")
                .into());
        }
        Ok(Self { n, seed, shuffle })
    }

    /// Number of windows in an epoch.
    pub fn windows(&self) -> u64 {
        self.n
    }

    /// The epoch and the window of the sequence of global index `k`.
    pub fn window(&self, k: u64) -> (u64, u64) {
        let epoch = k / self.n;
        let index = k % self.n;
        if !self.shuffle {
            return (epoch, index);
        }
        // Computed instead of stored: a resume needs `k` alone, and a list of windows would grow with the corpus.
        (epoch, Permutation::new(ORDER, self.n, self.seed, epoch).apply(index))
    }
}

/// A permutation of `0..n` keyed by (purpose, seed, epoch).
#[derive(Clone, Debug)]
pub(super) struct Permutation {
    n: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// `purpose` is a key of its own: equal seeds give unrelated permutations for different ones.
    pub(super) fn new(purpose: &str, n: u64, seed: u64, epoch: u64) -> Self {
        // The bits of the largest index, cut into two halves of equal width below.
        let bits = u64::BITS - (n - 1).leading_zeros();
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        hasher.update(&seed.to_le_bytes()).update(&epoch.to_le_bytes());
        let mut stream = hasher.finalize_xof();
        let keys = std::array::from_fn(|_| {
            let mut key = [0; 8];
            stream.fill(&mut key);
            u64::from_le_bytes(key)
        });
        Self { n, half_bits: bits.div_ceil(2).max(MIN_HALF_BITS), keys }
    }

    /// Ends because the network is a bijection: from `index < n` its cycle comes back to a value below `n`, at the
    /// latest to `index` itself. Fewer than 4 steps on average from 65 windows on, as the domain is less than 4 n.
    pub(super) fn apply(&self, index: u64) -> u64 {
        let mut x = self.encipher(index);
        // Cycle walking (Black and Rogaway 2002): values outside the range go through the network again.
        while x >= self.n {
            x = self.encipher(x);
        }
        x
    }

    fn encipher(&self, x: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let mut left = x >> self.half_bits;
        let mut right = x & mask;
        for key in self.keys {
            // A Feistel round can be undone whatever `mix` is, so the network is a bijection.
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014; constants of Stafford's variant 13).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A hash of all token ids seen so far: `hash' = BLAKE3(hash || ids as little-endian u32)`, from 32 zero bytes. The log calls
/// it `chain`.
///
/// Extend it once per sequence, in the order of the global index: then the value at the end of a step does not depend
/// on the micro-batch size or accumulation, and equal hashes mean equal data in equal order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataHash([u8; 32]);

impl DataHash {
    pub fn extend(&mut self, ids: &[u32]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        let mut bytes = [0; 1024];
        for ids in ids.chunks(bytes.len() / 4) {
            for (b, id) in bytes.chunks_exact_mut(4).zip(ids) {
                b.copy_from_slice(&id.to_le_bytes());
            }
            hasher.update(&bytes[..ids.len() * 4]);
        }
        self.0 = hasher.finalize().into();
    }
}

impl fmt::Display for DataHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from(self.0).to_hex())
    }
}

impl FromStr for DataHash {
    type Err = Failure;

    fn from_str(hex: &str) -> Result<Self, Failure> {
        match blake3::Hash::from_hex(hex) {
            Ok(hash) => Ok(Self(hash.into())),
            Err(_) => Err(fail(Exit::Data, format!("{hex:?} is not a chain hash of 64 hex digits"))
                .hint("the file it was read from is damaged")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn epoch(n: u64, seed: u64, epoch: u64) -> Vec<u64> {
        let order = Order::new(n, seed, true).unwrap();
        (0..n).map(|i| order.window(epoch * n + i)).inspect(|&(e, _)| assert_eq!(e, epoch)).map(|(_, w)| w).collect()
    }

    fn is_permutation(windows: &[u64]) -> bool {
        let mut seen = vec![false; windows.len()];
        windows.iter().all(|&w| seen.get_mut(w as usize).is_some_and(|seen| !std::mem::replace(seen, true)))
    }

    #[test]
    fn every_epoch_visits_every_window_once() {
        for n in (1..2000).chain([(1 << 16) - 1, 1 << 16, (1 << 16) + 1, 100_003]) {
            let permutation = Permutation::new(ORDER, n, n ^ 5, n % 3);
            let windows: Vec<_> = (0..n).map(|i| permutation.apply(i)).collect();
            assert!(is_permutation(&windows), "n = {n}");
        }
        assert!(is_permutation(&epoch(1000, 1, 2)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Too large to enumerate: a collision or an escape among sampled indices would refute the bijection.
        #[test]
        fn large_corpora_do_not_collide(n in 1u64 << 20..1 << 62, seed: u64, start: u64) {
            let order = Order::new(n, seed, true).unwrap();
            let start = start % (n - 4000);
            let mut windows: Vec<_> = (start..start + 4000).map(|k| order.window(k).1).collect();
            prop_assert!(windows.iter().all(|&w| w < n));
            windows.sort_unstable();
            windows.dedup();
            prop_assert_eq!(windows.len(), 4000);
        }
    }

    #[test]
    fn the_largest_index_and_corpus_are_reached() {
        assert_eq!(Order::new(1, 3, true).unwrap().window(u64::MAX), (u64::MAX, 0));
        let order = Order::new(u64::MAX, 3, true).unwrap();
        assert!(order.window(u64::MAX - 1).1 < u64::MAX);
        assert!(Order::new(0, 3, true).is_err());
    }

    #[test]
    fn contiguous_order_is_the_identity() {
        let order = Order::new(7, 9, false).unwrap();
        assert_eq!((0..15).map(|k| order.window(k)).collect::<Vec<_>>()[6..9], [(0, 6), (1, 0), (1, 1)]);
    }

    /// Two random permutations agree in 1 place on average (Poisson); 12 or more has probability below 1e-9.
    #[test]
    fn epochs_and_seeds_differ() {
        let n = 5000;
        let base = epoch(n, 1, 0);
        for other in [epoch(n, 1, 1), epoch(n, 2, 0), epoch(n, 1 << 63, 0), (0..n).collect()] {
            assert!(base.iter().zip(&other).filter(|(a, b)| a == b).count() < 12);
        }
    }

    /// In a random permutation the expected number of neighbours that stay neighbours is 2, and positions are
    /// uncorrelated with windows (standard deviation of the correlation: 1 / sqrt(n) = 0.01).
    #[test]
    fn neighbours_part_and_positions_are_uncorrelated() {
        let n = 10_000u64;
        for seed in 0..5 {
            let order = epoch(n, seed, 0);
            let together = order.windows(2).filter(|w| w[0].abs_diff(w[1]) == 1).count();
            assert!(together < 15, "seed {seed}: {together} neighbours");
            let mean = (n - 1) as f64 / 2.0;
            let cov: f64 = order.iter().enumerate().map(|(i, &w)| (i as f64 - mean) * (w as f64 - mean)).sum();
            let var = (n as f64).powi(3) / 12.0;
            assert!((cov / var).abs() < 0.05, "seed {seed}: correlation {}", cov / var);
        }
    }

    /// All 6 orders of 3 windows, equally often: chi-squared with 5 degrees of freedom, 99.9999 % quantile 35.9.
    #[test]
    fn small_corpora_are_shuffled_fairly() {
        let mut counts = std::collections::BTreeMap::new();
        let rounds = 6000;
        for e in 0..rounds {
            *counts.entry(epoch(3, 11, e)).or_insert(0u64) += 1;
        }
        assert_eq!(counts.len(), 6);
        let expected = rounds as f64 / 6.0;
        let chi2: f64 = counts.values().map(|&c| (c as f64 - expected).powi(2) / expected).sum();
        assert!(chi2 < 35.9, "{counts:?}");
    }

    /// Changing the order changes what a resumed run reads: these values may change only with the version in the key.
    #[test]
    fn the_order_is_frozen() {
        let order = Order::new(1000, 1337, true).unwrap();
        let got: Vec<_> = (0..6).chain(1000..1002).map(|k| order.window(k).1).collect();
        assert_eq!(got, FROZEN);
    }

    const FROZEN: [u64; 8] = [726, 715, 753, 446, 780, 285, 392, 435];

    #[test]
    fn chain_depends_on_every_id_and_its_place() {
        let chain = |sequences: &[&[u32]]| {
            let mut chain = DataHash::default();
            sequences.iter().for_each(|ids| chain.extend(ids));
            chain
        };
        let long: Vec<u32> = (0..1000).collect();
        let base = chain(&[&long, &[7]]);
        assert_eq!(base, chain(&[&long, &[7]]));
        assert_ne!(base, chain(&[&[7], &long]));
        assert_ne!(base, chain(&[&long[..999], &[7]]));
        let mut one_changed = long.clone();
        one_changed[999] += 1 << 24;
        assert_ne!(base, chain(&[&one_changed, &[7]]));

        let mut plain = vec![0u8; 32];
        plain.extend(long.iter().flat_map(|id| id.to_le_bytes()));
        assert_eq!(chain(&[&long]).to_string(), blake3::hash(&plain).to_hex().to_string());
    }

    #[test]
    fn chain_is_read_back() {
        let mut chain = DataHash::default();
        chain.extend(&[1, 2, 3]);
        assert_eq!(chain.to_string().parse::<DataHash>().unwrap(), chain);
        assert!("abc".parse::<DataHash>().is_err());
        assert!("g".repeat(64).parse::<DataHash>().is_err());
    }
}
