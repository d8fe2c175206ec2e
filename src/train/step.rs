//! One optimizer step: forward and backward over the micro-batches of its sequences, the guard's verdict, then the update.

use super::guard::Verdict;
use super::model_state::ModelState;
use super::passes::forward_and_backward;
use super::trainer_state::TrainerState;
use crate::config::Config;
use crate::data::batch::Batch;
use crate::metrics::{Sequences, Times, Train};
use crate::model::{ActivationStats, PassTimes};
use crate::runtime::failpoint::failpoint;
use anyhow::Result;
use candle_core::Tensor;
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
    /// Time in which gradients and weights went from rank to rank.
    pub exchange: Duration,
}

impl StepReport {
    /// Whether the update was refused.
    pub fn refused(&self) -> bool {
        self.verdict.refuses()
    }

    /// Seconds of each part of step `step`, which took `total` in all, `data` seconds of it waiting for data;
    /// with more than one of `ranks`, exchange is a part of its own.
    pub fn times(&self, step: u64, data: f64, total: Duration, ranks: usize) -> Times {
        let PassTimes { forward, head, backward } = self.passes;
        let parts = [
            ("forward", forward),
            ("head", head),
            ("backward", backward),
            ("optimizer", self.optimizer),
            ("step", total),
        ];
        let seconds = parts.map(|(name, time)| (name.to_owned(), time.as_secs_f64()));
        let exchange = (ranks > 1).then(|| ("exchange".to_owned(), self.exchange.as_secs_f64()));
        let seconds = seconds.into_iter().chain([("data".to_owned(), data)]).chain(exchange);
        Times { step, seconds: seconds.collect() }
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
    let started = Instant::now();
    state.sharding.sum_gradients(&state.grad)?;
    let mut exchange = started.elapsed();
    let planted = failpoint("loss", number).or_else(|| failpoint("loss-of-sequence", state.run.next_sequence));
    let loss = planted.unwrap_or(sums.nats / trained as f64);
    // The rate follows the steps attempted, so a refused update does not delay the schedule.
    let lr = state.run.schedule.lr(state.run.step);
    let started = Instant::now();
    let grad_norm = state.sharding.global_norm(&state.grad)?;
    let uniform = (config.model.vocab_size as f64).ln();
    // Before the optimizer: a refused update leaves weights and moments untouched.
    let verdict = state.run.guard.check(&config.guard, number, loss, grad_norm, uniform);
    if !verdict.refuses() {
        let weights = state.model.trained().1;
        state.optimizer.update(weights, state.model.trained_copy(), &state.grad, grad_norm, lr)?;
    }
    let optimizer = started.elapsed();
    if !verdict.refuses() {
        let started = Instant::now();
        state.gather_weights()?;
        exchange += started.elapsed();
    }
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
        exchange,
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

/// In tests: one weight set after the update.
fn plant_weight(state: &mut ModelState, number: u64) -> Result<()> {
    if let Some(value) = failpoint("weight", number) {
        let weights = state.model.trained().1;
        weights.slice_set(&Tensor::from_vec(vec![value as f32], 1, weights.device())?, 0, 0)?;
        state.model.round_copies()?;
    }
    Ok(())
}
