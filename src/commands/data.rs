//! `data verify` and `data inspect`, and the choice between them and `data prepare`.

use super::arguments::{path, path_or_name};
use super::prepare::{self, PrepareArgs};
use super::print;
use crate::corpus::shards::manifest::{MANIFEST_FILE, Split};
use crate::corpus::shards::verify::{tokenizer_beside, verify};
use crate::data::dataset::named_tokenizer;
use crate::data::excerpt::{ExcerptStart, excerpt};
use crate::data::inspect::inspect;
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail};
use crate::runtime::format::escape_control;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use clap::{Args, Subcommand};
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Clone, Debug, Subcommand)]
pub enum DataCommand {
    /// Turn text into token shards
    Prepare(PrepareArgs),
    /// Check sizes, hashes and token ids of a prepared directory
    #[command(after_help = "Example: llama-lite data verify data/books")]
    Verify(VerifyArgs),
    /// Describe a prepared directory, or show what is at one place of it
    #[command(after_help = "Examples:
  llama-lite data inspect data/books
  llama-lite data inspect data/books --document 12
  llama-lite data inspect data/books --split val --token 1000000
  llama-lite data inspect data/books --sequence 0 --sequence-length 1024 --seed 1")]
    Inspect(InspectArgs),
}

#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// Directory of shards
    #[arg(value_name = "DIR", value_parser = path())]
    pub dir: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// Directory of shards
    #[arg(value_name = "DIR", value_parser = path())]
    pub dir: PathBuf,
    /// Split that the following count in
    #[arg(long, value_name = "NAME", default_value = "train")]
    pub split: Split,
    /// Show the text from this token on (from 0)
    #[arg(long, value_name = "N", group = "place")]
    pub token: Option<u64>,
    /// Show this document (from 0)
    #[arg(long, value_name = "N", group = "place")]
    pub document: Option<u64>,
    /// Show the training sequence of this index (from 0, over all steps)
    #[arg(long, value_name = "N", group = "place")]
    pub sequence: Option<u64>,
    /// train.sequence_length of the run, for --sequence
    #[arg(long, value_name = "N", default_value = "1024", requires = "sequence")]
    pub sequence_length: NonZeroUsize,
    /// data.seed of the run, for --sequence
    #[arg(long, value_name = "N", default_value = "1", requires = "sequence")]
    pub seed: u64,
    /// The run has data.shuffle = false, for --sequence
    #[arg(long, requires = "sequence", conflicts_with = "seed")]
    pub no_shuffle: bool,
    /// Tokens shown, at most
    #[arg(long, value_name = "N", default_value = "256")]
    pub max_tokens: NonZeroUsize,
    /// gpt2 or the path of a tokenizer.json [default: the one in DIR]
    #[arg(long, value_name = "gpt2|FILE", value_parser = path_or_name())]
    pub tokenizer: Option<String>,
}

pub(crate) fn run(command: DataCommand, console: Console) -> Result<()> {
    match command {
        DataCommand::Prepare(args) => prepare::run(args, console),
        DataCommand::Verify(args) => {
            if args.dir.join(MANIFEST_FILE).exists() {
                tokenizer_beside(&args.dir)?;
            }
            print(&verify(&args.dir)?.to_string())
        }
        DataCommand::Inspect(args) => run_inspect(&args),
    }
}

fn run_inspect(args: &InspectArgs) -> Result<()> {
    let Some(place) = place(args) else { return print(&escape_control(&inspect(&args.dir)?)) };
    let tokenizer = inspect_tokenizer(args)?;
    let excerpt = excerpt(&args.dir, args.split, place, args.max_tokens.get())?;
    let before: Vec<u32> = excerpt.before.into_iter().collect();
    let text = escape_control(&tokenizer.decode_after(&before, &excerpt.ids, false)?);
    print(&format!("{}\n\n{text}\n\n{} tokens: {:?}", excerpt.title, excerpt.ids.len(), excerpt.ids))
}

fn place(args: &InspectArgs) -> Option<ExcerptStart> {
    let length = args.sequence_length.get();
    let seed = (!args.no_shuffle).then_some(args.seed);
    let sequence = args.sequence.map(|index| ExcerptStart::Sequence { index, length, seed });
    args.token.map(ExcerptStart::Token).or(args.document.map(ExcerptStart::Document)).or(sequence)
}

fn inspect_tokenizer(args: &InspectArgs) -> Result<Tokenizer> {
    match &args.tokenizer {
        Some(name) => named_tokenizer(&name.as_str().into()),
        None if args.dir.join("tokenizer.json").exists() => tokenizer_beside(&args.dir),
        None => Err(fail(Exit::Config, format!("{}: holds no tokenizer.json to decode with", args.dir.display()))
            .hint("name the tokenizer that made the shards: --tokenizer gpt2 or --tokenizer FILE")
            .into()),
    }
}
