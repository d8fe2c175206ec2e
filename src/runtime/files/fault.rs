//! A hook before every change of the file system: nothing at all in the program, a recorder and a planter of faults in tests
//! (`tests/fault_injection.rs`).
//!
//! Only the lock file is left out: its content decides nothing.

/// A change of the file system with all that is needed to repeat it; `P` is a path, `B` are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only tests look at what is announced"))]
pub(crate) enum Op<P, B> {
    /// A new, empty file; an existing one is opened as it is, where that is allowed.
    Create(P),
    /// Bytes behind what the file holds.
    Write(P, B),
    /// Bytes at an offset of the file.
    WriteAt(P, u64, B),
    /// A line behind what the log holds.
    Append(P, B),
    Truncate(P, u64),
    Fsync(P),
    /// The names in a directory made durable.
    FsyncDir(P),
    /// The first name replaced by the second.
    Rename(P, P),
    /// The same, or, if the second name is taken, the two trade places.
    Publish(P, P),
    Mkdir(P),
    Symlink(P),
    /// A file, or a directory and all in it, deleted.
    Remove(P),
}

/// Announces an operation; an error stands for the failure of the operation itself.
#[cfg(not(test))]
#[inline(always)]
pub(super) fn step(_op: Op<&std::path::Path, &[u8]>) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use super::tests::fault_injection::step;
