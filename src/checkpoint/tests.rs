//! Checkpoints as a whole: round trips, damage, crashes, retention, Hugging Face directories. This file holds what
//! those share: a toy model whose values follow from the step.

mod damage;
mod gguf;
mod hf_dirs;
mod retention;
mod roundtrip;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Contents, Opened, Retention, TensorRef, save_sharded};
use crate::config::ModelConfig;
use crate::runtime::error::{Exit, Failure};

pub(crate) fn toy_model(tied: bool) -> ModelConfig {
    ModelConfig {
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 6,
        vocab_size: 20,
        max_position_embeddings: 32,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        tie_word_embeddings: tied,
        initializer_range: 0.02,
        ..ModelConfig::MINIMAL
    }
}

type Tensor = (String, Vec<usize>, Vec<f32>);

/// Weights and moments that follow from the step.
pub(crate) struct Toy {
    model: ModelConfig,
    weights: Vec<Tensor>,
    moments: Vec<Tensor>,
    step: u64,
}

impl Toy {
    fn at(step: u64) -> Toy {
        Toy::of(toy_model(false), step)
    }

    pub(crate) fn of(model: ModelConfig, step: u64) -> Toy {
        Toy::drawn(model, step, step)
    }

    /// A smaller one, whose values follow from `seed`.
    pub(crate) fn small(step: u64, seed: u64) -> Toy {
        Toy::drawn(ModelConfig { num_hidden_layers: 1, ..toy_model(true) }, step, seed)
    }

    fn drawn(model: ModelConfig, step: u64, seed: u64) -> Toy {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |shape: &[usize]| (0..shape.iter().product()).map(|_| rng.random_range(-2.0_f32..2.0)).collect();
        let specs = model.tensor_shapes();
        let weights: Vec<Tensor> =
            specs.iter().map(|(name, shape)| (name.clone(), shape.clone(), draw(shape))).collect();
        let mut moments = Vec::new();
        for (name, shape) in &specs {
            moments.push((format!("{name}.exp_avg"), shape.clone(), draw(shape)));
            moments.push((format!("{name}.exp_avg_sq"), shape.clone(), draw(shape)));
        }
        Toy { model, weights, moments, step }
    }

    fn contents(&self) -> Contents<'_> {
        Contents {
            step: self.step,
            tokens: self.step * 100,
            weights: refs(&self.weights),
            optimizer_state: refs(&self.moments),
            model: &self.model,
            tokenizer_files: vec![
                ("tokenizer.json", b"{\"toy\":true}".to_vec()),
                ("tokenizer_config.json", b"{}".to_vec()),
            ],
            bos: None,
            eos: vec![19],
            adapter: None,
            trainer_state: serde_json::json!({ "step": self.step, "lr": 1.234_567_890_123_456_7e-5 }),
        }
    }

    fn save(&self, run: &Path) -> Result<PathBuf> {
        self.save_keeping(run, 100)
    }

    pub(crate) fn save_keeping(&self, run: &Path, keep: usize) -> Result<PathBuf> {
        save_sharded(
            run,
            1,
            &self.contents(),
            Retention { keep, keep_every: 0, log_spaced: false },
            super::save::SHARD_BYTES,
        )
    }

    /// Whether `opened` holds these weights and moments, bit for bit.
    pub(crate) fn is_held_by(&self, opened: &Opened) -> Result<bool> {
        let mut read = Vec::new();
        opened.read_weights(&mut |name, shape, data| collect(&mut read, name, shape, data))?;
        opened.read_optimizer_state(&mut |name, shape, data| collect(&mut read, name, shape, data))?;
        let bits = |tensors: &mut dyn Iterator<Item = &Tensor>| -> BTreeMap<_, Vec<u32>> {
            tensors.map(|(name, _, data)| (name.clone(), data.iter().map(|v| v.to_bits()).collect())).collect()
        };
        Ok(bits(&mut read.iter()) == bits(&mut self.weights.iter().chain(&self.moments)))
    }

    /// Asserts that `opened` holds these weights, bit for bit.
    fn assert_weights(&self, opened: &Opened) {
        let mut read = Vec::new();
        opened.read_weights(&mut |name, shape, data| collect(&mut read, name, shape, data)).unwrap();
        assert_same_bits(&read, &self.weights);
    }
}

fn refs(tensors: &[Tensor]) -> Vec<TensorRef<'_>> {
    tensors.iter().map(|(name, shape, data)| TensorRef { name: name.clone(), shape: shape.clone(), data }).collect()
}

fn collect(into: &mut Vec<Tensor>, name: &str, shape: &[usize], data: Vec<f32>) -> Result<()> {
    into.push((name.to_owned(), shape.to_vec(), data));
    Ok(())
}

fn assert_same_bits(left: &[Tensor], right: &[Tensor]) {
    assert_eq!(left.len(), right.len());
    for ((name, shape, a), (other, other_shape, b)) in left.iter().zip(right) {
        assert_eq!((name, shape), (other, other_shape));
        assert!(a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits())), "{name} differs");
    }
}

/// The class of a failure; every one must carry a hint and take one line.
pub(crate) fn exit_of(error: &anyhow::Error) -> Exit {
    let failure = error.downcast_ref::<Failure>().unwrap_or_else(|| panic!("not a Failure: {error:?}"));
    assert!(failure.hint.is_some() && !failure.message.contains('\n'), "{failure}");
    failure.exit
}

/// A temporary directory, in memory where there is such a place: thousands of fsyncs on a disk would take minutes.
pub(crate) fn quick_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Names in a directory, sorted.
pub(crate) fn listing(dir: &Path) -> Vec<String> {
    super::entries(dir).unwrap().iter().map(|path| super::name_of(path).to_owned()).collect()
}
