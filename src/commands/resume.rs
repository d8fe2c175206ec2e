//! `resume`: continues a run, or repeats some of its steps and compares them with its log.

use super::arguments::path;
use super::models::with_local_base;
use super::ranks::RanksArgs;
use super::{optional_model_dir, print, session};
use crate::inspect::verify::{Verification, verify};
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail};
use crate::train::reset::Piece;
use crate::train::resume::resume;
use crate::train::resume_config::RequestedChanges;
use anyhow::Result;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite resume --ckpt runs/quickstart
  llama-lite resume --ckpt runs/quickstart --set train.steps=3000 --set schedule.decay_steps=3000
  llama-lite resume --ckpt runs/quickstart --verify 20
  llama-lite resume --ckpt runs/quickstart/checkpoints/step-00001000 --reset optimizer

Raising train.steps leaves the learning rates as they were configured; set schedule.decay_steps to change them. Only
the tail of a wsd schedule moves to the new end, if it has not started.")]
pub struct ResumeArgs {
    /// Run directory (its newest valid checkpoint) or one checkpoint of a run
    #[arg(long, value_name = "CKPT_OR_RUN_DIR", value_parser = path())]
    pub ckpt: PathBuf,
    /// For adapters: their model, a directory or hub:OWNER/NAME[@REVISION], if it is no longer where they were trained
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub base: Option<PathBuf>,
    /// Change one configuration key of the run; may be repeated, later ones win
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Reset parts of the run's state on purpose, to see what each is for
    #[arg(long, value_name = "PIECE,...", value_delimiter = ',')]
    pub reset: Vec<ResetOption>,
    /// Skip N sequences of the data first
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: u64,
    /// Repeat N steps, writing nothing, and compare them with what the run logged
    #[arg(long, value_name = "N", conflicts_with_all = ["set", "reset", "skip"])]
    pub verify: Option<NonZeroU64>,
    #[command(flatten)]
    pub ranks: RanksArgs,
}

/// A value of `--reset`, and the pieces of a run's state that it resets.
#[derive(Clone, Copy, Debug)]
pub struct ResetOption {
    name: &'static str,
    help: &'static str,
    pub(super) pieces: &'static [Piece],
}

/// In the order of the help text.
const RESET_OPTIONS: [ResetOption; 6] = [
    ResetOption {
        name: "optimizer",
        help: "moments and optimizer_step",
        pieces: &[Piece::Moments, Piece::OptimizerStep],
    },
    ResetOption { name: Piece::Moments.name(), help: "AdamW's moments become 0", pieces: &[Piece::Moments] },
    ResetOption {
        name: Piece::OptimizerStep.name(),
        help: "AdamW's count of updates becomes 0",
        pieces: &[Piece::OptimizerStep],
    },
    ResetOption { name: Piece::Rng.name(), help: "The seed becomes a new one", pieces: &[Piece::Rng] },
    ResetOption { name: Piece::Data.name(), help: "The data start from the beginning", pieces: &[Piece::Data] },
    ResetOption {
        name: Piece::Schedule.name(),
        help: "The learning rate starts over, warm-up included",
        pieces: &[Piece::Schedule],
    },
];

impl ValueEnum for ResetOption {
    fn value_variants<'a>() -> &'a [Self] {
        &RESET_OPTIONS
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name).help(self.help))
    }
}

pub(crate) fn run(args: &ResumeArgs, console: Console) -> Result<()> {
    if let Some(steps) = args.verify {
        return replay(args, steps.get(), console);
    }
    let pieces: BTreeSet<Piece> = args.reset.iter().flat_map(|option| option.pieces).copied().collect();
    let base = optional_model_dir(args.base.as_deref(), console)?.map(std::path::absolute).transpose()?;
    let base = base.map(|dir| format!("sft.base={}", dir.display()));
    let sets = with_local_base(args.set.iter().cloned().chain(base).collect(), console)?;
    resume(&args.ckpt, &RequestedChanges { sets, pieces, skip: args.skip }, &session(console))
}

fn replay(args: &ResumeArgs, steps: u64, console: Console) -> Result<()> {
    let base = optional_model_dir(args.base.as_deref(), console)?;
    let (place, outcome) = verify(&args.ckpt, steps, base.as_deref(), &session(console))?;
    let place = place.display();
    match outcome {
        Verification::Pass(steps, records) => print(&format!(
            "PASS steps {}..{} from {place}: loss, gradient norm and data of {records} records came out the same, bit for bit",
            steps.start(),
            steps.end()
        )),
        Verification::Altered(steps, logs) => {
            let what: Vec<String> = logs.iter().map(ToString::to_string).collect();
            let what = what.join("; ");
            print(&format!("FAIL {what} (steps {}..{} came out the same)", steps.start(), steps.end()))?;
            Err(fail(Exit::Data, format!("{place}: {what}"))
                .hint("restore the logs from a copy; the checkpoints do not need them, the run can be resumed")
                .into())
        }
        Verification::Fail(m, why) => {
            let what = format!("step {}: {} was {}, replayed it is {}", m.step, m.quantity, m.recorded, m.replayed);
            print(&format!("FAIL {what}"))?;
            Err(fail(Exit::Data, format!("{place}: {what}")).hint(why).into())
        }
        Verification::Unverified(why) => {
            print(&format!("UNVERIFIED {why}"))?;
            Err(fail(Exit::Data, format!("{place}: nothing was verified: {why}"))
                .hint("give a checkpoint that is followed by enough logged steps, or a smaller --verify")
                .into())
        }
    }
}
