//! Checkpoints: beside training when one is due, at once when the run stops or ends.
//!
//! With several ranks rank 0 writes them. The others send it what they keep, and do with it what follows from its success or failure:
//! what rank 0 has found out is a [`Finding`].

use super::Trainer;
use crate::checkpoint::Retention;
use crate::config::DiskFullPolicy;
use crate::ops::products::algorithms_in_use;
use crate::runtime::error::{Exit, fail, failure_in};
use crate::runtime::files::Syncer;
use crate::runtime::{memory, thread};
use crate::train::disk::retention;
use crate::train::footprint::checkpoint_bytes;
use crate::train::saver::{Done, Job, Saver, write};
use crate::train::snapshot::{Snapshot, send_shards, with_contents};
use crate::train::trainer_state::{Seeds, TrainerStateFile, VERSION};
use anyhow::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
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

/// What rank 0 has found out about its saves and its directory, for all ranks to act on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Finding {
    Fine,
    /// The disk refuses checkpoints, and the run is to wait until it takes one.
    DiskFull,
    /// The weights themselves have diverged, as this says.
    Diverged(String),
    /// The directory is no longer the run's own, as this says.
    Displaced(String),
}

impl Trainer {
    /// Copies the state, and trains on while a thread writes the copy. A save still in flight is waited for first.
    pub(super) fn save_in_background(&mut self) -> Result<()> {
        let started = self.start_phase("saving");
        self.settle_save()?;
        self.check_place()?;
        if self.is_saved()? {
            return Ok(());
        }
        // Without a copy the live buffers are written, and training waits.
        if !self.on_first("room for a copy", |trainer| Ok(trainer.has_room_for_a_copy()))? {
            return self.save_now();
        }
        if let Some(snapshot) = self.take_snapshot()? {
            self.saves.saver.start(Job {
                snapshot,
                run_dir: self.context.dir.clone(),
                attempt: self.state.run.attempt,
                keep: self.retention(),
                logs: self.logs.syncers()?,
            })?;
        }
        // Training has waited for the copy alone; the files are written beside it.
        self.saves.pause = started.elapsed();
        self.record_pause("saving", self.config.checkpoint.every, self.saves.pause)
    }

    /// Makes logs and then a checkpoint durable before anything else is done.
    pub(super) fn save_now(&mut self) -> Result<()> {
        self.settle_save()?;
        self.check_place()?;
        if self.is_saved()? {
            return Ok(());
        }
        let started = self.start_phase("saving");
        let step = self.state.run.step;
        let finding = self.write_and_assess(|trainer, result| {
            let took = started.elapsed();
            trainer.saves.pause = took;
            trainer.assess_save(step, result, took)
        })?;
        let took = started.elapsed();
        self.act_on(finding)?;
        // Only then: on a disk that has refused the checkpoint there may be no room for this either.
        self.record_pause("saving", self.config.checkpoint.every, took)
    }

    /// Whether the present step is in a durable checkpoint.
    pub(super) fn is_saved(&mut self) -> Result<bool> {
        self.on_first("the last save", |trainer| Ok(trainer.saves.last_step == Some(trainer.state.run.step)))
    }

    /// A copy of the state on rank 0; none on the others.
    fn take_snapshot(&mut self) -> Result<Option<Snapshot>> {
        if !self.group.is_first() {
            return send_shards(&self.state).map(|()| None);
        }
        let file = self.trainer_state_file()?;
        let buffers = self.saves.saver.take_buffers();
        Snapshot::take(&self.state, &file, self.base_dir(), &self.data.dataset.tokenizer, buffers).map(Some)
    }

    /// What rank 0 writes a checkpoint from while training waits: a copy if other ranks keep parts of it, else nothing, which stands for
    /// the live buffers.
    pub(super) fn gather_state(&mut self) -> Result<Option<Snapshot>> {
        if self.group.ranks() == 1 { Ok(None) } else { self.take_snapshot() }
    }

    /// Writes a checkpoint on rank 0 and gives all ranks what `assess` makes of the result there.
    fn write_and_assess<T: Serialize + DeserializeOwned>(
        &mut self,
        assess: impl FnOnce(&mut Self, Result<PathBuf>) -> Result<T>,
    ) -> Result<T> {
        let gathered = self.gather_state()?;
        let patience = self.group.set_patience(LONGEST_SAVE);
        let assessed = self.on_first("saving", |trainer| {
            let result = trainer.write_gathered(gathered.as_ref());
            assess(trainer, result)
        });
        self.group.set_patience(patience);
        if let Some(snapshot) = gathered {
            self.saves.saver.keep_buffers(snapshot.into_flats());
        }
        assessed
    }

    /// Writes a checkpoint from `gathered`, see [`gather_state`](Self::gather_state).
    pub(super) fn write_gathered(&self, gathered: Option<&Snapshot>) -> Result<PathBuf> {
        self.write_gathered_into(gathered, &self.context.dir, &self.logs.syncers()?)
    }

    /// The same in the run directory `dir`; `logs` are synced first.
    pub(super) fn write_gathered_into(
        &self,
        gathered: Option<&Snapshot>,
        dir: &Path,
        logs: &[Syncer],
    ) -> Result<PathBuf> {
        let keep = self.retention();
        let attempt = self.state.run.attempt;
        if let Some(snapshot) = gathered {
            return write(dir, attempt, logs, keep, &snapshot.contents());
        }
        let file = self.trainer_state_file()?;
        with_contents(&self.state, &file, self.base_dir(), &self.data.dataset.tokenizer, |contents| {
            write(dir, attempt, logs, keep, contents)
        })
    }

    /// Between steps: handles a save in flight that has ended, and a directory that is no longer the run's.
    pub(super) fn look_after_saves(&mut self) -> Result<()> {
        // Asked between steps, or a dead thread would show only when its work is needed.
        if let Some(failure) = thread::dead() {
            return Err(failure.into());
        }
        let finding = self.on_first("saves and the run directory", |trainer| {
            let ended = match trainer.saves.saver.poll()? {
                Some(done) => trainer.assess_save(done.step, done.result, done.took)?,
                None => Finding::Fine,
            };
            Ok(if ended == Finding::Fine { trainer.look_at_place_in_time() } else { ended })
        })?;
        self.act_on(finding)
    }

    /// Waits for the save in flight, if there is one, and handles it.
    pub(super) fn settle_save(&mut self) -> Result<()> {
        let patience = self.group.set_patience(LONGEST_SAVE);
        let ended = self.on_first("the save in flight", |trainer| match trainer.wait_for_save()? {
            Some(done) => trainer.assess_save(done.step, done.result, done.took),
            None => Ok(Finding::Fine),
        });
        self.group.set_patience(patience);
        self.act_on(ended?)
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

    /// What follows from the end of a save, on rank 0.
    fn assess_save(&mut self, step: u64, result: Result<PathBuf>, took: Duration) -> Result<Finding> {
        // What was written into a directory that is no longer the run's is no checkpoint, and its errors are not the disk's.
        if let Some(what) = self.displaced() {
            return Ok(Finding::Displaced(what));
        }
        match result {
            Ok(dir) => self.record_save(step, &dir, took).map(|()| Finding::Fine),
            Err(error) if exit_of(&error) == Some(Exit::Io) => self.assess_failed_save(step, error),
            // A tensor that is not finite: the weights themselves have diverged.
            Err(error) if exit_of(&error) == Some(Exit::Diverged) => Ok(Finding::Diverged(error.to_string())),
            Err(error) => Err(error),
        }
    }

    pub(super) fn act_on(&mut self, finding: Finding) -> Result<()> {
        match finding {
            Finding::Fine => Ok(()),
            Finding::DiskFull => self.pause_until_saved(),
            Finding::Diverged(why) => self.roll_back(&why),
            Finding::Displaced(what) => Err(self.leave(&what)),
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
    fn assess_failed_save(&mut self, step: u64, error: anyhow::Error) -> Result<Finding> {
        self.saves.failed_in_a_row += 1;
        let failed = self.saves.failed_in_a_row;
        self.progress.warn(&format!("step {step}: not saved (try {failed}): {error:#}"));
        // On a full disk this may fail as well, and says nothing that stderr does not.
        let event = json!({"step": step, "error": format!("{error:#}"), "in_a_row": failed});
        let _ = self.logs.events.append("save_failed", event);
        let present = self.state.run.step;
        let ending = present == self.config.train.steps || self.stopping || self.context.requests.stop_asked();
        // An older state that was refused while the run ends does not matter where the present one is about to be tried.
        let needed = failed >= MOST_FAILED || (ending && step == present);
        match (needed, self.config.checkpoint.on_full) {
            (false, _) => Ok(Finding::Fine),
            (true, DiskFullPolicy::Pause) => Ok(Finding::DiskFull),
            (true, DiskFullPolicy::Exit) => Err(error),
        }
    }

    fn pause_until_saved(&mut self) -> Result<()> {
        let step = self.state.run.step;
        self.progress.warn(&format!("paused at step {step} until the disk takes a checkpoint"));
        loop {
            self.on_first("the next try", |trainer| trainer.wait_before_retry())?;
            self.check_place()?;
            let started = Instant::now();
            let saved = self.write_and_assess(|trainer, result| match result {
                Ok(dir) => trainer.record_save(step, &dir, started.elapsed()).map(|()| true),
                Err(error) if exit_of(&error) == Some(Exit::Io) => {
                    trainer.saves.failed_in_a_row += 1;
                    Ok(false)
                }
                Err(error) => Err(error),
            })?;
            if saved {
                return Ok(());
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
        let retention = retention(&self.config.checkpoint);
        let keep = if self.state.run.guard.last_was_refused() { usize::MAX } else { retention.keep };
        Retention { keep, ..retention }
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
            products: algorithms_in_use(&self.device),
            base: self.state.base.clone(),
            // Of this moment: by the time that the file is written, the logs have later lines.
            logs: self.logs.digests(),
        })
    }
}
