//! Named threads. A thread that the system refuses is an error and not a panic, and a thread that panics is noticed.

use crate::runtime::error::{Exit, Failure, fail};
use anyhow::Result;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

/// The first thread of the process that panicked.
static DEAD: Mutex<Option<&'static str>> = Mutex::new(None);

/// Runs `work` on a thread called `name`, which is never joined. If it panics, [`dead`] returns a failure.
///
/// # Errors
/// [`Exit::Io`] if the system gives no thread.
pub fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            DEAD.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(name);
            resume_unwind(panic);
        }
    });
    spawned.map_err(|e| {
        fail(Exit::Io, format!("cannot start the thread {name:?}: {e}"))
            .hint("raise the limit of processes (`ulimit -u`)")
    })?;
    Ok(())
}

/// The failure of the first thread that panicked, if one did: the process must not continue without it.
pub fn dead() -> Option<Failure> {
    let name = (*DEAD.lock().unwrap_or_else(PoisonError::into_inner))?;
    Some(fail(Exit::Internal, format!("the thread {name:?} has panicked")).hint("please report what it printed above"))
}

/// Runs `work` on as many threads as compute, which end with it: an allocator keeps what a thread has freed for that thread, until it ends.
pub fn on_temporary_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    match rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build() {
        Ok(pool) => pool.install(work),
        // Where the system gives no more threads, those that compute do it.
        Err(_) => work(),
    }
}
