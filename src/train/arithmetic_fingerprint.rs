//! A fixed forward and backward, hashed: equal hashes mean equal arithmetic. The names of processors and builds only suggest whether
//! the bits will be the same; this measures it.

use crate::config::ModelConfig;
use crate::model::init::init;
use crate::model::params::Layout;
use crate::model::{Llama, TrainInput};
use crate::ops::precision::Precision;
use crate::ops::transfer::to_host;
use candle_core::{Device, Result, Tensor};

/// Odd sizes, so that the ends of vectors and tiles are part of it.
fn model() -> ModelConfig {
    ModelConfig {
        hidden_size: 72,
        intermediate_size: 200,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 12,
        vocab_size: 331,
        max_position_embeddings: 77,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: false,
        initializer_range: 0.1,
        ..ModelConfig::MINIMAL
    }
}

/// The first 16 hex digits of the hash of losses and gradients in f32, and in bf16 for runs in bf16 and on a GPU; empty if they cannot be
/// computed here.
pub fn fingerprint(precision: Precision, device: &Device) -> String {
    compute(precision, device).unwrap_or_default()
}

fn compute(precision: Precision, device: &Device) -> Result<String> {
    let mut hasher = blake3::Hasher::new_derive_key("llama-lite numerics v1");
    add_pass(&mut hasher, &model(), Precision::F32, device)?;
    // bf16 products have kernels of their own. A GPU's are in use for evaluation even where a run trains in f32.
    if precision == Precision::Bf16 || !device.is_cpu() {
        add_pass(&mut hasher, &ModelConfig { head_dim: 64, ..model() }, Precision::Bf16, device)?;
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

/// Losses and gradients of one pass.
fn add_pass(hasher: &mut blake3::Hasher, config: &ModelConfig, precision: Precision, device: &Device) -> Result<()> {
    let layout = Layout::new(config);
    let model = Llama::new(config, init(config, &layout, 1)?.to_device(device)?)?.with_precision(precision)?;
    let ids: Vec<u32> = (0..2 * 77).map(|i| (i * i * 7 + i * 3 + 1) % 331).collect();
    let inputs = Tensor::from_vec(ids.clone(), (2, 77), &Device::Cpu)?;
    let targets = Tensor::from_vec(ids.iter().map(|id| (id * 5 + 2) % 331).collect(), 2 * 77, &Device::Cpu)?;
    let flat = layout.zeros(device)?;
    let grads = model.grads(&flat)?;
    let losses = model.loss_and_backward(&inputs, &targets, TrainInput::default(), 1.0 / 154.0, &grads)?.losses;
    for values in [to_host(&losses)?.to_vec1::<f32>()?, to_host(&flat)?.to_vec1::<f32>()?] {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_arithmetic_gives_the_same_hash_for_any_threads() {
        fn with_threads(precision: Precision, threads: usize) -> String {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| compute(precision, &Device::Cpu).unwrap())
        }
        for precision in [Precision::F32, Precision::Bf16] {
            assert_eq!(with_threads(precision, 1), with_threads(precision, 3));
            assert_eq!(fingerprint(precision, &Device::Cpu), with_threads(precision, 2));
            assert_eq!(with_threads(precision, 2).len(), 16);
        }
        assert_ne!(with_threads(Precision::F32, 1), with_threads(Precision::Bf16, 1));
    }
}
