//! A fixed forward and backward, hashed: equal hashes, equal arithmetic. Names of processors and builds only suggest whether bits will
//! be the same; this asks. And what rounding does to a loss, where the bits are others.

use super::state::State;
use crate::config::ModelConfig;
use crate::data::batch::Batch;
use crate::eval::total_loss;
use crate::model::init::init;
use crate::model::params::Layout;
use crate::model::{Llama, TrainInput};
use crate::ops::noise::draw;
use crate::ops::precision::Precision;
use crate::ops::{cpu, device};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use std::sync::LazyLock;

/// Draws of the estimate of rounding.
const DRAWS: u64 = 4;

const PIECE: usize = 1 << 16;

/// Odd sizes, so that the ends of vectors and tiles are part of it.
const MODEL: ModelConfig = ModelConfig {
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
};

/// The first 16 hex digits of the hash of losses and gradients in f32, on a GPU also in bf16; empty if they cannot be computed here.
pub fn fingerprint() -> &'static str {
    static FINGERPRINT: LazyLock<String> = LazyLock::new(|| compute().unwrap_or_default());
    &FINGERPRINT
}

fn compute() -> Result<String> {
    let mut hasher = blake3::Hasher::new_derive_key("llama-lite numerics v1");
    add_pass(&mut hasher, &MODEL, Precision::F32)?;
    if !device::used().is_cpu() {
        // What a GPU trains with takes other kernels.
        add_pass(&mut hasher, &ModelConfig { head_dim: 64, ..MODEL }, Precision::Bf16)?;
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

/// Losses and gradients of one pass.
fn add_pass(hasher: &mut blake3::Hasher, config: &ModelConfig, precision: Precision) -> Result<()> {
    let layout = Layout::new(config);
    let model = Llama::new(config, init(config, &layout, 1)?.to_device(device::used())?)?.with_precision(precision)?;
    let ids: Vec<u32> = (0..2 * 77).map(|i| (i * i * 7 + i * 3 + 1) % 331).collect();
    let inputs = Tensor::from_vec(ids.clone(), (2, 77), &Device::Cpu)?;
    let targets = Tensor::from_vec(ids.iter().map(|id| (id * 5 + 2) % 331).collect(), 2 * 77, &Device::Cpu)?;
    let flat = layout.zeros(device::used())?;
    let grads = model.grads(&flat)?;
    let losses = model.loss_and_backward(&inputs, &targets, TrainInput::default(), 1.0 / 154.0, &grads)?.losses;
    for values in [losses.to_vec1::<f32>()?, flat.to_vec1::<f32>()?] {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    Ok(())
}

/// How far rounding alone moves the mean loss of `batch`: root mean square over draws, in each of which every trained weight is larger or
/// smaller by `unit` of itself. An estimate of what another order of summation does, without the machine that has it.
///
/// The weights are as before afterwards; the gradient is overwritten, as the next step does anyway.
///
/// # Errors
/// Those of the device.
pub fn rounding_of_loss(state: &State, batch: &Batch, unit: f32) -> anyhow::Result<f64> {
    let (_, weights) = state.model.trained();
    let loss = || anyhow::Ok(total_loss(&state.model, batch.clone())? / batch.trained().max(1) as f64);
    let exact = loss()?;
    state.grad.slice_set(weights, 0, 0)?;
    let mut squares = 0.0;
    for key in 0..DRAWS {
        round(weights, unit, key)?;
        let moved = loss();
        weights.slice_set(&state.grad, 0, 0)?;
        squares += (moved? - exact).powi(2);
    }
    Ok((squares / DRAWS as f64).sqrt())
}

fn round(weights: &Tensor, unit: f32, key: u64) -> Result<()> {
    cpu::update("round", weights, |weights| {
        weights.par_chunks_mut(PIECE).enumerate().for_each(|(piece, weights)| {
            for (i, weight) in (piece * PIECE..).zip(weights) {
                *weight *= if draw(key, i as u64) >> 63 == 0 { 1.0 + unit } else { 1.0 - unit };
            }
        });
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_arithmetic_gives_the_same_hash_for_any_threads() {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| compute().unwrap())
        };
        assert_eq!(with(1), with(3));
        assert_eq!((fingerprint().len(), with(2).as_str()), (16, fingerprint()));
    }

    /// A thousandth of a percent of a nat in f32, far more in bf16.
    #[test]
    fn rounding_is_small_and_leaves_the_weights_alone() {
        let text = "[model]\nhidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 2\nnum_attention_heads = 4\nvocab_size = 320\n\
            [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 16\nmicro_batch_size = 4\nsteps = 9\n";
        let config = crate::config::Config::from_toml_str(text, "a.toml").unwrap();
        let state = State::fresh(&config, None).unwrap();
        let ids: Vec<u32> = (0..4 * 17).map(|i| (i * 7) % 320).collect();
        let batch = Batch::windows(&ids, 16, None);
        let before = state.model.flat.to_vec1::<f32>().unwrap();
        let of = |unit| rounding_of_loss(&state, &batch, unit).unwrap();
        let (fine, coarse) = (of(f32::EPSILON), of(2f32.powi(-8)));
        assert!((1e-10..1e-6).contains(&fine), "{fine}");
        assert!((1e3 * fine..1e6 * fine).contains(&coarse), "{fine} {coarse}");
        assert_eq!(state.model.flat.to_vec1::<f32>().unwrap(), before);
    }
}
