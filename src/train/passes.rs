//! The forward and backward passes of a step: of this rank's lanes, micro-batch by micro-batch, and what they add up to over all ranks.

use super::model_state::ModelState;
use crate::config::Config;
use crate::data::batch::{Batch, IGNORE};
use crate::distributed::exact::{self, Exact};
use crate::distributed::group::ProcessGroup;
use crate::model::noise::Noise;
use crate::model::{ActivationStats, PassTimes, TrainInput, TrainOutput};
use crate::ops::adamw::zero;
use crate::ops::positions::DocumentStarts;
use crate::ops::transfer::to_host;
use crate::runtime::error::{Exit, fail, failure_in};
use crate::runtime::failpoint::failpoint;
use anyhow::Result;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// What one micro-batch gives besides gradients.
#[derive(Serialize, Deserialize)]
pub(super) struct Pass {
    #[serde(with = "exact")]
    nats: f64,
    /// Mean loss of every sequence, if they are logged.
    sequences: Vec<Exact>,
    observed: Option<Observed>,
}

/// What the passes of a step add up to.
#[derive(Default)]
pub struct PassSums {
    pub nats: f64,
    pub sequences: Option<Vec<f64>>,
    pub observed: Option<ActivationStats>,
    /// Time of this rank's passes.
    pub times: PassTimes,
}

/// Leaves in `state.grad` the gradient of the mean loss over the whole step, as far as this rank's sequences add to it, and returns the
/// sums over all sequences of all ranks.
///
/// # Errors
/// Those of the device, of this rank or another: all ranks return the same.
pub fn forward_and_backward(state: &ModelState, config: &Config, batch: &Batch) -> Result<PassSums> {
    let mut times = PassTimes::default();
    let own = own_passes(state, config, batch, &mut times);
    let passes = of_all_ranks(&state.sharding.group, own)?;
    let sequences =
        config.log.sequences.then(|| passes.iter().flat_map(|pass| &pass.sequences).map(|loss| loss.0).collect());
    let mut sums = PassSums { sequences, times, ..PassSums::default() };
    // One after the other, in the order of the micro-batches, whichever rank they were on.
    for pass in passes {
        sums.nats += pass.nats;
        sums.observed = match (sums.observed.take(), pass.observed.map(ActivationStats::from)) {
            (Some(a), Some(b)) => Some(a.merged(b)),
            (a, b) => a.or(b),
        };
    }
    Ok(sums)
}

/// The passes of this rank's lanes.
fn own_passes(state: &ModelState, config: &Config, batch: &Batch, times: &mut PassTimes) -> Result<Vec<Pass>> {
    let group = &state.sharding.group;
    let rows = batch.rows() / config.train.lanes();
    let lanes = config.train.lanes() / group.ranks();
    let mut passes = Vec::new();
    for lane in 0..lanes {
        // At the start of a step and not at the end of the last one, whose gradient is logged after it.
        zero(&state.grad)?;
        let first = (group.rank() * lanes + lane) * rows;
        lane_passes(state, config, batch, first..first + rows, &mut passes)?;
        state.lanes.finish(lane, &state.grad)?;
    }
    // Read back only now, so that a GPU need not wait between micro-batches.
    passes.into_iter().map(|(output, length, targets)| finish(output, length, &targets, config, times)).collect()
}

/// How many sequences the passes of a step have: all of them as many, but for the last ones of lanes.
pub fn sizes_of_passes(config: &Config) -> Vec<usize> {
    let at_once = config.train.sequences_per_pass();
    let rest = config.train.sequences_per_step() / config.train.lanes() % at_once;
    [at_once, rest].into_iter().filter(|&size| size > 0).collect()
}

/// A pass of each size over `batch`, which has as many sequences as they have together. Their results are not read; what they add to the gradient
/// is cleared by the next step.
///
/// # Errors
/// Those of the device.
pub fn one_pass_of_each_size(state: &ModelState, config: &Config, batch: &Batch) -> Result<()> {
    lane_passes(state, config, batch, 0..batch.rows(), &mut Vec::new())
}

/// A micro-batch whose results may still be computed: its output, the length of its rows, its targets.
type Queued = (TrainOutput, usize, Vec<u32>);

/// Forward and backward over the rows `rows` of `batch`, a micro-batch at a time.
fn lane_passes(
    state: &ModelState,
    config: &Config,
    batch: &Batch,
    rows: std::ops::Range<usize>,
    passes: &mut Vec<Queued>,
) -> Result<()> {
    let scale = 1.0 / batch.trained() as f32;
    let observe = config.log.layers_due(state.run.step + 1);
    let at_once = config.train.sequences_per_pass();
    for first in rows.clone().step_by(at_once) {
        let part = batch.part(first, at_once.min(rows.end - first));
        let Batch { length, inputs, targets, starts } = part;
        let rows = inputs.len() / length;
        plant_faults(state, first / at_once, rows)?;
        let documents = starts.map(|starts| DocumentStarts::new(starts, length)).transpose()?;
        let noise = noise(config, state.run.step, (first * length) as u64);
        let inputs = Tensor::from_vec(inputs, (rows, length), &Device::Cpu)?;
        let wanted = Tensor::from_slice(&targets, rows * length, &Device::Cpu)?;
        let feed = TrainInput { documents: documents.as_ref(), noise: noise.as_ref(), observe };
        passes.push((state.model.loss_and_backward(&inputs, &wanted, feed, scale, &state.grads)?, length, targets));
    }
    Ok(())
}

fn finish(output: TrainOutput, length: usize, targets: &[u32], config: &Config, times: &mut PassTimes) -> Result<Pass> {
    let losses = to_host(&output.losses)?.to_vec1::<f32>()?;
    times.forward += output.times.forward;
    times.head += output.times.head;
    times.backward += output.times.backward;
    let sequences = losses.chunks(length).zip(targets.chunks(length)).filter(|_| config.log.sequences).map(mean);
    Ok(Pass {
        // In f64: a step may have hundreds of thousands of losses.
        nats: losses.iter().map(|&x| x as f64).sum(),
        sequences: sequences.map(Exact).collect(),
        observed: output.observed.map(Observed::from),
    })
}

/// Mean loss of the trained tokens of a row.
fn mean((losses, targets): (&[f32], &[u32])) -> f64 {
    let trained = targets.iter().filter(|&&target| target != IGNORE).count();
    losses.iter().map(|&x| f64::from(x)).sum::<f64>() / trained.max(1) as f64
}

/// Dropout and NEFTune noise of the step after `step`, from its token `first_token` on.
fn noise(config: &Config, step: u64, first_token: u64) -> Option<Noise> {
    let dropout = if config.lora.is_absent() { 0.0 } else { config.lora.dropout };
    let neftune = config.sft.neftune_alpha;
    let key = Noise::key(config.train.seed, step);
    (config.is_sft() && (dropout > 0.0 || neftune > 0.0)).then_some(Noise { key, dropout, neftune, first_token })
}

/// What a rank sends the others of its passes.
#[derive(Serialize, Deserialize)]
enum PassMessage {
    Passes(Vec<Pass>),
    /// Its device has no memory for them: all ranks try again with less at once.
    OutOfMemory(String),
}

/// [`ActivationStats`] as they travel.
#[derive(Serialize, Deserialize)]
struct Observed {
    attention_logit_max: Vec<Exact>,
    #[serde(with = "exact")]
    logit_squares: f64,
    #[serde(with = "exact")]
    logit_count: f64,
}

impl From<ActivationStats> for Observed {
    fn from(stats: ActivationStats) -> Self {
        let attention_logit_max = stats.attention_logit_max.iter().map(|&x| Exact(x.into())).collect();
        Self { attention_logit_max, logit_squares: stats.logit_squares, logit_count: stats.logit_count }
    }
}

impl From<Observed> for ActivationStats {
    fn from(observed: Observed) -> Self {
        let attention_logit_max = observed.attention_logit_max.iter().map(|max| max.0 as f32).collect();
        Self { attention_logit_max, logit_squares: observed.logit_squares, logit_count: observed.logit_count }
    }
}

/// The passes of all ranks, in their order.
pub(super) fn of_all_ranks(group: &ProcessGroup, own: Result<Vec<Pass>>) -> Result<Vec<Pass>> {
    if group.ranks() == 1 {
        return own;
    }
    let own = match own {
        Ok(passes) => PassMessage::Passes(passes),
        Err(error) if is_out_of_memory(&error) => PassMessage::OutOfMemory(format!("{error:#}")),
        Err(error) => return group.agree("the losses", Err(error)),
    };
    let mut passes = Vec::new();
    for (rank, sent) in group.gather("the losses", &own)?.into_iter().enumerate() {
        match sent {
            PassMessage::Passes(theirs) => passes.extend(theirs),
            PassMessage::OutOfMemory(what) => return Err(fail(Exit::Memory, format!("rank {rank}: {what}")).into()),
        }
    }
    Ok(passes)
}

/// In tests: one element of the gradient set before micro-batch `i`, a device too small for `rows` rows, a step that hangs.
fn plant_faults(state: &ModelState, i: usize, rows: usize) -> Result<()> {
    let number = state.run.step + 1;
    if let Some(value) = failpoint("gradient", 1000 * number + i as u64) {
        let value = Tensor::from_vec(vec![value as f32], 1, state.grad.device())?;
        state.grad.slice_set(&value, 0, state.model.trained().0.total / 2)?;
    }
    // From the second micro-batch on, where gradients have been accumulated already.
    let limit = failpoint("memory", number).filter(|_| i > 0).or_else(|| failpoint("memory-at-once", number));
    if limit.is_some_and(|most| rows as f64 > most) {
        return Err(fail(Exit::Memory, format!("out of memory with {rows} rows")).into());
    }
    if let Some(seconds) = failpoint("hang", number) {
        std::thread::sleep(std::time::Duration::from_secs_f64(seconds));
    }
    Ok(())
}

/// Whether `error` is a device out of memory, which a smaller micro-batch may cure.
pub fn is_out_of_memory(error: &anyhow::Error) -> bool {
    let ours = failure_in(error).is_some_and(|failure| failure.exit == Exit::Memory);
    // cudarc's errors have no type of their own for it by the time that candle has wrapped them.
    let texts: Vec<String> = error.chain().map(ToString::to_string).collect();
    ours || texts.iter().any(|text| text.contains("OUT_OF_MEMORY") || text.contains("out of memory"))
}
