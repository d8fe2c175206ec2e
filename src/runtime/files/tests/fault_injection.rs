//! What tests do with the hook before every change of the file system (`fault.rs`).
//!
//! It records the operations and can make the n-th one fail, or pretend that the process died there: nothing after it happens either,
//! clean-up included. A recording is complete, content and all, so that losses of power can be simulated from it. It is in-process so
//! that every boundary of a save can be tried in milliseconds, anywhere; kills of the real program are tested apart.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::runtime::files::fault::Op;

/// What happens when the countdown reaches zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// This one operation fails with ENOSPC.
    DiskFull,
    /// This one operation fails with this error.
    Fails(Errno),
    /// This operation and all later ones fail: the process is as good as dead.
    Dead,
}

/// An operation as a recording keeps it.
pub(crate) type Recorded = Op<PathBuf, Vec<u8>>;

impl Op<&Path, &[u8]> {
    /// The class of the operation and the path that it is about: of two, the one that is there afterwards.
    fn summary(&self) -> (&'static str, PathBuf) {
        let (name, path) = match *self {
            Op::Create(path) => ("create", path),
            Op::Write(path, _) | Op::WriteAt(path, ..) => ("write", path),
            Op::Append(path, _) => ("append", path),
            Op::Truncate(path, _) => ("truncate", path),
            Op::Fsync(path) => ("fsync", path),
            Op::FsyncDir(path) => ("fsync-dir", path),
            Op::Rename(_, path) | Op::Publish(_, path) => ("rename", path),
            Op::Mkdir(path) => ("mkdir", path),
            Op::Symlink(path) => ("symlink", path),
            Op::Remove(path) => ("remove", path),
        };
        (name, path.to_owned())
    }

    fn recorded(&self) -> Recorded {
        let own = Path::to_owned;
        match *self {
            Op::Create(path) => Op::Create(own(path)),
            Op::Write(path, bytes) => Op::Write(own(path), bytes.to_vec()),
            Op::WriteAt(path, at, bytes) => Op::WriteAt(own(path), at, bytes.to_vec()),
            Op::Append(path, bytes) => Op::Append(own(path), bytes.to_vec()),
            Op::Truncate(path, len) => Op::Truncate(own(path), len),
            Op::Fsync(path) => Op::Fsync(own(path)),
            Op::FsyncDir(path) => Op::FsyncDir(own(path)),
            Op::Rename(from, to) => Op::Rename(own(from), own(to)),
            Op::Publish(from, to) => Op::Publish(own(from), own(to)),
            Op::Mkdir(path) => Op::Mkdir(own(path)),
            Op::Symlink(path) => Op::Symlink(own(path)),
            Op::Remove(path) => Op::Remove(own(path)),
        }
    }
}

#[derive(Default)]
struct State {
    log: Vec<(&'static str, PathBuf)>,
    fail_at: Option<(usize, Mode)>,
    /// Kept only on demand: the content of everything written is a lot.
    recording: Option<Vec<Recorded>>,
}

// None outside of traces and recordings.
thread_local!(static STATE: RefCell<Option<State>> = const { RefCell::new(None) });

pub(crate) fn step(op: Op<&Path, &[u8]>) -> io::Result<()> {
    STATE.with_borrow_mut(|state| {
        let Some(state) = state else { return Ok(()) };
        let n = state.log.len();
        state.log.push(op.summary());
        match state.fail_at {
            Some((at, Mode::DiskFull)) if n == at => return Err(Errno::NOSPC.into()),
            Some((at, Mode::Fails(errno))) if n == at => return Err(errno.into()),
            Some((at, Mode::Dead)) if n >= at => return Err(Errno::IO.into()),
            _ => {}
        }
        if let Some(recording) = &mut state.recording {
            recording.push(op.recorded());
        }
        Ok(())
    })
}

/// Runs `f` with the operation number `fail_at` (from 0) failing; returns its result and the operations in order.
pub(crate) fn trace<T>(fail_at: Option<(usize, Mode)>, f: impl FnOnce() -> T) -> (T, Vec<(&'static str, PathBuf)>) {
    let (result, state) = observed(State { fail_at, ..State::default() }, f);
    (result, state.log)
}

/// Runs `f`; returns its result and the operations of this thread, complete and in order.
pub(crate) fn record<T>(f: impl FnOnce() -> T) -> (T, Vec<Recorded>) {
    let (result, state) = observed(State { recording: Some(Vec::new()), ..State::default() }, f);
    (result, state.recording.unwrap_or_default())
}

fn observed<T>(state: State, f: impl FnOnce() -> T) -> (T, State) {
    STATE.with_borrow_mut(|place| *place = Some(state));
    let result = f();
    (result, STATE.take().unwrap_or_default())
}

/// How many operations the present [`trace`] or [`record`] has seen.
pub(crate) fn count() -> usize {
    STATE.with_borrow(|state| state.as_ref().map_or(0, |state| state.log.len()))
}
