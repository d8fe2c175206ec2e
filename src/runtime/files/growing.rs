//! A file that grows over the lives of several processes, and appears under its final name when it is complete.
//!
//! For outputs too long to be made again after a kill: shards, downloads. The owner records elsewhere, after a
//! [`sync`](Growing::sync), how many bytes count; the next process opens the file cut back to that length, so that what
//! was written after the record, torn or not, is written again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::fs::OFlags;

use super::fault::{Op, step};
use super::{io_failure, named, parent_of, refuse_special, sync_dir, sync_file};
use crate::runtime::error::{Exit, fail};

/// Bytes held back to make few, large writes.
const BUFFER: usize = 1 << 20;

/// A growing file; dropped, it stays as it is, for the next process.
#[derive(Debug)]
pub struct Growing {
    file: File,
    path: PathBuf,
    /// Bytes on disk and in the buffer.
    len: u64,
    buffer: Vec<u8>,
}

impl Growing {
    /// Opens `path`, or creates it, cut back to its first `len` bytes. Its directory must exist; a link is not followed.
    ///
    /// # Errors
    /// [`Exit::Io`], and [`Exit::Data`] if the file is shorter than `len`.
    pub fn open(path: &Path, len: u64) -> Result<Self> {
        refuse_special(path)?;
        step(Op::Create(path)).map_err(|e| io_failure("open", path, &e))?;
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(flags);
        let file = options.open(path).map_err(|e| io_failure("open", path, &e))?;
        let present = file.metadata().map_err(|e| io_failure("open", path, &e))?.len();
        if present < len {
            let message = format!("{}: holds {present} bytes, {len} were written to it", path.display());
            return Err(fail(Exit::Data, message).hint("delete the unfinished output and begin again").into());
        }
        // What follows was written after the last recorded state, by a process that died: it is written again.
        if present > len {
            step(Op::Truncate(path, len)).and_then(|()| file.set_len(len)).map_err(|e| io_failure("open", path, &e))?;
        }
        Ok(Self { file, path: path.to_owned(), len, buffer: Vec::new() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length, what is still in memory included.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Replaces bytes already written, from `at` on: a header that could not be known before.
    ///
    /// # Errors
    /// [`Exit::Io`].
    pub fn overwrite(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        // The buffer first, because the bytes to be replaced may still be in it.
        let written = self.write_out().and_then(|()| step(Op::WriteAt(&self.path, at, bytes)));
        let written = written.and_then(|()| self.file.write_all_at(bytes, at));
        Ok(written.map_err(|e| io_failure("write", &self.path, &e))?)
    }

    /// Makes all of it survive a loss of power, its name included.
    ///
    /// # Errors
    /// [`Exit::Io`]; the file must then be given up, because what a failed sync has lost is unknown.
    pub fn sync(&mut self) -> Result<()> {
        let synced = self.write_out().and_then(|()| sync_file(&self.file, &self.path));
        let synced = synced.and_then(|()| sync_dir(parent_of(&self.path)));
        Ok(synced.map_err(|e| io_failure("write", &self.path, &e))?)
    }

    /// Makes it durable under its final name `to`, in the same directory or another of the same file system.
    ///
    /// # Errors
    /// [`Exit::Io`].
    pub fn publish(mut self, to: &Path) -> Result<()> {
        let synced = self.write_out().and_then(|()| sync_file(&self.file, &self.path));
        synced.map_err(|e| io_failure("write", &self.path, &e))?;
        refuse_special(to)?;
        let renamed = step(Op::Rename(&self.path, to)).and_then(|()| std::fs::rename(&self.path, to));
        let renamed = renamed.and_then(|()| sync_dir(parent_of(to)));
        Ok(renamed.map_err(|e| io_failure("rename the finished file to", to, &e))?)
    }

    /// A second handle for reading what has been written so far, from its beginning.
    ///
    /// # Errors
    /// [`Exit::Io`].
    pub fn reader(&mut self) -> Result<File> {
        let opened = self.write_out().and_then(|()| File::open(&self.path));
        Ok(opened.map_err(|e| io_failure("read", &self.path, &e))?)
    }

    fn write_out(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let at = self.len - self.buffer.len() as u64;
        step(Op::WriteAt(&self.path, at, &self.buffer))?;
        self.file.write_all_at(&self.buffer, at)?;
        // Only after the write: one that failed is tried again, at the same place in the file.
        self.buffer.clear();
        Ok(())
    }
}

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        self.len += bytes.len() as u64;
        if self.buffer.len() >= BUFFER {
            self.write_out().map_err(|e| named("write", &self.path, e))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_out().map_err(|e| named("write", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_over_processes_and_is_published_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (part, done) = (dir.path().join(".part"), dir.path().join("done"));
        let mut file = Growing::open(&part, 0).unwrap();
        file.write_all(b"HEADabcdef").unwrap();
        file.sync().unwrap();
        assert_eq!(file.len(), 10);
        file.write_all(b"not recorded").unwrap();
        drop(file);
        let mut file = Growing::open(&part, 7).unwrap();
        file.write_all(&[b'x'; 3 * BUFFER]).unwrap();
        file.overwrite(0, b"head").unwrap();
        assert_eq!(std::fs::read(&part).unwrap().len() as u64, file.len());
        file.publish(&done).unwrap();
        let bytes = std::fs::read(&done).unwrap();
        assert_eq!((&bytes[..8], bytes.len()), (&b"headabcx"[..], 7 + 3 * BUFFER));
        assert!(!part.exists());
        let error = Growing::open(&part, 1).unwrap_err();
        assert_eq!(error.downcast_ref::<crate::runtime::error::Failure>().unwrap().exit, Exit::Data);
    }
}
