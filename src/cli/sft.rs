//! `llama-lite sft`.

use clap::Args;
use std::num::NonZeroUsize;
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  llama-lite sft --config configs/sft-alpaca.toml --ckpt runs/quickstart --data alpaca.json
  llama-lite sft --config configs/sft-alpaca.toml --ckpt llama-hf --data hub:yahma/alpaca-cleaned --out runs/tuned
  llama-lite sft --config configs/sft-alpaca.toml --ckpt llama-hf --data chats.jsonl --show-data 3

Records: conversations or messages, prompt and completion, instruction and output or response, question and answer: see
--help. Without a [lora] section all weights are trained.";

/// `llama-lite sft`
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
#[command(after_long_help = format!("{EXAMPLES}\n\n{}\n\n{}", crate::config::record_shapes_text(), crate::config::reference_text()))]
pub struct Sft {
    /// Configuration, TOML or JSON
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Model: checkpoint, run directory (its newest valid checkpoint) or Hugging Face Llama directory
    #[arg(long, value_name = "DIR")]
    pub ckpt: PathBuf,
    /// Records: .json, .jsonl or .parquet files, globs, directories, or hub:OWNER/NAME
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub data: Vec<String>,
    /// Set one configuration key, such as lora.rank=8; may be repeated, later ones win
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Directory of the run [default: runs/ and the configuration's name]
    #[arg(long, value_name = "RUN_DIR")]
    pub out: Option<PathBuf>,
    /// Print what would be trained of the first N conversations, and the counts, and stop
    #[arg(long, value_name = "N")]
    pub show_data: Option<NonZeroUsize>,
}

impl Sft {
    /// The run's directory: `--out`, or `runs/<stem of the configuration>`.
    pub fn run_dir(&self) -> PathBuf {
        super::run_dir(self.out.as_ref(), &self.config)
    }
}
