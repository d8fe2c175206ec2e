//! `fork`: branches from a checkpoint.

use super::arguments::path;
use super::models::with_local_base;
use super::resume::ResetOption;
use super::session;
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::shell::quoted;
use crate::train::fork::{Branch, fork};
use crate::train::reset::Piece;
use crate::train::run_dir::locate;
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::num::NonZeroU64;
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:
  llama-lite fork runs/quickstart/checkpoints/step-00001000 --steps 200 \\
      --branch exact --branch 'weights-only: reset=optimizer' --branch 'hot: optimizer.lr=6e-3' \\
      --branch 'other-data: data.seed=2' --branch 'past-it: skip=64'

Compare them with: llama-lite report runs/quickstart-forks/*")]
pub struct ForkArgs {
    /// Checkpoint of a run, or the run (its newest checkpoint)
    #[arg(value_name = "CKPT", value_parser = path())]
    pub ckpt: PathBuf,
    /// A branch: 'NAME: KEY=VALUE, reset=PIECE+PIECE, skip=SEQUENCES'; a name alone continues as the run would
    #[arg(long, value_name = "NAME: CHANGES", required = true)]
    pub branch: Vec<String>,
    /// Steps of each branch
    #[arg(long, value_name = "N")]
    pub steps: NonZeroU64,
    /// Directory of the branches [default: the run's directory and -forks]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub out: Option<PathBuf>,
}

pub(crate) fn run(args: &ForkArgs, console: Console) -> Result<()> {
    let mut branches = args.branch.iter().map(|text| parse_branch(text)).collect::<Result<Vec<_>>>()?;
    for branch in &mut branches {
        branch.changes.sets = with_local_base(std::mem::take(&mut branch.changes.sets), console)?;
    }
    let out = match &args.out {
        Some(out) => out.clone(),
        None => {
            let run = locate(&args.ckpt)?.0;
            let name = run.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            run.with_file_name(format!("{name}-forks"))
        }
    };
    let dirs = fork(&args.ckpt, &branches, args.steps.get(), &out, &session(console))?;
    if !console.quiet {
        let dirs: Vec<String> = dirs.iter().map(|dir: &PathBuf| quoted(dir)).collect();
        let page = quoted(&out.join("report.html"));
        note(&format!("compare them: llama-lite report {} --out {page}", dirs.join(" ")));
    }
    Ok(())
}

fn parse_branch(text: &str) -> Result<Branch> {
    Branch::parse(text, reset_pieces).map_err(|what| {
        fail(Exit::Config, format!("--branch {text:?}: {what}")).hint("see llama-lite fork --help").into()
    })
}

/// The pieces that `reset=WORD` of a branch resets.
fn reset_pieces(word: &str) -> Option<Vec<Piece>> {
    ResetOption::from_str(word, false).ok().map(|option| option.pieces.to_vec())
}
