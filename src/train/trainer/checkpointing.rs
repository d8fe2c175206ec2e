//! Checkpoints: beside training when one is due, at once when the run stops or ends; and what happens when the disk refuses one.

use super::Trainer;
use crate::checkpoint::Retention;
use crate::config::DiskFullPolicy;
use crate::runtime::error::{Exit, fail, failure_in};
use crate::runtime::files::Syncer;
use crate::runtime::memory;
use crate::train::footprint::checkpoint_bytes;
use crate::train::saver::{Done, Job, Saver, write};
use crate::train::snapshot::{Snapshot, with_contents};
use crate::train::trainer_state::{Seeds, TrainerStateFile, VERSION};
use anyhow::Result;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Failed saves in a row after which training does not continue without a checkpoint.
const MOST_FAILED: u32 = 3;

/// Between two tries of a paused run.
const RETRY: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// A save that takes this long is slow; one that takes longer is stuck.
const LONGEST_SAVE: Duration = Duration::from_secs(3600);

/// The saves of this process.
pub(super) struct SaveStatus {
    pub(super) saver: Saver,
    /// The step of the newest durable checkpoint.
    pub(super) last_step: Option<u64>,
    failed_in_a_row: u32,
    /// How long the last save has interrupted training.
    pause: Duration,
}

impl SaveStatus {
    /// # Errors
    /// [`Exit::Io`] if the system gives no thread.
    pub(super) fn new(last_step: Option<u64>) -> Result<Self> {
        Ok(Self { saver: Saver::new()?, last_step, failed_in_a_row: 0, pause: Duration::ZERO })
    }
}

fn exit_of(error: &anyhow::Error) -> Option<Exit> {
    failure_in(error).map(|failure| failure.exit)
}

impl Trainer {
    /// Copies the state, and trains on while a thread writes the copy. A save still in flight is waited for first.
    pub(super) fn save_in_background(&mut self) -> Result<()> {
        let started = self.start_phase("saving");
        self.settle_save()?;
        self.check_place()?;
        if self.saves.last_step == Some(self.state.run.step) {
            return Ok(());
        }
        // Without a copy the live buffers are written, and training waits.
        if !self.has_room_for_a_copy() {
            return self.save_now();
        }
        let file = self.trainer_state_file()?;
        let buffers = self.saves.saver.take_buffers();
        let snapshot = Snapshot::take(&self.state, &file, self.base_dir(), &self.data.dataset.tokenizer, buffers)?;
        self.saves.saver.start(Job {
            snapshot,
            run_dir: self.context.dir.clone(),
            attempt: self.state.run.attempt,
            keep: self.retention(),
            logs: self.logs.syncers()?,
        })?;
        // Training has waited for the copy alone; the files are written beside it.
        self.saves.pause = started.elapsed();
        self.record_pause("saving", self.config.checkpoint.every, self.saves.pause)
    }

    /// Makes logs and then a checkpoint durable before anything else is done.
    pub(super) fn save_now(&mut self) -> Result<()> {
        self.settle_save()?;
        self.check_place()?;
        let step = self.state.run.step;
        if self.saves.last_step == Some(step) {
            return Ok(());
        }
        let started = self.start_phase("saving");
        let result = self.write_live();
        let took = started.elapsed();
        self.saves.pause = took;
        self.handle_save(step, result, took)?;
        // Only then: on a disk that has refused the checkpoint there may be no room for this either.
        self.record_pause("saving", self.config.checkpoint.every, took)
    }

    /// Writes a checkpoint from the live buffers, without a copy.
    pub(super) fn write_live(&mut self) -> Result<PathBuf> {
        self.write_live_into(&self.context.dir, &self.logs.syncers()?)
    }

    /// The same in the run directory `dir`; `logs` are synced first.
    pub(super) fn write_live_into(&self, dir: &Path, logs: &[Syncer]) -> Result<PathBuf> {
        let file = self.trainer_state_file()?;
        let keep = self.retention();
        with_contents(&self.state, &file, self.base_dir(), &self.data.dataset.tokenizer, |contents| {
            write(dir, self.state.run.attempt, logs, keep, contents)
        })
    }

    /// Handles the save in flight if it has ended.
    pub(super) fn poll_save(&mut self) -> Result<()> {
        match self.saves.saver.poll()? {
            Some(done) => self.handle_save(done.step, done.result, done.took),
            None => Ok(()),
        }
    }

    /// Waits for the save in flight, if there is one, and handles it.
    fn settle_save(&mut self) -> Result<()> {
        match self.wait_for_save()? {
            Some(done) => self.handle_save(done.step, done.result, done.took),
            None => Ok(()),
        }
    }

    pub(super) fn wait_for_save(&mut self) -> Result<Option<Done>> {
        let watchdog = &self.watchdog;
        self.saves.saver.wait(|waited| {
            // After that the watchdog may end the process.
            if waited < LONGEST_SAVE {
                watchdog.alive();
            }
        })
    }

    fn handle_save(&mut self, step: u64, result: Result<PathBuf>, took: Duration) -> Result<()> {
        // What was written into a directory that is no longer the run's is no checkpoint, and its errors are not the disk's.
        self.check_place()?;
        match result {
            Ok(dir) => self.record_save(step, &dir, took),
            Err(error) if exit_of(&error) == Some(Exit::Io) => self.handle_failed_save(step, error),
            // A tensor that is not finite: the weights themselves have diverged.
            Err(error) if exit_of(&error) == Some(Exit::Diverged) => self.roll_back(&error.to_string()),
            Err(error) => Err(error),
        }
    }

    /// Reports a checkpoint: only now that it is durable.
    pub(super) fn record_save(&mut self, step: u64, dir: &Path, took: Duration) -> Result<()> {
        self.saves.last_step = Some(step);
        self.saves.failed_in_a_row = 0;
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned());
        self.logs.events.append(
            "save",
            json!({"step": step, "checkpoint": name, "seconds": took.as_secs_f64(), "stall_seconds": self.saves.pause.as_secs_f64()}),
        )?;
        self.progress.saved(step, dir, took);
        Ok(())
    }

    /// The disk is full or fails. Older checkpoints are as they were; training continues without a new one, but not for long.
    fn handle_failed_save(&mut self, step: u64, error: anyhow::Error) -> Result<()> {
        self.saves.failed_in_a_row += 1;
        let failed = self.saves.failed_in_a_row;
        self.progress.warn(&format!("step {step}: not saved (try {failed}): {error:#}"));
        // On a full disk this may fail as well, and says nothing that stderr does not.
        let event = json!({"step": step, "error": format!("{error:#}"), "in_a_row": failed});
        let _ = self.logs.events.append("save_failed", event);
        let present = self.state.run.step;
        let ending = present == self.config.train.steps || self.context.requests.stop_asked();
        // An older state that was refused while the run ends does not matter: the present one is about to be tried.
        let needed = failed >= MOST_FAILED || (ending && step == present);
        match (needed, self.config.checkpoint.on_full) {
            (false, _) => Ok(()),
            (true, DiskFullPolicy::Pause) => self.pause_until_saved(),
            (true, DiskFullPolicy::Exit) => Err(error),
        }
    }

    fn pause_until_saved(&mut self) -> Result<()> {
        let step = self.state.run.step;
        self.progress.warn(&format!("paused at step {step} until the disk takes a checkpoint"));
        loop {
            self.wait_before_retry()?;
            self.check_place()?;
            let started = Instant::now();
            match self.write_live() {
                Ok(dir) => return self.record_save(step, &dir, started.elapsed()),
                Err(error) if exit_of(&error) == Some(Exit::Io) => self.saves.failed_in_a_row += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn wait_before_retry(&self) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < RETRY {
            self.watchdog.alive();
            std::thread::sleep(Duration::from_millis(200));
            if self.context.requests.stop_asked() && self.saves.failed_in_a_row > MOST_FAILED {
                let message = format!("stopped while paused: step {} could not be saved", self.state.run.step);
                let hint = "free disk space and resume: the last checkpoint is whole";
                return Err(fail(Exit::Io, message).hint(hint).into());
            }
        }
        Ok(())
    }

    /// A run whose last updates were refused deletes nothing: any of its checkpoints may be the one to go back to.
    pub(super) fn retention(&self) -> Retention {
        let c = &self.config.checkpoint;
        let keep = if self.state.run.guard.last_was_refused() { usize::MAX } else { c.keep };
        Retention { keep, keep_every: c.keep_every, log_spaced: c.log_spaced }
    }

    /// Whether a copy of weights and moments fits into memory beside what is there.
    fn has_room_for_a_copy(&self) -> bool {
        let copy = checkpoint_bytes(&self.config);
        // The buffers of an earlier copy are used again. Otherwise there must be room for one, and an eighth to spare.
        let room = memory::available().is_none_or(|free| self.saves.saver.holds_buffers() || free > copy + copy / 8);
        self.config.checkpoint.background && room
    }

    /// Where the weights beside adapters are.
    pub(super) fn base_dir(&self) -> &str {
        self.config.sft.base.as_deref().unwrap_or_default()
    }

    pub(super) fn trainer_state_file(&self) -> Result<TrainerStateFile> {
        Ok(TrainerStateFile {
            version: VERSION,
            state: self.state.run.clone(),
            rng: Seeds { train_seed: self.config.train.seed, data_seed: self.config.data.seed },
            data_fingerprint: self.data_fingerprint.clone(),
            config: self.config.to_checked_toml()?,
            build: self.context.build.clone(),
            base: self.state.base.clone(),
            // Of this moment: by the time that the file is written, the logs have later lines.
            logs: self.logs.digests(),
        })
    }
}
