//! One optimizer step: forward and backward over the micro-batches of its sequences, the guard's verdict, then the update.

use super::guard::Verdict;
use super::model_state::ModelState;
use super::trainer_state::TrainerState;
use crate::config::Config;
use crate::data::batch::{Batch, IGNORE};
use crate::metrics::{Sequences, Times, Train};
use crate::model::noise::Noise;
use crate::model::{ActivationStats, PassTimes, TrainInput, TrainOutput};
use crate::ops::adamw::{global_norm, zero};
use crate::ops::positions::DocumentStarts;
use crate::runtime::error::{Exit, fail, failure_in};
use crate::runtime::failpoint::failpoint;
use anyhow::Result;
use candle_core::{Device, Tensor};
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub struct StepReport {
    /// Mean over the step's tokens, before the update.
    pub loss: f64,
    /// Global norm of the gradient, before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// What the guard has decided.
    pub verdict: Verdict,
    /// Number of trained tokens, where that is not all of them.
    pub trained: Option<u64>,
    /// Statistics of activations, if `log.layers_every` asks for it.
    pub observed: Option<ActivationStats>,
    /// The loss of every sequence, if `log.sequences` asks for it.
    pub sequences: Option<Sequences>,
    /// Time of the forward and backward passes.
    pub passes: PassTimes,
    /// Time of the gradient norm and the update.
    pub optimizer: Duration,
}

impl StepReport {
    /// Whether the update was refused.
    pub fn refused(&self) -> bool {
        self.verdict.refuses()
    }

    /// Seconds of each part of step `step`, which took `total` in all, `data` seconds of it waiting for data.
    pub fn times(&self, step: u64, data: f64, total: Duration) -> Times {
        let PassTimes { forward, head, backward } = self.passes;
        let parts = [
            ("forward", forward),
            ("head", head),
            ("backward", backward),
            ("optimizer", self.optimizer),
            ("step", total),
        ];
        let seconds = parts.map(|(name, time)| (name.to_owned(), time.as_secs_f64()));
        Times { step, seconds: seconds.into_iter().chain([("data".to_owned(), data)]).collect() }
    }

    /// The log record of the step that led to `state`, without times and speeds.
    pub fn record(&self, state: &TrainerState) -> Train {
        Train {
            step: state.step,
            loss: if self.refused() { f64::NAN } else { self.loss },
            grad_norm: self.grad_norm,
            lr: self.lr,
            tokens: state.tokens,
            trained_tokens: self.trained,
            tokens_per_second: f64::NAN,
            mfu: f64::NAN,
            data_seconds: f64::NAN,
            chain: state.data_hash.to_string(),
            skipped: self.refused(),
            hardware: Vec::new(),
            reset: Vec::new(),
        }
    }
}

/// Trains on `batch` and advances the trainer's state.
///
/// Every gradient is that of the mean loss over ALL trained tokens of the step: each micro-batch is scaled by 1 / tokens, not averaged
/// by itself, so the result does not depend on the micro-batch size beyond rounding.
///
/// # Errors
/// Those of the device. If a pass or the norm fails, the state is what it was but for the gradient, which the next step clears.
pub fn take_step(state: &mut ModelState, config: &Config, batch: &Batch) -> Result<StepReport> {
    let number = state.run.step + 1;
    let trained = batch.trained();
    let sums = forward_and_backward(state, config, batch)?;
    let planted = failpoint("loss", number).or_else(|| failpoint("loss-of-sequence", state.run.next_sequence));
    let loss = planted.unwrap_or(sums.nats / trained as f64);
    // The rate follows the steps attempted, so a refused update does not delay the schedule.
    let lr = state.run.schedule.lr(state.run.step);
    let started = Instant::now();
    let grad_norm = global_norm(&state.grad)?;
    let uniform = (config.model.vocab_size as f64).ln();
    // Before the optimizer: a refused update leaves weights and moments untouched.
    let verdict = state.run.guard.check(&config.guard, number, loss, grad_norm, uniform);
    if !verdict.refuses() {
        let weights = state.model.trained().1;
        state.optimizer.update(weights, state.model.trained_copy(), &state.grad, grad_norm, lr)?;
    }
    let optimizer = started.elapsed();
    plant_weight(state, number)?;
    // Before `advance` moves it.
    let first = state.run.next_sequence;
    // Refused or not, the batch is used up: taken again it would be refused again.
    advance(state, batch);
    Ok(StepReport {
        loss,
        grad_norm,
        lr,
        verdict,
        trained: config.is_sft().then_some(trained as u64),
        observed: sums.observed,
        sequences: sums.sequences.map(|losses| Sequences { step: number, first, losses }),
        passes: sums.times,
        optimizer,
    })
}

/// Counts the step and the data of `batch`.
fn advance(state: &mut ModelState, batch: &Batch) {
    let run = &mut state.run;
    for row in 0..batch.rows() {
        run.data_hash.extend(&batch.identity(row));
    }
    run.step += 1;
    run.tokens += batch.inputs.len() as u64;
    run.next_sequence += batch.rows() as u64;
    run.updates = state.optimizer.updates;
}

/// What the passes of a step add up to.
#[derive(Default)]
struct PassSums {
    nats: f64,
    sequences: Option<Vec<f64>>,
    observed: Option<ActivationStats>,
    times: PassTimes,
}

impl PassSums {
    fn add(&mut self, pass: TrainOutput, length: usize, targets: &[u32]) -> Result<()> {
        let losses = pass.losses.to_vec1::<f32>()?;
        // In f64: a step may have hundreds of thousands of losses.
        self.nats += losses.iter().map(|&x| x as f64).sum::<f64>();
        if let Some(sequences) = &mut self.sequences {
            sequences.extend(losses.chunks(length).zip(targets.chunks(length)).map(mean));
        }
        self.observed = match (self.observed.take(), pass.observed) {
            (Some(a), Some(b)) => Some(a.merged(b)),
            (a, b) => a.or(b),
        };
        self.times.forward += pass.times.forward;
        self.times.head += pass.times.head;
        self.times.backward += pass.times.backward;
        Ok(())
    }
}

/// Mean loss of the trained tokens of a row.
fn mean((losses, targets): (&[f32], &[u32])) -> f64 {
    let trained = targets.iter().filter(|&&target| target != IGNORE).count();
    losses.iter().map(|&x| f64::from(x)).sum::<f64>() / trained.max(1) as f64
}

/// Leaves the gradient of the mean loss in `state.grad`.
fn forward_and_backward(state: &ModelState, config: &Config, batch: &Batch) -> Result<PassSums> {
    let scale = 1.0 / batch.trained() as f32;
    // At the start of a step and not at the end of the last one, whose gradient is logged after it.
    zero(&state.grad)?;
    let mut passes = Vec::new();
    let mut sums = PassSums { sequences: config.log.sequences.then(Vec::new), ..PassSums::default() };
    let observe = config.log.layers_due(state.run.step + 1);
    for (i, first) in (0..batch.rows()).step_by(config.train.micro_batch_size).enumerate() {
        let Batch { length, inputs, targets, starts } = batch.part(first, config.train.micro_batch_size);
        let rows = inputs.len() / length;
        plant_faults(state, i, rows)?;
        let documents = starts.map(|starts| DocumentStarts::new(starts, length)).transpose()?;
        let noise = noise(config, state.run.step, (first * length) as u64);
        let inputs = Tensor::from_vec(inputs, (rows, length), &Device::Cpu)?;
        let wanted = Tensor::from_slice(&targets, rows * length, &Device::Cpu)?;
        let feed = TrainInput { documents: documents.as_ref(), noise: noise.as_ref(), observe };
        passes.push((state.model.loss_and_backward(&inputs, &wanted, feed, scale, &state.grads)?, length, targets));
    }
    // Read back only now, so that a GPU need not wait between micro-batches.
    for (pass, length, targets) in passes {
        sums.add(pass, length, &targets)?;
    }
    Ok(sums)
}

/// Dropout and NEFTune noise of the step after `step`, from its token `first_token` on.
fn noise(config: &Config, step: u64, first_token: u64) -> Option<Noise> {
    let dropout = if config.lora.is_absent() { 0.0 } else { config.lora.dropout };
    let neftune = config.sft.neftune_alpha;
    let key = Noise::key(config.train.seed, step);
    (config.is_sft() && (dropout > 0.0 || neftune > 0.0)).then_some(Noise { key, dropout, neftune, first_token })
}

/// In tests: one weight set after the update.
fn plant_weight(state: &mut ModelState, number: u64) -> Result<()> {
    if let Some(value) = failpoint("weight", number) {
        let weights = state.model.trained().1;
        weights.slice_set(&Tensor::from_vec(vec![value as f32], 1, weights.device())?, 0, 0)?;
        state.model.round_copies()?;
    }
    Ok(())
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
