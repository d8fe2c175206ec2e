//! `llama-lite report`.

use clap::Args;
use std::path::PathBuf;

/// `llama-lite report`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite report runs/quickstart
  llama-lite report runs/a runs/b --out compared.html
  llama-lite report runs/quickstart --watch
  llama-lite report runs/quickstart --text")]
pub struct Report {
    /// Directories of runs; several are shown in the same charts
    #[arg(value_name = "RUN_DIR", required = true)]
    pub runs: Vec<PathBuf>,
    /// File to write [default: report.html in the first run's directory]
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub out: Option<PathBuf>,
    /// Write it again every few seconds until the runs have ended
    #[arg(long, conflicts_with = "text")]
    pub watch: bool,
    /// Write to the terminal instead
    #[arg(long)]
    pub text: bool,
}
