//! The command line: every command and flag, their help, and the checks that need nothing but the words themselves.
//!
//! Only definitions: what a command does is in `main.rs`. Wrong usage is clap's own error with exit code 2; keys and
//! values of `--set` are left to the configuration, which reports all its problems at once.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

mod data;
mod fork;
mod plan;
mod report;
mod sft;
mod why;

pub use fork::Fork;
pub use plan::Plan;
pub use report::Report;
pub use sft::Sft;
pub use why::Why;

pub use data::{Data, EotPlace, Inspect, Prepare, SplitName, Verify};

/// Pretrain, resume, evaluate and sample LLaMA models.
#[derive(Debug, Parser)]
#[command(name = "llama-lite", version = crate::VERSION, max_term_width = 110, arg_required_else_help = true)]
#[command(after_help = "Example: llama-lite pretrain --config configs/quickstart.toml")]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// Where to compute: auto (a GPU if this build can use one), cpu, cuda or cuda:N
    #[arg(long, global = true, help_heading = "Global options", default_value = "auto", value_name = "DEVICE")]
    pub device: Device,
    /// CPU threads [default: one per core]; results are the same for any number
    #[arg(long, global = true, help_heading = "Global options", value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Say nothing but results and errors
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Colours in messages; auto heeds NO_COLOR and whether stderr is a terminal
    #[arg(long, global = true, help_heading = "Global options", default_value = "auto", value_name = "WHEN")]
    pub color: Color,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first GPU if this build can use one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected auto, cpu, cuda or cuda:N, such as cuda:0".to_string();
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:").filter(|number| number.bytes().all(|b| b.is_ascii_digit()));
                number.and_then(|number| number.parse().ok()).map(Device::Cuda).ok_or_else(wrong)
            }
        }
    }
}

/// When messages are coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model from a configuration
    Pretrain(Pretrain),
    /// Go on with an interrupted run, exactly as if it had not stopped
    Resume(Resume),
    /// Fine-tune a model on conversations
    Sft(Sft),
    /// Measure loss, bits per byte and perplexity of a model on text
    Eval(Eval),
    /// Let a model write
    Sample(Sample),
    /// Make and check training data
    #[command(subcommand)]
    Data(Data),
    /// Go on from one checkpoint in several ways, each a run of its own
    Fork(Fork),
    /// Tell which documents made up a step of a run, and how the model took them
    Why(Why),
    /// Tell what a run will take: parameters, memory, time, disk
    Plan(Plan),
    /// Show a run, or several, as one page: curves, samples, events, differences
    Report(Report),
    /// Write a checkpoint as a Hugging Face model directory
    Export(Export),
    /// Show devices, features and a self-test of every operation
    #[command(after_help = "Example: llama-lite doctor --device cuda")]
    Doctor,
}

const PRETRAIN_EXAMPLES: &str = "Examples:
  llama-lite pretrain --config configs/quickstart.toml
  llama-lite pretrain --config configs/llama-124m.toml --set 'data.train=[\"shards\"]'
  llama-lite pretrain --config configs/llama-1.7b.toml --print-config

--help (not -h) lists every configuration key.";

/// `llama-lite pretrain`
#[derive(Args, Clone, Debug)]
#[command(after_help = PRETRAIN_EXAMPLES)]
#[command(after_long_help = format!("{PRETRAIN_EXAMPLES}\n\n{}", crate::config::reference_text()))]
pub struct Pretrain {
    /// Configuration, TOML or JSON
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Set one configuration key, such as train.steps=100; may be repeated, later ones win
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Directory of the run [default: runs/ and the configuration's name]
    #[arg(long, value_name = "RUN_DIR")]
    pub out: Option<PathBuf>,
    /// Begin with the weights of a checkpoint or a Hugging Face Llama directory
    #[arg(long, value_name = "HF_DIR")]
    pub init_from: Option<PathBuf>,
    /// Print the resolved configuration, parameter count and FLOPs per token, and stop
    #[arg(long)]
    pub print_config: bool,
}

impl Pretrain {
    /// The run's directory: `--out`, or `runs/<stem of the configuration>`.
    pub fn run_dir(&self) -> PathBuf {
        run_dir(self.out.as_ref(), &self.config)
    }
}

/// Where a run with `config` goes.
fn run_dir(out: Option<&PathBuf>, config: &Path) -> PathBuf {
    let stem = config.file_stem().unwrap_or(config.as_os_str());
    out.cloned().unwrap_or_else(|| PathBuf::from("runs").join(stem))
}

/// `llama-lite resume`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite resume --ckpt runs/quickstart
  llama-lite resume --ckpt runs/quickstart --set train.steps=3000 --set schedule.decay_steps=3000
  llama-lite resume --ckpt runs/quickstart --verify 20
  llama-lite resume --ckpt runs/quickstart/checkpoints/step-00001000 --reset optimizer

Raising train.steps leaves the learning rates as they were configured; set schedule.decay_steps to change them. Only
the tail of a wsd schedule moves to the new end, while it has not begun.")]
pub struct Resume {
    /// Run directory (its newest valid checkpoint) or one checkpoint of a run
    #[arg(long, value_name = "CKPT_OR_RUN_DIR")]
    pub ckpt: PathBuf,
    /// For adapters: the directory of their model, if it is no longer where they were trained
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Change one configuration key of the run; may be repeated, later ones win
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Give up pieces of the run's state on purpose, to see what each is for
    #[arg(long, value_name = "PIECE,...", value_delimiter = ',')]
    pub reset: Vec<Piece>,
    /// Pass over N sequences of the data first
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: u64,
    /// Take N steps again, writing nothing, and compare them with what the run logged
    #[arg(long, value_name = "N", conflicts_with_all = ["set", "reset", "skip"])]
    pub verify: Option<NonZeroU64>,
}

/// A piece of a run's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Piece {
    /// moments and optimizer_step
    Optimizer,
    /// AdamW's moments become 0
    Moments,
    /// AdamW's count of updates becomes 0
    OptimizerStep,
    /// The seed becomes another one
    Rng,
    /// The data begin anew
    Data,
    /// The learning rate begins anew, warm-up included
    Schedule,
}

/// `llama-lite eval`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite eval --ckpt runs/quickstart --data book.txt notes.jsonl --output result.json
  llama-lite eval --ckpt runs/llama-124m --tasks hellaswag,piqa --data-dir benchmarks --limit 500
  llama-lite eval --run runs/llama-124m --tasks arc_easy --download")]
pub struct Eval {
    /// Checkpoint, run directory (its newest valid checkpoint) or Hugging Face Llama directory
    #[arg(long, value_name = "DIR", required_unless_present = "run")]
    pub ckpt: Option<PathBuf>,
    /// For adapters: the directory of their model, if it is no longer where they were trained
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Run directory: every kept checkpoint of it
    #[arg(long, value_name = "RUN_DIR", conflicts_with = "ckpt")]
    pub run: Option<PathBuf>,
    /// Text files (.txt, .jsonl), token shards or a prepared directory
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "tasks")]
    pub data: Vec<PathBuf>,
    /// Field of a record, or column of a .parquet file, that holds the text of --data
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_field: String,
    /// Benchmark tasks, by their names in the lm-evaluation-harness
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub tasks: Vec<String>,
    /// Directory with the tasks' data: TASK/SPLIT.jsonl or .parquet, or copies of data sets as OWNER/NAME
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Get data sets that are not in --data-dir from the Hugging Face Hub
    #[arg(long)]
    pub download: bool,
    /// Examples before each question
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_fewshot: usize,
    /// The first N documents of each task; below 1, a share of them
    #[arg(long, value_name = "N", value_parser = positive)]
    pub limit: Option<f64>,
    /// Write the results to this file as well, as JSON in the harness's shape
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// With every document's log-likelihoods in that file
    #[arg(long, requires = "output")]
    pub log_samples: bool,
}

/// `llama-lite sample`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite sample --ckpt runs/quickstart --prompt 'One day'
  llama-lite sample --ckpt runs/quickstart --greedy --max-tokens 40 --json < prompt.txt
  llama-lite sample --ckpt tuned --chat

Without --prompt and --prompt-file the prompt is read from standard input; if that is a terminal, it is empty.")]
pub struct Sample {
    /// Checkpoint, run directory (its newest valid checkpoint) or Hugging Face Llama directory
    #[arg(long, value_name = "DIR")]
    pub ckpt: PathBuf,
    /// For adapters: the directory of their model, if it is no longer where they were trained
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Text to be continued
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// File with the text to be continued; a .jsonl file has one prompt per line, a string or {"prompt": ...}
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// Talk with a model that was tuned for conversations; /help tells what can be done
    #[arg(long, conflicts_with_all = ["prompt", "prompt_file", "json", "num_samples"])]
    pub chat: bool,
    /// Longest continuation or answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_tokens: usize,
    /// Divides the logits: lower is more predictable, 0 is --greedy
    #[arg(long, value_name = "X", default_value_t = 0.8, value_parser = non_negative, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Draw among the N likeliest tokens; 0 = all
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub top_k: usize,
    /// Draw among the likeliest tokens that together have this probability
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = share, allow_negative_numbers = true)]
    pub top_p: f64,
    /// Draw among tokens at least this probable, relative to the likeliest; 0 = all
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
    /// End before this text; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// With --json: log-probabilities of every token and of the N likeliest at its place
    #[arg(long, value_name = "N", requires = "json")]
    pub logprobs: Option<usize>,
    /// Fixes the draws [default: a random one, which is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Number of samples
    #[arg(long, value_name = "N", default_value = "1")]
    pub num_samples: NonZeroUsize,
    /// Always take the likeliest token
    #[arg(long)]
    pub greedy: bool,
    /// Write one JSON object per sample instead of the text
    #[arg(long)]
    pub json: bool,
}

/// `llama-lite export`
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example: llama-lite export --ckpt runs/llama-124m --out llama-124m-hf --dtype bf16 --trim-vocab"
)]
pub struct Export {
    /// Checkpoint, run directory (its newest valid checkpoint) or Hugging Face Llama directory
    #[arg(long, value_name = "DIR")]
    pub ckpt: PathBuf,
    /// For adapters: the directory of their model, if it is no longer where they were trained
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Directory to write; it must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Number format of the weights
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    pub dtype: Dtype,
    /// Leave out the rows of the vocabulary beyond the tokenizer's ids
    #[arg(long)]
    pub trim_vocab: bool,
    /// Of adapters: write their model with the adapters in its weights
    #[arg(long)]
    pub merge_lora: bool,
}

/// Number formats of exported weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32 bits: the weights as trained.
    F32,
    /// 16 bits with f32's range.
    Bf16,
    /// 16 bits, IEEE half.
    F16,
}

/// A number for which `allowed` holds.
fn number(text: &str, allowed: impl Fn(f64) -> bool, what: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&x: &f64| x.is_finite() && allowed(x)).ok_or_else(|| format!("expected {what}"))
}

fn non_negative(text: &str) -> Result<f64, String> {
    number(text, |x| x >= 0.0, "a number of at least 0")
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0, "a number above 0")
}

fn share(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0 && x <= 1.0, "a number above 0 and at most 1")
}

fn fraction(text: &str) -> Result<f64, String> {
    number(text, |x| (0.0..1.0).contains(&x), "a number of at least 0 and below 1")
}

#[cfg(test)]
mod tests;
