//! The entries of a directory, with an error that names it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::runtime::files::io_failure;

/// Names and paths of the entries of `dir`, in no order.
///
/// # Errors
/// [`Exit::Io`](crate::runtime::error::Exit::Io) if it cannot be listed.
pub(super) fn list_dir(dir: &Path) -> Result<Vec<(OsString, PathBuf)>> {
    let entries = fs::read_dir(dir).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| (entry.file_name(), entry.path()))).collect::<Result<Vec<_>, _>>()
    });
    Ok(entries.map_err(|e| io_failure("list the directory", dir, &e))?)
}
