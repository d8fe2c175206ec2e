//! `llama-lite fork`.

use clap::Args;
use std::num::NonZeroU64;
use std::path::PathBuf;

/// `llama-lite fork`
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:
  llama-lite fork runs/quickstart/checkpoints/step-00001000 --steps 200 \\
      --branch exact --branch 'weights-only: reset=optimizer' --branch 'hot: optimizer.lr=6e-3' \\
      --branch 'other-data: data.seed=2' --branch 'past-it: skip=64'

Compare them with: llama-lite report runs/quickstart-forks/*")]
pub struct Fork {
    /// Checkpoint of a run, or the run (its newest checkpoint)
    #[arg(value_name = "CKPT")]
    pub ckpt: PathBuf,
    /// A branch: 'NAME: KEY=VALUE, reset=PIECE+PIECE, skip=SEQUENCES'; a name alone goes on as the run would
    #[arg(long, value_name = "NAME: CHANGES", required = true)]
    pub branch: Vec<String>,
    /// Steps of each branch
    #[arg(long, value_name = "N")]
    pub steps: NonZeroU64,
    /// Directory of the branches [default: the run's directory and -forks]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
