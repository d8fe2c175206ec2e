use super::*;
use crate::config::LoraTarget::{self, DownProj, KProj, QProj, UpProj, VProj};
use crate::model::init::init as init_model;
use crate::model::noise::Noise;
use crate::model::tests::tiny;
use crate::model::{Llama, TrainInput};
use crate::ops::selftest::difference;

fn lora_config(targets: &[LoraTarget]) -> LoraConfig {
    LoraConfig { rank: 3, alpha: 6.0, dropout: 0.0, targets: targets.to_vec(), rslora: false }
}

const ALL: [LoraTarget; 7] = LoraTarget::ALL;

/// A model with large weights, and adapters that are not 0.
fn adapted(config: &LoraConfig) -> Llama {
    let mut shape = tiny(false);
    shape.initializer_range = 0.3;
    let flat = init_model(&shape, &Layout::new(&shape), 3).unwrap();
    let adapters = init(&shape, config, 4, &Device::Cpu).unwrap();
    let values = adapters.flat.to_vec1::<f32>().unwrap();
    let moved: Vec<f32> =
        values.iter().enumerate().map(|(i, x)| x + 0.2 * ((i * 37 % 11) as f32 / 5.0 - 1.0)).collect();
    let n = moved.len();
    adapters.flat.slice_set(&Tensor::from_vec(moved, n, &Device::Cpu).unwrap(), 0, 0).unwrap();
    Llama::new(&shape, flat).unwrap().with_adapters(adapters).unwrap()
}

fn batch(b: usize, t: usize) -> (Tensor, Tensor) {
    let ids: Vec<u32> = (0..(b * (t + 1)) as u32).map(|i| (i * i * 7 + i * 3 + 1) % 33).collect();
    let rows = Tensor::from_vec(ids, (b, t + 1), &Device::Cpu).unwrap();
    let part = |from: usize| rows.narrow(1, from, t).unwrap().contiguous().unwrap();
    (part(0), part(1).flatten_all().unwrap())
}

fn grads_of(model: &Llama, rows: usize, parts: usize, noise: Option<Noise>) -> (Vec<f32>, Tensor) {
    let (inputs, targets) = batch(rows, 8);
    let (layout, _) = model.trained();
    let flat = layout.zeros(&Device::Cpu).unwrap();
    let grads = model.grads(&flat).unwrap();
    let mut losses = Vec::new();
    for i in 0..parts {
        let n = rows / parts;
        let x = inputs.narrow(0, i * n, n).unwrap().contiguous().unwrap();
        let y = targets.narrow(0, i * n * 8, n * 8).unwrap();
        let noise = noise.map(|noise| Noise { first_token: (i * n * 8) as u64, ..noise });
        let feed = TrainInput { documents: None, noise: noise.as_ref(), observe: false };
        let part = model.loss_and_backward(&x, &y, feed, 1.0 / (rows * 8) as f32, &grads).unwrap().losses;
        losses.extend(part.to_vec1::<f32>().unwrap());
    }
    (losses, flat)
}

fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|&x| f64::from(x)).sum::<f64>() / losses.len() as f64
}

#[test]
fn fresh_adapters_change_nothing_and_moved_ones_do() {
    let config = lora_config(&ALL);
    let shape = tiny(true);
    let flat = init_model(&shape, &Layout::new(&shape), 3).unwrap();
    let plain = Llama::new(&shape, flat.clone()).unwrap();
    let fresh =
        Llama::new(&shape, flat).unwrap().with_adapters(init(&shape, &config, 1, &Device::Cpu).unwrap()).unwrap();
    let (inputs, _) = batch(2, 8);
    let logits = |model: &Llama| model.logits(&inputs).unwrap();
    assert_eq!(difference(&logits(&fresh), &logits(&plain)).unwrap(), 0.0);
    let moved = adapted(&config);
    let base = Llama::new(&moved.config, moved.flat.clone()).unwrap();
    assert!(difference(&logits(&moved), &logits(&base)).unwrap() > 0.01);
    assert_eq!(n_params(&shape, &config), fresh.trained().0.total as u64);
}

/// The derivative along the gradient inside every adapter matrix is the gradient's norm, with dropout and noise on embeddings too.
#[test]
fn gradients_agree_with_finite_differences() {
    let noisy = Noise { key: 9, dropout: 0.25, neftune: 3.0, first_token: 0 };
    for (targets, noise) in [(&ALL[..], None), (&ALL[..], Some(noisy)), (&[QProj, VProj, UpProj][..], None)] {
        let model = adapted(&lora_config(targets));
        let (_, flat) = grads_of(&model, 2, 1, noise);
        let g = flat.to_vec1::<f32>().unwrap();
        let (layout, trained) = model.trained();
        let w = trained.to_vec1::<f32>().unwrap();
        for spec in &layout.specs {
            let range = spec.start..spec.start + spec.len;
            let norm = g[range.clone()].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let step = 1e-2 / (1.0 + norm);
            let along = |sign: f64| {
                let mut moved = w.clone();
                range.clone().for_each(|i| moved[i] += (sign * step * f64::from(g[i]) / norm) as f32);
                let n = moved.len();
                trained.slice_set(&Tensor::from_vec(moved, n, &Device::Cpu).unwrap(), 0, 0).unwrap();
                mean(&grads_of(&model, 2, 1, noise).0)
            };
            let slope = (along(1.0) - along(-1.0)) / (2.0 * step);
            along(0.0);
            assert!((slope / norm - 1.0).abs() < 1e-2, "{}: slope {slope}, norm {norm}", spec.name);
        }
    }
}

#[test]
fn micro_batches_and_noise_do_not_depend_on_each_other() {
    let model = adapted(&lora_config(&ALL));
    for noise in [None, Some(Noise { key: 5, dropout: 0.3, neftune: 5.0, first_token: 0 })] {
        let whole = grads_of(&model, 4, 1, noise);
        for parts in [2, 4] {
            let (losses, flat) = grads_of(&model, 4, parts, noise);
            assert!((mean(&losses) / mean(&whole.0) - 1.0).abs() < 1e-6);
            assert!(difference(&flat, &whole.1).unwrap() < 1e-5);
        }
    }
    let noise = |key| Some(Noise { key, dropout: 0.3, neftune: 0.0, first_token: 0 });
    assert_ne!(grads_of(&model, 4, 1, noise(1)).0, grads_of(&model, 4, 1, noise(2)).0);
    assert_ne!(Noise::key(1, 5), Noise::key(1, 6));
}

#[test]
fn merged_weights_are_the_model_with_its_adapters() {
    for (targets, rslora) in [(&ALL[..], false), (&[KProj, DownProj][..], true)] {
        let config = LoraConfig { rslora, ..lora_config(targets) };
        let model = adapted(&config);
        let adapters = model.adapters.as_ref().unwrap();
        let matrix = |name: &str| {
            let spec = adapters.layout.specs.iter().find(|s| s.name == name)?;
            Some(adapters.flat.narrow(0, spec.start, spec.len).unwrap().to_vec1::<f32>().unwrap())
        };
        let mut flat = model.flat.to_vec1::<f32>().unwrap();
        for spec in &model.layout.specs {
            let stem = format!("{PREFIX}{}", spec.name.trim_end_matches(".weight"));
            let (Some(a), Some(b)) = (matrix(&format!("{stem}{A}")), matrix(&format!("{stem}{B}"))) else { continue };
            let range = spec.start..spec.start + spec.len;
            let merged = merged(&flat[range.clone()], &a, &b, config.rank, scale(&config));
            flat[range].copy_from_slice(&merged);
        }
        let n = flat.len();
        let merged = Llama::new(&model.config, Tensor::from_vec(flat, n, &Device::Cpu).unwrap()).unwrap();
        let (inputs, _) = batch(2, 8);
        let (ours, theirs) = (model.logits(&inputs).unwrap(), merged.logits(&inputs).unwrap());
        assert!(difference(&ours, &theirs).unwrap() < 1e-5);
        // Token by token as well.
        let mut cache = model.cache(2, 8).unwrap();
        let last = model.next_logits(&inputs, &mut cache).unwrap();
        assert!(difference(&last, &theirs.narrow(1, 7, 1).unwrap().squeeze(1).unwrap()).unwrap() < 1e-5);
    }
}
