//! Steps on several ranks, which are threads here: every bit is that of one rank with the same lanes.

use crate::config::Config;
use crate::data::batch::{Batch, IGNORE};
use crate::distributed::group::ProcessGroup;
use crate::distributed::tests::with_ranks;
use crate::metrics::{Layers, Sequences};
use crate::train::desync::compare_states;
use crate::train::indicators::layers;
use crate::train::model_state::ModelState;
use crate::train::step::take_step;
use candle_core::{Device, Tensor};

const SEQUENCES: usize = 16;

fn config(extra: &str) -> Config {
    let text = format!(
        "[model]\nhidden_size = 48\nintermediate_size = 80\nnum_hidden_layers = 2\nnum_attention_heads = 4\nnum_key_value_heads = 2\n\
         vocab_size = 2000\n[data]\nsource = \"stories\"\ntokenizer = \"train\"\n[log]\nlayers_every = 1\nsequences = true\n\
         [train]\nsequence_length = 12\nmicro_batch_size = 1\ntokens_per_step = 192\nsteps = 9\nlanes = 8\n{extra}"
    );
    Config::from_toml_str(&text, "a.toml").unwrap()
}

/// The batch of step `step`, some of whose targets are not trained.
fn batch(step: u32) -> Batch {
    let ids: Vec<u32> = (0..SEQUENCES as u32 * 13).map(|i| (i * i * 31 + i * 7 + step * 1013) % 2000).collect();
    let mut batch = Batch::windows(&ids, 12, None);
    batch.targets.iter_mut().step_by(7).for_each(|target| *target = IGNORE);
    batch
}

/// What must not depend on the number of ranks.
#[derive(Debug, PartialEq)]
struct Outcome {
    weights: Vec<u32>,
    /// Empty on ranks other than the first.
    moments: Vec<u32>,
    losses: Vec<[u64; 2]>,
    sequences: Vec<Option<Sequences>>,
    layers: Vec<Layers>,
    data: String,
}

fn train(config: &Config, group: &ProcessGroup, steps: u32) -> Outcome {
    let mut state = ModelState::initial(config, None, &Device::Cpu, group).unwrap();
    let mut losses = Vec::new();
    let mut sequences = Vec::new();
    let mut all_layers = Vec::new();
    for step in 0..steps {
        let report = take_step(&mut state, config, &batch(step)).unwrap();
        losses.push([report.loss.to_bits(), report.grad_norm.to_bits()]);
        all_layers.push(layers(&state, &report).unwrap());
        sequences.push(report.sequences);
        compare_states(&state).unwrap();
    }
    let mut moments = Vec::new();
    for own in &state.optimizer.state {
        let mut whole = vec![0f32; if group.is_first() { own.layout.total } else { 0 }];
        let place = group.is_first().then_some(whole.as_mut_slice());
        state.sharding.gather_on_first(&own.flat, place).unwrap();
        moments.extend(whole.iter().map(|x| x.to_bits()));
    }
    let weights = state.model.trained().1.to_vec1::<f32>().unwrap();
    Outcome {
        weights: weights.iter().map(|x| x.to_bits()).collect(),
        moments,
        losses,
        sequences,
        layers: all_layers,
        data: state.run.data_hash.to_string(),
    }
}

#[test]
fn ranks_change_no_bit() {
    for extra in ["", "recompute = \"full\"\n[optimizer]\nmoments = \"bf16\"\ngrad_clip = 0.1\n"] {
        let config = config(extra);
        let alone = train(&config, &ProcessGroup::one(), 3);
        assert!(alone.moments.iter().any(|&bits| bits != 0) && alone.layers.len() == 3);
        for ranks in [2, 4, 8] {
            let outcomes = with_ranks(ranks, |group| train(&config, &group, 3));
            for (rank, outcome) in outcomes.into_iter().enumerate() {
                // Only the first rank has gathered the moments.
                let moments = if rank == 0 { outcome.moments.clone() } else { alone.moments.clone() };
                assert_eq!(Outcome { moments, ..outcome }, alone, "rank {rank} of {ranks}");
            }
        }
    }
}

/// One lane is the plain sum over all micro-batches; more lanes are another order of the same sums.
#[test]
fn lanes_change_rounding_and_nothing_else() {
    let eight = train(&config(""), &ProcessGroup::one(), 1);
    let mut plain = config("");
    plain.train.lanes = Some(1);
    let one = train(&plain, &ProcessGroup::one(), 1);
    assert_eq!(one.data, eight.data);
    let norm = |outcome: &Outcome| f64::from_bits(outcome.losses[0][1]);
    let difference = (norm(&one) / norm(&eight) - 1.0).abs();
    assert!(difference < 1e-6, "{difference}");
    assert_ne!(one.moments, eight.moments, "the order of the sums must show");
}

/// A rank whose weights are no longer those of the others is named before anything is saved.
#[test]
fn a_rank_that_drifts_is_named() {
    let config = config("");
    let errors = with_ranks(4, |group| {
        let mut state = ModelState::initial(&config, None, &Device::Cpu, &group).unwrap();
        take_step(&mut state, &config, &batch(0)).unwrap();
        if group.rank() == 2 {
            let wrong = Tensor::from_vec(vec![0.125f32], 1, &Device::Cpu).unwrap();
            state.model.flat.slice_set(&wrong, 0, 77).unwrap();
        }
        compare_states(&state).unwrap_err().to_string()
    });
    for error in errors {
        assert!(error.starts_with("step 1: rank 2 (host ") && error.ends_with("the weights"), "{error}");
    }
}

/// Memory that runs out on one rank is a reason for all to try with less.
#[test]
fn memory_that_one_rank_lacks_is_lacking_on_all() {
    use crate::runtime::error::{Exit, fail};
    use crate::train::passes::{is_out_of_memory, of_all_ranks};
    let errors = with_ranks(4, |group| {
        let own = if group.rank() == 1 { Err(fail(Exit::Memory, "no room").into()) } else { Ok(Vec::new()) };
        of_all_ranks(&group, own).err().unwrap()
    });
    assert!(errors.iter().all(|error| is_out_of_memory(error) && error.to_string() == "rank 1: no room"), "{errors:?}");
}
