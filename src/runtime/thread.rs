//! Threads by name, whose refusal by the system is an error and not a panic.

use crate::runtime::error::{Exit, fail};
use anyhow::Result;

/// Runs `work` on a thread called `name`, which nobody joins.
///
/// # Errors
/// [`Exit::Io`] if the system gives no thread.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(work);
    spawned.map_err(|e| {
        fail(Exit::Io, format!("cannot start the thread {name:?}: {e}"))
            .hint("raise the limit of processes (`ulimit -u`)")
    })?;
    Ok(())
}
