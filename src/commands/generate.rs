//! `sample`: text to stdout as it is made, or one JSON line per sample; speed on stderr.

use super::{Loaded, load, print};
use crate::cli::Sample;
use crate::metrics::Console;
use crate::runtime::error::note;
use crate::runtime::files::read_bounded;
use crate::sample::sampler::{Sampler, SamplerConfig};
use crate::sample::{Generated, encode_prompt, generate};
use anyhow::{Context, Result};
use serde_json::json;
use std::io::{IsTerminal, Read, Write};

/// A prompt is read by a model with a bounded context.
const MAX_PROMPT: u64 = 64 << 20;

pub(super) fn run(args: &Sample, console: Console) -> Result<()> {
    let rule = SamplerConfig {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        greedy: args.greedy,
    };
    rule.validate()?;
    let prompt = prompt(args)?;
    let Loaded { tokenizer, model, .. } = load(&args.ckpt)?;
    let ids = encode_prompt(&tokenizer, &prompt)?;
    if ids.len() > model.config.max_position_embeddings && !console.quiet {
        let (n, context) = (ids.len(), model.config.max_position_embeddings);
        note(&format!("note: the prompt has {n} tokens, the context {context}: only its end is used"));
    }
    let seed = args.seed.unwrap_or_else(random_seed);
    let limit = tokenizer.vocab_size();
    for index in 0..args.num_samples.get() {
        let mut sampler = Sampler::new(rule.clone(), limit, seed, index as u64)?;
        if !args.json {
            begin_text(index, &prompt)?;
        }
        let made = generate(&model, &tokenizer, &ids, &mut sampler, args.max_tokens, |piece| {
            if args.json { Ok(()) } else { write_now(piece) }
        })?;
        if args.json {
            let line = json!({"prompt": prompt, "text": made.text, "token_ids": made.token_ids, "seed": seed,
                "finish_reason": made.finish_reason});
            print(&line.to_string())?;
        } else {
            write_now("\n")?;
        }
        if !console.quiet {
            note(&speed(&made, seed));
        }
    }
    Ok(())
}

fn prompt(args: &Sample) -> Result<String> {
    if let Some(text) = &args.prompt {
        return Ok(text.clone());
    }
    let bytes = match &args.prompt_file {
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
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_string())
}

fn random_seed() -> u64 {
    rand::random::<u32>() as u64
}

fn begin_text(index: usize, prompt: &str) -> Result<()> {
    if index > 0 {
        write_now("\n")?;
    }
    write_now(prompt)
}

fn write_now(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn speed(made: &Generated, seed: u64) -> String {
    let (n, decoding) = (made.token_ids.len(), made.decoding.as_secs_f64());
    let rate = if n > 1 && decoding > 0.0 { format!("{:.0} tokens/s", (n - 1) as f64 / decoding) } else { "-".into() };
    format!("[{n} tokens, {rate}, first after {:.0} ms, seed {seed}]", made.first_token.as_secs_f64() * 1e3)
}
