//! The arguments of `llama-lite data`.

use super::fraction;
use clap::{Args, Subcommand, ValueEnum};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

/// `llama-lite data`
#[derive(Clone, Debug, Subcommand)]
pub enum Data {
    /// Turn text into token shards
    Prepare(Prepare),
    /// Check sizes, hashes and token ids of a prepared directory
    #[command(after_help = "Example: llama-lite data verify data/books")]
    Verify(Verify),
    /// Describe a prepared directory, or show what is at one place of it
    #[command(after_help = "Examples:
  llama-lite data inspect data/books
  llama-lite data inspect data/books --document 12
  llama-lite data inspect data/books --split val --token 1000000
  llama-lite data inspect data/books --sequence 0 --sequence-length 1024 --seed 1")]
    Inspect(Inspect),
}

/// `llama-lite data verify`
#[derive(Args, Clone, Debug)]
pub struct Verify {
    /// Directory of shards
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Which part of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    /// Training tokens
    Train,
    /// Validation tokens
    Val,
}

/// `llama-lite data inspect`
#[derive(Args, Clone, Debug)]
pub struct Inspect {
    /// Directory of shards
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Split that the following count in
    #[arg(long, value_name = "NAME", default_value = "train")]
    pub split: SplitName,
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
    #[arg(long, value_name = "gpt2|FILE")]
    pub tokenizer: Option<String>,
}

/// Where the separator of documents stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EotPlace {
    /// First token of its document
    Before,
    /// Last token of its document
    After,
}

/// `llama-lite data prepare`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite data prepare --input books/*.txt notes.jsonl.gz --tokenizer gpt2 --out data/books
  llama-lite data prepare --input hub:HuggingFaceFW/fineweb-edu:sample-10BT --tokenizer gpt2 --out data/edu

Interrupted, it goes on where it was when the same command is given again.")]
pub struct Prepare {
    /// Text: .txt, .jsonl, .json or .parquet files, plain or .gz or .zst; directories or globs of them; data sets of the Hub as
    /// hub:OWNER/NAME[@REVISION][:SUBSET[:SPLIT]] or hub:OWNER/NAME[@REVISION]/PATH
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    pub input: Vec<String>,
    /// gpt2 (built in) or the path of a tokenizer.json
    #[arg(long, value_name = "gpt2|FILE")]
    pub tokenizer: String,
    /// Directory for the shards; it must not hold finished ones
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Field of a record, or column of a .parquet file, that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_field: String,
    /// What separates documents in a .txt file [default: a file is one document]
    #[arg(long, value_name = "TEXT")]
    pub text_separator: Option<String>,
    /// Share of the documents held out for validation, chosen by hash; 0 = none
    #[arg(long, value_name = "X", default_value_t = 0.005, value_parser = fraction, allow_negative_numbers = true)]
    pub val_fraction: f64,
    /// Hold out about this many tokens instead
    #[arg(long, value_name = "N", group = "val", conflicts_with = "val_fraction")]
    pub val_tokens: Option<NonZeroU64>,
    /// Hold out the first shard of the corpus instead
    #[arg(long, group = "val", conflicts_with = "val_fraction")]
    pub val_first_shard: bool,
    /// Tokens in one shard
    #[arg(long, value_name = "N", default_value = "100000000")]
    pub shard_tokens: NonZeroUsize,
    /// Where the end-of-text token stands
    #[arg(long, value_name = "PLACE", default_value = "before")]
    pub eot: EotPlace,
    /// Leave out documents of fewer characters
    #[arg(long, value_name = "N", default_value = "0")]
    pub min_chars: u64,
    /// Leave out documents that repeat an earlier one exactly
    #[arg(long)]
    pub dedup: bool,
    /// Go on although more than 0.1 % of the records are unusable
    #[arg(long)]
    pub allow_bad: bool,
}
