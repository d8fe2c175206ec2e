//! Generation: prompt in, text out token by token, over a preallocated cache of keys and values.
//!
//! Context rule: the model's context length (`max_position_embeddings`, longer with scaled RoPE) bounds prompt and continuation together. A prompt that is too long keeps
//! its end; generation stops with `length` when the context is full.

pub mod sampler;
mod stops;

use crate::model::Llama;
use crate::model::kv_cache::KvCache;
use crate::ops::transfer::to_host;
use crate::runtime::error::{Exit, fail};
use crate::tokenizer::{DecodeStream, Tokenizer};
use anyhow::Result;
use candle_core::{Device, Tensor};
use sampler::{Sampler, TokenLogprobs};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use stops::Stops;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model wrote its end of text, or a stop string.
    Stop,
    /// As many tokens as asked for, or the context is full.
    Length,
}

/// When a continuation ends, and what to record of it.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Most tokens of a continuation.
    pub max_tokens: usize,
    /// Texts at which a continuation ends; they are not part of it.
    pub stop: Vec<String>,
    /// For every token, this many of the most likely tokens with their log-probabilities.
    pub logprobs: Option<usize>,
    /// Ends the call with [`Interrupted`] soon after it becomes true, whatever is being computed.
    pub interrupt: Option<Arc<AtomicBool>>,
}

/// Generation was ended from outside ([`Limits::interrupt`]).
#[derive(Debug, PartialEq, Eq)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Limits {
    fn check(&self) -> Result<(), Interrupted> {
        let asked = self.interrupt.as_ref().is_some_and(|flag| flag.load(Ordering::SeqCst));
        if asked { Err(Interrupted) } else { Ok(()) }
    }
}

#[derive(Clone, Debug)]
pub struct Generated {
    /// Its tokens without the end of text, but with those in which a stop string was found.
    pub token_ids: Vec<u32>,
    pub text: String,
    pub finish_reason: FinishReason,
    /// Log-probabilities of every token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// From the call to the first token.
    pub first_token: Duration,
    /// From the first token to the last.
    pub decoding: Duration,
}

/// The ids of a prompt; of an empty one, the beginning (or else the end) of text alone.
///
/// # Errors
/// Those of encoding; [`Exit::Config`] if the prompt is empty and the tokenizer has no such token.
pub fn encode_prompt(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>> {
    let ids = tokenizer.encode(prompt)?;
    if !ids.is_empty() {
        return Ok(ids);
    }
    let start = tokenizer.bos_id().or(tokenizer.eos_id());
    start.map(|id| vec![id]).ok_or_else(|| {
        fail(Exit::Config, "an empty prompt, and the tokenizer has no beginning or end of text")
            .hint("give a --prompt")
            .into()
    })
}

/// Samples that are generated together share each pass over the weights. Up to this many, each is exactly what it would be alone.
pub const TOGETHER: usize = 7;

/// How long a piece of a prompt that can be interrupted may take.
const PIECE_TIME: Duration = Duration::from_millis(200);

/// Tokens of its first piece, and of the largest.
const FIRST_PIECE: usize = 16;
const LARGEST_PIECE: usize = 1024;

struct Draft<'s> {
    sampler: &'s mut Sampler,
    history: Vec<u32>,
    stream: DecodeStream,
    stops: Stops,
    text: String,
    logprobs: Vec<TokenLogprobs>,
    finished: Option<FinishReason>,
    first_token: Duration,
    decoding: Duration,
}

/// Continues `prompt` once for each of `samplers`; `on_text` gets each piece of finished text, never a broken character or a part of a
/// stop string, with the number of its sampler.
///
/// # Errors
/// Those of the model's ops, of the samplers and of `on_text`.
pub fn generate(
    model: &Llama,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    samplers: &mut [Sampler],
    limits: &Limits,
    mut on_text: impl FnMut(usize, &str) -> Result<()>,
) -> Result<Vec<Generated>> {
    let started = Instant::now();
    let context = model.config.context_length();
    // The end of it, which the text continues.
    let prompt = &prompt[prompt.len().saturating_sub(context)..];
    // The last token of the continuation is never fed back.
    let room = limits.max_tokens.min(context - prompt.len() + 1);
    let mut drafts: Vec<Draft> = Vec::with_capacity(samplers.len());
    drafts.extend(samplers.iter_mut().map(|sampler| Draft {
        sampler,
        history: prompt.to_vec(),
        stream: tokenizer.decode_stream(prompt, true),
        stops: Stops::new(&limits.stop),
        text: String::new(),
        logprobs: Vec::new(),
        finished: (room == 0).then_some(FinishReason::Length),
        first_token: Duration::ZERO,
        decoding: Duration::ZERO,
    }));
    let width = drafts.len();
    let capacity = (prompt.len() + room).min(context);
    let mut cache = model.cache(1, capacity)?;
    let mut feed = prompt.to_vec();
    for made in 0..room {
        limits.check()?;
        let rows = if made == 0 { 1 } else { width };
        if made == 0 {
            feed = feed.split_off(prefill(model, &feed, &mut cache, limits)?);
        }
        let inputs = Tensor::from_vec(feed.clone(), (rows, feed.len() / rows), &Device::Cpu)?;
        let mut logits = to_host(&model.next_logits(&inputs, &mut cache)?)?.to_vec2::<f32>()?;
        // The prompt was computed once; from here on each sample goes its own way.
        if rows < width {
            cache = cache.repeated(width)?;
            logits = vec![logits.swap_remove(0); width];
        }
        let open = drafts.iter_mut().zip(&mut logits).enumerate().filter(|(_, (draft, _))| draft.finished.is_none());
        for (i, (draft, logits)) in open {
            draft.extend(logits, tokenizer, limits, started, |piece| on_text(i, piece))?;
        }
        if drafts.iter().all(|draft| draft.finished.is_some()) {
            break;
        }
        // Finished rows are fed on, and their logits are ignored: the batch keeps its shape.
        feed = drafts.iter().map(|draft| draft.history.last().copied().unwrap_or(0)).collect();
    }
    drafts.into_iter().enumerate().map(|(i, draft)| draft.finish(prompt.len(), |piece| on_text(i, piece))).collect()
}

/// Feeds the beginning of `prompt` in pieces that take about [`PIECE_TIME`] each, between which an interrupt ends the call;
/// returns where the last piece starts. A prompt that cannot be interrupted is fed whole.
fn prefill(model: &Llama, prompt: &[u32], cache: &mut KvCache, limits: &Limits) -> Result<usize> {
    let mut at = 0;
    let mut piece = FIRST_PIECE;
    while limits.interrupt.is_some() && prompt.len() - at > piece {
        limits.check()?;
        let started = Instant::now();
        let inputs = Tensor::from_vec(prompt[at..at + piece].to_vec(), (1, piece), &Device::Cpu)?;
        // Waits for the logits: a GPU works on its own, and the loop would only queue more and more work.
        to_host(&model.next_logits(&inputs, cache)?)?.to_vec2::<f32>()?;
        at += piece;
        let faster = PIECE_TIME.as_secs_f64() / started.elapsed().as_secs_f64().max(1e-6);
        piece = ((piece as f64 * faster.min(4.0)) as usize).clamp(FIRST_PIECE, LARGEST_PIECE);
    }
    limits.check()?;
    Ok(at)
}

impl Draft<'_> {
    fn extend(
        &mut self,
        logits: &mut [f32],
        tokenizer: &Tokenizer,
        limits: &Limits,
        started: Instant,
        mut on_text: impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        // Copied first, because the sampler's penalties change the logits.
        let table = limits.logprobs.map(|top| (logits.to_vec(), top));
        let id = self.sampler.next(logits, &self.history)?;
        if self.first_token.is_zero() {
            self.first_token = started.elapsed();
        }
        self.decoding = started.elapsed().saturating_sub(self.first_token);
        if tokenizer.stop_ids().contains(&id) {
            self.finished = Some(FinishReason::Stop);
            return Ok(());
        }
        self.history.push(id);
        self.logprobs.extend(table.map(|(logits, top)| TokenLogprobs::new(&logits, id, top)));
        if let Some(piece) = self.stream.push(id) {
            self.take(&piece, &mut on_text)?;
        }
        Ok(())
    }

    fn take(&mut self, piece: &str, on_text: &mut impl FnMut(&str) -> Result<()>) -> Result<()> {
        let (ready, stopped) = self.stops.push(piece);
        if stopped {
            self.finished = Some(FinishReason::Stop);
        }
        self.text.push_str(&ready);
        if ready.is_empty() { Ok(()) } else { on_text(&ready) }
    }

    fn finish(mut self, prompt: usize, mut on_text: impl FnMut(&str) -> Result<()>) -> Result<Generated> {
        if !self.stops.has_stopped() {
            let rest = self.stream.end_fragment();
            self.take(&rest, &mut on_text)?;
            let held = self.stops.rest();
            self.text.push_str(&held);
            if !held.is_empty() {
                on_text(&held)?;
            }
        }
        Ok(Generated {
            token_ids: self.history.split_off(prompt),
            text: self.text,
            finish_reason: self.finished.unwrap_or(FinishReason::Length),
            logprobs: self.logprobs,
            first_token: self.first_token,
            decoding: self.decoding,
        })
    }
}

#[cfg(test)]
mod tests;
