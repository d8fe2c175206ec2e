//! Directories that appear whole or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::ability::{Ability, warn_missing};
use super::fault::{Op, step};
use super::{Digest, TEMP_PREFIX, create_new, io_failure, make_dir, named, parent_of, sync_dir, sync_file};
use crate::runtime::error::{Exit, fail};

/// A directory being written under the name `.tmp-<name>-<tag>`; [`commit`](DirTxn::commit) gives it its name. Dropped
/// before that, it is removed.
#[derive(Debug)]
pub struct DirTxn {
    temp: Option<PathBuf>,
    target: PathBuf,
}

/// A file of a [`DirTxn`]: buffered, and hashed as it is written so that nothing has to be read again.
#[derive(Debug)]
pub struct TxnFile {
    out: BufWriter<File>,
    hasher: blake3::Hasher,
    path: PathBuf,
}

impl DirTxn {
    /// Begins the directory `target`, whose parent must exist. A temporary directory of the same name and tag is a
    /// leftover of a process that died (the caller holds the run's lock) and is removed.
    pub fn create(target: &Path, tag: &str) -> Result<DirTxn> {
        let Some(name) = target.file_name() else {
            let failure = fail(Exit::Io, format!("cannot create {}: it names no directory", target.display()));
            return Err(failure.hint("give a directory name").into());
        };
        let mut temp_name = std::ffi::OsString::from(TEMP_PREFIX);
        temp_name.push(name);
        temp_name.push(format!("-{tag}"));
        let temp = target.with_file_name(temp_name);
        if temp.symlink_metadata().is_ok() {
            remove_now(&temp).map_err(|e| io_failure("remove the leftover", &temp, &e))?;
        }
        make_dir(&temp).map_err(|e| io_failure("create", &temp, &e))?;
        Ok(DirTxn { temp: Some(temp), target: target.to_owned() })
    }

    /// Where its files are until it is committed.
    pub fn path(&self) -> &Path {
        self.temp.as_deref().unwrap_or(&self.target)
    }

    /// Begins the file `name` (one plain path component).
    pub fn file(&self, name: &str) -> Result<TxnFile> {
        let path = self.path().join(name);
        let file = create_new(&path).map_err(|e| io_failure("create", &path, &e))?;
        Ok(TxnFile { out: BufWriter::with_capacity(1 << 20, file), hasher: blake3::Hasher::new(), path })
    }

    /// Writes the file `name` in one go.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<Digest> {
        let mut file = self.file(name)?;
        let path = file.path.clone();
        file.write_all(bytes).map_err(super::io_context("write", &path))?;
        file.finish()
    }

    /// Makes the directory durable and visible under its name: fsync of the directory, rename, fsync of the parent.
    /// An existing directory of that name is replaced in one atomic step and then deleted.
    pub fn commit(mut self) -> Result<()> {
        let DirTxn { temp: Some(temp), target } = &mut self else { return Ok(()) };
        // The names inside, before the directory gets its own.
        sync_dir(temp).map_err(|e| io_failure("sync", temp, &e))?;
        let replaced = step(Op::Publish(temp, target)).and_then(|()| rename_or_exchange(temp, target));
        let replaced = replaced.map_err(|e| io_failure("rename the finished directory to", target, &e))?;
        // From here on the temporary name holds nothing, or the replaced directory, which must outlive the fsync.
        let temp = self.temp.take().unwrap_or_default();
        let parent = parent_of(&self.target);
        sync_dir(parent).map_err(|e| io_failure("sync", parent, &e))?;
        if replaced {
            remove_now(&temp).map_err(|e| io_failure("remove the replaced", &temp, &e))?;
        }
        Ok(())
    }
}

impl Drop for DirTxn {
    fn drop(&mut self) {
        if let Some(temp) = self.temp.take() {
            // Best effort: what remains is a `.tmp-` name that nothing reads.
            let _ = remove_now(&temp);
        }
    }
}

impl TxnFile {
    /// Flushes and fsyncs the file; returns its size and hash.
    pub fn finish(mut self) -> Result<Digest> {
        let synced = self.out.flush().and_then(|()| sync_file(self.out.get_ref(), &self.path));
        synced.map_err(|e| io_failure("write", &self.path, &e))?;
        Ok(Digest { size: self.hasher.count(), blake3: self.hasher.finalize().to_hex().to_string() })
    }
}

impl Write for TxnFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let TxnFile { out, hasher, path } = self;
        let written =
            step(Op::Write(path, bytes)).and_then(|()| out.write(bytes)).map_err(|e| named("write", path, e))?;
        // What the buffer took, which may be less than it was given.
        hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().map_err(|e| named("write", &self.path, e))
    }
}

/// Creates the directory and its missing parents, each durable in its own parent. Existing ones are left alone.
pub fn create_dirs(path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    create_dirs(parent_of(path))?;
    // Another process may make it at this moment, which is as good.
    match make_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => {
            Err(io_failure("create the directory", path, &e).into())
        }
        _ => sync_dir(parent_of(path)).map_err(|e| io_failure("sync", parent_of(path), &e).into()),
    }
}

/// Renames a file or directory within its directory, durably. A taken `to` is an error.
pub fn rename_durable(from: &Path, to: &Path) -> Result<()> {
    let renamed = step(Op::Rename(from, to)).and_then(|()| rename_no_replace(from, to));
    let renamed = renamed.and_then(|()| sync_dir(parent_of(to)));
    renamed.map_err(|e| io_failure(&format!("rename {} to", from.display()), to, &e).into())
}

/// Deletes a directory and all in it (symbolic links are deleted, never followed). It first takes a `.tmp-` name, so
/// that no half-deleted directory is ever seen under the real one.
pub fn remove_tree(dir: &Path) -> Result<()> {
    let is_temp = dir.file_name().is_some_and(|n| n.to_string_lossy().starts_with(TEMP_PREFIX));
    let doomed = if is_temp { dir.to_owned() } else { super::temp_beside(dir)? };
    if !is_temp {
        rename_durable(dir, &doomed)?;
    }
    remove_now(&doomed).map_err(|e| io_failure("delete", &doomed, &e).into())
}

fn remove_now(dir: &Path) -> io::Result<()> {
    step(Op::Remove(dir))?;
    if dir.symlink_metadata()?.is_dir() { std::fs::remove_dir_all(dir) } else { std::fs::remove_file(dir) }
}

/// Renames `temp` to `target`; if that is taken, the two trade names in one step. True if they did.
fn rename_or_exchange(temp: &Path, target: &Path) -> io::Result<bool> {
    match rename_no_replace(temp, target) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => exchange(temp, target).map(|()| true),
        done => done.map(|()| false),
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn rename_with(from: &Path, to: &Path, flags: rustix::fs::RenameFlags) -> io::Result<()> {
    let cwd = rustix::fs::CWD;
    Ok(rustix::fs::renameat_with(cwd, from, cwd, to, flags)?)
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn rename_no_replace(from: &Path, to: &Path) -> io::Result<()> {
    match rename_with(from, to, rustix::fs::RenameFlags::NOREPLACE) {
        // Some network and FUSE file systems know no flags. The caller holds the lock of the directory, so no other process takes the name.
        Err(e) if Ability::Exchange.is_missing(&e) => rename_checked(from, to),
        done => done,
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(temp: &Path, target: &Path) -> io::Result<()> {
    match rename_with(temp, target, rustix::fs::RenameFlags::EXCHANGE) {
        Err(e) if Ability::Exchange.is_missing(&e) => {
            warn_missing(Ability::Exchange, target, Some(&e));
            exchange_in_steps(temp, target)
        }
        done => done,
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn rename_no_replace(from: &Path, to: &Path) -> io::Result<()> {
    rename_checked(from, to)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(temp: &Path, target: &Path) -> io::Result<()> {
    exchange_in_steps(temp, target)
}

/// Lets the two names trade places by way of a third one. Should the second rename fail, the old directory gets its name back.
pub(super) fn exchange_in_steps(temp: &Path, target: &Path) -> io::Result<()> {
    let aside = super::temp_beside(target).map_err(io::Error::other)?;
    std::fs::rename(target, &aside)?;
    if let Err(error) = std::fs::rename(temp, target) {
        std::fs::rename(&aside, target)?;
        return Err(error);
    }
    std::fs::rename(&aside, temp)
}

fn rename_checked(from: &Path, to: &Path) -> io::Result<()> {
    if to.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    std::fs::rename(from, to)
}
