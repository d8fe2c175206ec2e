//! Abilities that some file systems lack (network, FUSE and cluster file systems) and that the program can do without. The first time
//! that one is missing, a warning says which one, and which promise does not hold without it.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

use crate::runtime::error::note;

/// What a file system may not be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ability {
    /// `flock`.
    Locks,
    /// `fsync` of a file.
    SyncFiles,
    /// `fsync` of a directory.
    SyncDirectories,
    /// `renameat2` with RENAME_EXCHANGE.
    Exchange,
    /// `statvfs` with the number of free blocks.
    FreeSpace,
    /// A file has the same device and inode number whenever it is asked for.
    InodeNumbers,
}

impl Ability {
    fn name(self) -> &'static str {
        match self {
            Ability::Locks => "file locks",
            Ability::SyncFiles => "sync of files",
            Ability::SyncDirectories => "sync of directories",
            Ability::Exchange => "exchange of names",
            Ability::FreeSpace => "count of free space",
            Ability::InodeNumbers => "stable inode numbers",
        }
    }

    fn consequence(self) -> &'static str {
        match self {
            Ability::Locks => "make sure yourself that only one process writes to a directory",
            Ability::SyncFiles | Ability::SyncDirectories => "a loss of power may cost what was saved last",
            Ability::Exchange => "a kill while a checkpoint is saved again may cost that checkpoint",
            Ability::FreeSpace => "a full disk will only show when a write fails",
            Ability::InodeNumbers => {
                "a directory that is removed or replaced while it is written to will not be noticed"
            }
        }
    }

    /// Whether `error` says that the file system has no such call, and not that the call failed.
    pub(super) fn is_missing(self, error: &io::Error) -> bool {
        const UNSUPPORTED: [Errno; 3] = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTSUP];
        let more: &[Errno] = match self {
            // NFS whose server runs no lock daemon.
            Ability::Locks => &[Errno::NOLCK, Errno::INVAL],
            Ability::SyncFiles => &[Errno::INVAL],
            // CIFS and some FUSE file systems say EBADF: the directory is not open for writing, which it cannot be.
            Ability::SyncDirectories => &[Errno::INVAL, Errno::BADF],
            // EPERM: sandboxes that know only the older calls.
            Ability::Exchange => &[Errno::INVAL, Errno::PERM],
            Ability::FreeSpace | Ability::InodeNumbers => &[],
        };
        let code = error.raw_os_error();
        UNSUPPORTED.iter().chain(more).any(|errno| code == Some(errno.raw_os_error()))
    }
}

/// Warns that the file system of `path` lacks `ability`; once in a process, however many files are concerned.
pub(super) fn warn_missing(ability: Ability, path: &Path, error: Option<&io::Error>) {
    static SAID: AtomicU32 = AtomicU32::new(0);
    let bit = 1 << ability as u32;
    if SAID.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
        let reason = error.map_or_else(String::new, |error| format!(" ({error})"));
        note(&format!(
            "warning: {}: this file system has no {}{reason}: {}",
            path.display(),
            ability.name(),
            ability.consequence()
        ));
    }
}

/// `done`, unless it failed because the file system of `path` lacks `ability`: then a warning is all that can be done.
pub(super) fn if_able(ability: Ability, path: &Path, done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if ability.is_missing(&error) => {
            warn_missing(ability, path, Some(&error));
            Ok(())
        }
        done => done,
    }
}
