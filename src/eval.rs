//! Evaluation: the loss of a model on a fixed set of rows, and the benchmark tasks of the lm-evaluation-harness.
//!
//! | file | holds |
//! |---|---|
//! | `eval.rs` | loss in nats per token and bits per byte |
//! | `tasks.rs` | what the tasks are; `tasks/`: how a row becomes prompts |
//! | `dataset.rs`, `fewshot.rs` | rows and examples |
//! | `encode.rs`, `engine.rs` | prompts to tokens to log-likelihoods |
//! | `benchmark.rs`, `statistics.rs`, `report.rs` | log-likelihoods to metrics to results |
//! | `python.rs` | Python's random numbers and text |

pub mod benchmark;
pub mod dataset;
pub mod encode;
pub mod engine;
pub mod fewshot;
pub mod python;
pub mod report;
pub mod statistics;
pub mod tasks;

use crate::data::batch::{Batch, IGNORE};
use crate::data::eval_set::EvalSet;
use crate::distributed::group::ProcessGroup;
use crate::model::Llama;
use crate::ops::cross_entropy;
use crate::ops::positions::DocumentStarts;
use crate::ops::transfer::to_host;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::f64::consts::LN_2;

// The data layer marks unscored positions without knowing the op that skips them.
const _: () = assert!(IGNORE == cross_entropy::IGNORE);

/// The loss on a set of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Mean over the targets, in nats.
    pub loss: f64,
    pub tokens: u64,
    /// UTF-8 bytes behind the targets; none where the tokenizer cannot tell.
    pub bytes: Option<u64>,
}

impl Score {
    /// The whole loss over the text's bytes, in bits; NaN where the bytes are unknown.
    pub fn bits_per_byte(&self) -> f64 {
        self.bytes.map_or(f64::NAN, |bytes| self.loss * self.tokens as f64 / LN_2 / bytes as f64)
    }
}

/// UTF-8 bytes of each token of a byte-level tokenizer (0 for special tokens), to count the bytes behind any tokens.
#[derive(Clone, Debug)]
pub struct ByteLengths(Option<Vec<u32>>);

impl ByteLengths {
    /// The table of `tokenizer`; empty if its tokens are no bytes.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let lengths: Vec<u32> = (0..tokenizer.vocab_size() as u32)
            .map(|id| tokenizer.token_bytes(id).map_or(0, |b| b.len() as u32))
            .collect();
        Self(lengths.iter().any(|&n| n > 0).then_some(lengths))
    }

    /// Whether the bytes of a token are known at all.
    pub fn are_known(&self) -> bool {
        self.0.is_some()
    }

    fn count(&self, targets: &[u32]) -> Option<u64> {
        let table = self.0.as_ref()?;
        Some(targets.iter().map(|&id| table.get(id as usize).copied().unwrap_or(0) as u64).sum())
    }
}

/// The sum of the losses of `batch`, in nats.
///
/// # Errors
/// Those of the model's ops.
pub fn total_loss(model: &Llama, batch: Batch) -> Result<f64> {
    let Batch { length, inputs, targets, starts } = batch;
    let documents = starts.map(|starts| DocumentStarts::new(starts, length)).transpose()?;
    let n = inputs.len();
    let inputs = Tensor::from_vec(inputs, (n / length, length), &Device::Cpu)?;
    let losses = model.losses(&inputs, &Tensor::from_vec(targets, n, &Device::Cpu)?, documents.as_ref())?;
    Ok(to_host(&losses)?.to_vec1::<f32>()?.iter().map(|&x| f64::from(x)).sum())
}

/// The losses of one batch.
#[derive(Serialize, Deserialize)]
struct BatchLoss {
    #[serde(with = "crate::distributed::exact")]
    nats: f64,
    tokens: u64,
    bytes: Option<u64>,
}

impl BatchLoss {
    /// Of the `count` rows from `first` on.
    fn new(model: &Llama, rows: &EvalSet, lengths: &ByteLengths, first: usize, count: usize) -> Result<Self> {
        let (inputs, targets) = rows.read(first, count)?;
        let tokens = targets.iter().filter(|&&t| t != IGNORE).count() as u64;
        let bytes = lengths.count(&targets);
        let starts = rows.starts(first, count, &inputs);
        let nats = total_loss(model, Batch { length: rows.length(), inputs, targets, starts })?;
        Ok(Self { nats, tokens, bytes })
    }
}

/// Scores all `rows`, `batch` at a time; the result does not depend on `batch` beyond rounding, and not at all on the number of ranks,
/// among which the batches are dealt out. `done` hears the rows so far, those of all ranks as far as this one can tell, and can end
/// the scoring on all of them.
///
/// # Errors
/// Those of reading the rows, of the model's ops and of `done`.
pub fn score(
    group: &ProcessGroup,
    model: &Llama,
    rows: &EvalSet,
    lengths: &ByteLengths,
    batch: usize,
    mut done: impl FnMut(usize) -> Result<()>,
) -> Result<Score> {
    let batch = batch.max(1);
    let batches = rows.len().div_ceil(batch);
    let losses = group.deal("losses", batches, |i| {
        let first = i * batch;
        let loss = BatchLoss::new(model, rows, lengths, first, batch.min(rows.len() - first))?;
        done(rows.len().min(group.dealt(i, batches) * batch))?;
        Ok(loss)
    })?;
    let mut nats = 0f64;
    let mut tokens = 0u64;
    let mut bytes = Some(0u64);
    for loss in losses {
        nats += loss.nats;
        tokens += loss.tokens;
        bytes = bytes.zip(loss.bytes).map(|(a, b)| a + b);
    }
    Ok(Score { loss: nats / tokens as f64, tokens, bytes: rows.text_bytes.or(bytes) })
}

#[cfg(test)]
mod tests;
