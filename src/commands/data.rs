//! `data prepare`, `data verify`, `data inspect`.

use super::print;
use crate::cli::{Data, Prepare};
use crate::data::corpus::{named_tokenizer, separator};
use crate::data::prepare::{Encode, PrepareOptions, Progress, prepare};
use crate::data::shards::verify::{inspect, verify};
use crate::data::tokenizer::Tokenizer;
use crate::metrics::{self, Console};
use crate::runtime::error::note;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

pub(super) fn run(command: Data, console: Console) -> Result<()> {
    match command {
        Data::Prepare(args) => run_prepare(args, console),
        Data::Verify(args) => print(&verify(&args.dir)?.to_string()),
        Data::Inspect(args) => print(&inspect(&args.dir)?),
    }
}

struct Encoder {
    tokenizer: Tokenizer,
    separator: u32,
    fingerprint: String,
}

impl Encode for Encoder {
    fn encode_ordinary_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        texts.iter().map(|text| self.tokenizer.encode_ordinary(text)).collect()
    }

    fn separator(&self) -> u32 {
        self.separator
    }

    fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

fn run_prepare(args: Prepare, console: Console) -> Result<()> {
    let tokenizer = named_tokenizer(&args.tokenizer)?;
    let encoder = Encoder { separator: separator(&tokenizer)?, fingerprint: tokenizer.fingerprint(), tokenizer };
    let options = PrepareOptions {
        text_field: args.text_field,
        val_fraction: args.val_fraction,
        shard_tokens: args.shard_tokens.get(),
        allow_bad: args.allow_bad,
        ..PrepareOptions::new(args.input, args.out)
    };
    let bar = if console.terminal && !console.quiet { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {msg}  {eta} left")
    {
        bar.set_style(style);
    }
    let summary = prepare(&options, &encoder, &|p: Progress| {
        bar.set_length(p.bytes_total);
        bar.set_position(p.bytes_read);
        bar.set_message(format!("{} documents, {} tokens", metrics::count(p.documents), metrics::count(p.tokens)));
    })?;
    bar.finish_and_clear();
    if !console.quiet {
        for line in &summary.notes {
            note(line);
        }
        let m = &summary.manifest;
        let (train, val) = (metrics::count(m.train.tokens), metrics::count(m.val.tokens));
        let (shards, out) = (m.shards.len(), options.out.display());
        note(&format!("{train} training and {val} validation tokens in {shards} shards: {out}"));
    }
    Ok(())
}
