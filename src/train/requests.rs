//! Requests from outside: signals and the `STOP` file. They are handled between steps, so that what is saved is a whole step; a second
//! Ctrl-C stops at once.
//!
//! The handlers are installed before anything else is done. Until training starts there is nothing new to save, and the process simply
//! ends with the signal's exit code.

use crate::runtime::error::StopAsked;
use crate::runtime::files::io_context;
use crate::runtime::machine::ignores;
use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// None if the work was only cut short by [`StopAsked`]; all other errors stay.
pub fn unless_stopped<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if error.is::<StopAsked>() => Ok(None),
        result => result.map(Some),
    }
}

#[derive(Clone, Debug)]
pub struct Requests {
    /// Training has not started: signals end the process.
    starting: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    save: Arc<AtomicBool>,
    file: PathBuf,
}

/// Exit codes of SIGINT, SIGTERM and SIGHUP before training starts.
pub type EarlyExits = [i32; 3];

/// For a run that does not exist yet: as if there were no handler.
pub const NOTHING_TO_RESUME: EarlyExits = [130, 143, 129];

/// For a run that can be resumed: try again.
pub const RESUME_ME: EarlyExits = [75; 3];

impl Requests {
    /// Listens to SIGINT, SIGTERM and SIGHUP (stop), to SIGUSR1 (save), and for the file `STOP` in `run_dir`. A signal that the
    /// parent process has us ignore (`nohup`) is left ignored.
    ///
    /// # Errors
    /// [`Exit::Io`](crate::runtime::error::Exit::Io) if the system refuses a handler.
    pub fn listen(run_dir: &Path, early: EarlyExits) -> Result<Self> {
        let requests = Self {
            starting: Arc::new(AtomicBool::new(true)),
            stop: Arc::default(),
            save: Arc::default(),
            file: run_dir.join("STOP"),
        };
        let listen = "listen for signals for";
        flag::register(SIGUSR1, requests.save.clone()).map_err(io_context(listen, run_dir))?;
        for (signal, code) in [SIGINT, SIGTERM, SIGHUP].into_iter().zip(early) {
            if ignores(signal) {
                continue;
            }
            flag::register_conditional_shutdown(signal, code, requests.starting.clone())
                .map_err(io_context(listen, run_dir))?;
            if signal == SIGINT {
                // Registered before the flag is, so that it sees the flag of an EARLIER signal only.
                flag::register_conditional_shutdown(SIGINT, 130, requests.stop.clone())
                    .map_err(io_context(listen, run_dir))?;
            }
            flag::register(signal, requests.stop.clone()).map_err(io_context(listen, run_dir))?;
        }
        Ok(requests)
    }

    /// From now on signals are handled between steps.
    pub fn training_starts(&self) {
        self.starting.store(false, Ordering::SeqCst);
    }

    /// Whether the run should stop now.
    pub fn stop_asked(&self) -> bool {
        // Relaxed: the flag stands for itself and guards no other memory.
        self.stop.load(Ordering::Relaxed) || self.file.exists()
    }

    /// Whether a checkpoint was asked for since the last call.
    pub fn save_asked(&self) -> bool {
        self.save.swap(false, Ordering::Relaxed)
    }

    /// For long work that is not a step.
    ///
    /// # Errors
    /// [`StopAsked`] if the run should stop.
    pub fn check(&self) -> Result<()> {
        if self.stop_asked() { Err(StopAsked.into()) } else { Ok(()) }
    }

    /// Removes the `STOP` file, which must not stop the resume as well.
    pub fn clear_stop_file(&self) {
        // It is usually not there. If it cannot be removed, it stops the resume too, as its name says.
        let _ = std::fs::remove_file(&self.file);
    }
}
