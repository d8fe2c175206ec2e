//! `report`: the page of one or several runs.

use super::arguments::path;
use super::print;
use crate::inspect::report::{collect, page, text};
use crate::metrics::Console;
use crate::runtime::error::note;
use crate::runtime::files::write_atomic;
use crate::runtime::format::escape_control;
use anyhow::Result;
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite report runs/quickstart
  llama-lite report runs/a runs/b --out compared.html
  llama-lite report runs/quickstart --watch
  llama-lite report runs/quickstart --text")]
pub struct ReportArgs {
    /// Directories of runs; several are shown in the same charts
    #[arg(value_name = "RUN_DIR", required = true, value_parser = path())]
    pub runs: Vec<PathBuf>,
    /// File to write [default: report.html in the first run's directory]
    #[arg(long, value_name = "FILE", conflicts_with = "text", value_parser = path())]
    pub out: Option<PathBuf>,
    /// Write it again every few seconds until the runs have ended
    #[arg(long, conflicts_with = "text")]
    pub watch: bool,
    /// Write to the terminal instead
    #[arg(long)]
    pub text: bool,
}

/// Seconds between two pages of a run in progress.
const REFRESH_SECONDS: u64 = 5;

pub(crate) fn run(args: &ReportArgs, console: Console) -> Result<()> {
    if args.text {
        return print(&escape_control(&text(&collect(&args.runs)?)));
    }
    let out = args.out.clone().unwrap_or_else(|| args.runs[0].join("report.html"));
    let mut again = write_page(args, &out)?;
    if !console.quiet {
        note(&format!("wrote {}", out.display()));
    }
    while again {
        std::thread::sleep(Duration::from_secs(REFRESH_SECONDS));
        again = write_page(args, &out)?;
    }
    Ok(())
}

/// Writes the page; returns whether it is to be written again, because a run that is watched goes on.
fn write_page(args: &ReportArgs, out: &Path) -> Result<bool> {
    let report = collect(&args.runs)?;
    let again = args.watch && !report.runs.iter().all(|run| run.finished);
    write_atomic(out, page(&report, again.then_some(REFRESH_SECONDS))?.as_bytes())?;
    Ok(again)
}
