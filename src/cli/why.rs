//! `llama-lite why`.

use clap::Args;
use std::path::PathBuf;

/// `llama-lite why`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example: llama-lite why runs/quickstart --step 1200")]
pub struct Why {
    /// Directory of a run
    #[arg(value_name = "RUN_DIR")]
    pub run: PathBuf,
    /// The step to explain; steps that are still to come can be asked for as well
    #[arg(long, value_name = "N")]
    pub step: u64,
    /// For adapters: the directory of their model, if it is no longer where they were trained
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Show all of every sequence
    #[arg(long)]
    pub full: bool,
}
