//! `export`: a plain Hugging Face directory in another number format, optionally without the padding rows of the vocabulary.

use crate::checkpoint::{self, Opened};
use crate::cli::{Dtype, Export};
use crate::data::tokenizer::Tokenizer;
use crate::metrics::Console;
use crate::runtime::error::note;
use anyhow::Result;

pub(super) fn run(args: &Export, console: Console) -> Result<()> {
    let dtype = match args.dtype {
        Dtype::F32 => checkpoint::Dtype::F32,
        Dtype::Bf16 => checkpoint::Dtype::Bf16,
        Dtype::F16 => checkpoint::Dtype::F16,
    };
    let trim = if args.trim_vocab {
        let source = Opened::open(&args.ckpt)?;
        Some(Tokenizer::from_dir(&source.dir)?.vocab_size())
    } else {
        None
    };
    checkpoint::export(&args.ckpt, &args.out, dtype, trim)?;
    if !console.quiet {
        note(&format!("exported to {}", args.out.display()));
    }
    Ok(())
}
