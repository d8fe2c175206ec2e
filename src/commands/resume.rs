//! `resume`: goes on with a run, or takes some of its steps again to compare them.

use super::print;
use crate::cli::{Piece as Word, Resume};
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail};
use crate::train::continuation::Changes;
use crate::train::reset::Piece;
use crate::train::resume::resume;
use crate::train::verify::{Outcome, verify};
use anyhow::Result;
use std::collections::BTreeSet;

pub(super) fn run(args: &Resume, console: Console) -> Result<()> {
    if let Some(steps) = args.verify {
        return replay(args, steps.get(), console);
    }
    let pieces: BTreeSet<Piece> = args.reset.iter().flat_map(|word| pieces(*word)).copied().collect();
    let base = args.base.as_deref().map(std::path::absolute).transpose()?;
    let base = base.map(|dir| format!("sft.base={}", dir.display()));
    let sets = args.set.iter().cloned().chain(base).collect();
    resume(&args.ckpt, &Changes { sets, pieces, skip: args.skip }, console)
}

pub(super) fn pieces(word: Word) -> &'static [Piece] {
    match word {
        Word::Optimizer => &[Piece::Moments, Piece::OptimizerStep],
        Word::Moments => &[Piece::Moments],
        Word::OptimizerStep => &[Piece::OptimizerStep],
        Word::Rng => &[Piece::Rng],
        Word::Data => &[Piece::Data],
        Word::Schedule => &[Piece::Schedule],
    }
}

fn replay(args: &Resume, steps: u64, console: Console) -> Result<()> {
    let (place, outcome) = verify(&args.ckpt, steps, args.base.as_deref(), console)?;
    let place = place.display();
    match outcome {
        Outcome::TrainOutput(steps, records) => print(&format!(
            "PASS steps {}..{} from {place}: loss, gradient norm and data of {records} records came out the same, bit for bit",
            steps.start(),
            steps.end()
        )),
        Outcome::Altered(steps, logs) => {
            let what: Vec<String> = logs.iter().map(ToString::to_string).collect();
            let what = what.join("; ");
            print(&format!("FAIL {what} (steps {}..{} came out the same)", steps.start(), steps.end()))?;
            Err(fail(Exit::Data, format!("{place}: {what}"))
                .hint("restore the logs from a copy; the checkpoints do not need them, the run can be resumed")
                .into())
        }
        Outcome::Fail(m, why) => {
            let what = format!("step {}: {} was {}, replayed it is {}", m.step, m.quantity, m.recorded, m.replayed);
            print(&format!("FAIL {what}"))?;
            Err(fail(Exit::Data, format!("{place}: {what}")).hint(why).into())
        }
        Outcome::Unverified(why) => {
            print(&format!("UNVERIFIED {why}"))?;
            Err(fail(Exit::Data, format!("{place}: nothing was verified: {why}"))
                .hint("give a checkpoint that is followed by enough logged steps, or a smaller --verify")
                .into())
        }
    }
}
