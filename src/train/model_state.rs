//! Model, gradients, optimizer and [`TrainerState`] of a run, new or from a checkpoint.

use super::footprint::{Hardware, RanksHere, recompute};
use super::identity::precision;
use super::new_tokens::NewRows;
use super::optimizer::Optimizer;
use super::schedule::Schedule;
use super::trainer_state::{TrainerState, TrainerStateFile};
use crate::checkpoint::Opened;
use crate::checkpoint::adapter::{base_hasher, hash_weights, other_base};
use crate::config::{Config, PrecisionSetting};
use crate::distributed::group::ProcessGroup;
use crate::distributed::lanes::Lanes;
use crate::distributed::sharding::Sharding;
use crate::model::init::init;
use crate::model::lora;
use crate::model::params::{Layout, with_host_slices};
use crate::model::{Grads, Llama};
use crate::ops::attention::GPU_BF16_DIMS;
use crate::ops::precision::Precision;
use crate::runtime::error::{Exit, fail};
use crate::runtime::failpoint::failpoint;
use anyhow::Result;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// All that a step reads and changes.
pub struct ModelState {
    /// The model, over its flat f32 weights.
    pub model: Llama,
    /// Gradients of the step in progress, flat.
    pub grad: Tensor,
    /// Views of `grad` under the names of what is trained.
    pub grads: Grads,
    pub optimizer: Optimizer,
    /// Sums of the gradients of finished lanes.
    pub lanes: Lanes,
    /// What of the flat buffers this rank owns.
    pub sharding: Sharding,
    /// What the steps so far have changed beside weights and optimizer: counters, guard, schedule.
    pub run: TrainerState,
    /// Identifies the frozen weights beside adapters.
    pub base: Option<String>,
}

impl ModelState {
    /// A run at step 0 on `device`: initial weights, or those of `init_from`, and initial adapters if the configuration has any.
    pub fn initial(config: &Config, init_from: Option<&Opened>, device: &Device, group: &ProcessGroup) -> Result<Self> {
        let layout = Layout::new(&config.model);
        let flat = match init_from {
            None => init(&config.model, &layout, config.train.seed)?,
            Some(source) => read_flat(&layout, "", |sink| match NewRows::of(config, source)? {
                None => source.read_weights(sink),
                Some(new) => new.read_weights(source, config.model.vocab_size, sink),
            })?,
        };
        let model = model(config, flat, device, group)?;
        // A resume compares it: adapters are of use only beside the weights that they were trained with.
        let digest = model.adapters.is_some().then(|| base_digest(&model.flat)).transpose()?;
        let mut state = Self::assemble(config, model, group)?;
        state.base = digest;
        Ok(state)
    }

    /// The run of a verified checkpoint, bit for bit. Seeds, rules and schedule are those of `config`, which must be final: the
    /// optimizer copies its seed.
    pub fn resumed(
        config: &Config,
        source: &Opened,
        saved: &TrainerStateFile,
        device: &Device,
        group: &ProcessGroup,
    ) -> Result<Self> {
        let layout = Layout::new(&config.model);
        let flat = match source.base() {
            None => layout.zeros(&Device::Cpu)?,
            Some(base) => {
                let flat = read_flat(&layout, "", |sink| base.read_weights(sink))?;
                check_base(&flat, saved.base.as_deref(), &base.dir)?;
                flat
            }
        };
        let mut state = Self::assemble(config, model(config, flat, device, group)?, group)?;
        state.restore(source, saved)?;
        Ok(state)
    }

    /// Makes this state that of a verified checkpoint of the same model, bit for bit; the schedule stays that of the configuration,
    /// and the attempt that of this process. After an error it is neither.
    pub fn restore(&mut self, source: &Opened, saved: &TrainerStateFile) -> Result<()> {
        assert!(failpoint("panicked-load", saved.state.step).is_none(), "planted");
        let (layout, flat) = self.model.trained();
        match source.adapter() {
            None => read_into(flat, layout, "", 0..layout.total, |sink| source.read_weights(sink))?,
            Some(adapter) => read_into(flat, layout, "", 0..layout.total, |sink| adapter.read_tensors(sink))?,
        }
        for state in &self.optimizer.state {
            let suffix = format!(".{}", state.name);
            read_into(&state.flat, &state.layout, &suffix, state.shard.clone(), |sink| {
                source.read_optimizer_state(sink)
            })?;
        }
        // The rounded copies that a GPU multiplies with must follow the weights just read.
        self.model.round_copies()?;
        self.optimizer.updates = saved.state.updates;
        self.run =
            TrainerState { attempt: self.run.attempt, schedule: self.run.schedule.clone(), ..saved.state.clone() };
        self.base = saved.base.clone();
        Ok(())
    }

    /// Gives every rank the weights that the others have updated.
    ///
    /// # Errors
    /// Those of the exchange and of the device.
    pub fn gather_weights(&self) -> Result<()> {
        if self.sharding.group.ranks() == 1 {
            return Ok(());
        }
        self.sharding.gather(self.model.trained().1)?;
        // Of the rounded copy, too, each rank has updated its shard alone.
        Ok(self.model.round_copies()?)
    }

    fn assemble(config: &Config, model: Llama, group: &ProcessGroup) -> Result<Self> {
        let schedule = Schedule::new(&config.schedule, config.optimizer.lr)?;
        let (layout, flat) = model.trained();
        let grad = layout.zeros(flat.device())?;
        let sharding = Sharding::new(group, &grad);
        let optimizer = Optimizer::new(&config.optimizer, layout, flat, config.train.seed, sharding.own())?;
        let lanes = Lanes::new(config.train.lanes() / group.ranks(), &grad)?;
        let grads = model.grads(&grad)?;
        Ok(Self { model, grad, grads, optimizer, lanes, sharding, run: TrainerState::new(schedule), base: None })
    }
}

/// The model of `config` over its weights `flat`, with fresh adapters if it has any.
fn model(config: &Config, flat: Tensor, device: &Device, group: &ProcessGroup) -> Result<Llama> {
    let flat = flat.to_device(device)?;
    let mut model = Llama::new(&config.model, flat)?.with_precision(precision(&config.train, device))?;
    model.recompute = recompute(config, &Hardware::here(device, RanksHere::in_group(group)));
    if config.lora.is_absent() {
        return Ok(model);
    }
    let adapters = lora::init(&config.model, &config.lora, config.train.seed, device)?;
    Ok(model.with_adapters(adapters)?)
}

/// A hash that identifies frozen weights.
fn base_digest(flat: &Tensor) -> Result<String> {
    let digest = with_host_slices(&[flat], |values| {
        let mut hasher = base_hasher();
        hash_weights(&mut hasher, values[0]);
        hasher.finalize().to_hex().to_string()
    })?;
    Ok(digest)
}

/// Adapters mean nothing beside other weights than those they were trained with.
fn check_base(flat: &Tensor, known: Option<&str>, dir: &Path) -> Result<()> {
    let Some(known) = known else { return Ok(()) };
    if base_digest(flat)? == known {
        return Ok(());
    }
    Err(other_base(dir).into())
}

/// A sink that is handed tensors by name.
type Sink<'a> = &'a mut dyn FnMut(&str, &[usize], Vec<f32>) -> Result<()>;

/// A flat buffer of all tensors `<name><suffix>` that `read` delivers.
fn read_flat(layout: &Layout, suffix: &str, read: impl FnOnce(Sink) -> Result<()>) -> Result<Tensor> {
    let flat = layout.zeros(&Device::Cpu)?;
    read_into(&flat, layout, suffix, 0..layout.total, read)?;
    Ok(flat)
}

/// Fills `flat`, rounded to its type, with all tensors `<name><suffix>` that `read` delivers; others are ignored, missing ones refused.
/// `flat` holds the elements `span` of the whole layout.
fn read_into(
    flat: &Tensor,
    layout: &Layout,
    suffix: &str,
    span: Range<usize>,
    read: impl FnOnce(Sink) -> Result<()>,
) -> Result<()> {
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
        // It would spread to every loss, and no later message could name the tensor.
        if let Some(i) = data.iter().position(|x| !x.is_finite()) {
            let message = format!("tensor {name} holds {} at element {i}", data[i]);
            return Err(fail(Exit::Data, message)
                .hint("the weights are damaged or their training diverged: use others")
                .into());
        }
        seen[i] = true;
        let start = spec.start.max(span.start);
        let end = (spec.start + spec.len).min(span.end);
        if start >= end {
            return Ok(()); // another rank's
        }
        let data = if end - start == spec.len { data } else { data[start - spec.start..end - spec.start].to_vec() };
        let data = Tensor::from_vec(data, end - start, &Device::Cpu)?.to_dtype(flat.dtype())?;
        Ok(flat.slice_set(&data.to_device(flat.device())?, 0, start - span.start)?)
    })?;
    if let Some(i) = seen.iter().position(|seen| !seen) {
        let message = format!("tensor {}{suffix} is missing", layout.specs[i].name);
        return Err(fail(Exit::Data, message).hint("use another checkpoint").into());
    }
    Ok(())
}

/// The model of a checkpoint or Hugging Face directory on `device`, weights alone. "auto" is f32 on a CPU, and bf16 on a GPU that has
/// kernels for it.
///
/// # Errors
/// Those of reading the files; [`Exit::Config`] if a GPU has no bf16 kernels for the model.
pub fn load_model(source: &Opened, device: &Device, precision: PrecisionSetting) -> Result<Llama> {
    let layout = Layout::new(&source.model);
    if device.is_cpu() && precision == PrecisionSetting::Bf16 {
        return load_in_bf16(source, &layout);
    }
    let head_dim = source.model.head_dim;
    let has_kernels = !device.is_cpu() && GPU_BF16_DIMS.contains(&head_dim);
    let precision = match precision {
        PrecisionSetting::F32 => Precision::F32,
        PrecisionSetting::Auto | PrecisionSetting::Bf16 if has_kernels => Precision::Bf16,
        PrecisionSetting::Auto => Precision::F32,
        PrecisionSetting::Bf16 => {
            let message = format!("{}: no GPU kernels in bf16 for heads of {head_dim}", source.dir.display());
            return Err(fail(Exit::Config, message).hint("add --precision f32").into());
        }
    };
    let flat = read_flat(&layout, "", |sink| source.read_weights(sink))?.to_device(device)?;
    Ok(Llama::new(&source.model, flat)?.with_precision(precision)?)
}

/// The model with its weights rounded to bf16 while they are read: at no time are all of them in memory in f32.
fn load_in_bf16(source: &Opened, layout: &Layout) -> Result<Llama> {
    let flat = layout.zeros_bf16()?;
    let mut vectors = Vec::new();
    read_into(&flat, layout, "", 0..layout.total, |sink| {
        source.read_weights(&mut |name, shape, values| {
            if let [n] = *shape {
                vectors.push(Tensor::from_vec(values.clone(), n, &Device::Cpu)?);
            }
            sink(name, shape, values)
        })
    })?;
    Ok(Llama::held_in_bf16(&source.model, flat, vectors)?)
}
