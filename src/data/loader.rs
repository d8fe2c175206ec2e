//! Training sequences. Sequence `k` of a run is one window of T + 1 tokens (inputs and targets overlap by T), chosen by the
//! keyed order. The only state is `k`, so a resume repeats and drops nothing.

use super::Tokens;
use super::batch::Batch;
use super::boundary::Boundary;
use super::mixture::Mixture;
use super::order::Order;
use crate::data::packed_rows::PackedRows;
use anyhow::Result;
use std::sync::Arc;

/// Tokens with a weight of their own in the mixture.
#[derive(Clone, Debug)]
pub struct TokenSource {
    /// As the configuration names it.
    pub name: String,
    pub tokens: Tokens,
}

/// How training sequences are cut and ordered.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    pub sequence_length: usize,
    /// `data.seed`.
    pub seed: u64,
    /// Whether windows come in a keyed order instead of that of the files.
    pub shuffle: bool,
    /// One per source; may be empty for a single source.
    pub weights: Vec<f64>,
    /// The separator between documents, if attention stays inside a document.
    pub boundary: Option<Boundary>,
}

/// The training sequences of a run.
#[derive(Clone, Debug)]
pub struct Loader {
    sequences: SequenceStore,
    sequence_length: usize,
}

#[derive(Clone, Debug)]
enum SequenceStore {
    /// Windows over long streams of tokens.
    Windows { sources: Vec<(TokenSource, Order)>, mixture: Option<Mixture>, boundary: Option<Boundary> },
    /// Rows of conversations, each in a context of its own.
    Examples { rows: Arc<PackedRows>, order: Order },
}

/// How much of a source was used.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceUsage<'a> {
    pub name: &'a str,
    pub sequences: u64,
    /// Passes over the source, 1 for each of its sequences once.
    pub passes: f64,
}

impl Loader {
    /// Windows of `sources`, in the order that `config` asks for.
    ///
    /// # Errors
    /// [`Exit::Data`](crate::runtime::error::Exit::Data) if a source has not one whole window,
    /// [`Exit::Config`](crate::runtime::error::Exit::Config) for weights that are no proportions.
    pub fn new(sources: Vec<TokenSource>, config: &LoaderConfig) -> Result<Self> {
        let mixture = (sources.len() > 1).then(|| Mixture::new(&config.weights, config.seed)).transpose()?;
        let mut ordered = Vec::with_capacity(sources.len());
        for (i, source) in sources.into_iter().enumerate() {
            // The last window needs one token more, the target of its last position.
            let windows = source.tokens.total().saturating_sub(1) / config.sequence_length as u64;
            // With one seed, sources of equal length would be read in the same order.
            let seed = config.seed.wrapping_add((i as u64) << 48);
            ordered.push((source, Order::new(windows, seed, config.shuffle)?));
        }
        let sequences = SequenceStore::Windows { sources: ordered, mixture, boundary: config.boundary };
        Ok(Self { sequences, sequence_length: config.sequence_length })
    }

    /// Rows of conversations in a keyed order, if `shuffle`.
    ///
    /// # Errors
    /// [`Exit::Data`](crate::runtime::error::Exit::Data) if there are none.
    pub fn from_examples(rows: Arc<PackedRows>, seed: u64, shuffle: bool) -> Result<Self> {
        let order = Order::new(rows.len() as u64, seed, shuffle)?;
        let sequence_length = rows.length();
        Ok(Self { sequences: SequenceStore::Examples { rows, order }, sequence_length })
    }

    /// Windows or rows in one pass over all sources.
    #[cfg(test)]
    fn windows(&self) -> u64 {
        match &self.sequences {
            SequenceStore::Windows { sources, .. } => sources.iter().map(|(_, order)| order.windows()).sum(),
            SequenceStore::Examples { order, .. } => order.windows(),
        }
    }

    /// How much of each source the first `sequences` sequences of the run use.
    pub fn drawn(&self, sequences: u64) -> Vec<SourceUsage<'_>> {
        let (sources, mixture) = match &self.sequences {
            SequenceStore::Windows { sources, mixture, .. } => (sources, mixture),
            SequenceStore::Examples { order, .. } => {
                let passes = sequences as f64 / order.windows() as f64;
                return vec![SourceUsage { name: "conversations", sequences, passes }];
            }
        };
        let counts = mixture.as_ref().map_or_else(|| vec![sequences], |mixture| mixture.counts(sequences));
        let usage = sources.iter().zip(counts).map(|((source, order), sequences)| SourceUsage {
            name: &source.name,
            sequences,
            passes: sequences as f64 / order.windows() as f64,
        });
        usage.collect()
    }

    /// The name of the source of sequence `k`, and the index there of its first token; none for conversations, which are no
    /// stream.
    pub fn place(&self, k: u64) -> (&str, Option<u64>) {
        match &self.sequences {
            SequenceStore::Windows { sources, mixture, .. } => {
                let (source, index) = mixture.as_ref().map_or((0, k), |mixture| mixture.place(k));
                let (source, order) = &sources[source];
                (&source.name, Some(order.window(index).1 * self.sequence_length as u64))
            }
            SequenceStore::Examples { .. } => ("conversations", None),
        }
    }

    /// The token before sequence `k` in its source, which decides how its first token is written as text; none at the start.
    ///
    /// # Errors
    /// Those of reading shards.
    pub fn token_before(&self, k: u64) -> Result<Option<u32>> {
        let SequenceStore::Windows { sources, mixture, .. } = &self.sequences else { return Ok(None) };
        let (source, index) = mixture.as_ref().map_or((0, k), |mixture| mixture.place(k));
        let (source, order) = &sources[source];
        let Some(at) = (order.window(index).1 * self.sequence_length as u64).checked_sub(1) else { return Ok(None) };
        let mut token = [0];
        source.tokens.read(at, &mut token)?;
        Ok(Some(token[0]))
    }

    /// Sequences `first..first + count` of the run.
    ///
    /// # Errors
    /// Those of reading shards.
    pub fn batch(&self, first: u64, count: usize) -> Result<Batch> {
        match &self.sequences {
            SequenceStore::Windows { sources, mixture, boundary } => {
                let windows = self.read(sources, mixture.as_ref(), first, count)?;
                Ok(Batch::windows(&windows, self.sequence_length, *boundary))
            }
            SequenceStore::Examples { rows, order } => {
                let mut lists = [Vec::new(), Vec::new(), Vec::new()];
                for k in first..first + count as u64 {
                    let (_, row) = order.window(k);
                    let parts = rows.read(row as usize, 1);
                    lists.iter_mut().zip(parts).for_each(|(list, part)| list.extend(part));
                }
                let [inputs, targets, starts] = lists;
                Ok(Batch { length: self.sequence_length, inputs, targets, starts: Some(starts) })
            }
        }
    }

    /// Windows of T + 1 tokens, one after the other.
    fn read(
        &self,
        sources: &[(TokenSource, Order)],
        mixture: Option<&Mixture>,
        first: u64,
        count: usize,
    ) -> Result<Vec<u32>> {
        let width = self.sequence_length + 1;
        let mut rows = vec![0; count * width];
        for (k, row) in (first..).zip(rows.chunks_exact_mut(width)) {
            let (source, index) = mixture.map_or((0, k), |mixture| mixture.place(k));
            let (source, order) = &sources[source];
            let (_, window) = order.window(index);
            // Windows overlap by one token: the last target of one is the first input of the next.
            source.tokens.read(window * self.sequence_length as u64, row)?;
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn source(ids: std::ops::Range<u32>) -> TokenSource {
        TokenSource { name: format!("{ids:?}"), tokens: Tokens::Memory(Arc::new(ids.collect())) }
    }

    fn plan(shuffle: bool, weights: Vec<f64>) -> LoaderConfig {
        LoaderConfig { sequence_length: 8, seed: 3, shuffle, weights, boundary: None }
    }

    #[test]
    fn an_epoch_predicts_every_token_but_the_first_and_the_remainder_once() {
        for shuffle in [true, false] {
            let loader = Loader::new(vec![source(0..105)], &plan(shuffle, vec![])).unwrap();
            assert_eq!(loader.windows(), 13);
            for epoch in 0..3 {
                let mut targets = loader.batch(epoch * 13, 13).unwrap().targets;
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
        let batch = loader.batch(0, 4096).unwrap();
        let mut seen: BTreeMap<u32, u64> = BTreeMap::new();
        batch.inputs.chunks_exact(8).for_each(|row| *seen.entry(row[0]).or_default() += 1);
        let drawn = loader.drawn(4096);
        assert_eq!((drawn[0].sequences, drawn[1].sequences), (3072, 1024));
        assert_eq!((drawn[0].passes, drawn[1].passes), (307.2, 51.2));
        for (first, times) in seen {
            // 10 windows drawn 3072 times, 20 windows drawn 1024 times.
            let passes = if first < 1000 { 307 } else { 51 };
            assert!(times == passes || times == passes + 1, "window at {first}: {times}");
        }
    }

    /// Texts that are translations of each other, or two halves of one, have equal lengths: in step they would be read side by side.
    #[test]
    fn sources_of_equal_length_have_orders_of_their_own() {
        let sources = || (0..3).map(|i| source(i * 10_000..i * 10_000 + 2001)).collect::<Vec<_>>();
        let orders = |seed: u64| -> Vec<Vec<u64>> {
            let plan = LoaderConfig { seed, ..plan(true, vec![1.0; 3]) };
            let loader = Loader::new(sources(), &plan).unwrap();
            let SequenceStore::Windows { sources, .. } = &loader.sequences else { panic!("windows") };
            sources.iter().map(|(_, order)| (0..250).map(|k| order.window(k).1).collect()).collect()
        };
        let mut all: Vec<Vec<u64>> = [1, 2, 3].into_iter().flat_map(orders).collect();
        // The first source goes by the seed alone, as the only one of a run does.
        let alone = Loader::new(sources().split_off(2), &LoaderConfig { seed: 1, ..plan(true, vec![]) }).unwrap();
        assert!((0..250).all(|k| alone.place(k).1 == Some(all[0][k as usize] * 8)));
        // Random orders of 250 agree in one place on average; 12 or more have probability below 1e-9.
        while let Some(one) = all.pop() {
            for other in &all {
                assert!(one.iter().zip(other).filter(|(a, b)| a == b).count() < 12);
            }
        }
    }

    /// The place that is named of a sequence is where its tokens are.
    #[test]
    fn places_are_those_of_the_tokens() {
        let loader = Loader::new(vec![source(0..81), source(1000..1161)], &plan(true, vec![1.0, 2.0])).unwrap();
        for k in 0..200 {
            let (name, token) = loader.place(k);
            let first: u32 = name.split("..").next().unwrap().parse().unwrap();
            assert_eq!(loader.batch(k, 1).unwrap().inputs[0], first + token.unwrap() as u32, "{k}");
        }
    }

    #[test]
    fn conversations_are_shuffled_unless_it_is_forbidden() {
        let example = |id: u32| crate::data::packed_rows::Example {
            ids: vec![id; 5],
            trained: vec![true; 5],
            ends: vec![],
            truncated: false,
            length: 5,
        };
        let examples: Vec<_> = (0..50).map(example).collect();
        let rows = Arc::new(PackedRows::new(&examples, 4, false, 0));
        let order = |shuffle: bool, first: u64| -> Vec<u32> {
            let loader = Loader::from_examples(rows.clone(), 1, shuffle).unwrap();
            loader.batch(first, 50).unwrap().inputs.chunks(4).map(|row| row[0]).collect()
        };
        let sorted = (0..50).collect::<Vec<_>>();
        assert_eq!((order(false, 0), order(false, 50)), (sorted.clone(), sorted.clone()));
        assert_ne!(order(true, 0), order(true, 50), "every epoch has an order of its own");
        for first in [0, 50] {
            let mut epoch = order(true, first);
            assert_ne!(epoch, sorted);
            epoch.sort_unstable();
            assert_eq!(epoch, sorted);
        }
    }

    #[test]
    fn weights_are_needed_for_several_sources_only() {
        assert!(Loader::new(vec![source(0..81), source(0..81)], &plan(true, vec![])).is_err());
        assert!(Loader::new(vec![source(0..8)], &plan(true, vec![])).is_err());
    }
}
