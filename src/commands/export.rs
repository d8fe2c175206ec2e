//! `export`: a plain Hugging Face directory in another number format, optionally without the padding rows of the vocabulary.

use crate::checkpoint::{self, Opened};
use crate::cli::{Dtype, Export};
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail, note};
use crate::tokenizer::Tokenizer;
use anyhow::Result;

pub(super) fn run(args: &Export, console: Console) -> Result<()> {
    let dtype = match args.dtype {
        Dtype::F32 => checkpoint::Dtype::F32,
        Dtype::Bf16 => checkpoint::Dtype::Bf16,
        Dtype::F16 => checkpoint::Dtype::F16,
    };
    let source = Opened::open_beside(&args.ckpt, args.base.as_deref())?;
    refuse_unmerged(args, &source)?;
    let trim = if args.trim_vocab { Some(Tokenizer::from_dir(source.tokenizer_dir())?.vocab_size()) } else { None };
    checkpoint::export(&source, &args.out, dtype, trim)?;
    if !console.quiet {
        note(&format!("exported to {}", args.out.display()));
    }
    Ok(())
}

/// Adapters are no model, and a model has none: neither is guessed.
fn refuse_unmerged(args: &Export, source: &Opened) -> Result<()> {
    let dir = args.ckpt.display();
    match (source.adapter().is_some(), args.merge_lora) {
        (true, false) => Err(fail(Exit::Config, format!("{dir}: adapters, not a model"))
            .hint("add --merge-lora to write their model with the adapters in its weights")
            .into()),
        (false, true) => Err(fail(Exit::Config, format!("{dir}: there are no adapters to merge"))
            .hint("leave --merge-lora out, or name a checkpoint of a run with a [lora] section")
            .into()),
        _ => Ok(()),
    }
}
