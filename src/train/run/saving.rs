//! Checkpoints: beside training when one is due, at once when the run stops or ends; and what happens when the disk refuses one.

use super::Run;
use crate::checkpoint::Retention;
use crate::config::DiskFullPolicy;
use crate::data::loader::SourceUsage;
use crate::metrics::{ascii_plot, thousands};
use crate::runtime::error::{Exit, fail, failure_in, note};
use crate::runtime::memory;
use crate::runtime::shell::quoted;
use crate::train::footprint::checkpoint_bytes;
use crate::train::saver::{Done, Job, write};
use crate::train::snapshot::{Snapshot, with_contents};
use crate::train::state::{Rng, Saved, VERSION};
use anyhow::Result;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Refused saves in a row after which training does not go on without a checkpoint.
const MOST_REFUSED: u32 = 3;

/// Between two tries of a paused run.
const RETRY: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// A save that takes this long is slow; one that takes longer without a word is stuck.
const LONGEST_SAVE: Duration = Duration::from_secs(3600);

fn exit_of(error: &anyhow::Error) -> Option<Exit> {
    failure_in(error).map(|failure| failure.exit)
}

impl Run {
    /// Copies the state and goes on while it is written. A save still in flight is waited for first.
    pub(super) fn save_beside(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.progress.doing("saving");
        self.watchdog.begins(format!("saving at step {}", self.state.counters.step));
        self.settle_save()?;
        self.check_place()?;
        if self.saved_step == Some(self.state.counters.step) {
            return Ok(());
        }
        if !self.has_room_for_a_copy() {
            return self.save_now();
        }
        let saved = self.saved()?;
        let snapshot = Snapshot::take(&self.state, &saved, &self.data.dataset.tokenizer, self.saver.memory())?;
        self.saver.begin(Job {
            snapshot,
            run_dir: self.place.dir.clone(),
            attempt: self.place.attempt,
            keep: self.retention(),
            logs: self.logs.syncers()?,
        })?;
        self.stalled = begun.elapsed();
        self.held_up("saving", self.config.checkpoint.every, self.stalled)
    }

    /// Makes logs and then a checkpoint durable before anything else is done.
    pub(super) fn save_now(&mut self) -> Result<()> {
        self.settle_save()?;
        self.check_place()?;
        let begun = Instant::now();
        let step = self.state.counters.step;
        if self.saved_step == Some(step) {
            return Ok(());
        }
        self.progress.doing("saving");
        self.watchdog.begins(format!("saving at step {step}"));
        let result = self.write_live();
        self.stalled = begun.elapsed();
        let stalled = self.stalled;
        self.judge_save(step, result, stalled)?;
        // Only then: on a disk that has refused the checkpoint there may be no room for this either.
        self.held_up("saving", self.config.checkpoint.every, stalled)
    }

    pub(super) fn write_live(&mut self) -> Result<PathBuf> {
        let logs = self.logs.syncers()?;
        let (saved, keep) = (self.saved()?, self.retention());
        with_contents(&self.state, &saved, &self.data.dataset.tokenizer, |contents| {
            write(&self.place.dir, self.place.attempt, &logs, keep, contents)
        })
    }

    /// Hears of the save in flight if it has ended.
    pub(super) fn poll_save(&mut self) -> Result<()> {
        let done = self.saver.poll()?;
        done.map_or(Ok(()), |done| self.judge_save(done.step, done.result, done.took))
    }

    /// Waits for the save in flight, if there is one.
    fn settle_save(&mut self) -> Result<()> {
        let done = self.wait_for_save()?;
        done.map_or(Ok(()), |done| self.judge_save(done.step, done.result, done.took))
    }

    pub(super) fn wait_for_save(&mut self) -> Result<Option<Done>> {
        let watchdog = &self.watchdog;
        self.saver.wait(|waited| {
            if waited < LONGEST_SAVE {
                watchdog.alive();
            }
        })
    }

    fn judge_save(&mut self, step: u64, result: Result<PathBuf>, took: Duration) -> Result<()> {
        // What was written into a directory that is no longer the run's is no checkpoint, and its errors are not the disk's.
        self.check_place()?;
        match result {
            Ok(dir) => self.acknowledge(step, &dir, took),
            Err(error) if exit_of(&error) == Some(Exit::Io) => self.refused_save(step, error),
            // A tensor that is not finite: the weights themselves are sick.
            Err(error) if exit_of(&error) == Some(Exit::Diverged) => self.roll_back(&error.to_string()),
            Err(error) => Err(error),
        }
    }

    /// The checkpoint is durable: only now is it spoken of.
    pub(super) fn acknowledge(&mut self, step: u64, dir: &Path, took: Duration) -> Result<()> {
        self.saved_step = Some(step);
        self.refused_saves = 0;
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned());
        let (seconds, stall) = (took.as_secs_f64(), self.stalled.as_secs_f64());
        let event = json!({"step": step, "checkpoint": name, "seconds": seconds, "stall_seconds": stall});
        self.logs.events.append("save", event)?;
        self.progress.saved(step, dir, took);
        Ok(())
    }

    /// The disk is full or fails. Older checkpoints are as they were; training goes on without a new one, but not for long.
    fn refused_save(&mut self, step: u64, error: anyhow::Error) -> Result<()> {
        self.refused_saves += 1;
        let (n, present) = (self.refused_saves, self.state.counters.step);
        let ending = present == self.config.train.steps || self.requests.stop_asked();
        self.progress.warn(&format!("step {step}: not saved (try {n}): {error:#}"));
        // On a full disk this may fail as well, and says nothing that stderr does not.
        let event = json!({"step": step, "error": format!("{error:#}"), "in_a_row": n});
        let _ = self.logs.events.append("save_failed", event);
        // An older state that was refused while the run ends is no matter: the present one is about to be tried.
        let needed = n >= MOST_REFUSED || (ending && step == present);
        match (needed, self.config.checkpoint.on_full) {
            (false, _) => Ok(()),
            (true, DiskFullPolicy::Pause) => self.pause_until_saved(),
            (true, DiskFullPolicy::Exit) => Err(error),
        }
    }

    fn pause_until_saved(&mut self) -> Result<()> {
        let step = self.state.counters.step;
        self.progress.warn(&format!("paused at step {step} until the disk takes a checkpoint"));
        loop {
            let begun = Instant::now();
            while begun.elapsed() < RETRY {
                self.watchdog.alive();
                std::thread::sleep(Duration::from_millis(200));
                if self.requests.stop_asked() && self.refused_saves > MOST_REFUSED {
                    let message = format!("stopped while paused: step {step} could not be saved");
                    let hint = "free disk space and resume: the last checkpoint is whole";
                    return Err(fail(Exit::Io, message).hint(hint).into());
                }
            }
            self.check_place()?;
            let begun = Instant::now();
            match self.write_live() {
                Ok(dir) => return self.acknowledge(step, &dir, begun.elapsed()),
                Err(error) if exit_of(&error) == Some(Exit::Io) => self.refused_saves += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// A run whose last updates were refused deletes nothing: which of its checkpoints is well will be seen.
    pub(super) fn retention(&self) -> Retention {
        let c = &self.config.checkpoint;
        let keep = if self.state.guard.suspicious() { usize::MAX } else { c.keep };
        Retention { keep, keep_every: c.keep_every, log_spaced: c.log_spaced }
    }

    /// Whether a copy of weights and moments fits into memory beside what is there.
    fn has_room_for_a_copy(&self) -> bool {
        let copy = checkpoint_bytes(&self.config);
        let room = memory::available().is_none_or(|free| self.saver.holds_memory() || free > copy + copy / 8);
        self.config.checkpoint.background && room
    }

    pub(super) fn saved(&self) -> Result<Saved> {
        let state = &self.state;
        Ok(Saved {
            version: VERSION,
            counters: state.counters.clone(),
            attempt: self.place.attempt,
            schedule: state.schedule.clone(),
            guard: state.guard.clone(),
            data_offsets: state.data_offsets.clone(),
            reset: state.reset.clone(),
            rng: Rng { train_seed: self.config.train.seed, data_seed: self.config.data.seed },
            data_fingerprint: self.fingerprint.clone(),
            config: self.config.to_checked_toml()?,
            build: crate::train::identity(&self.config.train),
            base: state.base.clone(),
            logs: self.logs.digests(),
        })
    }

    pub(super) fn stop_early(&mut self) -> Result<()> {
        self.save_now()?;
        let step = self.state.counters.step;
        self.logs.events.append("stop", json!({"step": step}))?;
        self.requests.honoured();
        Err(fail(Exit::Stopped, format!("stopped at step {step} of {}, all saved", self.config.train.steps))
            .hint(format!("go on with: llama-lite resume --ckpt {}", quoted(&self.place.dir)))
            .into())
    }

    pub(super) fn finish(mut self) -> Result<()> {
        let step = self.state.counters.step;
        let source = |d: &SourceUsage| json!({"name": d.name, "sequences": d.sequences, "passes": d.passes});
        let drawn: Vec<_> =
            self.prefetch.loader().drawn(self.state.counters.next_sequence).iter().map(source).collect();
        self.logs.events.append("finish", json!({"step": step, "sources": drawn}))?;
        self.progress.finish();
        if self.curve.len() > 2 && !self.console.quiet {
            let floor = self.data.dataset.floor.map(|f| f.bits_per_byte);
            let title = if self.lengths.are_known() { "validation loss, bits per byte" } else { "validation loss" };
            note(&ascii_plot(&self.curve, 72, 16, floor, title));
        }
        if !self.console.quiet {
            note(&format!(
                "done: {} steps. Try: llama-lite sample --ckpt {}",
                thousands(step),
                quoted(&self.place.dir)
            ));
        }
        Ok(())
    }
}
