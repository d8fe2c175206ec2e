//! Every sequence exactly once per epoch, through any history of kills, batch sizes and ranks.

use llama_lite::data::Tokens;
use llama_lite::data::loader::{Loader, LoaderConfig, TokenSource};
use llama_lite::data::order::DataHash;
use llama_lite::data::prefetch::Prefetch;
use proptest::prelude::*;
use std::sync::Arc;

const T: usize = 3;

fn loader(windows: usize, seed: u64, shuffle: bool, remainder: usize) -> Loader {
    let tokens = Tokens::Memory(Arc::new((0..(windows * T + 1 + remainder) as u32).collect()));
    let plan = LoaderConfig { sequence_length: T, seed, shuffle, weights: vec![], boundary: None };
    Loader::new(vec![TokenSource { name: "all".into(), tokens }], &plan).unwrap()
}

/// What one life of a run does: so many steps, with these sizes, of which all after the last checkpoint are lost.
#[derive(Clone, Debug)]
struct Life {
    steps: usize,
    /// Sequences of a step; a resume may change it.
    batch: usize,
    ranks: usize,
    micro_batch: usize,
    save_every: usize,
}

fn life() -> impl Strategy<Value = Life> {
    (1usize..20, 1usize..9, 1usize..=8, 1usize..5, 1usize..6).prop_map(
        |(steps, share, ranks, micro_batch, save_every)| Life {
            steps,
            batch: share * ranks,
            ranks,
            micro_batch,
            save_every,
        },
    )
}

/// The sequences of a step, each rank reading its share in micro-batches.
fn read(data: &mut Prefetch, first: u64, count: usize, life: &Life) -> Vec<u32> {
    let mut rows = Vec::new();
    for rank in 0..life.ranks {
        let (from, to) = (count * rank / life.ranks, count * (rank + 1) / life.ranks);
        for at in (from..to).step_by(life.micro_batch) {
            let n = life.micro_batch.min(to - at);
            let batch = data.batch(first + at as u64, n).unwrap();
            rows.extend((0..n).flat_map(|row| batch.identity(row)));
        }
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_reads_every_sequence_once_per_epoch(
        (windows, remainder, epochs) in (1usize..40, 0..T, 1u64..4),
        (seed, shuffle) in (any::<u64>(), any::<bool>()),
        lives in proptest::collection::vec(life(), 1..6),
    ) {
        let loader = loader(windows, seed, shuffle, remainder);
        let end = epochs * windows as u64;
        let (mut cursor, mut chain, mut kept) = (0u64, DataHash::default(), Vec::new());
        // The last life runs to the end of the last epoch, with a short step if need be.
        for (i, life) in lives.iter().enumerate() {
            let last = i + 1 == lives.len();
            let mut data = Prefetch::new(loader.clone()).unwrap();
            let (mut at, mut link, mut rows) = (cursor, chain, kept.clone());
            let mut step = 0;
            while at < end && (last || step < life.steps) {
                let count = (life.batch as u64).min(end - at) as usize;
                let sequences = read(&mut data, at, count, life);
                sequences.chunks_exact(T + 1).for_each(|row| link.extend(row));
                rows.extend(sequences);
                at += count as u64;
                step += 1;
                if step % life.save_every == 0 || at == end {
                    (cursor, chain, kept) = (at, link, rows.clone());
                }
            }
        }
        let mut straight = DataHash::default();
        let all = loader.batch(0, end as usize).unwrap();
        (0..all.rows()).for_each(|row| straight.extend(&all.identity(row)));
        prop_assert_eq!(chain, straight);
        let mut firsts: Vec<u32> = kept.chunks_exact(T + 1).map(|row| row[0]).collect();
        firsts.sort_unstable();
        let each = (0..windows as u32).flat_map(|w| std::iter::repeat_n(w * T as u32, epochs as usize));
        prop_assert_eq!(firsts, each.collect::<Vec<_>>());
    }
}
