//! Whole steps on the emulated GPU: the same loop, model and optimizer, with the kernels of a GPU under them.

use crate::config::Config;
use crate::data::batch::Batch;
use crate::ops::cuda::emulated;
use crate::train::state::State;
use crate::train::step::step;
use candle_core::{Device, Tensor};

const STEPS: u32 = 4;

fn config(precision: &str) -> Config {
    let text = format!(
        "[model]\nhidden_size = 64\nintermediate_size = 72\nnum_hidden_layers = 2\nnum_attention_heads = 2\nhead_dim = 64\n\
         num_key_value_heads = 1\nvocab_size = 320\n[data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 20\n\
         micro_batch_size = 2\ntokens_per_step = 80\nsteps = 9\nprecision = \"{precision}\"\n[optimizer]\nlr = 3e-3\n[schedule]\nwarmup_steps = 2\n"
    );
    Config::from_toml_str(&text, "a.toml").unwrap()
}

/// Losses and gradient norms of a run, its weights after it, and logits of its next token by way of the cache.
fn trained(precision: &str) -> (Vec<(f64, f64)>, Vec<f32>, Vec<f32>) {
    let config = config(precision);
    let mut state = State::fresh(&config, None).unwrap();
    let one = |i: u32| {
        let ids: Vec<u32> = (0..4 * 21).map(|place| (place * 7 + i % 3 * 31) % 320).collect();
        let report = step(&mut state, &config, &Batch::windows(&ids, 20, None)).unwrap();
        (report.loss, report.grad_norm)
    };
    let steps = (0..STEPS).map(one).collect();
    let mut cache = state.model.cache(1, 8).unwrap();
    let feed = |ids: &[u32]| Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap();
    state.model.next_logits(&feed(&[3, 10, 17]), &mut cache).unwrap();
    let logits = state.model.next_logits(&feed(&[24]), &mut cache).unwrap();
    (steps, state.model.flat.to_vec1().unwrap(), logits.flatten_all().unwrap().to_vec1().unwrap())
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn steps_on_a_gpu_are_those_of_the_cpu() {
    let (cpu, weights, logits) = trained("f32");
    let (exact, gpu_weights, gpu_logits) = emulated(|| trained("f32"));
    assert!(cpu[STEPS as usize - 1].0 < cpu[0].0 - 0.1, "it learns: {cpu:?}");
    for ((loss, norm), (gpu_loss, gpu_norm)) in cpu.iter().zip(&exact) {
        assert!((loss - gpu_loss).abs() < 2e-5 && (norm / gpu_norm - 1.0).abs() < 1e-4, "{cpu:?} {exact:?}");
    }
    assert!(farthest(&weights, &gpu_weights) < 1e-3 && farthest(&logits, &gpu_logits) < 1e-2);

    let (rounded, rounded_weights, rounded_logits) = emulated(|| trained("bf16"));
    for ((loss, norm), (gpu_loss, gpu_norm)) in cpu.iter().zip(&rounded) {
        assert!((loss - gpu_loss).abs() < 0.05 && (norm / gpu_norm - 1.0).abs() < 0.05, "{cpu:?} {rounded:?}");
    }
    assert!(cpu.iter().zip(&rounded).any(|(a, b)| a.0 != b.0), "bf16 rounds");
    assert!(farthest(&logits, &rounded_logits) < 0.5, "{}", farthest(&logits, &rounded_logits));
    let (again, again_weights, _) = emulated(|| trained("bf16"));
    assert_eq!((rounded, rounded_weights), (again, again_weights), "the same bits twice");
}
