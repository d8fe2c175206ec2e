//! `export`: a plain Hugging Face directory in another number format, or a GGUF file; optionally without the padding rows of the
//! vocabulary.

use super::arguments::path;
use super::open_model;
use crate::chat::ChatTemplate;
use crate::checkpoint::gguf::EXTENSION;
use crate::checkpoint::{self, Certificate, Dtype, ExportDtype, GgufExport, Opened};
use crate::config::{Architecture, ModelConfig};
use crate::inspect::card::{Facts, card};
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail, note};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::pretokenize::splits::KnownSplit;
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// A Hugging Face model directory.
    Hf,
    /// One file for llama.cpp, Ollama and what builds on them.
    Gguf,
}

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite export --ckpt runs/llama-124m --out llama-124m-hf --dtype bf16 --trim-vocab
  llama-lite export --ckpt runs/llama-124m --out llama-124m.gguf --format gguf --dtype q8_0

A directory appears only after its files were read back and gave the logits of the model, rounded to DTYPE, bit for bit. That reads the
model up to three times, a layer at a time: it takes no memory for a copy of the weights.")]
pub struct ExportArgs {
    /// Checkpoint, run directory (its newest valid checkpoint), Hugging Face model directory, or hub:OWNER/NAME[@REVISION]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub ckpt: PathBuf,
    /// For adapters: their model, a directory or hub:OWNER/NAME[@REVISION], if it is no longer where they were trained
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub base: Option<PathBuf>,
    /// Directory to write, which must not exist or be empty; with --format gguf, a new file NAME.gguf
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub out: PathBuf,
    /// A Hugging Face directory (hf), or one file for llama.cpp and Ollama (gguf)
    #[arg(long, value_name = "FORMAT", default_value = "hf")]
    pub format: ExportFormat,
    /// Number format of the weights
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    pub dtype: ExportDtype,
    /// Leave out the rows of the vocabulary beyond the tokenizer's ids
    #[arg(long)]
    pub trim_vocab: bool,
    /// For adapters: write their model with the adapters merged into its weights
    #[arg(long)]
    pub merge_lora: bool,
    /// Write a model card, README.md: metadata for the Hub, and what the run's logs tell of training, losses, scores and samples
    #[arg(long)]
    pub card: bool,
}

pub(crate) fn run(args: &ExportArgs, console: Console) -> Result<()> {
    let source = open_model(&args.ckpt, args.base.as_deref(), console)?;
    refuse_unmerged(args, &source)?;
    match args.format {
        ExportFormat::Hf => write_directory(args, &source, console)?,
        ExportFormat::Gguf => write_gguf(args, &source, console)?,
    }
    if !console.quiet {
        note(&format!("exported to {}", args.out.display()));
    }
    Ok(())
}

fn write_directory(args: &ExportArgs, source: &Opened, console: Console) -> Result<()> {
    let dtype = dtype_of_directory(args)?;
    let trim = if args.trim_vocab { Some(Tokenizer::from_dir(source.tokenizer_dir())?.vocab_size()) } else { None };
    let facts = if args.card { Some(gather_facts(source, trim, &args.out)?) } else { None };
    let describe = |certificate: &Certificate| facts.map_or_else(Vec::new, |facts| card(&facts, certificate));
    let certificate = checkpoint::export_with(source, &args.out, dtype, trim, describe)?;
    if !console.quiet {
        note(&certificate.to_string());
        note_replaced_tokenizer(source);
    }
    Ok(())
}

/// Says so where transformers 5 gives the directory another tokenizer than its files have: `AutoTokenizer` builds that of Qwen2 for every
/// model of the type, from the vocabulary and the merges alone.
fn note_replaced_tokenizer(source: &Opened) {
    if source.model.architecture != Architecture::Qwen2 {
        return;
    }
    let Ok(tokenizer) = Tokenizer::from_dir(source.tokenizer_dir()) else { return };
    if !is_tokenizer_of_qwen2(tokenizer.json()) {
        note(
            "note: transformers 5 takes the tokenizer of every qwen2 model for Qwen2's own, which this one is not: \
             load it with PreTrainedTokenizerFast instead of AutoTokenizer",
        );
    }
}

fn is_tokenizer_of_qwen2(json: &[u8]) -> bool {
    let Ok(root) = serde_json::from_slice::<serde_json::Value>(json) else { return false };
    let pre = &root["pre_tokenizer"];
    let first = pre["pretokenizers"].get(0).unwrap_or(pre);
    root["normalizer"]["type"] == "NFC" && KnownSplit::of_step(first) == Some(KnownSplit::Qwen2)
}

/// What a card tells. Read before anything is written: a damaged log is no reason to export twice.
fn gather_facts(source: &Opened, trim: Option<usize>, out: &Path) -> Result<Facts> {
    let vocab_size = trim.unwrap_or(source.model.vocab_size);
    Facts::gather(source, ModelConfig { vocab_size, ..source.model.clone() }, out)
}

/// The number format of a Hugging Face directory. What only a GGUF file can be is refused.
fn dtype_of_directory(args: &ExportArgs) -> Result<Dtype> {
    let Some(dtype) = args.dtype.of_weight_files() else {
        return Err(fail(Exit::Config, "--dtype q8_0: a Hugging Face directory has no such weights")
            .hint("add --format gguf, or choose f32, bf16 or f16")
            .into());
    };
    if args.out.extension().is_some_and(|extension| extension == EXTENSION) {
        let message = format!("--out {}: without --format gguf a directory is written", args.out.display());
        return Err(fail(Exit::Config, message).hint("add --format gguf, or give another name").into());
    }
    Ok(dtype)
}

fn write_gguf(args: &ExportArgs, source: &Opened, console: Console) -> Result<()> {
    if args.card {
        return Err(fail(Exit::Config, "--card: a GGUF file is one file, without a README.md beside it")
            .hint("leave --card out, or export a directory with it")
            .into());
    }
    let tokenizer = Tokenizer::from_dir(source.tokenizer_dir())?;
    let template = ChatTemplate::from_dir(source.tokenizer_dir(), &tokenizer)?;
    let export = GgufExport {
        dtype: args.dtype,
        tokenizer: &tokenizer,
        chat_template: template.as_ref().map(ChatTemplate::source),
        trim_vocab: args.trim_vocab,
    };
    let remark = checkpoint::export_gguf(source, &args.out, &export)?;
    if let (false, Some(remark)) = (console.quiet, remark) {
        note(&format!("note: {remark}"));
    }
    Ok(())
}

/// Adapters are no model, and a model has none: neither is guessed.
fn refuse_unmerged(args: &ExportArgs, source: &Opened) -> Result<()> {
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
