//! One writer per run directory: an exclusive `flock`, held by the open file and so released by the kernel however the
//! process ends. The file's content only tells a human (and the error message) who holds it; it decides nothing, and the
//! file is never deleted, because deleting a lock file lets two processes hold "the" lock.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::io_failure;
use crate::runtime::error::{Exit, fail};
use crate::runtime::machine;

/// An exclusive lock, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the lock file `path`, made if missing, without waiting. Held by another process: exit 73, naming the holder.
pub fn lock(path: &Path) -> Result<Lock> {
    // NONBLOCK: a FIFO planted under this name must be an error, not a hang.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(flags.bits() as i32);
    let mut file = options.open(path).map_err(|e| io_failure("open the lock file", path, &e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let message = format!("{} is held by {}", path.display(), holder(&mut file));
            return Err(fail(Exit::Busy, message).hint("wait for it to end, stop it, or use another directory").into());
        }
        Err(e) => return Err(io_failure("lock", path, &e.into()).into()),
    }
    let note = serde_json::json!({ "pid": std::process::id(), "host": machine::host(), "boot_id": boot_id(), "started_unix": now() });
    let written = file.set_len(0).and_then(|()| writeln!(file, "{note}"));
    written.map_err(|e| io_failure("write the lock file", path, &e))?;
    Ok(Lock { _file: file })
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

/// Tells a reader of the file whether the process can still be alive.
fn boot_id() -> Option<String> {
    Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
