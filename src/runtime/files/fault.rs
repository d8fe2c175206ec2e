//! A hook before every change of the file system.
//!
//! In tests it records the order of the operations and can make the n-th one fail, or pretend that the process died
//! there (nothing after it happens either, clean-up included). In the program it is nothing at all. It is in-process so
//! that every boundary of a save can be tried in milliseconds, anywhere; kills of the real program are tested apart.

/// Announces the operation `op` on `path`; an error stands for the failure of the operation itself.
#[cfg(not(test))]
#[inline(always)]
pub(super) fn step(_op: &'static str, _path: &std::path::Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use armed::step;

#[cfg(test)]
pub(crate) mod armed {
    use std::cell::RefCell;
    use std::io;
    use std::path::{Path, PathBuf};

    /// What happens when the countdown reaches zero.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Mode {
        /// This one operation fails with ENOSPC.
        DiskFull,
        /// This operation and all later ones fail: the process is as good as dead.
        Dead,
    }

    #[derive(Default)]
    struct State {
        log: Vec<(&'static str, PathBuf)>,
        fail_at: Option<(usize, Mode)>,
    }

    thread_local!(static STATE: RefCell<State> = RefCell::default());

    pub(crate) fn step(op: &'static str, path: &Path) -> io::Result<()> {
        STATE.with_borrow_mut(|state| {
            let n = state.log.len();
            state.log.push((op, path.to_owned()));
            match state.fail_at {
                Some((at, Mode::DiskFull)) if n == at => Err(rustix::io::Errno::NOSPC.into()),
                Some((at, Mode::Dead)) if n >= at => Err(rustix::io::Errno::IO.into()),
                _ => Ok(()),
            }
        })
    }

    /// Runs `f` with the operation number `fail_at` (from 0) failing; returns its result and the operations in order.
    pub(crate) fn trace<T>(fail_at: Option<(usize, Mode)>, f: impl FnOnce() -> T) -> (T, Vec<(&'static str, PathBuf)>) {
        STATE.with_borrow_mut(|state| *state = State { log: Vec::new(), fail_at });
        let result = f();
        (result, STATE.with_borrow_mut(std::mem::take).log)
    }
}
