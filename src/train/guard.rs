//! Requests to stop from outside: signals and the `STOP` file. They are noticed between steps, so that what is saved is a whole
//! step; a second Ctrl-C stops at once.

use crate::runtime::files::io_context;
use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Consecutive refused updates after which a run is given up: the weights do not change any more, only the data do.
pub const MAX_SKIPPED_IN_A_ROW: u64 = 10;

/// Listens for requests to stop.
#[derive(Debug)]
pub struct StopRequests {
    asked: Arc<AtomicBool>,
    file: PathBuf,
}

impl StopRequests {
    /// Listens to SIGINT, SIGTERM and SIGHUP, and for the file `STOP` in `run_dir`.
    ///
    /// # Errors
    /// [`Exit::Io`](crate::runtime::error::Exit::Io) if the system refuses a handler.
    pub fn listen(run_dir: &Path) -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let failed = || io_context("listen for signals for", run_dir);
        // Registered first, so that it sees the flag of an EARLIER signal only.
        flag::register_conditional_shutdown(SIGINT, 130, asked.clone()).map_err(failed())?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register(signal, asked.clone()).map_err(failed())?;
        }
        Ok(Self { asked, file: run_dir.join("STOP") })
    }

    /// Whether the run should stop now.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) || self.file.exists()
    }

    /// The request has been honoured: a `STOP` file must not stop the resume as well.
    pub fn honoured(&self) {
        // Whether it was there or not, it is not now; a file that cannot be removed stops the resume, which is what it says.
        let _ = std::fs::remove_file(&self.file);
    }
}
