mod bf16_weights;

use super::*;
use crate::config::{Architecture, RopeScaling};
use candle_core::Device;

/// A model small enough for finite differences, with grouped heads.
pub(crate) fn tiny(tied: bool) -> ModelConfig {
    ModelConfig {
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 6,
        vocab_size: 33,
        max_position_embeddings: 16,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: tied,
        initializer_range: 0.02,
        ..ModelConfig::MINIMAL
    }
}

/// Every way in which an architecture differs from plain Llama.
pub(crate) fn families() -> Vec<ModelConfig> {
    let of = |architecture| ModelConfig { architecture, ..tiny(false) };
    vec![
        tiny(true),
        ModelConfig { attention_bias: true, mlp_bias: true, ..of(Architecture::Llama) },
        ModelConfig { sliding_window: Some(3), ..of(Architecture::Mistral) },
        of(Architecture::Qwen2),
        ModelConfig { attention_bias: true, sliding_window: Some(4), max_window_layers: 1, ..of(Architecture::Qwen3) },
        ModelConfig { no_rope_layers: Some(vec![1, 0]), ..of(Architecture::SmolLm3) },
        // Shorter than the texts of the tests.
        ModelConfig {
            rope_scaling: Some(RopeScaling::Dynamic { factor: 8.0 }),
            max_position_embeddings: 4,
            ..of(Architecture::Llama)
        },
    ]
}

/// Weights large enough that every gradient matters, and norms and biases of which each element is another.
pub(crate) fn model(config: &ModelConfig) -> Llama {
    let mut config = config.clone();
    config.initializer_range = 0.3;
    let layout = Layout::new(&config);
    let flat = init::init(&config, &layout, 3).unwrap();
    if config.architecture != Architecture::Llama || config.mlp_bias {
        for spec in layout.specs.iter().filter(|spec| spec.shape.len() == 1) {
            let first = if spec.name.ends_with(".bias") { 0.0 } else { 1.0 };
            let values: Vec<f32> = (0..spec.len).map(|i| first + (i as f32 * 0.7 + 0.4).sin() / 3.0).collect();
            flat.slice_set(&Tensor::from_vec(values, spec.len, &Device::Cpu).unwrap(), 0, spec.start).unwrap();
        }
    }
    Llama::new(&config, flat).unwrap()
}

fn batch(b: usize, t: usize, vocab: u32) -> (Tensor, Tensor) {
    let ids: Vec<u32> = (0..(b * (t + 1)) as u32).map(|i| (i * i * 7 + i * 3 + 1) % vocab).collect();
    let rows = Tensor::from_vec(ids, (b, t + 1), &Device::Cpu).unwrap();
    let inputs = rows.narrow(1, 0, t).unwrap().contiguous().unwrap();
    let targets = rows.narrow(1, 1, t).unwrap().contiguous().unwrap().flatten_all().unwrap();
    (inputs, targets)
}

fn mean_loss(model: &Llama, inputs: &Tensor, targets: &Tensor) -> f64 {
    let losses = model.losses(inputs, targets, None).unwrap().to_vec1::<f32>().unwrap();
    losses.iter().map(|&x| x as f64).sum::<f64>() / losses.len() as f64
}

#[test]
fn gradients_agree_with_finite_differences() {
    for config in families().into_iter().chain([tiny(false)]) {
        let model = model(&config);
        let (inputs, targets) = batch(2, 9, 33);
        let flat_grads = model.layout.zeros(&Device::Cpu).unwrap();
        let grads = model.grads(&flat_grads).unwrap();
        model.loss_and_backward(&inputs, &targets, TrainInput::default(), 1.0 / 18.0, &grads).unwrap();
        let g = flat_grads.to_vec1::<f32>().unwrap();
        let w = model.flat.to_vec1::<f32>().unwrap();
        // The direction of the gradient itself inside each tensor: the derivative along it is its norm.
        for spec in &model.layout.specs {
            let range = spec.start..spec.start + spec.len;
            let norm = g[range.clone()].iter().map(|x| (*x as f64).powi(2)).sum::<f64>().sqrt();
            if spec.name == "model.layers.1.self_attn.k_proj.bias" && !config.layer_rotates(1) {
                // It adds the same to all scores of a query.
                assert!(norm < 1e-6, "{norm}");
                continue;
            }
            let step = 2e-2 / (1.0 + norm);
            let along = |sign: f64| {
                let mut moved = w.clone();
                for i in range.clone() {
                    moved[i] += (sign * step * g[i] as f64 / norm) as f32;
                }
                let flat = Tensor::from_vec(moved, w.len(), &Device::Cpu).unwrap();
                mean_loss(&Llama::new(&model.config, flat).unwrap(), &inputs, &targets)
            };
            let slope = (along(1.0) - along(-1.0)) / (2.0 * step);
            assert!((slope / norm - 1.0).abs() < 5e-3, "{config:?} {}: slope {slope}, norm {norm}", spec.name);
        }
    }
}

#[test]
fn cached_forward_equals_the_full_one_in_any_chunking() {
    // With dynamic RoPE, keys in a cache stay as they were rotated when they came.
    let is_fixed = |config: &ModelConfig| config.rope_scaling.is_none();
    families()
        .into_iter()
        .chain([tiny(false)])
        .filter(is_fixed)
        .for_each(|config| cached_forward_equals_the_full(&config));
}

fn cached_forward_equals_the_full(config: &ModelConfig) {
    let model = model(config);
    let (inputs, _) = batch(2, 12, 33);
    let all = model.logits(&inputs).unwrap();
    for chunks in [vec![12], vec![1; 12], vec![5, 1, 6]] {
        let mut cache = model.cache(2, 12).unwrap();
        let mut at = 0;
        for n in chunks {
            let logits = model.next_logits(&inputs.narrow(1, at, n).unwrap(), &mut cache).unwrap();
            at += n;
            let want = all.narrow(1, at - 1, 1).unwrap().squeeze(1).unwrap();
            assert!(crate::ops::selftest::difference(&logits, &want).unwrap() < 1e-5);
        }
        assert!(model.next_logits(&inputs.narrow(1, 0, 1).unwrap(), &mut cache).is_err());
    }
}

#[test]
fn ignored_targets_train_nothing_and_micro_batches_add_up() {
    use crate::ops::cross_entropy::IGNORE;
    let model = model(&tiny(true));
    let (inputs, targets) = batch(4, 8, 33);
    let run = |parts: usize, targets: &Tensor| {
        let flat = model.layout.zeros(&Device::Cpu).unwrap();
        let grads = model.grads(&flat).unwrap();
        for i in 0..parts {
            let n = 4 / parts;
            let x = inputs.narrow(0, i * n, n).unwrap().contiguous().unwrap();
            let y = targets.narrow(0, i * n * 8, n * 8).unwrap();
            model.loss_and_backward(&x, &y, TrainInput::default(), 1.0 / 32.0, &grads).unwrap();
        }
        flat
    };
    let whole = run(1, &targets);
    for parts in [2, 4] {
        assert!(crate::ops::selftest::difference(&run(parts, &targets), &whole).unwrap() < 1e-5);
    }
    let none = Tensor::full(IGNORE, 32, &Device::Cpu).unwrap();
    assert!(run(2, &none).to_vec1::<f32>().unwrap().iter().all(|&g| g == 0.0));
}

/// Losses and gradients of documents in one row, kept apart by their starts, are those of the documents in rows of their own.
#[test]
fn documents_kept_apart_are_documents_alone() {
    use crate::ops::cross_entropy::IGNORE;
    let model = model(&tiny(false));
    let ids: Vec<u32> = (0..13).map(|i| (i * i * 5 + 2) % 33).collect();
    let lengths = [5usize, 1, 6];
    let run = |rows: &[std::ops::Range<usize>], starts: Option<Vec<u32>>| {
        let width = rows.iter().map(|r| r.len()).max().unwrap();
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for r in rows {
            x.extend(ids[r.clone()].iter().copied().chain(std::iter::repeat_n(0, width - r.len())));
            y.extend(ids[r.start + 1..r.end + 1].iter().copied().chain(std::iter::repeat_n(IGNORE, width - r.len())));
        }
        let n = y.len();
        let inputs = Tensor::from_vec(x, (rows.len(), width), &Device::Cpu).unwrap();
        let targets = Tensor::from_vec(y, n, &Device::Cpu).unwrap();
        let documents = starts.map(|starts| DocumentStarts::new(starts, width).unwrap());
        let flat = model.layout.zeros(&Device::Cpu).unwrap();
        let grads = model.grads(&flat).unwrap();
        let feed = TrainInput { documents: documents.as_ref(), noise: None, observe: false };
        let losses = model.loss_and_backward(&inputs, &targets, feed, 1.0, &grads).unwrap().losses;
        let alone = model.losses(&inputs, &targets, documents.as_ref()).unwrap();
        assert!(crate::ops::selftest::difference(&alone, &losses).unwrap() < 1e-6);
        (losses.sum_all().unwrap().to_scalar::<f32>().unwrap(), flat)
    };
    let mut at = 0;
    let apart = lengths.map(|n| {
        at += n;
        at - n..at
    });
    let starts = apart.iter().flat_map(|r| std::iter::repeat_n(r.start as u32, r.len())).collect();
    let range = 0..12;
    let whole = std::slice::from_ref(&range);
    let (packed, alone) = (run(whole, Some(starts)), run(&apart, None));
    assert!((packed.0 / alone.0 - 1.0).abs() < 1e-5, "{} {}", packed.0, alone.0);
    assert!(crate::ops::selftest::difference(&packed.1, &alone.1).unwrap() < 1e-5);
    let one_context = run(whole, None);
    assert!((one_context.0 / alone.0 - 1.0).abs() > 1e-3);
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let mut config = tiny(false);
    config.max_position_embeddings = 160;
    config.vocab_size = 700;
    config.hidden_size = 96;
    config.intermediate_size = 200;
    let model = model(&config);
    let (inputs, targets) = batch(3, 150, 700);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let flat = model.layout.zeros(&Device::Cpu).unwrap();
            let grads = model.grads(&flat).unwrap();
            let losses = model.loss_and_backward(&inputs, &targets, TrainInput::default(), 1.0, &grads).unwrap().losses;
            (losses.to_vec1::<f32>().unwrap(), flat.to_vec1::<f32>().unwrap())
        })
    };
    let one = run(1);
    assert!(one.1.iter().any(|&g| g != 0.0));
    for threads in [2, 4] {
        assert!(run(threads) == one, "{threads} threads gave other bits than one");
    }
}

/// What is computed again comes out as it was: on the CPU and by a GPU's kernels in bf16, with dropout, and what is observed.
#[test]
fn recomputing_changes_no_bit() {
    families().iter().for_each(recomputing_changes_no_bit_of);
}

fn recomputing_changes_no_bit_of(config: &ModelConfig) {
    let pass = |recompute: Recompute, precision: Precision| {
        let mut config = config.clone();
        (config.head_dim, config.num_attention_heads, config.num_key_value_heads) = (64, 2, 1);
        let mut model = model(&config).with_precision(precision).unwrap();
        model.recompute = recompute;
        let (inputs, targets) = batch(2, 9, 33);
        let noise = noise::Noise { key: 5, dropout: 0.2, neftune: 3.0, first_token: 0 };
        let feed = TrainInput { noise: Some(&noise), observe: true, ..TrainInput::default() };
        let gradient = |model: &Llama| {
            let flat = model.trained().0.zeros(&Device::Cpu).unwrap();
            let grads = model.grads(&flat).unwrap();
            let pass = model.loss_and_backward(&inputs, &targets, feed, 0.1, &grads).unwrap();
            let logits = pass.observed.unwrap().attention_logit_max;
            (flat.to_vec1::<f32>().unwrap(), pass.losses.to_vec1::<f32>().unwrap(), logits)
        };
        let all = gradient(&model);
        let targets = crate::config::LoraTarget::ALL.to_vec();
        let lora = crate::config::LoraConfig { rank: 2, alpha: 4.0, dropout: 0.2, targets, rslora: false };
        let adapters = lora::init(&config, &lora, 3, &Device::Cpu).unwrap();
        (all, gradient(&model.with_adapters(adapters).unwrap()))
    };
    let expected = pass(Recompute::Selective, Precision::F32);
    assert!(expected.1.0.iter().any(|&x| x != 0.0));
    let rounded_on_cpu = pass(Recompute::Selective, Precision::Bf16);
    assert!(rounded_on_cpu != expected);
    let rounded = crate::ops::cuda::emulated(|| pass(Recompute::Selective, Precision::Bf16));
    for recompute in [Recompute::None, Recompute::Full] {
        assert!(pass(recompute, Precision::F32) == expected, "{recompute:?}");
        assert!(pass(recompute, Precision::Bf16) == rounded_on_cpu, "{recompute:?} in bf16 on the CPU");
        let again = crate::ops::cuda::emulated(|| pass(recompute, Precision::Bf16));
        assert!(again == rounded, "{recompute:?} in bf16");
    }
}

/// Logits token by token over a cache: alone, and of three sequences that have begun alike.
fn decoded(model: &Llama) -> Vec<Vec<f32>> {
    let feed = |ids: &[u32], rows: usize| Tensor::from_slice(ids, (rows, ids.len() / rows), &Device::Cpu).unwrap();
    let mut found = Vec::new();
    let mut next = |ids: &[u32], rows: usize, cache: &mut kv_cache::KvCache| {
        found.extend(model.next_logits(&feed(ids, rows), cache).unwrap().to_vec2::<f32>().unwrap());
    };
    let mut alone = model.cache(1, 12).unwrap();
    next(&[3, 10, 17, 4, 30], 1, &mut alone);
    let mut together = alone.repeated(3).unwrap();
    for step in 0..4 {
        next(&[step + 5], 1, &mut alone);
        next(&[step + 9, step + 5, 2 * step], 3, &mut together);
    }
    assert_eq!((alone.len(), together.len()), (9, 9));
    found
}

#[test]
fn a_training_pass_on_a_gpu_is_that_of_the_cpu() {
    for mut config in families() {
        config.head_dim = 64;
        let pass = || {
            let model = model(&config);
            let (inputs, targets) = batch(2, 9, 33);
            let flat = model.layout.zeros(&Device::Cpu).unwrap();
            let grads = model.grads(&flat).unwrap();
            let feed = TrainInput { observe: true, ..TrainInput::default() };
            let output = model.loss_and_backward(&inputs, &targets, feed, 0.1, &grads).unwrap();
            let losses = output.losses.to_vec1::<f32>().unwrap();
            (Tensor::from_vec(losses, 18, &Device::Cpu).unwrap(), flat, output.observed.unwrap().attention_logit_max)
        };
        let on_cpu = pass();
        let on_gpu = crate::ops::cuda::emulated(pass);
        for (gpu, cpu) in [(&on_gpu.0, &on_cpu.0), (&on_gpu.1, &on_cpu.1)] {
            let d = crate::ops::selftest::difference(gpu, cpu).unwrap();
            assert!(d < 2e-5, "{config:?}: {d}");
        }
        let tops = on_gpu.2.iter().zip(&on_cpu.2);
        assert!(tops.clone().all(|(a, b)| (a - b).abs() < 1e-4 * b.abs()), "{tops:?}");
    }
}

#[test]
fn decoding_on_a_gpu_is_that_of_the_cpu() {
    families().into_iter().chain([tiny(false)]).for_each(decoding_on_a_gpu_is_that_of_the_cpu_for);
}

fn decoding_on_a_gpu_is_that_of_the_cpu_for(mut config: ModelConfig) {
    (config.head_dim, config.num_attention_heads, config.num_key_value_heads) = (64, 2, 1);
    let of = |precision| decoded(&model(&config).with_precision(precision).unwrap());
    let cpu = of(Precision::F32);
    let most = cpu.iter().flatten().fold(0f32, |most, x| most.max(x.abs()));
    for (precision, limit) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.03)] {
        let gpu = crate::ops::cuda::emulated(|| of(precision));
        let far = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        let farthest = cpu.iter().zip(&gpu).map(far).fold(0f32, f32::max) / most;
        assert!(farthest < limit, "{precision:?}: {farthest}");
        for step in 0..4 {
            let (alone, second) = (1 + 4 * step, 1 + 4 * step + 2);
            assert_eq!(gpu[alone], gpu[second], "a sequence is the same among others");
        }
    }
}
