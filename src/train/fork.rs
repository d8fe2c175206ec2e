//! `fork`: short branches from one checkpoint, each a run of its own, to see what a change does.
//!
//! A branch starts as a copy of the run up to the checkpoint and is resumed like any run: with other settings, or with pieces of its
//! state given up. A branch without changes is the run itself, bit for bit: the others are compared with it.

use super::reset::Piece;
use super::resume::resume;
use super::resume_config::{RequestedChanges, ResumeConfig};
use super::run_dir::{adapter_base, locate};
use super::schedule::standstill;
use super::session::Session;
use super::trainer_state::TrainerStateFile;
use crate::checkpoint::{self, Opened};
use crate::metrics::{Events, LOG_FILES, read_events};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{AtomicFile, create_dirs, io_context, open_input};
use anyhow::{Context, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct Branch {
    /// The name of its directory.
    pub name: String,
    /// What is other than in the run.
    pub changes: RequestedChanges,
}

impl Branch {
    /// Reads `NAME: KEY=VALUE, reset=PIECE+PIECE, skip=SEQUENCES`, of which all but the name can be missing.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str, piece: impl Fn(&str) -> Option<Vec<Piece>>) -> Result<Self, String> {
        let (name, changes) = text.split_once(':').unwrap_or((text, ""));
        let name = name.trim();
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if name.is_empty() || name.starts_with('.') || !plain {
            return Err(format!("{name:?} cannot be a branch's name: letters, digits, - and _ can"));
        }
        let mut wanted = RequestedChanges::default();
        for change in split_changes(changes) {
            match change.split_once('=') {
                Some(("reset", pieces)) => {
                    for word in pieces.split('+') {
                        wanted
                            .pieces
                            .extend(piece(word.trim()).ok_or_else(|| format!("no piece of state is called {word:?}"))?);
                    }
                }
                Some(("skip", n)) => {
                    wanted.skip = n.trim().parse().map_err(|_| format!("{n:?} is no number of sequences"))?;
                }
                Some((key, _)) if key.contains('.') => wanted.sets.push(change.to_owned()),
                _ => return Err(format!("{change:?} is neither section.key=value nor reset=PIECE nor skip=SEQUENCES")),
            }
        }
        if wanted.sets.iter().any(|set| set.starts_with("data.")) {
            // In a run a change of its data may be a mistake; in a branch it is the purpose.
            wanted.sets.push("data.allow_change=true".to_owned());
        }
        Ok(Self { name: name.to_owned(), changes: wanted })
    }

    /// Its changes, for a run that ends `steps` steps after step `at` unless it has a length of its own.
    fn longer_by(&self, steps: u64, at: u64) -> RequestedChanges {
        let mut wanted = self.changes.clone();
        // In front, so that a length that the branch gives comes later and counts.
        wanted.sets.insert(0, format!("train.steps={}", at.saturating_add(steps)));
        wanted
    }
}

/// Refuses a branch that cannot continue from `saved`, or that would learn nothing.
fn check(branch: &Branch, saved: &TrainerStateFile, steps: u64) -> Result<()> {
    let name = &branch.name;
    let at = saved.state.step;
    let context = format!("branch {name}");
    let config = ResumeConfig::new(saved, &branch.longer_by(steps, at)).context(context.clone())?.config;
    let Some(standstill) = standstill(&config, at).context(context)? else { return Ok(()) };
    let setting = standstill.setting;
    let hint = format!(
        "add {setting} to it, as in --branch '{name}: {setting}' ({}), or fork a checkpoint from before the end of the schedule",
        standstill.effect
    );
    Err(fail(Exit::Config, format!("branch {name}: {}", standstill.message)).hint(hint).into())
}

/// Cuts at commas that are not inside brackets, which lists have.
fn split_changes(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    let parts = text.split(move |c: char| {
        depth += i32::from(c == '[') - i32::from(c == ']');
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|change| !change.is_empty())
}

/// Runs every branch `steps` steps on from `ckpt`, in a directory of its name under `out`; returns these directories.
///
/// # Errors
/// [`Exit::Config`] if a directory is there already or a name is given twice; those of [`resume`].
pub fn fork(ckpt: &Path, branches: &[Branch], steps: u64, out: &Path, session: &Session) -> Result<Vec<PathBuf>> {
    let (run_dir, named) = locate(ckpt)?;
    let dir = match named {
        Some(dir) => dir,
        None => checkpoint::resolve(&run_dir)?,
    };
    // The model of adapters may have been moved, which a branch can say.
    let sets: Vec<String> = branches.iter().flat_map(|branch| branch.changes.sets.clone()).collect();
    let moved: Vec<String> = sets.into_iter().filter(|set| set.starts_with("sft.base=")).collect();
    let source = Opened::open_beside(&dir, adapter_base(&dir, &moved).as_deref())?;
    let Some(at) = source.manifest.as_ref().map(|manifest| manifest.step) else {
        return Err(fail(Exit::Config, format!("{}: not a checkpoint of a run", dir.display())).into());
    };
    let mut dirs: Vec<PathBuf> = branches.iter().map(|branch| out.join(&branch.name)).collect();
    if let Some(taken) = dirs.iter().find(|dir| dir.exists()) {
        return Err(fail(Exit::Config, format!("{} is there already", taken.display()))
            .hint("choose another --out or another name")
            .into());
    }
    // `dedup` only sees neighbours.
    dirs.sort();
    dirs.dedup();
    if dirs.len() != branches.len() {
        return Err(fail(Exit::Config, "two branches have one name").hint("give each a name of its own").into());
    }
    let saved = TrainerStateFile::read(&source)?;
    // Before any of them is made: the last may be as wrong as the first.
    branches.iter().try_for_each(|branch| check(branch, &saved, steps))?;
    for branch in branches {
        let to = out.join(&branch.name);
        copy(&run_dir, &dir, &to, at)?;
        let wanted = branch.longer_by(steps, at);
        let from = to.join("checkpoints").join(checkpoint::step_name(at));
        resume(&from, &wanted, session)?;
    }
    Ok(branches.iter().map(|branch| out.join(&branch.name)).collect())
}

/// The run as it was at the checkpoint: a resume cuts the logs.
fn copy(run_dir: &Path, checkpoint: &Path, to: &Path, at: u64) -> Result<()> {
    let kept = to.join("checkpoints").join(checkpoint::step_name(at));
    create_dirs(&kept)?;
    for entry in std::fs::read_dir(checkpoint)? {
        let entry = entry?;
        copy_file(&entry.path(), &kept.join(entry.file_name()))?;
    }
    for name in LOG_FILES.into_iter().chain(["config.toml"]) {
        let path = run_dir.join(name);
        if path.exists() {
            copy_file(&path, &to.join(name))?;
        }
    }
    let started = read_events(run_dir)?.into_iter().find(|event| event["kind"] == "start");
    let (build, from) = started.map_or_else(Default::default, |e| (e["build"].clone(), e["init_from"].clone()));
    let forked = json!({"attempt": 1, "step": 0, "init_from": from, "build": build, "forked_from": std::path::absolute(checkpoint)?.display().to_string()});
    Events::open(to)?.append("start", forked)
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let (mut source, _) = open_input(from, false)?;
    let mut target = AtomicFile::create(to)?;
    std::io::copy(&mut source, &mut target).map_err(io_context("copy", from))?;
    target.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_names_and_changes() {
        let piece = |word: &str| (word == "moments").then(|| vec![Piece::Moments]);
        let parse = |text: &str| Branch::parse(text, piece);
        let exact = parse("exact").unwrap();
        assert_eq!((exact.name.as_str(), exact.changes.sets.len(), exact.changes.pieces.len()), ("exact", 0, 0));
        let other = parse(" hot : optimizer.lr=1e-2, sample.prompts=[\"a, b\", \"c\"] ,reset=moments").unwrap();
        assert_eq!(other.name, "hot");
        assert_eq!(other.changes.sets, ["optimizer.lr=1e-2", "sample.prompts=[\"a, b\", \"c\"]"]);
        assert_eq!(other.changes.pieces.into_iter().collect::<Vec<_>>(), [Piece::Moments]);
        let late = parse("late: skip=64, data.seed=3").unwrap().changes;
        assert_eq!((late.skip, late.sets), (64, vec!["data.seed=3".to_owned(), "data.allow_change=true".to_owned()]));
        for wrong in ["x: skip=few", "", ": a.b=1", "../x", "a b", "x: lr", "x: reset=nothing", ".hidden"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
