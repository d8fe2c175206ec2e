//! Logs: they grow by whole lines, and are cut back only by rewriting.
//!
//! Each line is one `write` call on a file opened for appending, so that a reader or a kill sees whole lines; should
//! the disk fill up in the middle of one, the file is cut back to where the line began. A line torn by a loss of power
//! was never acknowledged and is removed when the log is next opened.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::fs::OFlags;

use super::fault::{Op, step};
use super::identity::Named;
use super::{AtomicFile, io_context, io_failure, parent_of, refuse_special, sync_dir, sync_file};
use crate::runtime::error::{Exit, fail};

/// A log opened for appending. One writer at a time (the run's lock sees to that).
#[derive(Debug)]
pub struct Appender {
    named: Named,
    buffer: Vec<u8>,
}

/// Opens the log `path`, made if missing, for appending; an incomplete last line is removed.
pub fn append_log(path: &Path) -> Result<Appender> {
    let file = open(path)?;
    cut_torn_line(&file, path).map_err(|e| io_failure("prepare the log", path, &e))?;
    finish(file, path)
}

/// Opens the file `path`, made if missing, for appending records that are no lines.
pub fn append_bytes(path: &Path) -> Result<Appender> {
    finish(open(path)?, path)
}

fn finish(file: File, path: &Path) -> Result<Appender> {
    // The log may be new: its name must survive a loss of power, too.
    sync_dir(parent_of(path)).map_err(|e| io_failure("prepare the log", path, &e))?;
    Ok(Appender { named: Named::new(file, path), buffer: Vec::new() })
}

fn open(path: &Path) -> Result<File> {
    refuse_special(path)?;
    step(Op::Create(path)).map_err(|e| io_failure("open", path, &e))?;
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o644).custom_flags(flags.bits() as i32);
    Ok(options.open(path).map_err(|e| io_failure("open", path, &e))?)
}

impl Appender {
    /// Appends `line` (without its newline, which is added). An error leaves no part of it behind.
    pub fn line(&mut self, line: &str) -> Result<()> {
        if line.contains('\n') {
            return Err(
                fail(Exit::Internal, format!("a log line for {} holds a newline", self.path().display())).into()
            );
        }
        self.buffer.clear();
        self.buffer.extend_from_slice(line.as_bytes());
        self.buffer.push(b'\n');
        self.write_buffer()
    }

    /// Appends `bytes`. An error leaves no part of them behind.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.clear();
        self.buffer.extend_from_slice(bytes);
        self.write_buffer()
    }

    fn write_buffer(&mut self) -> Result<()> {
        let start = self.len()?;
        let Appender { named: Named { file, path, .. }, buffer } = self;
        step(Op::Append(path, buffer)).and_then(|()| file.write_all(buffer)).map_err(|e| {
            // Cutting needs no space, so that it works on the full disk that made the write fail.
            let _ = step(Op::Truncate(path, start)).and_then(|()| file.set_len(start));
            io_failure("append to", path, &e).into()
        })
    }

    /// The name under which it was opened.
    pub fn path(&self) -> &Path {
        &self.named.path
    }

    /// Whether that name still stands for the file: once it was deleted or replaced, what is appended is lost.
    pub fn is_in_place(&self) -> bool {
        self.named.is_in_place()
    }

    /// Length of the log in bytes.
    pub fn len(&self) -> Result<u64> {
        Ok(self.named.file.metadata().map_err(|e| io_failure("read", self.path(), &e))?.len())
    }

    /// Whether the log holds nothing.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Makes everything appended so far survive a loss of power.
    pub fn sync(&self) -> Result<()> {
        sync_file(&self.named.file, self.path()).map_err(|e| io_failure("sync", self.path(), &e).into())
    }

    /// Another handle on the log, for a thread that only makes it durable.
    pub fn syncer(&self) -> Result<Syncer> {
        let file = self.named.file.try_clone().map_err(|e| io_failure("open", self.path(), &e))?;
        Ok(Syncer { file, path: self.path().to_owned() })
    }

    /// Writes all that the log holds as the file `to`: also of a log that was deleted.
    pub fn copy_to(&self, to: &Path) -> Result<()> {
        let mut copy = AtomicFile::create(to)?;
        let mut at = 0;
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = self.named.file.read_at(&mut buffer, at).map_err(|e| io_failure("read", self.path(), &e))?;
            if n == 0 {
                return copy.commit();
            }
            copy.write_all(&buffer[..n]).map_err(io_context("write", to))?;
            at += n as u64;
        }
    }
}

/// Makes durable what has been appended to a log so far.
#[derive(Debug)]
pub struct Syncer {
    file: File,
    path: PathBuf,
}

impl Syncer {
    /// Returns when everything appended before the call survives a loss of power.
    pub fn sync(&self) -> Result<()> {
        sync_file(&self.file, &self.path).map_err(|e| io_failure("sync", &self.path, &e).into())
    }
}

/// Cuts the file back to the end of its last complete line.
fn cut_torn_line(file: &File, path: &Path) -> io::Result<()> {
    let size = file.metadata()?.len();
    // From the end backwards: of a long log only the last stretch is read.
    let mut end = size;
    let mut buffer = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(buffer.len() as u64);
        let chunk = &mut buffer[..(end - start) as usize];
        file.read_exact_at(chunk, start)?;
        if let Some(at) = chunk.iter().rposition(|&b| b == b'\n') {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    if end < size { step(Op::Truncate(path, end)).and_then(|()| file.set_len(end)) } else { Ok(()) }
}
