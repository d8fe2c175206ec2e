//! `fork`: branches from a checkpoint.

use super::resume::pieces;
use crate::cli::{Fork, Piece as Word};
use crate::metrics::Console;
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::shell::quoted;
use crate::train::fork::{Branch, fork};
use crate::train::resume::locate;
use anyhow::Result;
use clap::ValueEnum;
use std::path::PathBuf;

pub(super) fn run(args: &Fork, console: Console) -> Result<()> {
    let piece = |word: &str| Word::from_str(word, false).ok().map(|word| pieces(word).to_vec());
    let branch = |text: &String| {
        Branch::parse(text, piece)
            .map_err(|what| fail(Exit::Config, format!("--branch {text:?}: {what}")).hint("see llama-lite fork --help"))
    };
    let branches = args.branch.iter().map(branch).collect::<Result<Vec<_>, _>>()?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => {
            let run = locate(&args.ckpt)?.0;
            let name = run.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            run.with_file_name(format!("{name}-forks"))
        }
    };
    let dirs = fork(&args.ckpt, &branches, args.steps.get(), &out, console)?;
    if !console.quiet {
        let dirs: Vec<String> = dirs.iter().map(|dir: &PathBuf| quoted(dir)).collect();
        let page = quoted(&out.join("report.html"));
        note(&format!("compare them: llama-lite report {} --out {page}", dirs.join(" ")));
    }
    Ok(())
}
