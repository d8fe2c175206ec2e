//! The logs of a run: opened, cut and made durable together with its checkpoints, and compared with what these have recorded of them.

use crate::config::LogConfig;
use crate::metrics::{
    AlteredLog, Console, Events, LogDigests, Logged, MetricsLog, Record, SampleLog, SampleRecord, Sequences, StepLog,
    TensorBoard, Times, altered_logs, read_events,
};
use crate::runtime::error::note;
use crate::runtime::files::{Appender, Syncer};
use anyhow::Result;
use serde_json::json;
use std::path::Path;

/// The logs of a run, open for writing.
pub struct RunLogs {
    pub metrics: MetricsLog,
    pub samples: SampleLog,
    pub times: StepLog<Times>,
    /// Losses of sequences, if `log.sequences` asks for them.
    pub sequences: Option<StepLog<Sequences>>,
    pub events: Events,
    /// The same records for TensorBoard, if `log.tensorboard` asks for them.
    pub board: Option<TensorBoard>,
}

impl RunLogs {
    /// Opens the logs of the run in `dir` beside `events`, cut to `resume_step`.
    ///
    /// # Errors
    /// Those of the files.
    pub fn open(dir: &Path, config: &LogConfig, events: Events, resume_step: Option<u64>) -> Result<Self> {
        // One that is not continued is cut all the same: its later lines would stand between those of another attempt.
        let is_there = dir.join(Sequences::FILE).symlink_metadata().is_ok();
        let sequences = (config.sequences || is_there).then(|| StepLog::open(dir, resume_step)).transpose()?;
        Ok(Self {
            metrics: StepLog::open(dir, resume_step)?,
            samples: StepLog::open(dir, resume_step)?,
            times: StepLog::open(dir, resume_step)?,
            sequences: sequences.filter(|_| config.sequences),
            board: config.tensorboard.then(|| TensorBoard::open(dir)).transpose()?,
            events,
        })
    }

    /// Logs that keep nothing: of a rank that writes no files.
    pub fn discard(config: &LogConfig) -> Self {
        Self {
            metrics: StepLog::discard(),
            samples: StepLog::discard(),
            times: StepLog::discard(),
            sequences: config.sequences.then(StepLog::discard),
            events: Events::discard(),
            board: None,
        }
    }

    /// What makes durable every log that a resume cuts to a checkpoint: the checkpoint relies on them.
    ///
    /// # Errors
    /// [`Exit::Io`](crate::runtime::error::Exit::Io) if the system gives no handles.
    pub fn syncers(&self) -> Result<Vec<Syncer>> {
        self.step_logs().into_iter().map(Appender::syncer).collect()
    }

    /// What a checkpoint that is saved now records of them.
    pub fn digests(&self) -> LogDigests {
        let mut digests = LogDigests::from([
            (Record::FILE.to_owned(), self.metrics.digest()),
            (SampleRecord::FILE.to_owned(), self.samples.digest()),
            (Times::FILE.to_owned(), self.times.digest()),
        ]);
        if let Some(sequences) = &self.sequences {
            digests.insert(Sequences::FILE.to_owned(), sequences.digest());
        }
        digests
    }

    /// A log that is no longer the file of its name: what is appended to it is lost.
    pub fn displaced(&self) -> Option<&Path> {
        let mut logs = self.step_logs().into_iter().chain(self.events.file());
        logs.find(|log| !log.is_in_place()).map(Appender::path)
    }

    /// Writes all that they hold into `dir`, also if their files were deleted.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn copy_to(&self, dir: &Path) -> Result<()> {
        let mut logs = self.step_logs().into_iter().chain(self.events.file());
        logs.try_for_each(|log| log.copy_to(&dir.join(log.path().file_name().unwrap_or_default())))
    }

    fn step_logs(&self) -> Vec<&Appender> {
        let logs = [self.metrics.file(), self.samples.file(), self.times.file()];
        logs.into_iter().chain([self.sequences.as_ref().and_then(StepLog::file)]).flatten().collect()
    }
}

/// Compares the logs in `run_dir` with the lengths and hashes that the checkpoint of `step` has `recorded`. The run does not need its
/// old logs to continue: an alteration is reported and kept as an event, once.
///
/// # Errors
/// Those of reading the logs and of writing the event.
pub fn report_altered_logs(
    run_dir: &Path,
    step: u64,
    recorded: &LogDigests,
    events: &mut Events,
    console: Console,
) -> Result<()> {
    let known = read_events(run_dir)?;
    for altered in altered_logs(run_dir, recorded)? {
        let AlteredLog { file, recorded, found } = &altered;
        let event = json!({"file": file, "step": step, "recorded": recorded, "found": found});
        let already_known = known.iter().any(|e| {
            e["kind"] == "log_altered" && ["file", "recorded", "found"].iter().all(|key| e[*key] == event[*key])
        });
        if already_known {
            continue;
        }
        if !console.quiet {
            note(&format!("warning: step {step}: {altered}; the run goes on, its curves show what is left"));
        }
        events.append("log_altered", event)?;
    }
    Ok(())
}
