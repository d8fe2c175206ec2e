//! Whether a name still stands for the file that was opened under it. A file that is deleted or replaced stays open: what is written to
//! it from then on is lost without an error.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::ability::{Ability, warn_missing};

/// An open file and the name it was opened under.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// False on file systems whose inode numbers change: there the two cannot be compared.
    comparable: bool,
}

impl Named {
    /// `file`, which was opened as `path` just now.
    pub(super) fn new(file: File, path: &Path) -> Self {
        let named = Self { file, path: path.to_owned(), comparable: true };
        // It was opened a moment ago: if it differs already, the numbers of this file system mean nothing.
        let comparable = named.is_in_place();
        if !comparable {
            warn_missing(Ability::InodeNumbers, path, None);
        }
        Self { comparable, ..named }
    }

    /// Whether the name still stands for the file. Errors that do not answer the question, such as those of a server that is away,
    /// count as yes: whatever is written next will meet them, too.
    pub(super) fn is_in_place(&self) -> bool {
        !self.comparable || stands_for(&self.path, &self.file)
    }
}

/// Whether `path` stands for the open `file`.
pub(super) fn stands_for(path: &Path, file: &File) -> bool {
    match (path.symlink_metadata(), file.metadata()) {
        (Ok(named), Ok(open)) => id(&named) == id(&open),
        (Err(e), _) | (_, Err(e)) => !is_gone(&e),
    }
}

fn id(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

fn is_gone(error: &io::Error) -> bool {
    let stale = error.raw_os_error() == Some(Errno::STALE.raw_os_error());
    stale || matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
