//! `sample`: writes generated text to stdout as it comes, or one JSON line per sample; the speed goes to stderr.

mod chat;

use super::arguments::{fraction, non_negative, path, positive, precision, share};
use super::{Loaded, load, print};
use crate::config::PrecisionSetting;
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::files::read_bounded;
use crate::sample::sampler::{Sampler, SamplerConfig};
use crate::sample::{Generated, Limits, TOGETHER, encode_prompt, generate};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use std::io::{IsTerminal, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite sample --ckpt runs/quickstart --prompt 'One day'
  llama-lite sample --ckpt runs/quickstart --greedy --max-tokens 40 --json < prompt.txt
  llama-lite sample --ckpt tuned --chat

Without --prompt and --prompt-file the prompt is read from standard input; if that is a terminal, it is empty.")]
pub struct SampleArgs {
    /// Checkpoint, run directory (its newest valid checkpoint), Hugging Face model directory, or hub:OWNER/NAME[@REVISION]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub ckpt: PathBuf,
    /// For adapters: their model, a directory or hub:OWNER/NAME[@REVISION], if it is no longer where they were trained
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub base: Option<PathBuf>,
    /// Type of the weights: auto is f32 on a CPU, bf16 on a GPU; bf16 on a CPU takes half the memory, and a token half the time
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = precision())]
    pub precision: PrecisionSetting,
    /// Text to continue
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// File with the text to continue; a .jsonl file has one prompt per line, a string or {"prompt": ...}
    #[arg(long, value_name = "FILE", conflicts_with = "prompt", value_parser = path())]
    pub prompt_file: Option<PathBuf>,
    /// Chat with a model that was fine-tuned on conversations; /help lists the commands
    #[arg(long, conflicts_with_all = ["prompt", "prompt_file", "json", "num_samples"])]
    pub chat: bool,
    /// Longest continuation or answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_tokens: usize,
    /// Divides the logits: lower is more predictable, 0 is --greedy
    #[arg(long, value_name = "X", default_value_t = 0.8, value_parser = non_negative, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Sample from the N most likely tokens; 0 = all
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub top_k: usize,
    /// Sample from the most likely tokens that together have this probability
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = share, allow_negative_numbers = true)]
    pub top_p: f64,
    /// Sample from tokens at least this probable, relative to the most likely; 0 = all
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = fraction, allow_negative_numbers = true)]
    pub min_p: f64,
    /// Make tokens that have occurred less likely by this factor; 1 = do not
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive, allow_negative_numbers = true)]
    pub repetition_penalty: f64,
    /// Make tokens less likely for each time they have occurred in the continuation
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f64,
    /// Make tokens that have occurred in the continuation less likely
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f64,
    /// Stop before this text; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// With --json: log-probabilities of every token and of the N most likely at its place
    #[arg(long, value_name = "N", requires = "json")]
    pub logprobs: Option<usize>,
    /// Seed of the sampling [default: a random one, which is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Number of samples
    #[arg(long, value_name = "N", default_value = "1")]
    pub num_samples: NonZeroUsize,
    /// Always take the most likely token
    #[arg(long)]
    pub greedy: bool,
    /// Write one JSON object per sample instead of the text
    #[arg(long)]
    pub json: bool,
}

/// Bytes of a prompt: no model has a context for more.
const MAX_PROMPT: u64 = 64 << 20;

pub(crate) fn run(args: &SampleArgs, console: Console) -> Result<()> {
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
        return chat::run(args, rule, seed, console);
    }
    let prompts = prompts(args)?;
    let loaded = load(&args.ckpt, args.base.as_deref(), args.precision, console)?;
    for (i, prompt) in prompts.iter().enumerate() {
        if i > 0 && !args.json {
            write_now("\n")?;
        }
        continue_prompt(args, &loaded, &rule, prompt, seed, console)?;
    }
    Ok(())
}

fn continue_prompt(
    args: &SampleArgs,
    loaded: &Loaded,
    rule: &SamplerConfig,
    prompt: &str,
    seed: u64,
    console: Console,
) -> Result<()> {
    let Loaded { tokenizer, model, .. } = loaded;
    let ids = encode_prompt(tokenizer, prompt)?;
    let context = model.config.context_length();
    if ids.len() > context && !console.quiet {
        note(&format!("note: the prompt has {} tokens, the context {context}: only its end is used", ids.len()));
    }
    let limits =
        Limits { max_tokens: args.max_tokens, stop: args.stop.clone(), logprobs: args.logprobs, interrupt: None };
    let all = args.num_samples.get() as u64;
    // One sample is streamed. Several are generated together, and each is shown when its whole group is done.
    let streams = all == 1 && !args.json;
    for first in (0..all).step_by(TOGETHER) {
        let group = first..all.min(first + TOGETHER as u64);
        let mut samplers = group
            .clone()
            .map(|i| Sampler::new(rule.clone(), tokenizer.vocab_size(), seed, i))
            .collect::<Result<Vec<Sampler>, _>>()?;
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
    // Special tokens are not part of the text, so a token is decoded behind the ordinary ones before it.
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

/// A token with its text as it reads behind the tokens `before`.
fn token_json(tokenizer: &Tokenizer, before: &[u32], id: u32, logprob: f64) -> Value {
    let text = tokenizer.decode_after(before, &[id], false).unwrap_or_default();
    json!({"token_id": id, "token": text, "logprob": logprob})
}

fn prompts(args: &SampleArgs) -> Result<Vec<String>> {
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
    // The newline that an editor puts at the end of a file is not part of the prompt.
    let text = String::from_utf8_lossy(&bytes);
    Ok(vec![text.strip_suffix('\n').unwrap_or(&text).to_string()])
}

/// One prompt per line: a JSON string, or an object with one.
fn prompt_lines(path: &Path) -> Result<Vec<String>> {
    let bytes = read_bounded(path, MAX_PROMPT, true)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut prompts = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let value = serde_json::from_str::<Value>(line).ok();
        let prompt = value.as_ref().and_then(|v| v.as_str().or_else(|| v["prompt"].as_str()));
        let prompt = prompt.ok_or_else(|| {
            fail(Exit::Data, format!("{}:{number}: no prompt", path.display()))
                .hint("every line is a JSON string or {\"prompt\": \"...\"}")
        })?;
        prompts.push(prompt.to_owned());
    }
    Ok(prompts)
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
