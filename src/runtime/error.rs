//! Failures as the user sees them: what and where in one line, a `hint:` saying what to do, and an exit code.
//!
//! Library code returns `anyhow::Result`; wherever the class of a failure is known it is a [`Failure`] (made with
//! [`fail`]), possibly wrapped in context. `main` finds it in the chain and exits with its code.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit codes of the program (sysexits where one fits). Clap's own wrong-usage code 2 is not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Data = 65,
    /// A bug or a hang of ours.
    Internal = 70,
    Memory = 71,
    /// Another process holds the run directory.
    Busy = 73,
    /// Input or output failed (disk full, EIO, missing file).
    Io = 74,
    /// Stopped early with a checkpoint saved: it can be resumed.
    Stopped = 75,
    Diverged = 76,
    Config = 78,
    /// Interrupted outside training (128 + SIGINT).
    Interrupted = 130,
    /// Terminated outside training (128 + SIGTERM).
    Terminated = 143,
}

impl Exit {
    /// The class with this exit code.
    pub fn from_code(code: i32) -> Option<Self> {
        use Exit::*;
        let all = [Data, Internal, Memory, Busy, Io, Stopped, Diverged, Config, Interrupted, Terminated];
        all.into_iter().find(|&exit| exit as i32 == code)
    }
}

/// A classified failure. `Display` prints the message alone; the hint is printed by `main`.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The class of the failure, which is the process's exit code.
    pub exit: Exit,
    /// What went wrong and where; one line (configuration mistakes: one line each).
    pub message: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

/// A failure of class `exit`.
pub fn fail(exit: Exit, message: impl Into<String>) -> Failure {
    Failure { exit, message: message.into(), hint: None }
}

impl Failure {
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The failure that `error` is, whatever context it has, or that an I/O error of a writer carries.
pub fn failure_in(error: &anyhow::Error) -> Option<&Failure> {
    error.chain().find_map(|e| e.downcast_ref::<Failure>().or_else(|| failure_of_writer(e)))
}

/// The failure that the I/O error of a writer carries.
fn failure_of_writer<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Failure> {
    error.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref::<Failure>()
}

/// A request to stop cut something short that is not worth finishing: a validation, a sample.
#[derive(Debug)]
pub struct StopAsked;

impl fmt::Display for StopAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("asked to stop")
    }
}

impl std::error::Error for StopAsked {}

/// Whether [`note`] is to say nothing.
static SILENT: AtomicBool = AtomicBool::new(false);

/// From now on [`note`] says nothing in this process: of several ranks one speaks for all.
pub fn silence_notes() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Writes a line to stderr, unless notes are silenced.
pub fn note(text: &str) {
    if !SILENT.load(Ordering::Relaxed) {
        alarm(text);
    }
}

/// Writes a line to stderr in any case: why this process ends. There is nowhere to report that stderr itself fails, and a run must not end
/// because of it.
pub fn alarm(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}
