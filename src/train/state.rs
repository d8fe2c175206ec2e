//! All that a run carries from step to step, fresh or from a checkpoint, and how it becomes a checkpoint again.
//!
//! Randomness and data order are counter-based (keyed by seed and purpose), so the state of "the RNG" at any step is a pair of
//! seeds, and the data cursor is one integer.

use super::footprint::recompute;
use super::guard::Guard;
use super::optimizer::Optimizer;
use super::schedule::Schedule;
use crate::checkpoint::Opened;
use crate::checkpoint::adapter::{base_hasher, hash_weights, other_base};
use crate::config::Config;
use crate::data::order::DataHash;
use crate::metrics::LogDigests;
use crate::model::init::init;
use crate::model::lora;
use crate::model::params::Layout;
use crate::model::{Grads, Llama};
use crate::ops::attention::GPU_BF16_DIMS;
use crate::ops::device;
use crate::ops::precision::Precision;
use crate::runtime::error::{Exit, fail};
use crate::runtime::failpoint::failpoint;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

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
    pub updates: u64,
}

/// `trainer_state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    pub version: u32,
    #[serde(flatten)]
    pub counters: Counters,
    /// Which process of the run's history wrote it, from 1.
    pub attempt: u64,
    pub schedule: Schedule,
    /// What the guard remembers. Not in version 1.
    #[serde(default)]
    pub guard: Guard,
    /// Where the data of the run were advanced past their order. Not in version 1.
    #[serde(default)]
    pub data_offsets: Vec<DataOffset>,
    /// Pieces of state given up on purpose at this very step, as `--reset` names them. Not in version 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reset: Vec<String>,
    /// Keys of the counter-based random streams.
    pub rng: Rng,
    /// Identifies the training tokens.
    pub data_fingerprint: String,
    /// The resolved configuration, as TOML.
    pub config: String,
    pub build: serde_json::Value,
    /// Identifies the frozen weights beside adapters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// What the logs of the run held. Not in checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "LogDigests::is_empty")]
    pub logs: LogDigests,
}

/// Seeds from which every random draw of a run follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rng {
    pub train_seed: u64,
    pub data_seed: u64,
}

/// A stretch of data that a rollback or a reset leaves out (or repeats): after `step`, the next sequence is `to` instead of `from`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataOffset {
    /// The step after which the order was left.
    pub step: u64,
    /// The sequence that would have come.
    pub from: u64,
    pub to: u64,
}

/// Layout of `trainer_state.json` written by this version; older ones are read.
pub const VERSION: u32 = 2;

impl Saved {
    /// Of a verified checkpoint.
    ///
    /// # Errors
    /// [`Exit::Data`] if it is not ours or of a newer version.
    pub fn of(source: &Opened) -> Result<Self> {
        let at = || format!("{}/trainer_state.json", source.dir.display());
        let value = source.trainer_state()?;
        let version = value["version"].as_u64().unwrap_or(0);
        if version > u64::from(VERSION) {
            let message = format!("{}: version {version}, this program knows up to {VERSION}", at());
            return Err(fail(Exit::Data, message).hint("use the version of llama-lite that wrote it").into());
        }
        let wrong = |e| fail(Exit::Data, format!("{}: {e}", at())).hint("use another checkpoint");
        Ok(serde_json::from_value(value).map_err(wrong)?)
    }

    /// As `trainer_state.json` holds it, read back: a checkpoint that no resume could read must not take the place of one that can be
    /// read.
    ///
    /// # Errors
    /// [`Exit::Internal`] if it reads as something else.
    pub fn to_checked_json(&self) -> Result<serde_json::Value> {
        let value = serde_json::to_value(self)?;
        let back = serde_json::from_str::<Self>(&value.to_string()).and_then(serde_json::to_value);
        let why = match back {
            Ok(back) if back == value => return Ok(value),
            Ok(_) => "it reads as another state".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(fail(
            Exit::Internal,
            format!("step {}: trainer_state.json could not be read again: {why}", self.counters.step),
        )
        .hint("nothing was saved; resume the last checkpoint")
        .into())
    }
}

/// Model, gradients, optimizer and counters of a run.
pub struct State {
    /// The model, over its flat f32 weights.
    pub model: Llama,
    /// Gradients of the step in progress, flat.
    pub grad: Tensor,
    /// Views of `grad` under the names of what is trained.
    pub grads: Grads,
    pub optimizer: Optimizer,
    /// Learning rate of every step.
    pub schedule: Schedule,
    /// Judges every step.
    pub guard: Guard,
    /// See [`Saved::data_offsets`].
    pub data_offsets: Vec<DataOffset>,
    /// See [`Saved::reset`].
    pub reset: Vec<String>,
    pub counters: Counters,
    /// [`Counters::chain`], parsed.
    pub chain: DataHash,
    /// See [`Saved::base`].
    pub base: Option<String>,
}

impl State {
    /// A run at step 0: fresh weights, or those of `init_from`, and fresh adapters if the configuration has any.
    pub fn fresh(config: &Config, init_from: Option<&Opened>) -> Result<Self> {
        let layout = Layout::new(&config.model);
        let flat = match init_from {
            None => init(&config.model, &layout, config.train.seed)?,
            Some(source) => read_flat(&layout, "", |sink| source.read_weights(sink))?,
        };
        let model = model(config, flat)?;
        let chain = DataHash::default();
        let counters = Counters { step: 0, tokens: 0, next_sequence: 0, chain: chain.to_string(), updates: 0 };
        let digest = model.adapters.is_some().then(|| base_digest(&model.flat, &model.layout)).transpose()?;
        let mut state = Self::assemble(config, model, counters)?;
        state.base = digest;
        Ok(state)
    }

    /// The run of a verified checkpoint, bit for bit. Seeds, rules and schedule are those of `config`, which must be final.
    pub fn resumed(config: &Config, source: &Opened, saved: &Saved) -> Result<Self> {
        let layout = Layout::new(&config.model);
        let flat = match source.base() {
            None => layout.zeros(&Device::Cpu)?,
            Some(base) => {
                let flat = read_flat(&layout, "", |sink| base.read_weights(sink))?;
                check_base(&flat, saved.base.as_deref(), &base.dir)?;
                flat
            }
        };
        let model = model(config, flat)?;
        let mut state = Self::assemble(config, model, saved.counters.clone())?;
        state.restore(source, saved)?;
        Ok(state)
    }

    /// Passes over `n` sequences of the data; returns the first one of them and the one after the last.
    pub fn skip(&mut self, n: u64) -> [u64; 2] {
        let (step, from) = (self.counters.step, self.counters.next_sequence);
        let to = from.saturating_add(n);
        self.counters.next_sequence = to;
        self.data_offsets.push(DataOffset { step, from, to });
        [from, to]
    }

    /// Makes this state that of a verified checkpoint of the same model, bit for bit; the schedule stays that of the configuration.
    /// After an error it is neither.
    pub fn restore(&mut self, source: &Opened, saved: &Saved) -> Result<()> {
        assert!(failpoint("panicked-load", saved.counters.step).is_none(), "planted");
        let (layout, flat) = self.model.trained();
        match source.adapter() {
            None => read_into(flat, layout, "", |sink| source.read_weights(sink))?,
            Some(adapter) => read_into(flat, layout, "", |sink| adapter.read_tensors(sink))?,
        }
        for state in &self.optimizer.state {
            let suffix = format!(".{}", state.name);
            read_into(&state.flat, &state.layout, &suffix, |sink| source.read_optimizer_state(sink))?;
        }
        self.model.refresh()?;
        self.optimizer.updates = saved.counters.updates;
        self.counters = saved.counters.clone();
        self.chain = self.counters.chain.parse().context("trainer_state.json")?;
        self.guard = saved.guard.clone();
        self.data_offsets = saved.data_offsets.clone();
        self.reset = saved.reset.clone();
        self.base = saved.base.clone();
        Ok(())
    }

    fn assemble(config: &Config, model: Llama, counters: Counters) -> Result<Self> {
        let schedule = Schedule::new(&config.schedule, config.optimizer.lr)?;
        let (layout, flat) = model.trained();
        let optimizer = Optimizer::new(&config.optimizer, layout, flat, config.train.seed)?;
        let grad = layout.zeros(flat.device())?;
        let grads = model.grads(&grad)?;
        let chain = counters.chain.parse().context("trainer_state.json")?;
        let (guard, data_offsets, reset, base) = Default::default();
        Ok(Self { model, grad, grads, optimizer, schedule, guard, data_offsets, reset, counters, chain, base })
    }
}

/// The model of `config` over its weights `flat`, with fresh adapters if it has any.
fn model(config: &Config, flat: Tensor) -> Result<Llama> {
    let flat = flat.to_device(device::used())?;
    let mut model = Llama::new(&config.model, flat)?.with_precision(super::precision(&config.train))?;
    model.recompute = recompute(config);
    if config.lora.is_absent() {
        return Ok(model);
    }
    let adapters = lora::init(&config.model, &config.lora, config.train.seed, device::used())?;
    Ok(model.with_adapters(adapters)?)
}

/// Identifies frozen weights.
///
/// # Errors
/// Those of reading them.
pub fn base_digest(flat: &Tensor, layout: &Layout) -> Result<String> {
    let digest = layout.with_slices([flat], |_, [values]| {
        let mut hasher = base_hasher();
        hash_weights(&mut hasher, values);
        hasher.finalize().to_hex().to_string()
    })?;
    Ok(digest)
}

/// Adapters mean nothing beside other weights than those they were trained with.
fn check_base(flat: &Tensor, known: Option<&str>, dir: &Path) -> Result<()> {
    let Some(known) = known else { return Ok(()) };
    let n = flat.elem_count();
    if base_digest(flat, &Layout { specs: Vec::new(), total: n })? == known {
        return Ok(());
    }
    Err(other_base(dir).into())
}

/// A sink that is handed tensors by name.
type Sink<'a> = &'a mut dyn FnMut(&str, &[usize], Vec<f32>) -> Result<()>;

/// A flat buffer of all tensors `<name><suffix>` that `read` delivers.
fn read_flat(layout: &Layout, suffix: &str, read: impl FnOnce(Sink) -> Result<()>) -> Result<Tensor> {
    let flat = layout.zeros(&Device::Cpu)?;
    read_into(&flat, layout, suffix, read)?;
    Ok(flat)
}

/// Fills `flat`, rounded to its type, with all tensors `<name><suffix>` that `read` delivers; others are passed over, missing ones refused.
fn read_into(flat: &Tensor, layout: &Layout, suffix: &str, read: impl FnOnce(Sink) -> Result<()>) -> Result<()> {
    let by_name: BTreeMap<String, usize> =
        layout.specs.iter().enumerate().map(|(i, s)| (format!("{}{suffix}", s.name), i)).collect();
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
        let data = Tensor::from_vec(data, spec.len, &Device::Cpu)?.to_dtype(flat.dtype())?;
        flat.slice_set(&data.to_device(flat.device())?, 0, spec.start)?;
        seen[i] = true;
        Ok(())
    })?;
    if let Some(i) = seen.iter().position(|seen| !seen) {
        let message = format!("tensor {}{suffix} is missing", layout.specs[i].name);
        return Err(fail(Exit::Data, message).hint("use another checkpoint").into());
    }
    Ok(())
}

/// The model of a checkpoint or Hugging Face directory, weights alone.
///
/// # Errors
/// Those of reading the files.
pub fn load_model(source: &Opened) -> Result<Llama> {
    let layout = Layout::new(&source.model);
    let flat = read_flat(&layout, "", |sink| source.read_weights(sink))?.to_device(device::used())?;
    let rounded = !device::used().is_cpu() && GPU_BF16_DIMS.contains(&source.model.head_dim);
    let precision = if rounded { Precision::Bf16 } else { Precision::F32 };
    Ok(Llama::new(&source.model, flat)?.with_precision(precision)?)
}
