//! The certificate of an export: the files are opened as any user's model is, and compute, bit for bit, the logits of the model that they
//! were written from, rounded to their number format. What that rounding changes is measured on the way.
//!
//! Weights are read a layer at a time, from both sides: the check takes no more memory than the export.

use std::collections::VecDeque;
use std::fmt;

use anyhow::Result;

use super::weight;
use crate::checkpoint::dtype::Dtype;
use crate::checkpoint::open::Opened;
use crate::checkpoint::{hf, names};
use crate::config::ModelConfig;
use crate::model::lora;
use crate::model::streamed::streamed_logits;
use crate::ops::transfer::to_host;
use crate::runtime::error::{Exit, Failure, fail};
use crate::tokenizer::Tokenizer;

/// What the logits are computed of, where the model has a tokenizer: words, names, numbers, punctuation.
const TEXT: &str = "The lighthouse keeper counted the ships that passed before dawn, wrote their names into a ledger and slept until \
    noon. In November 1907 a storm broke the lamp; for three nights (the 12th, 13th and 14th) he burned oil in an iron bucket. \"Nobody \
    ran aground,\" he told his daughter Ines, \"and that is all the proof I have.\" She asked what 7 x 8 was. He said 56, and lit the lamp.";

/// The most tokens of it.
const TOKENS: usize = 128;

/// Between the ids of a model without a tokenizer. A prime, so that they are spread over any vocabulary.
const STRIDE: usize = 7919;

/// The most that logits of merged weights may be away from those of the model beside its adapters, as a share of the largest logit. The
/// two round differently; a wrong merge is away by far more.
const MERGE_TOLERANCE: f64 = 1e-3;

/// Logits (t, v).
type Logits = Vec<Vec<f32>>;

/// What was found when an export was read back. Only files that agree with their model have one.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub dtype: Dtype,
    /// Tokens whose logits were compared.
    pub tokens: usize,
    /// Whether the weights are those of a model with adapters merged into them.
    pub merged: bool,
    /// The largest absolute difference of a logit from that of the f32 weights, adapters beside them.
    pub largest_difference: f64,
    /// Mean over the tokens of KL(p of the f32 weights ‖ p of the files), in nats.
    pub divergence: f64,
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = self.dtype.torch_name();
        write!(f, "read back: {} tokens have the logits of the model in {dtype} bit for bit", self.tokens)?;
        let exact = match self.merged {
            true => "the model beside its adapters",
            false if self.dtype == Dtype::F32 => return Ok(()),
            false => "the f32 weights",
        };
        let (logit, divergence) = (self.largest_difference, self.divergence);
        write!(f, "; from {exact} a logit differs by at most {logit:.2e}, KL divergence {divergence:.2e} nats a token")
    }
}

/// Compares the model that `written` holds with `source`, of which it is an export in `dtype` and in the shape `model`.
///
/// # Errors
/// [`Exit::Io`] if a tensor or the configuration reads back as another, [`Exit::Internal`] if logits differ without that; those of reading.
pub(super) fn certify(source: &Opened, model: &ModelConfig, written: &Opened, dtype: Dtype) -> Result<Certificate> {
    // As files say it: a shape has keys that mean nothing beside others, and a file does not keep them.
    let in_a_file = |model: &ModelConfig| hf::config_json(model, None, &[], dtype);
    if in_a_file(&written.model) != in_a_file(model) {
        return Err(not_what_was_written(names::CONFIG).into());
    }
    let ids = token_ids(source, model);
    // A hash for each tensor, in the order of a pass: it finds a changed weight that moves no logit of these few tokens.
    let mut hashes = VecDeque::new();
    let expected = logits(streamed_logits(model, None, &ids, &mut |name, shape| {
        let mut values = weight(source, name, shape)?;
        dtype.round(&mut values);
        hashes.push_back(hash(&values));
        Ok(values)
    })?)?;
    let found = logits(streamed_logits(&written.model, None, &ids, &mut |name, _| {
        let (_, values) = written.weight(name)?;
        if hashes.pop_front() != Some(hash(&values)) {
            return Err(not_what_was_written(name).into());
        }
        Ok(values)
    })?)?;
    if !same_bits(&expected, &found) {
        let message = "the exported files do not compute the logits of the model, though their weights are its own";
        return Err(fail(Exit::Internal, message).into());
    }
    let exact = exact_logits(source, model, &ids, dtype, expected)?;
    Ok(Certificate {
        dtype,
        tokens: ids.len(),
        merged: source.adapter().is_some(),
        largest_difference: largest_difference(&exact, &found),
        divergence: divergence(&exact, &found),
    })
}

fn not_what_was_written(what: &str) -> Failure {
    fail(Exit::Io, format!("{what} of the export, read back, is not what was written")).hint(
        "nothing was left behind; the disk or the memory of this machine may be bad: look at `dmesg`, then export to another disk",
    )
}

/// The text, through the model's own tokenizer; other ids where that cannot be had. At least one.
fn token_ids(source: &Opened, model: &ModelConfig) -> Vec<u32> {
    let tokens = TOKENS.min(model.max_position_embeddings);
    // A model is exported with a tokenizer that this program cannot read, or with none.
    let mut ids = Tokenizer::from_dir(source.tokenizer_dir()).and_then(|t| t.encode(TEXT)).unwrap_or_default();
    ids.retain(|&id| (id as usize) < model.vocab_size);
    if ids.is_empty() {
        ids = (0..tokens).map(|i| (i * STRIDE % model.vocab_size) as u32).collect();
    }
    ids.truncate(tokens);
    ids
}

/// The logits of the f32 weights of `source`, for adapters of the model beside them. `rounded` has those of the weights in `dtype`.
fn exact_logits(source: &Opened, model: &ModelConfig, ids: &[u32], dtype: Dtype, rounded: Logits) -> Result<Logits> {
    let in_f32 = match dtype {
        Dtype::F32 => rounded,
        _ => logits(streamed_logits(model, None, ids, &mut |name, shape| weight(source, name, shape))?)?,
    };
    let (Some(adapter), Some(base)) = (source.adapter(), source.base()) else { return Ok(in_f32) };
    let beside = streamed_logits(model, Some(&adapter.config), ids, &mut |name, shape| {
        if name.starts_with(lora::PREFIX) { adapter.matrix(name) } else { weight(base, name, shape) }
    })?;
    let beside = logits(beside)?;
    let largest = beside.iter().flatten().fold(0.0, |most, x| f64::from(x.abs()).max(most));
    let away = largest_difference(&beside, &in_f32);
    if away > MERGE_TOLERANCE * largest {
        let message =
            format!("the merged weights move a logit by {away:.2e}: they do not compute what the adapters do");
        return Err(fail(Exit::Internal, message).into());
    }
    Ok(beside)
}

fn logits(tensor: candle_core::Tensor) -> Result<Logits> {
    Ok(to_host(&tensor)?.to_vec2()?)
}

fn hash(values: &[f32]) -> blake3::Hash {
    blake3::hash(bytemuck::cast_slice(values))
}

fn same_bits(a: &Logits, b: &Logits) -> bool {
    let bits = |logits: &Logits| -> Vec<u32> { logits.iter().flatten().map(|x| x.to_bits()).collect() };
    bits(a) == bits(b)
}

fn largest_difference(a: &Logits, b: &Logits) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.fold(0.0, |most, (a, b)| (f64::from(*a) - f64::from(*b)).abs().max(most))
}

/// Mean of KL(p ‖ q) over the rows, in nats.
fn divergence(p: &Logits, q: &Logits) -> f64 {
    let rows = p.iter().zip(q).map(|(p, q)| {
        let (p, q) = (log_probabilities(p), log_probabilities(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    // Rounding can leave a sum just below zero.
    (rows.sum::<f64>() / p.len() as f64).max(0.0)
}

fn log_probabilities(row: &[f32]) -> Vec<f64> {
    let most = row.iter().fold(f64::NEG_INFINITY, |most, &x| most.max(f64::from(x)));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - most).exp()).sum();
    row.iter().map(|&x| f64::from(x) - most - sum.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divergence_is_that_of_the_probabilities() {
        let p = vec![vec![0.0, 3f32.ln()], vec![5.0, 5.0]];
        let q = vec![vec![0.0, 0.0], vec![-1.0, -1.0]];
        // Once 1/4 and 3/4 against halves, once the same.
        let expected = (0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln()) / 2.0;
        assert!((divergence(&p, &q) - expected).abs() < 1e-7, "{}", divergence(&p, &q));
        assert_eq!((divergence(&p, &p), largest_difference(&p, &q)), (0.0, 6.0));
        assert!(
            same_bits(&vec![vec![f32::NAN]], &vec![vec![f32::NAN]]) && !same_bits(&vec![vec![0.0]], &vec![vec![-0.0]])
        );
    }
}
