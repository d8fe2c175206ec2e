//! A directory that lasts as long as the process, and outputs that are no files.

use super::fault::{Op, step};
use super::{TEMP_PREFIX, io_failure, remove_tree};
use anyhow::Result;
use rustix::fs::OFlags;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The name of a socket may have about a hundred bytes: below a directory with a longer path than this there is no room for one.
const LONGEST: usize = 60;

/// A directory for this process and those of its user, removed when it is dropped.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes a directory among the temporary ones of the system; `name` says to a human what it is for.
    ///
    /// # Errors
    /// [`Exit::Io`](crate::runtime::error::Exit::Io) if it cannot be made.
    pub fn create(name: &str) -> Result<Self> {
        let parent = Some(std::env::temp_dir()).filter(|dir| dir.as_os_str().len() <= LONGEST);
        let parent = parent.unwrap_or_else(|| PathBuf::from("/tmp"));
        // A process of the same number may have left one.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        let path = parent.join(format!("{TEMP_PREFIX}llama-lite-{name}-{}-{now}", std::process::id()));
        let made = step(Op::Mkdir(&path)).and_then(|()| DirBuilder::new().mode(0o700).create(&path));
        made.map_err(|e| io_failure("create the directory", &path, &e))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What remains is a `.tmp-` name that nothing reads.
        let _ = remove_tree(&self.0);
    }
}

/// Opens a terminal or a pipe for writing, as `/proc/PID/fd/N` names that of another process. A terminal does not become this process's
/// own: its keys send signals to the process that was there before.
///
/// # Errors
/// [`Exit::Io`](crate::runtime::error::Exit::Io) if it cannot be opened.
pub fn open_for_output(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().write(true).custom_flags(OFlags::NOCTTY.bits() as i32).open(path);
    Ok(opened.map_err(|e| io_failure("open", path, &e))?)
}
