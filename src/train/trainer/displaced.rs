//! A run directory that is removed, moved or replaced while the run writes to it. To continue would leave nothing behind, or disturb
//! another process: the run saves what it has in a directory of its own and ends.

use super::Trainer;
use super::checkpointing::Finding;
use crate::metrics::Events;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{Lock, create_dirs, lock, write_atomic};
use crate::runtime::shell::quoted;
use crate::train::snapshot::Snapshot;
use anyhow::{Context, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A check looks up a few names; on a network file system each is a request.
const CHECK_EVERY: Duration = Duration::from_secs(10);

impl Trainer {
    /// [`look_at_place`](Self::look_at_place), if that was some time ago.
    pub(super) fn look_at_place_in_time(&mut self) -> Finding {
        if self.last_seen_in_place.elapsed() < CHECK_EVERY { Finding::Fine } else { self.look_at_place() }
    }

    /// Ends the run, saved elsewhere, if its directory is no longer its own.
    pub(super) fn check_place(&mut self) -> Result<()> {
        let finding = self.on_first("the run directory", |trainer| Ok(trainer.look_at_place()))?;
        self.act_on(finding)
    }

    fn look_at_place(&mut self) -> Finding {
        match self.displaced() {
            None => {
                self.last_seen_in_place = Instant::now();
                Finding::Fine
            }
            Some(what) => Finding::Displaced(what),
        }
    }

    /// What shows that the run's directory is no longer its own.
    pub(super) fn displaced(&self) -> Option<String> {
        let dir = &self.context.dir;
        let lock_is_there = self.context.lock.as_ref().is_none_or(Lock::is_in_place);
        let lost = if lock_is_there { self.logs.displaced()?.to_owned() } else { dir.join("run.lock") };
        if !dir.is_dir() {
            return Some(format!("{} was removed or renamed", dir.display()));
        }
        let what = if lost.symlink_metadata().is_err() { "removed" } else { "replaced" };
        Some(format!("{} was {what}", lost.display()))
    }

    pub(super) fn leave(&mut self, what: &str) -> anyhow::Error {
        let step = self.state.run.step;
        // The other directory may be anywhere: what is in flight is no checkpoint of this run any more.
        let settled = self.wait_for_save().map(drop);
        let settled = self.group.agree("the save in flight", settled);
        let gathered = settled.and_then(|()| self.gather_state());
        let saved = gathered.and_then(|gathered| {
            self.on_first("saving elsewhere", |trainer| trainer.save_elsewhere(what, gathered.as_ref()))
        });
        match saved {
            Ok(dir) => {
                let message =
                    format!("{what} while the run was writing to it: step {step} is saved in {}", dir.display());
                fail(Exit::Io, message).hint(format!("go on there: llama-lite resume --ckpt {}", quoted(&dir))).into()
            }
            Err(error) => fail(
                Exit::Io,
                format!("{what} while the run was writing to it; step {step} could not be saved: {error:#}"),
            )
            .hint("resume from a copy of the directory, or begin again")
            .into(),
        }
    }

    /// Saves the run, logs and all, in a new directory: beside its own if that can be written to, else where temporary files are.
    fn save_elsewhere(&mut self, why: &str, gathered: Option<&Snapshot>) -> Result<PathBuf> {
        let own = std::path::absolute(&self.context.dir)?;
        let name = own.file_name().context("the run directory has no name")?.to_owned();
        // Beside its own directory first, where a user looks for it.
        let places = [own, std::env::temp_dir().join(name)];
        let mut result = Err(anyhow::anyhow!("there is no place for it"));
        for place in places {
            result = self.save_in(&unused(&place), why, gathered);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn save_in(&mut self, dir: &Path, why: &str, gathered: Option<&Snapshot>) -> Result<PathBuf> {
        create_dirs(dir)?;
        let _lock = lock(&dir.join("run.lock"))?;
        self.logs.copy_to(dir)?;
        write_atomic(&dir.join("config.toml"), self.config.to_toml().as_bytes())?;
        let written = self.write_gathered_into(gathered, dir, &[])?;
        let step = self.state.run.step;
        let mut events = Events::open(dir)?;
        let name = written.file_name().map(|n| n.to_string_lossy().into_owned());
        events.append("save", json!({"step": step, "checkpoint": name}))?;
        let from = self.context.dir.display().to_string();
        events.append("rescue", json!({"step": step, "from": from, "why": why}))?;
        Ok(dir.to_owned())
    }
}

/// The first free name of `<place>-rescued`, `<place>-rescued-2`...
fn unused(place: &Path) -> PathBuf {
    let base = place.file_name().unwrap_or_default();
    let suffixes = std::iter::once("-rescued".to_owned()).chain((2u32..).map(|n| format!("-rescued-{n}")));
    for suffix in suffixes {
        let mut name = base.to_owned();
        name.push(suffix);
        let candidate = place.with_file_name(name);
        if candidate.symlink_metadata().is_err() {
            return candidate;
        }
    }
    place.to_owned()
}
