//! Training sequences. Sequence `k` of a run is one window of T + 1 tokens (inputs and targets overlap by T), chosen by the keyed order;
//! nothing is remembered but `k`, so a resume repeats and drops nothing.

use super::Tokens;
use super::boundary::Boundary;
use super::mixture::Mixture;
use super::order::Order;
use anyhow::Result;

/// Tokens that are drawn from in a proportion of their own.
#[derive(Clone, Debug)]
pub struct Source {
    /// As the configuration names it.
    pub name: String,
    /// What it holds.
    pub tokens: Tokens,
}

/// How training sequences are cut and ordered.
#[derive(Clone, Debug)]
pub struct Plan {
    /// T.
    pub sequence_length: usize,
    /// `data.seed`.
    pub seed: u64,
    /// Whether windows come in a keyed order instead of that of the files.
    pub shuffle: bool,
    /// One per source; none needed for a single one.
    pub weights: Vec<f64>,
    /// How documents are told apart, if attention is to stay inside them.
    pub boundary: Option<Boundary>,
}

/// The training sequences of a run.
#[derive(Clone, Debug)]
pub struct Loader {
    sources: Vec<(Source, Order)>,
    mixture: Option<Mixture>,
    sequence_length: usize,
    boundary: Option<Boundary>,
}

/// What a source has given.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn<'a> {
    /// The source.
    pub name: &'a str,
    /// Sequences drawn from it.
    pub sequences: u64,
    /// As multiples of what it holds.
    pub passes: f64,
}

impl Loader {
    /// Windows of `sources` by `plan`.
    ///
    /// # Errors
    /// [`Exit::Data`](crate::runtime::error::Exit::Data) if a source has not one whole window,
    /// [`Exit::Config`](crate::runtime::error::Exit::Config) for weights that are no proportions.
    pub fn new(sources: Vec<Source>, plan: &Plan) -> Result<Self> {
        let mixture = (sources.len() > 1).then(|| Mixture::new(&plan.weights, plan.seed)).transpose()?;
        let ordered = |(i, source): (usize, Source)| {
            let windows = source.tokens.total().saturating_sub(1) / plan.sequence_length as u64;
            // Sources of equal length must not be walked in step.
            let seed = plan.seed.wrapping_add((i as u64) << 48);
            Ok((source, Order::new(windows, seed, plan.shuffle)?))
        };
        let sources = sources.into_iter().enumerate().map(ordered).collect::<Result<_>>()?;
        Ok(Self { sources, mixture, sequence_length: plan.sequence_length, boundary: plan.boundary })
    }

    /// Windows in one pass over all sources.
    pub fn windows(&self) -> u64 {
        self.sources.iter().map(|(_, order)| order.windows()).sum()
    }

    /// How documents are told apart, if attention is to stay inside them.
    pub fn boundary(&self) -> Option<Boundary> {
        self.boundary
    }

    /// What the first `sequences` sequences of the run take from each source.
    pub fn drawn(&self, sequences: u64) -> Vec<Drawn<'_>> {
        let counts = self.mixture.as_ref().map_or_else(|| vec![sequences], |mixture| mixture.counts(sequences));
        let pairs = self.sources.iter().zip(counts);
        let drawn = pairs.map(|((source, order), sequences)| Drawn {
            name: &source.name,
            sequences,
            passes: sequences as f64 / order.windows() as f64,
        });
        drawn.collect()
    }

    /// Sequences `first..first + count` of the run, T + 1 tokens each, one after the other.
    ///
    /// # Errors
    /// Those of reading shards.
    pub fn sequences(&self, first: u64, count: usize) -> Result<Vec<u32>> {
        let width = self.sequence_length + 1;
        let mut rows = vec![0; count * width];
        for (k, row) in (first..).zip(rows.chunks_exact_mut(width)) {
            let (source, index) = self.mixture.as_ref().map_or((0, k), |mixture| mixture.place(k));
            let (source, order) = &self.sources[source];
            let (_, window) = order.window(index);
            source.tokens.read(window * self.sequence_length as u64, row)?;
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn source(ids: std::ops::Range<u32>) -> Source {
        Source { name: format!("{ids:?}"), tokens: Tokens::Memory(Arc::new(ids.collect())) }
    }

    fn plan(shuffle: bool, weights: Vec<f64>) -> Plan {
        Plan { sequence_length: 8, seed: 3, shuffle, weights, boundary: None }
    }

    #[test]
    fn an_epoch_predicts_every_token_but_the_first_and_the_remainder_once() {
        for shuffle in [true, false] {
            let loader = Loader::new(vec![source(0..105)], &plan(shuffle, vec![])).unwrap();
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

    #[test]
    fn a_mixture_draws_by_weight_and_each_source_in_whole_passes() {
        let sources = vec![source(0..81), source(1000..1161)];
        let loader = Loader::new(sources, &plan(true, vec![3.0, 1.0])).unwrap();
        let rows = loader.sequences(0, 4096).unwrap();
        let mut seen: BTreeMap<u32, u64> = BTreeMap::new();
        rows.chunks_exact(9).for_each(|row| *seen.entry(row[0]).or_default() += 1);
        let drawn = loader.drawn(4096);
        assert_eq!((drawn[0].sequences, drawn[1].sequences), (3072, 1024));
        assert_eq!((drawn[0].passes, drawn[1].passes), (307.2, 51.2));
        for (first, times) in seen {
            // 10 windows drawn 3072 times, 20 windows drawn 1024 times.
            let passes = if first < 1000 { 307 } else { 51 };
            assert!(times == passes || times == passes + 1, "window at {first}: {times}");
        }
    }

    #[test]
    fn weights_are_needed_for_several_sources_only() {
        assert!(Loader::new(vec![source(0..81), source(0..81)], &plan(true, vec![])).is_err());
        assert!(Loader::new(vec![source(0..8)], &plan(true, vec![])).is_err());
    }
}
