//! Models whose weights are held in bf16.

use super::*;
use candle_core::DType;

/// A vocabulary for several pieces of the head's product.
fn config(tied: bool) -> ModelConfig {
    ModelConfig { vocab_size: 5000, initializer_range: 0.3, ..tiny(tied) }
}

/// Exact weights, and those of norms apart: none of them is 1, and none a bf16.
fn weights(config: &ModelConfig) -> (Tensor, Vec<Tensor>) {
    let layout = Layout::new(config);
    let flat = init::init(config, &layout, 3).unwrap();
    for spec in layout.specs.iter().filter(|spec| spec.shape.len() == 1) {
        let values: Vec<f32> = (0..spec.len).map(|i| 1.0 + (i as f32 * 0.37).sin() / 3.0).collect();
        flat.slice_set(&Tensor::from_vec(values, spec.len, &Device::Cpu).unwrap(), 0, spec.start).unwrap();
    }
    let norms = Weights::views(&flat, config, &layout).unwrap().vectors();
    (flat, norms)
}

/// The same weights as a model holds them in bf16, and rounded in f32.
fn both(config: &ModelConfig) -> [Llama; 2] {
    let (flat, norms) = weights(config);
    let rounded = flat.to_dtype(DType::BF16).unwrap();
    let widened = rounded.to_dtype(DType::F32).unwrap();
    for (spec, norm) in Layout::new(config).specs.iter().filter(|spec| spec.shape.len() == 1).zip(&norms) {
        widened.slice_set(norm, 0, spec.start).unwrap();
    }
    let wide = Llama::new(config, widened).unwrap().with_precision(Precision::Bf16).unwrap();
    [Llama::held_in_bf16(config, rounded, norms).unwrap(), wide]
}

/// Bits of the logits of a prompt and of three tokens after it, and of the losses of a batch.
fn outputs(model: &Llama) -> Vec<u32> {
    let mut cache = model.cache(1, 16).unwrap();
    let ids: Vec<u32> = (0..13).map(|i| i * 377 % 5000).collect();
    let mut values = Vec::new();
    for piece in [&ids[..10], &ids[10..11], &ids[11..12], &ids[12..]] {
        let inputs = Tensor::from_slice(piece, (1, piece.len()), &Device::Cpu).unwrap();
        values.extend(model.next_logits(&inputs, &mut cache).unwrap().squeeze(0).unwrap().to_vec1::<f32>().unwrap());
    }
    let (inputs, targets) = batch(2, 9, 5000);
    values.extend(model.losses(&inputs, &targets, None).unwrap().to_vec1::<f32>().unwrap());
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn they_have_the_bits_of_rounded_weights_in_f32() {
    for tied in [false, true] {
        let [held, wide] = both(&config(tied));
        assert!(held.is_in_bf16() && !wide.is_in_bf16());
        assert!(outputs(&held) == outputs(&wide), "tied: {tied}");
    }
}

#[test]
fn threads_do_not_change_their_bits() {
    let [held, _] = both(&config(false));
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| outputs(&held))
    };
    let one = on(1);
    assert!(on(2) == one && on(4) == one);
}

/// A prompt at once and token by token: other products, which round alike.
#[test]
fn a_prompt_agrees_with_its_tokens_one_by_one() {
    let [held, _] = both(&config(false));
    let ids: Vec<u32> = (0..12).map(|i| i * 377 % 5000).collect();
    let fed = |piece: usize| {
        let mut cache = held.cache(1, 16).unwrap();
        let mut logits = Vec::new();
        for ids in ids.chunks(piece) {
            let inputs = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu).unwrap();
            logits = held.next_logits(&inputs, &mut cache).unwrap().squeeze(0).unwrap().to_vec1::<f32>().unwrap();
        }
        logits
    };
    let (whole, single) = (fed(12), fed(1));
    let largest = whole.iter().fold(0f32, |most, x| most.max(x.abs()));
    let farthest = whole.iter().zip(&single).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(farthest < 0.03 * largest, "{farthest} of {largest}");
}

#[test]
fn weights_of_norms_must_fit() {
    let (flat, mut norms) = weights(&config(false));
    norms.pop();
    let rounded = flat.to_dtype(DType::BF16).unwrap();
    assert!(Llama::held_in_bf16(&config(false), rounded, norms).is_err());
}
