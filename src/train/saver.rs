//! Saving beside training: the loop copies the state in memory and trains on, a thread writes the copy.
//!
//! One save is in flight at a time. The thread sends its result to the loop, which alone writes to the console and the events: a
//! checkpoint counts only when it is durable, and a failure is reported at the next step.

use super::snapshot::{Flats, Snapshot};
use crate::checkpoint::{self, Retention};
use crate::runtime::error::{Exit, fail};
use crate::runtime::failpoint::failpoint;
use crate::runtime::files::Syncer;
use crate::runtime::thread::spawn;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

/// What is to be written, and where.
pub struct Job {
    pub snapshot: Snapshot,
    pub run_dir: PathBuf,
    /// Which process of the run's history writes.
    pub attempt: u64,
    pub keep: Retention,
    /// Logs that the checkpoint relies on.
    pub logs: Vec<Syncer>,
}

/// What became of a [`Job`].
pub struct Done {
    /// The step of the state.
    pub step: u64,
    /// The durable checkpoint, or why there is none.
    pub result: Result<PathBuf>,
    /// From the job's arrival to its end.
    pub took: Duration,
    flats: Flats,
}

/// The thread that writes checkpoints.
pub struct Saver {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    in_flight: bool,
    /// Memory of the last snapshot.
    flats: Flats,
}

impl Saver {
    /// # Errors
    /// [`Exit::Io`] if the system gives no thread.
    pub fn new() -> Result<Self> {
        let (jobs, todo) = channel::<Job>();
        let (results, done) = channel();
        spawn("saver", move || {
            // Ends when the run drops its side of the channel.
            for job in todo {
                // The run has ended and does not wait for the result.
                if results.send(work(job)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, done, in_flight: false, flats: Flats::default() })
    }

    /// Memory for the next snapshot, as large as the last one.
    pub fn take_buffers(&mut self) -> Flats {
        std::mem::take(&mut self.flats)
    }

    /// Keeps the memory of a snapshot for the next one.
    pub fn keep_buffers(&mut self, flats: Flats) {
        self.flats = flats;
    }

    /// Whether there is such memory.
    pub fn holds_buffers(&self) -> bool {
        self.flats.iter().any(|flat| !flat.is_empty())
    }

    /// Starts to write; nothing may be in flight.
    ///
    /// # Errors
    /// [`Exit::Internal`] if the thread has died.
    pub fn start(&mut self, job: Job) -> Result<()> {
        self.jobs.send(job).map_err(|_| died())?;
        self.in_flight = true;
        Ok(())
    }

    /// The save in flight, if it has ended.
    ///
    /// # Errors
    /// [`Exit::Internal`] if the thread has died.
    pub fn poll(&mut self) -> Result<Option<Done>> {
        if !self.in_flight {
            return Ok(None);
        }
        match self.done.try_recv() {
            Ok(done) => Ok(Some(self.receive(done))),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(died().into()),
        }
    }

    /// Waits for the save in flight, if there is one; `waiting` is called every now and then.
    ///
    /// # Errors
    /// [`Exit::Internal`] if the thread has died.
    pub fn wait(&mut self, mut waiting: impl FnMut(Duration)) -> Result<Option<Done>> {
        let started = Instant::now();
        while self.in_flight {
            match self.done.recv_timeout(Duration::from_millis(100)) {
                Ok(done) => return Ok(Some(self.receive(done))),
                Err(RecvTimeoutError::Timeout) => waiting(started.elapsed()),
                Err(RecvTimeoutError::Disconnected) => return Err(died().into()),
            }
        }
        Ok(None)
    }

    fn receive(&mut self, mut done: Done) -> Done {
        self.in_flight = false;
        self.flats = std::mem::take(&mut done.flats);
        done
    }
}

fn died() -> crate::runtime::error::Failure {
    fail(Exit::Internal, "the thread that writes checkpoints has died").hint("resume: the last checkpoint is whole")
}

fn work(job: Job) -> Done {
    let started = Instant::now();
    let step = job.snapshot.step();
    let result = plant_faults(step)
        .and_then(|()| write(&job.run_dir, job.attempt, &job.logs, job.keep, &job.snapshot.contents()));
    Done { step, result, took: started.elapsed(), flats: job.snapshot.into_flats() }
}

/// Makes the logs durable, then the checkpoint, which relies on them.
///
/// # Errors
/// Those of the files, and of [`checkpoint::save`].
pub fn write(
    run_dir: &Path,
    attempt: u64,
    logs: &[Syncer],
    keep: Retention,
    contents: &checkpoint::Contents,
) -> Result<PathBuf> {
    // In the other order a power cut could leave a checkpoint whose logs end before its step.
    logs.iter().try_for_each(Syncer::sync)?;
    checkpoint::save(run_dir, attempt, contents, keep)
}

/// In tests: a save that takes its time, fails or panics.
fn plant_faults(step: u64) -> Result<()> {
    if let Some(seconds) = failpoint("slow-save", step) {
        std::thread::sleep(Duration::from_secs_f64(seconds));
    }
    if failpoint("failed-save", step).is_some() {
        return Err(fail(Exit::Io, "no space left (planted)").into());
    }
    assert!(failpoint("panicked-save", step).is_none(), "planted");
    Ok(())
}
