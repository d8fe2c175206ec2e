//! One optimizer step: forward and backward over the micro-batches of its sequences, the guard's verdict, then the update.

use super::guard::Verdict;
use super::state::{Counters, State};
use crate::config::Config;
use crate::data::batch::Batch;
use crate::data::batch::IGNORE;
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

/// What a step reports.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Mean over the step's tokens, before the update.
    pub loss: f64,
    /// Global norm of the gradient, before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// What the guard thought of it.
    pub verdict: Verdict,
    /// Number of trained tokens, where that is not all of them.
    pub trained: Option<u64>,
    /// What was seen on the way, if `log.layers_every` asks for it.
    pub observed: Option<ActivationStats>,
    /// Of every sequence, if `log.sequences` asks for it.
    pub sequences: Option<Sequences>,
    /// Of the forward and backward passes.
    pub passes: PassTimes,
    /// Of gradient norm and update.
    pub optimizer: Duration,
}

impl StepReport {
    /// Whether the update was refused.
    pub fn skipped(&self) -> bool {
        self.verdict.refuses()
    }

    /// What the clock says of the parts of step `step`, all of which took `total` after `data` seconds of waiting.
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

    /// As the step that led to `counters` is logged; what a clock says of it is unknown here.
    pub fn record(&self, counters: &Counters) -> Train {
        Train {
            step: counters.step,
            loss: if self.skipped() { f64::NAN } else { self.loss },
            grad_norm: self.grad_norm,
            lr: self.lr,
            tokens: counters.tokens,
            trained_tokens: self.trained,
            tokens_per_second: f64::NAN,
            mfu: f64::NAN,
            data_seconds: f64::NAN,
            chain: counters.chain.clone(),
            skipped: self.skipped(),
            hardware: Vec::new(),
            reset: Vec::new(),
        }
    }
}

/// Trains on `batch` and advances the counters.
///
/// Every gradient is that of the mean loss over ALL trained tokens of the step: each micro-batch is scaled by 1 / tokens, not averaged
/// by itself, so the result does not depend on the micro-batch size beyond rounding.
///
/// # Errors
/// Those of the device. The state is then what it was: only the gradient, which the next step clears, has been touched.
pub fn step(state: &mut State, config: &Config, batch: &Batch) -> Result<StepReport> {
    let (attempt, trained) = (state.counters.step + 1, batch.trained());
    let passed = forward_and_backward(state, config, batch)?;
    let mut loss = passed.nats / trained as f64;
    let of_data = failpoint("loss-of-sequence", state.counters.next_sequence);
    if let Some(planted) = failpoint("loss", attempt).or(of_data) {
        loss = planted;
    }
    let lr = state.schedule.lr(state.counters.step);
    let begun = Instant::now();
    let grad_norm = global_norm(&state.grad)?;
    let uniform = (config.model.vocab_size as f64).ln();
    let verdict = state.guard.judge(&config.guard, attempt, loss, grad_norm, uniform);
    if !verdict.refuses() {
        let (weights, copy) = (state.model.trained().1, state.model.copy());
        state.optimizer.update(weights, copy, &state.grad, grad_norm, lr)?;
    }
    let optimizer = begun.elapsed();
    if let Some(planted) = failpoint("weight", attempt) {
        let weights = state.model.trained().1;
        weights.slice_set(&Tensor::from_vec(vec![planted as f32], 1, weights.device())?, 0, 0)?;
        state.model.refresh()?;
    }
    for row in 0..batch.rows() {
        state.chain.extend(&batch.identity(row));
    }
    let counters = &mut state.counters;
    let (first, losses) = (counters.next_sequence, passed.sequences);
    let sequences = losses.map(|losses| Sequences { step: attempt, first, losses });
    counters.step += 1;
    counters.tokens += batch.inputs.len() as u64;
    counters.next_sequence += batch.rows() as u64;
    counters.chain = state.chain.to_string();
    counters.updates = state.optimizer.updates;
    let trained = config.is_sft().then_some(trained as u64);
    let (observed, passes) = (passed.observed, passed.times);
    Ok(StepReport { loss, grad_norm, lr, verdict, trained, observed, sequences, passes, optimizer })
}

/// All passes of a step.
#[derive(Default)]
struct Passed {
    nats: f64,
    sequences: Option<Vec<f64>>,
    observed: Option<ActivationStats>,
    times: PassTimes,
}

impl Passed {
    fn add(&mut self, pass: TrainOutput, length: usize, targets: &[u32]) -> Result<()> {
        let losses = pass.losses.to_vec1::<f32>()?;
        self.nats += losses.iter().map(|&x| x as f64).sum::<f64>();
        if let Some(sequences) = &mut self.sequences {
            sequences.extend(losses.chunks(length).zip(targets.chunks(length)).map(mean));
        }
        self.observed = match (self.observed.take(), pass.observed) {
            (Some(a), Some(b)) => Some(a.and(b)),
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
fn forward_and_backward(state: &State, config: &Config, batch: &Batch) -> Result<Passed> {
    let scale = 1.0 / batch.trained() as f32;
    zero(&state.grad)?;
    let mut passes = Vec::new();
    let mut passed = Passed { sequences: config.log.sequences.then(Vec::new), ..Passed::default() };
    let observe = config.log.layers_due(state.counters.step + 1);
    for (i, first) in (0..batch.rows()).step_by(config.train.micro_batch_size).enumerate() {
        let Batch { length, inputs, targets, starts } = batch.part(first, config.train.micro_batch_size);
        let rows = inputs.len() / length;
        plant_faults(state, i, rows)?;
        let documents = starts.map(|starts| DocumentStarts::new(starts, length)).transpose()?;
        let noise = noise(config, state.counters.step, (first * length) as u64);
        let inputs = Tensor::from_vec(inputs, (rows, length), &Device::Cpu)?;
        let wanted = Tensor::from_slice(&targets, rows * length, &Device::Cpu)?;
        let feed = TrainInput { documents: documents.as_ref(), noise: noise.as_ref(), observe };
        passes.push((state.model.loss_and_backward(&inputs, &wanted, feed, scale, &state.grads)?, length, targets));
    }
    // Looked at only now: a device that works on its own need not wait between micro-batches.
    for (pass, length, targets) in passes {
        passed.add(pass, length, &targets)?;
    }
    Ok(passed)
}

/// What is random about the step after `step`, from its token `first_token` on.
fn noise(config: &Config, step: u64, first_token: u64) -> Option<Noise> {
    let dropout = if config.lora.is_absent() { 0.0 } else { config.lora.dropout };
    let neftune = config.sft.neftune_alpha;
    let key = Noise::key(config.train.seed, step);
    (config.is_sft() && (dropout > 0.0 || neftune > 0.0)).then_some(Noise { key, dropout, neftune, first_token })
}

/// In tests: one element of the gradient set before micro-batch `i`, a device too small for `rows` rows, a step that hangs.
fn plant_faults(state: &State, i: usize, rows: usize) -> Result<()> {
    let attempt = state.counters.step + 1;
    if let Some(value) = failpoint("gradient", 1000 * attempt + i as u64) {
        let value = Tensor::from_vec(vec![value as f32], 1, state.grad.device())?;
        state.grad.slice_set(&value, 0, state.model.trained().0.total / 2)?;
    }
    // From the second micro-batch on, where gradients have been accumulated already.
    let limit = failpoint("memory", attempt).filter(|_| i > 0).or_else(|| failpoint("memory-at-once", attempt));
    if limit.is_some_and(|most| rows as f64 > most) {
        return Err(fail(Exit::Memory, format!("out of memory with {rows} rows")).into());
    }
    if let Some(seconds) = failpoint("hang", attempt) {
        std::thread::sleep(std::time::Duration::from_secs_f64(seconds));
    }
    Ok(())
}

/// Whether `error` is a device out of memory, which a smaller micro-batch may cure.
pub fn is_out_of_memory(error: &anyhow::Error) -> bool {
    // cudarc's errors have no type of their own for it by the time that candle has wrapped them.
    let cuda = |text: String| text.contains("OUT_OF_MEMORY") || text.contains("out of memory");
    failure_in(error).is_some_and(|f| f.exit == Exit::Memory) || error.chain().any(|e| cuda(e.to_string()))
}
