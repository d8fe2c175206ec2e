//! The only writer of files in the program.
//!
//! Whatever is written here is either wholly there under its name or not there at all, also after a kill or a loss of
//! power: bytes go to a temporary name beside the target, are fsynced, renamed over it, and the directory that holds the
//! name is fsynced. Logs are the one exception: they grow by whole lines, one `write` call each.
//!
//! An output never follows a symbolic link at its final component and never replaces anything but a regular file, so
//! that `--output /dev/null` or a link planted in a shared directory does no harm. Temporary names begin with `.tmp-`.
//!
//! Every failure is a [`Failure`] that names the path and the system's error, and says what to do about it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use rustix::fs::OFlags;

use crate::runtime::error::{Exit, Failure, fail};

mod ability;
mod append;
mod dir;
pub(crate) mod fault;
mod growing;
mod hint;
mod identity;
mod link;
mod lock;
mod temp;
#[cfg(test)]
pub(crate) mod tests;

pub use append::{Appender, Syncer, append_bytes, append_log};
pub use dir::{DirTxn, TxnFile, create_dirs, remove_tree, rename_durable};
pub use growing::Growing;
pub use hint::{Access, io_hint};
pub use link::link;
pub use lock::{Lock, lock};
pub use temp::{TempDir, open_for_output};

use ability::{Ability, if_able, warn_missing};
use fault::{Op, step};

/// Every temporary file or directory of the program begins with this; what carries it can be deleted when nothing runs.
pub const TEMP_PREFIX: &str = ".tmp-";

/// Size and content hash of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    pub size: u64,
    /// BLAKE3 of the content, 64 lower-case hex digits.
    pub blake3: String,
}

/// The [`Failure`] (exit 74) for a system error met when trying to `what` (an infinitive) the file `path`.
pub fn io_failure(what: &str, path: &Path, error: &io::Error) -> Failure {
    fail(Exit::Io, format!("cannot {what} {}: {error}", path.display())).hint(io_hint(error, hint::Access::to(what)))
}

/// Like [`io_failure`], for `map_err`; keeps the failure an [`AtomicFile`] or [`TxnFile`] has put into an [`io::Error`].
pub fn io_context(what: &str, path: &Path) -> impl FnOnce(io::Error) -> anyhow::Error {
    move |error| match error.get_ref().and_then(|inner| inner.downcast_ref::<Failure>()) {
        Some(failure) => failure.clone().into(),
        None => io_failure(what, path, &error).into(),
    }
}

/// An [`io::Error`] of the same kind whose message names the file: what the `Write` implementations return.
fn named(what: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), io_failure(what, path, &error))
}

/// Writes `bytes` to `path` so that a reader sees the old content or the new, never a part, and the new one survives a
/// loss of power once this returns. The directory must exist.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(io_context("write", path))?;
    file.commit()
}

/// A file that appears under its name only on [`commit`](AtomicFile::commit); dropped before that, it leaves no trace.
/// Writes are buffered; their errors name the file.
#[derive(Debug)]
pub struct AtomicFile {
    out: Option<BufWriter<File>>,
    temp: PathBuf,
    target: PathBuf,
}

impl AtomicFile {
    /// Opens a temporary file beside `path`, whose directory must exist.
    pub fn create(path: &Path) -> Result<AtomicFile> {
        refuse_special(path)?;
        let temp = temp_beside(path)?;
        let file = create_new(&temp).map_err(|e| io_failure("create", path, &e))?;
        Ok(AtomicFile { out: Some(BufWriter::with_capacity(1 << 18, file)), temp, target: path.to_owned() })
    }

    /// Makes the content durable and visible: flush, fsync, rename, fsync of the directory.
    pub fn commit(mut self) -> Result<()> {
        if let Some(mut out) = self.out.take() {
            // Before the rename: a file system may write a new name to the disk before the data behind it.
            let synced = out.flush().and_then(|()| sync_file(out.get_ref(), &self.temp));
            synced.map_err(|e| self.abandon(io_failure("write", &self.target, &e)))?;
        }
        // Once more: something may have been put there since `create`.
        if let Err(refused) = refuse_special(&self.target) {
            return Err(self.abandon(refused).into());
        }
        let renamed =
            step(Op::Rename(&self.temp, &self.target)).and_then(|()| std::fs::rename(&self.temp, &self.target));
        renamed.map_err(|e| self.abandon(io_failure("rename the finished file to", &self.target, &e)))?;
        // The rename has changed the directory: without this, a loss of power may bring the old content back.
        sync_dir(parent_of(&self.target)).map_err(|e| io_failure("write", &self.target, &e))?;
        Ok(())
    }

    fn abandon(&self, failure: Failure) -> Failure {
        remove_temp(&self.temp);
        failure
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let AtomicFile { out: Some(out), temp, target } = self else { return Err(io::ErrorKind::BrokenPipe.into()) };
        step(Op::Write(temp, bytes)).and_then(|()| out.write(bytes)).map_err(|e| named("write", target, e))
    }

    fn flush(&mut self) -> io::Result<()> {
        let AtomicFile { out: Some(out), target, .. } = self else { return Ok(()) };
        out.flush().map_err(|e| named("write", target, e))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.out.take().is_some() {
            remove_temp(&self.temp);
        }
    }
}

/// A regular file opened for reading, and its size. Anything else (FIFO, device, directory) is refused without blocking
/// on it; a symbolic link at the final component is followed only when `follow`.
pub fn open_input(path: &Path, follow: bool) -> Result<(File, u64)> {
    // Opening a FIFO would otherwise wait for someone to write to it.
    let mut flags = OFlags::NONBLOCK;
    if !follow {
        flags |= OFlags::NOFOLLOW;
    }
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
    let file = opened.map_err(|e| io_failure("open", path, &e))?;
    // Of the open file: what the path names may change in between.
    let meta = file.metadata().map_err(|e| io_failure("read", path, &e))?;
    if !meta.is_file() {
        let failure = fail(Exit::Io, format!("cannot read {}: it is not a regular file", path.display()));
        return Err(failure.hint("give the path of an ordinary file").into());
    }
    Ok((file, meta.len()))
}

/// The whole of a small regular file. A file of more than `max` bytes is refused (exit 65) before any allocation.
pub fn read_bounded(path: &Path, max: u64, follow: bool) -> Result<Vec<u8>> {
    let (file, size) = open_input(path, follow)?;
    if size > max {
        return Err(too_large(path, max).into());
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // A file that grows while it is read must not escape the bound.
    file.take(max + 1).read_to_end(&mut bytes).map_err(|e| io_failure("read", path, &e))?;
    if bytes.len() as u64 > max {
        return Err(too_large(path, max).into());
    }
    Ok(bytes)
}

fn too_large(path: &Path, max: u64) -> Failure {
    let message = format!("{} is larger than the {max} bytes that such a file may have", path.display());
    fail(Exit::Data, message).hint("this is not the file it claims to be: restore it from a good copy")
}

/// Size and BLAKE3 of a regular file (symbolic links followed).
pub fn hash_file(path: &Path) -> Result<Digest> {
    let (file, _) = open_input(path, true)?;
    hash_open_file(file, path)
}

/// Size and BLAKE3 of an open file from its start; `path` is for messages.
pub fn hash_open_file(mut file: File, path: &Path) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    file.rewind().map_err(|e| io_failure("read", path, &e))?;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(io_failure("read", path, &e).into()),
        };
    }
    Ok(Digest { size: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
}

/// Bytes an unprivileged process may still write on the file system that holds `path` (or will, once it is created); none
/// where the file system does not count them.
pub fn free_space(path: &Path) -> Result<Option<u64>> {
    // What does not exist yet will be on the file system of the directory that it is made in.
    let mut existing = path;
    while !existing.exists() && existing != Path::new(".") {
        existing = parent_of(existing);
    }
    match rustix::fs::statvfs(existing).map_err(io::Error::from) {
        // Of a file system without a size, such as those of object stores, all numbers are 0.
        Ok(stat) if stat.f_blocks > 0 => Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize))),
        Ok(_) => {
            warn_missing(Ability::FreeSpace, existing, None);
            Ok(None)
        }
        Err(e) if Ability::FreeSpace.is_missing(&e) => {
            warn_missing(Ability::FreeSpace, existing, Some(&e));
            Ok(None)
        }
        Err(e) => Err(io_failure("measure the free space of", path, &e).into()),
    }
}

/// The directory that holds `path`'s name.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A fresh temporary name in the same directory (a rename must not cross file systems).
fn temp_beside(path: &Path) -> Result<PathBuf, Failure> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(
            fail(Exit::Io, format!("cannot write {}: it names no file", path.display())).hint("give a file name")
        );
    };
    // Process and serial number: no two writers share a temporary file, be they threads or processes.
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let mut temp = std::ffi::OsString::from(TEMP_PREFIX);
    temp.push(name);
    temp.push(format!("-{}-{serial}", std::process::id()));
    Ok(path.with_file_name(temp))
}

/// Creates a file that was not there; mode 0644 minus the umask.
fn create_new(path: &Path) -> io::Result<File> {
    step(Op::Create(path))?;
    let mut options = OpenOptions::new();
    // Never over what is there already, be it a file or a link that somebody planted.
    options.write(true).create_new(true).mode(0o644).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    options.open(path)
}

/// Refuses an output name that holds anything but a regular file.
fn refuse_special(path: &Path) -> Result<(), Failure> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let what = match () {
        () if meta.is_file() => return Ok(()),
        () if meta.is_symlink() => "a symbolic link, which outputs never follow",
        () if meta.is_dir() => "a directory",
        () => "not a regular file",
    };
    let message = format!("cannot write {}: it is {what}", path.display());
    Err(fail(Exit::Io, message).hint("give the path of an ordinary file, existing or new"))
}

fn remove_temp(temp: &Path) {
    // Best effort: what remains is a `.tmp-` name that nothing reads.
    let _ = step(Op::Remove(temp)).and_then(|()| std::fs::remove_file(temp));
}

fn sync_file(file: &File, path: &Path) -> io::Result<()> {
    if_able(Ability::SyncFiles, parent_of(path), step(Op::Fsync(path)).and_then(|()| file.sync_all()))
}

/// Makes the names in a directory durable, where the file system can.
fn sync_dir(dir: &Path) -> io::Result<()> {
    let synced = step(Op::FsyncDir(dir)).and_then(|()| File::open(dir)?.sync_all());
    if_able(Ability::SyncDirectories, dir, synced)
}

fn make_dir(path: &Path) -> io::Result<()> {
    step(Op::Mkdir(path))?;
    std::fs::DirBuilder::new().mode(0o755).create(path)
}
