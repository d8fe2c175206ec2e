//! `sample`: text to stdout as it is made, or one JSON line per sample; speed on stderr.

use super::{Loaded, load, print};
use crate::cli::Sample;
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::files::read_bounded;
use crate::sample::sampler::{Sampler, SamplerConfig};
use crate::sample::{Generated, Limits, TOGETHER, encode_prompt, generate};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::io::{IsTerminal, Read, Write};
use std::path::Path;

/// A prompt is read by a model with a bounded context.
const MAX_PROMPT: u64 = 64 << 20;

pub(super) fn run(args: &Sample, console: Console) -> Result<()> {
    let rule = SamplerConfig {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        frequency_penalty: args.frequency_penalty,
        presence_penalty: args.presence_penalty,
        greedy: args.greedy,
    };
    rule.validate()?;
    let seed = args.seed.unwrap_or_else(random_seed);
    if args.chat {
        return super::chat::run(args, rule, seed, console);
    }
    let prompts = prompts(args)?;
    let loaded = load(&args.ckpt, args.base.as_deref())?;
    for (i, prompt) in prompts.iter().enumerate() {
        if i > 0 && !args.json {
            write_now("\n")?;
        }
        continue_prompt(args, &loaded, &rule, prompt, seed, console)?;
    }
    Ok(())
}

fn continue_prompt(
    args: &Sample,
    loaded: &Loaded,
    rule: &SamplerConfig,
    prompt: &str,
    seed: u64,
    console: Console,
) -> Result<()> {
    let Loaded { tokenizer, model, .. } = loaded;
    let ids = encode_prompt(tokenizer, prompt)?;
    if ids.len() > model.config.max_position_embeddings && !console.quiet {
        let (n, context) = (ids.len(), model.config.max_position_embeddings);
        note(&format!("note: the prompt has {n} tokens, the context {context}: only its end is used"));
    }
    let limits =
        Limits { max_tokens: args.max_tokens, stop: args.stop.clone(), logprobs: args.logprobs, interrupt: None };
    let all = args.num_samples.get() as u64;
    // One sample streams; several are made together, and each is shown when all of its group are done.
    let streams = all == 1 && !args.json;
    for first in (0..all).step_by(TOGETHER) {
        let group = first..all.min(first + TOGETHER as u64);
        let sampler = |i: u64| Sampler::new(rule.clone(), tokenizer.vocab_size(), seed, i);
        let mut samplers: Vec<Sampler> = group.clone().map(sampler).collect::<Result<_, _>>()?;
        if streams {
            write_now(prompt)?;
        }
        let made =
            generate(
                model,
                tokenizer,
                &ids,
                &mut samplers,
                &limits,
                |_, piece| {
                    if streams { write_now(piece) } else { Ok(()) }
                },
            )?;
        for (index, made) in group.zip(&made) {
            match (args.json, streams) {
                (true, _) => print(&json_line(prompt, &ids, made, seed, tokenizer).to_string())?,
                (false, true) => write_now("\n")?,
                (false, false) => write_now(&format!("{}{prompt}{}\n", if index > 0 { "\n" } else { "" }, made.text))?,
            }
        }
        if !console.quiet {
            note(&speed(&made, seed));
        }
    }
    Ok(())
}

fn json_line(prompt: &str, prompt_ids: &[u32], made: &Generated, seed: u64, tokenizer: &Tokenizer) -> Value {
    let mut line = json!({"prompt": prompt, "text": made.text, "token_ids": made.token_ids, "seed": seed,
        "finish_reason": made.finish_reason});
    if made.logprobs.is_empty() {
        return line;
    }
    // The text leaves special tokens out, and what begins it is whatever comes after them.
    let mut before: Vec<u32> = prompt_ids.iter().copied().filter(|id| !tokenizer.is_special(*id)).collect();
    let mut entries = Vec::with_capacity(made.logprobs.len());
    for token in &made.logprobs {
        let mut entry = token_json(tokenizer, &before, token.id, token.logprob);
        entry["top"] = token.top.iter().map(|&(id, p)| token_json(tokenizer, &before, id, p)).collect();
        entries.push(entry);
        before.extend(Some(token.id).filter(|id| !tokenizer.is_special(*id)));
    }
    line["logprobs"] = entries.into();
    line
}

/// A token as it reads after `before`.
fn token_json(tokenizer: &Tokenizer, before: &[u32], id: u32, logprob: f64) -> Value {
    let text = tokenizer.decode_after(before, &[id], false).unwrap_or_default();
    json!({"token_id": id, "token": text, "logprob": logprob})
}

fn prompts(args: &Sample) -> Result<Vec<String>> {
    if let Some(text) = &args.prompt {
        return Ok(vec![text.clone()]);
    }
    let bytes = match &args.prompt_file {
        Some(path) if path.extension().is_some_and(|e| e == "jsonl") => return prompt_lines(path),
        Some(path) => read_bounded(path, MAX_PROMPT, true)?,
        None if std::io::stdin().is_terminal() => Vec::new(),
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().take(MAX_PROMPT).read_to_end(&mut bytes).context("standard input")?;
            bytes
        }
    };
    // An editor's newline at the end of the file is no part of the prompt.
    let text = String::from_utf8_lossy(&bytes);
    Ok(vec![text.strip_suffix('\n').unwrap_or(&text).to_string()])
}

/// One prompt per line: a JSON string, or an object with one.
fn prompt_lines(path: &Path) -> Result<Vec<String>> {
    let bytes = read_bounded(path, MAX_PROMPT, true)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompt = |(n, line): (usize, &str)| {
        let value = serde_json::from_str::<Value>(line).ok();
        let text = value.as_ref().and_then(|v| v.as_str().or_else(|| v["prompt"].as_str()));
        text.map(str::to_owned).ok_or_else(|| {
            fail(Exit::Data, format!("{}:{}: no prompt", path.display(), n + 1))
                .hint("every line is a JSON string or {\"prompt\": \"...\"}")
                .into()
        })
    };
    lines.map(prompt).collect()
}

fn random_seed() -> u64 {
    rand::random::<u32>() as u64
}

fn write_now(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn speed(made: &[Generated], seed: u64) -> String {
    let tokens: usize = made.iter().map(|made| made.token_ids.len()).sum();
    let decoding = made.iter().map(|made| made.decoding.as_secs_f64()).fold(0.0, f64::max);
    let after_first = tokens.saturating_sub(made.len());
    let rate = if after_first > 0 && decoding > 0.0 {
        format!("{:.0} tokens/s", after_first as f64 / decoding)
    } else {
        "-".into()
    };
    let first = made.iter().map(|made| made.first_token.as_secs_f64()).fold(0.0, f64::max);
    format!("[{tokens} tokens, {rate}, first after {:.0} ms, seed {seed}]", first * 1e3)
}
