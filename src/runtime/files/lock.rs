//! One writer per run directory: an exclusive `flock`, held by the open file and so released by the kernel however the
//! process ends. The file's content only tells a human (and the error message) who holds it; nothing depends on it. The
//! file is never deleted, because deleting a lock file lets two processes hold "the" lock. If another process deletes
//! it, the holder notices.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::ability::{Ability, warn_missing};
use super::identity::{Named, stands_for};
use super::io_failure;
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::machine;

/// Times that a lock file is opened again because it was replaced between opening and locking.
const TRIES: usize = 5;

/// An exclusive lock, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    pub(super) named: Named,
}

impl Lock {
    /// Whether the lock file is still the one that is locked. Once it was deleted or replaced, another process can hold a lock of
    /// the same name.
    pub fn is_in_place(&self) -> bool {
        self.named.is_in_place()
    }

    /// Checks that it is [in place](Self::is_in_place), for callers that have to stop if it is not.
    ///
    /// # Errors
    /// [`Exit::Io`], naming the file.
    pub fn check(&self) -> Result<()> {
        if self.is_in_place() {
            return Ok(());
        }
        let message =
            format!("{} was removed or replaced: another process may write here, too", self.named.path.display());
        Err(fail(Exit::Io, message).hint("run the command again when nothing else writes to the directory").into())
    }
}

impl Drop for Lock {
    /// Closing the file is not enough: a child that another thread is just starting has a copy of the descriptor until it executes
    /// its program, and would hold the lock for so long.
    fn drop(&mut self) {
        let _ = flock(&self.named.file, FlockOperation::Unlock);
    }
}

/// Takes the lock file `path`, made if missing, without waiting. Held by another process: exit 73, naming the holder. On a file
/// system without locks there is a warning, and nothing is locked.
pub fn lock(path: &Path) -> Result<Lock> {
    for _ in 1..TRIES {
        let file = open_locked(path)?;
        // The file may have been deleted between opening and locking: its lock would guard nothing.
        if stands_for(path, &file) {
            return finish(file, path);
        }
    }
    finish(open_locked(path)?, path)
}

fn open_locked(path: &Path) -> Result<File> {
    // NONBLOCK: a FIFO planted under this name must be an error, not a hang.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    // Not truncated: until the lock is held, the note in the file is another process's.
    options.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(flags.bits() as i32);
    let mut file = options.open(path).map_err(|e| io_failure("create the lock file", path, &e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from) {
        Ok(()) => Ok(file),
        Err(e) if e.raw_os_error() == Some(Errno::WOULDBLOCK.raw_os_error()) => Err(busy(path, &mut file).into()),
        Err(e) if Ability::Locks.is_missing(&e) => {
            warn_missing(Ability::Locks, path, Some(&e));
            Ok(file)
        }
        Err(e) => Err(io_failure("lock", path, &e).into()),
    }
}

fn finish(mut file: File, path: &Path) -> Result<Lock> {
    let note = serde_json::json!({ "pid": std::process::id(), "host": machine::host(), "boot_id": boot_id(), "started_unix": now() });
    // For the message that another process prints; what excludes that process is the kernel's lock.
    let written = file.set_len(0).and_then(|()| writeln!(file, "{note}"));
    written.map_err(|e| io_failure("write the lock file", path, &e))?;
    Ok(Lock { named: Named::new(file, path) })
}

fn busy(path: &Path, file: &mut File) -> Failure {
    let hint = "wait for that process or end it, or use another directory. The lock frees itself when its process ends: do not \
                delete the file, or two processes write at once";
    fail(Exit::Busy, format!("{} is held by {}", path.display(), holder(file))).hint(hint)
}

/// The holder as it described itself; it may have died this instant or not yet have written.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.take(4096).read_to_string(&mut text);
    let Ok(note) = serde_json::from_str::<serde_json::Value>(&text) else { return "another process".to_owned() };
    let started = note["started_unix"].as_u64().unwrap_or_default();
    format!(
        "process {} on host {}, started {} s ago",
        note["pid"],
        note["host"].as_str().unwrap_or("(unknown)").escape_debug(),
        now().saturating_sub(started)
    )
}

/// Changes with every boot: a reader of the file sees whether the process can still be alive.
fn boot_id() -> Option<String> {
    Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
