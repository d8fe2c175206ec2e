//! `why`: the documents of a step.

use super::arguments::path;
use super::{optional_model_dir, print, session};
use crate::inspect::why::why;
use crate::metrics::{Console, fixed};
use crate::runtime::format::escape_control;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
#[command(after_help = "Example: llama-lite why runs/quickstart --step 1200")]
pub struct WhyArgs {
    /// Directory of a run
    #[arg(value_name = "RUN_DIR", value_parser = path())]
    pub run: PathBuf,
    /// The step to explain; steps that are still to come can be asked for as well
    #[arg(long, value_name = "N")]
    pub step: u64,
    /// For adapters: their model, a directory or hub:OWNER/NAME[@REVISION], if it is no longer where they were trained
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub base: Option<PathBuf>,
    /// Show all of every sequence
    #[arg(long)]
    pub full: bool,
}

/// Characters of a sequence that are shown.
const SHOWN: usize = 300;

pub(crate) fn run(args: &WhyArgs, console: Console) -> Result<()> {
    let base = optional_model_dir(args.base.as_deref(), console)?;
    let found = why(&args.run, args.step, base.as_deref(), &session(console))?;
    let logged = found.logged.map_or_else(String::new, |loss| format!(", logged loss {}", fixed(loss, 4)));
    let mut out = format!(
        "step {}: {} sequences{logged}; {}\n",
        args.step,
        found.sequences.len(),
        match found.exact {
            true => "losses as they were in the step".to_owned(),
            false => format!("losses by the checkpoint of step {}", found.loss_step),
        }
    );
    for part in &found.sequences {
        let limit = if args.full { usize::MAX } else { SHOWN };
        let cut: String = part.text.chars().take(limit).collect();
        let more = if cut.len() < part.text.len() { " ..." } else { "" };
        let indented = cut.replace('\n', "\n    ");
        out.push_str(&format!(
            "\nloss {}  sequence {}  {}\n    {indented}{more}\n",
            fixed(part.loss, 4),
            part.sequence,
            part.place
        ));
    }
    print(&escape_control(&out))
}
