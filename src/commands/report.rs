//! `report`: the page of one or several runs.

use super::print;
use crate::cli::Report;
use crate::inspect::report::{collect, page, text};
use crate::metrics::Console;
use crate::runtime::error::note;
use crate::runtime::files::write_atomic;
use crate::runtime::format::escape_control;
use anyhow::Result;
use std::time::Duration;

/// Seconds between two pages of a run in progress.
const AGAIN: u64 = 5;

pub(super) fn run(args: &Report, console: Console) -> Result<()> {
    if args.text {
        return print(&escape_control(&text(&collect(&args.runs)?)));
    }
    let out = args.out.clone().unwrap_or_else(|| args.runs[0].join("report.html"));
    let write = |watch: bool| -> Result<bool> {
        let report = collect(&args.runs)?;
        let again = watch && !report.runs.iter().all(|run| run.finished);
        write_atomic(&out, page(&report, again.then_some(AGAIN))?.as_bytes())?;
        Ok(again)
    };
    let mut again = write(args.watch)?;
    if !console.quiet {
        note(&format!("wrote {}", out.display()));
    }
    while again {
        std::thread::sleep(Duration::from_secs(AGAIN));
        again = write(true)?;
    }
    Ok(())
}
