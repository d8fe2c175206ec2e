//! `eval`: loss, bits per byte and perplexity of a model on text or shards.

use super::{Loaded, load, print};
use crate::cli::Eval;
use crate::data::corpus::evaluation_tokens;
use crate::data::prepare::source::ReadOptions;
use crate::data::rows::Rows;
use crate::eval::{ByteLengths, score};
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::write_atomic;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

/// Tokens scored at a time: bounds the memory of activations.
const TOKENS_AT_ONCE: usize = 8192;

pub(super) fn run(args: &Eval, console: Console) -> Result<()> {
    let Loaded { source, tokenizer, model } = load(&args.ckpt)?;
    let patterns: Vec<String> = args.data.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    let (tokens, bytes) = evaluation_tokens(&patterns, &tokenizer, model.config.vocab_size, &ReadOptions::default())?;
    let length = model.config.max_position_embeddings;
    let mut rows = Rows::windows(tokens, length, u64::MAX);
    rows.text_bytes = bytes;
    if rows.is_empty() {
        return Err(fail(Exit::Data, format!("{}: no text to score", patterns.join(" ")))
            .hint("give a file with text")
            .into());
    }
    let bar =
        if console.terminal && !console.quiet { ProgressBar::new(rows.len() as u64) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} windows  {eta} left") {
        bar.set_style(style);
    }
    let batch = (TOKENS_AT_ONCE / rows.length()).max(1);
    let result = score(&model, &rows, &ByteLengths::new(&tokenizer), batch, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let finite = |x: f64| x.is_finite().then_some(x);
    let bits_per_byte = result.bits_per_byte();
    let report = json!({
        "results": {"data": {
            "loss": finite(result.loss), "bits_per_byte": finite(bits_per_byte), "perplexity": finite(result.loss.exp()),
            "tokens": result.tokens, "bytes": result.bytes,
        }},
        "config": {"ckpt": source.dir.display().to_string(), "data": patterns, "context": length, "version": crate::VERSION},
    });
    if let Some(path) = &args.output {
        write_atomic(path, format!("{report:#}\n").as_bytes())?;
    }
    print(&format!(
        "loss {:.4} nats per token · {bits_per_byte:.4} bits per byte · perplexity {:.3} · {} tokens",
        result.loss,
        result.loss.exp(),
        result.tokens,
    ))
}
