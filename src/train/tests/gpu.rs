//! Whole steps on the emulated GPU: the same loop, model and optimizer, with the kernels of a GPU under them.

use crate::config::{Config, LoraConfig, LoraTarget, ModelConfig, MomentsDtype};
use crate::data::batch::Batch;
use crate::distributed::group::ProcessGroup;
use crate::model::init::init;
use crate::model::noise::Noise;
use crate::model::params::Layout;
use crate::model::prefix_tree::TargetToken;
use crate::model::{Llama, TrainInput, lora};
use crate::ops::cuda::emulated;
use crate::ops::precision::Precision;
use crate::ops::prefix_tree::PrefixTree;
use crate::train::model_state::ModelState;
use crate::train::step::take_step;
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
    trained_with(&config(precision))
}

fn trained_with(config: &Config) -> (Vec<(f64, f64)>, Vec<f32>, Vec<f32>) {
    let mut state = ModelState::initial(config, None, &Device::Cpu, &ProcessGroup::one()).unwrap();
    let one = |i: u32| {
        let ids: Vec<u32> = (0..4 * 21).map(|place| (place * 7 + i % 3 * 31) % 320).collect();
        let report = take_step(&mut state, config, &Batch::windows(&ids, 20, None)).unwrap();
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

/// Rounded moments hardly change what is learnt; on the CPU they are kept as f32, and are the same numbers.
#[test]
fn moments_in_bf16_train_alike() {
    let exact = trained("f32").0;
    let mut config = config("f32");
    config.optimizer.moments = MomentsDtype::Bf16;
    let cpu = trained_with(&config).0;
    let gpu = emulated(|| trained_with(&config)).0;
    assert!(exact.iter().zip(&cpu).any(|(a, b)| a.0 != b.0), "they are rounded");
    for ((exact, cpu), gpu) in exact.iter().zip(&cpu).zip(&gpu) {
        assert!((exact.0 - cpu.0).abs() < 0.02 && (cpu.0 - gpu.0).abs() < 2e-4, "{exact:?} {cpu:?} {gpu:?}");
    }
}

/// Losses, gradients of adapters and what was observed of one pass with dropout and noise; scores of a prefix tree.
fn tuned(precision: Precision) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let config = ModelConfig { max_position_embeddings: 100, ..config("f32").model };
    let targets = LoraTarget::ALL.to_vec();
    let lora = LoraConfig { rank: 4, alpha: 8.0, dropout: 0.1, targets, rslora: false };
    let flat = init(&config, &Layout::new(&config), 3).unwrap();
    let adapters = lora::init(&config, &lora, 3, &Device::Cpu).unwrap();
    let values = (0..adapters.layout.total).map(|i| ((i * 37 % 19) as f32 - 9.0) / 90.0);
    adapters.flat.slice_set(&Tensor::from_iter(values, &Device::Cpu).unwrap(), 0, 0).unwrap();
    let model = Llama::new(&config, flat).unwrap().with_precision(precision).unwrap().with_adapters(adapters).unwrap();

    let ids = |n: u32| -> Vec<u32> { (0..n).map(|i| (i * i * 7 + 3) % 320).collect() };
    let (inputs, targets) = (Tensor::from_vec(ids(40), (2, 20), &Device::Cpu).unwrap(), ids(41)[1..].to_vec());
    let noise = Noise { key: 9, dropout: 0.1, neftune: 5.0, first_token: 40 };
    let feed = TrainInput { documents: None, noise: Some(&noise), observe: true };
    let grad = model.trained().0.zeros(&Device::Cpu).unwrap();
    let grads = model.grads(&grad).unwrap();
    let targets = Tensor::from_vec(targets, 40, &Device::Cpu).unwrap();
    let pass = model.loss_and_backward(&inputs, &targets, feed, 1.0 / 40.0, &grads).unwrap();

    let observed = pass.observed.unwrap();
    let mut numbers = observed.attention_logit_max.clone();
    numbers.push(observed.logit_rms() as f32);
    numbers.extend(pass.losses.to_vec1::<f32>().unwrap());
    let mut tree = PrefixTree::default();
    let root = tree.push(9, None).unwrap();
    tree.push(3, Some(root)).unwrap();
    tree.push(70, Some(root)).unwrap();
    let wanted = [2, 8, 10, 40, 80].map(|place| TargetToken { place, target: (place * 31) % 320 });
    let scored = model.score_prefix_tree(ids(tree.len() as u32), &tree, &wanted).unwrap();
    (numbers, grad.to_vec1().unwrap(), scored.iter().map(|s| s.loss).collect())
}

#[test]
fn adapters_noise_observations_and_scores_on_a_gpu_are_those_of_the_cpu() {
    let (numbers, grad, scores) = tuned(Precision::F32);
    let largest = grad.iter().fold(0f32, |most, x| most.max(x.abs()));
    assert!(numbers.iter().all(|x| x.is_finite()) && largest > 1e-3);
    for (precision, limit, of_gradient) in [(Precision::F32, 2e-4, 1e-4), (Precision::Bf16, 0.05, 0.05)] {
        let (gpu_numbers, gpu_grad, gpu_scores) = emulated(|| tuned(precision));
        let gradient = farthest(&grad, &gpu_grad) / largest;
        assert!(gradient > 0.0 && gradient < of_gradient, "{precision:?}: {gradient}");
        assert!(farthest(&numbers, &gpu_numbers) < limit, "{numbers:?} {gpu_numbers:?}");
        assert!(farthest(&scores, &gpu_scores) < limit, "{scores:?} {gpu_scores:?}");
    }
}
