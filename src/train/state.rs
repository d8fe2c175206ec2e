//! All that a run carries from step to step, fresh or from a checkpoint, and how it becomes a checkpoint again.
//!
//! Randomness and data order are counter-based (keyed by seed and purpose), so the state of "the RNG" at any step is a pair of
//! seeds, and the data cursor is one integer.

use super::optimizer::Optimizer;
use super::schedule::Schedule;
use crate::checkpoint::{Contents, Opened, TensorRef};
use crate::config::Config;
use crate::data::order::Chain;
use crate::data::tokenizer::Tokenizer;
use crate::model::Llama;
use crate::model::init::init;
use crate::model::params::{Layout, Spec, Weights};
use crate::runtime::error::{Exit, fail};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The numbers of a run, as `trainer_state.json` keeps them beside the tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Counters {
    /// Optimizer steps attempted.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Global index of the next training sequence.
    pub next_sequence: u64,
    /// Hash of all token ids so far.
    pub chain: String,
    /// AdamW's t: updates applied.
    pub updates: u64,
    /// Skipped steps in a row up to this one.
    pub skipped_in_a_row: u64,
}

/// `trainer_state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    /// Of this file's layout.
    pub version: u32,
    /// Counters.
    #[serde(flatten)]
    pub counters: Counters,
    /// Which process of the run's history wrote it, from 1.
    pub attempt: u64,
    /// The frozen learning-rate schedule.
    pub schedule: Schedule,
    /// Keys of the counter-based random streams.
    pub rng: Rng,
    /// Identifies the training tokens.
    pub data_fingerprint: String,
    /// The resolved configuration, as TOML.
    pub config: String,
    /// Machine and build.
    pub build: serde_json::Value,
}

/// Seeds from which every random draw of a run follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rng {
    /// Initialisation and sampling.
    pub train_seed: u64,
    /// Order of the data.
    pub data_seed: u64,
}

/// Layout of `trainer_state.json` written by this version.
pub const VERSION: u32 = 1;

/// Model, gradients, optimizer and counters of a run.
pub struct State {
    /// The model, over its flat f32 weights.
    pub model: Llama,
    /// Gradients of the step in progress, flat.
    pub grad: Tensor,
    /// Views of `grad` under the model's names.
    pub grads: Weights,
    /// Moments and rules.
    pub optimizer: Optimizer,
    /// Learning rate of every step.
    pub schedule: Schedule,
    /// The rest.
    pub counters: Counters,
    /// [`Counters::chain`], parsed.
    pub chain: Chain,
}

impl State {
    /// A run at step 0: fresh weights, or those of `init_from`.
    pub fn fresh(config: &Config, init_from: Option<&Opened>) -> Result<Self> {
        let layout = Layout::new(&config.model);
        let flat = match init_from {
            None => init(&config.model, &layout, config.train.seed)?,
            Some(source) => read_flat(&layout, "", |sink| source.read_weights(sink))?,
        };
        let schedule = Schedule::new(&config.schedule, config.optimizer.lr, config.train.steps)?;
        let chain = Chain::default();
        let counters = Counters {
            step: 0,
            tokens: 0,
            next_sequence: 0,
            chain: chain.to_string(),
            updates: 0,
            skipped_in_a_row: 0,
        };
        Self::assemble(config, layout, flat, schedule, counters)
    }

    /// The run of a verified checkpoint, bit for bit. The schedule is the saved one unless `schedule_changed`.
    pub fn resumed(config: &Config, source: &Opened, saved: &Saved, schedule_changed: bool) -> Result<Self> {
        let layout = Layout::new(&config.model);
        let flat = read_flat(&layout, "", |sink| source.read_weights(sink))?;
        let schedule = if schedule_changed {
            Schedule::new(&config.schedule, config.optimizer.lr, config.train.steps)?
        } else {
            saved.schedule.clone()
        };
        let mut state = Self::assemble(config, layout, flat, schedule, saved.counters.clone())?;
        let layout = &state.model.layout;
        state.optimizer.exp_avg = read_flat(layout, ".exp_avg", |sink| source.read_moments(sink))?;
        state.optimizer.exp_avg_sq = read_flat(layout, ".exp_avg_sq", |sink| source.read_moments(sink))?;
        state.optimizer.updates = saved.counters.updates;
        Ok(state)
    }

    fn assemble(config: &Config, layout: Layout, flat: Tensor, schedule: Schedule, counters: Counters) -> Result<Self> {
        let device = Device::Cpu;
        let optimizer = Optimizer::new(&config.optimizer, &layout, &device)?;
        let grad = layout.zeros(&device)?;
        let grads = Weights::views(&grad, &config.model, &layout)?;
        let chain = counters.chain.parse().context("trainer_state.json")?;
        let model = Llama::new(&config.model, flat)?.with_precision(super::precision(&config.train));
        Ok(Self { model, grad, grads, optimizer, schedule, counters, chain })
    }

    /// Gives `write` the contents of a checkpoint of this state: slices of the live buffers, no copy.
    pub fn with_contents<R>(
        &self,
        saved: &Saved,
        tokenizer: &Tokenizer,
        write: impl FnOnce(&Contents) -> Result<R>,
    ) -> Result<R> {
        let config = &self.model.config;
        let trainer_state = serde_json::to_value(saved)?;
        let tokenizer_files = tokenizer.files(config.max_position_embeddings)?;
        let flats = [&self.model.flat, &self.optimizer.exp_avg, &self.optimizer.exp_avg_sq];
        self.model.layout.with_slices(flats, |layout, [w, m, v]| {
            let mut moments = named_tensors(layout, m, ".exp_avg");
            moments.extend(named_tensors(layout, v, ".exp_avg_sq"));
            write(&Contents {
                step: self.counters.step,
                tokens: self.counters.tokens,
                weights: named_tensors(layout, w, ""),
                moments,
                model: config,
                tokenizer_files,
                bos: tokenizer.bos_id(),
                eos: tokenizer.eos_id(),
                trainer_state,
            })
        })?
    }
}

/// The tensors of a flat buffer under their names plus `suffix`.
fn named_tensors<'a>(layout: &Layout, data: &'a [f32], suffix: &str) -> Vec<TensorRef<'a>> {
    let tensor = |s: &Spec| TensorRef {
        name: format!("{}{suffix}", s.name),
        shape: s.shape.clone(),
        data: &data[s.start..s.start + s.len],
    };
    layout.specs.iter().map(tensor).collect()
}

/// A sink that is handed tensors by name.
type Sink<'a> = &'a mut dyn FnMut(&str, &[usize], Vec<f32>) -> Result<()>;

/// The flat buffer of all tensors `<name><suffix>` that `read` delivers; others are passed over, missing ones refused.
fn read_flat(layout: &Layout, suffix: &str, read: impl FnOnce(Sink) -> Result<()>) -> Result<Tensor> {
    let by_name: BTreeMap<String, usize> =
        layout.specs.iter().enumerate().map(|(i, s)| (format!("{}{suffix}", s.name), i)).collect();
    let mut flat = vec![0f32; layout.total];
    let mut seen = vec![false; layout.specs.len()];
    read(&mut |name, shape, data| {
        let Some(&i) = by_name.get(name) else { return Ok(()) };
        let spec = &layout.specs[i];
        if shape != spec.shape || data.len() != spec.len {
            let message = format!("tensor {name} has shape {shape:?}, the model wants {:?}", spec.shape);
            return Err(fail(Exit::Data, message)
                .hint("model keys cannot change between a checkpoint and its resume")
                .into());
        }
        if let Some(i) = data.iter().position(|x| !x.is_finite()) {
            let message = format!("tensor {name} holds {} at element {i}", data[i]);
            return Err(fail(Exit::Data, message)
                .hint("the weights are damaged or their training diverged: use others")
                .into());
        }
        flat[spec.start..spec.start + spec.len].copy_from_slice(&data);
        seen[i] = true;
        Ok(())
    })?;
    if let Some(i) = seen.iter().position(|seen| !seen) {
        let message = format!("tensor {}{suffix} is missing", layout.specs[i].name);
        return Err(fail(Exit::Data, message).hint("use another checkpoint").into());
    }
    Ok(Tensor::from_vec(flat, layout.total, &Device::Cpu)?)
}

/// The model of a checkpoint or Hugging Face directory, weights alone.
///
/// # Errors
/// Those of reading the files.
pub fn load_model(source: &Opened) -> Result<Llama> {
    let layout = Layout::new(&source.model);
    Ok(Llama::new(&source.model, read_flat(&layout, "", |sink| source.read_weights(sink))?)?)
}
