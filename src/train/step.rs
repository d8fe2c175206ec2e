//! One optimizer step: forward and backward over the micro-batches of its sequences, then the update.

use super::state::State;
use crate::config::TrainConfig;
use crate::data::boundary::Boundary;
use crate::eval::segments;
use crate::ops::adamw::zero;
use anyhow::Result;
use candle_core::{Device, Tensor};

/// What a step reports.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Mean over the step's tokens, before the update.
    pub loss: f64,
    /// Global norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// Rate used.
    pub lr: f64,
    /// The update was refused because loss or norm is not finite.
    pub skipped: bool,
}

/// Trains on `sequences` (T + 1 tokens each, one after the other) and advances the counters.
///
/// Every gradient is that of the mean loss over ALL tokens of the step: each micro-batch is scaled by 1 / tokens, not averaged
/// by itself, so the result does not depend on the micro-batch size beyond rounding.
pub fn step(
    state: &mut State,
    config: &TrainConfig,
    sequences: &[u32],
    boundary: Option<Boundary>,
) -> Result<StepReport> {
    let (t, width) = (config.sequence_length, config.sequence_length + 1);
    let tokens = sequences.len() / width * t;
    zero(&state.grad)?;
    let mut nats = 0f64;
    for rows in sequences.chunks(config.micro_batch_size * width) {
        let n = rows.len() / width;
        let part =
            |from: usize| -> Vec<u32> { rows.chunks_exact(width).flat_map(|r| &r[from..from + t]).copied().collect() };
        let (inputs, targets) = (part(0), part(1));
        let segments = segments(&inputs, t, boundary)?;
        let inputs = Tensor::from_vec(inputs, (n, t), &Device::Cpu)?;
        let targets = Tensor::from_vec(targets, n * t, &Device::Cpu)?;
        let scale = 1.0 / tokens as f32;
        let losses = state.model.loss_and_backward(&inputs, &targets, segments.as_ref(), scale, &state.grads)?;
        nats += losses.to_vec1::<f32>()?.iter().map(|&x| x as f64).sum::<f64>();
    }
    let loss = nats / tokens as f64;
    let lr = state.schedule.lr(state.counters.step);
    let grad_norm = state.optimizer.update(&state.model.flat, &state.grad, loss, lr)?;
    let skipped = !loss.is_finite() || !grad_norm.is_finite();
    for row in sequences.chunks_exact(width) {
        state.chain.extend(row);
    }
    let counters = &mut state.counters;
    counters.step += 1;
    counters.tokens += tokens as u64;
    counters.next_sequence += (sequences.len() / width) as u64;
    counters.chain = state.chain.to_string();
    counters.updates = state.optimizer.updates;
    counters.skipped_in_a_row = if skipped { counters.skipped_in_a_row + 1 } else { 0 };
    Ok(StepReport { loss, grad_norm, lr, skipped })
}
