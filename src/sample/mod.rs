//! Generation: prompt in, text out token by token, over a preallocated cache of keys and values.
//!
//! Context rule: the model's `max_position_embeddings` bounds prompt and continuation together. A prompt that is too long keeps
//! its end; generation stops with `length` when the context is full.

pub mod sampler;

use crate::data::tokenizer::Tokenizer;
use crate::model::Llama;
use crate::model::kv_cache::KvCache;
use crate::runtime::error::{Exit, fail};
use anyhow::Result;
use candle_core::{Device, Tensor};
use sampler::Sampler;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model wrote its end of text.
    Stop,
    /// As many tokens as asked for, or the context is full.
    Length,
}

/// One continuation.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Its tokens, the end of text not included.
    pub token_ids: Vec<u32>,
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// From the call to the first token.
    pub first_token: Duration,
    /// From the first token to the last.
    pub decoding: Duration,
}

/// The ids of a prompt; an empty one is the beginning (or end) of text alone.
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

/// Continues `prompt` by up to `max_tokens` tokens; `on_text` hears each piece of finished text as it comes (never a broken
/// character).
///
/// # Errors
/// Those of the model's ops and of the sampler.
pub fn generate(
    model: &Llama,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    sampler: &mut Sampler,
    max_tokens: usize,
    mut on_text: impl FnMut(&str) -> Result<()>,
) -> Result<Generated> {
    let begun = Instant::now();
    let context = model.config.max_position_embeddings;
    let prompt = &prompt[prompt.len().saturating_sub(context)..];
    // The last token of the continuation is never fed back.
    let room = max_tokens.min(context - prompt.len() + 1);
    let mut cache = KvCache::new(&model.config, 1, (prompt.len() + room).min(context), &Device::Cpu)?;
    let (mut history, mut text) = (prompt.to_vec(), String::new());
    let mut stream = tokenizer.decode_stream(true);
    let mut feed = prompt.to_vec();
    let (mut finish_reason, mut first_token) = (FinishReason::Length, None);
    while history.len() < prompt.len() + room {
        let n = feed.len();
        let logits = model.next_logits(&Tensor::from_vec(feed, (1, n), &Device::Cpu)?, &mut cache)?;
        let id = sampler.next(&mut logits.squeeze(0)?.to_vec1::<f32>()?, &history)?;
        first_token.get_or_insert_with(|| begun.elapsed());
        if tokenizer.stop_ids().contains(&id) {
            finish_reason = FinishReason::Stop;
            break;
        }
        history.push(id);
        if let Some(piece) = stream.push(id) {
            on_text(&piece)?;
            text.push_str(&piece);
        }
        feed = vec![id];
    }
    let rest = stream.finish();
    if !rest.is_empty() {
        on_text(&rest)?;
        text.push_str(&rest);
    }
    let first_token = first_token.unwrap_or_default();
    let token_ids = history.split_off(prompt.len());
    Ok(Generated { token_ids, text, finish_reason, first_token, decoding: begun.elapsed().saturating_sub(first_token) })
}
