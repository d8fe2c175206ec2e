//! What ranks and mpiexec write, and where it goes.
//!
//! Rank 0 writes as the process that the user has started would: a terminal is opened by the rank itself, so that colours and the
//! line of progress are what they are without ranks. A file or a pipe is written here, because a file that two processes have
//! opened has two ends. What mpiexec says itself is kept and shown only if no rank starts: of every failure it speaks at length,
//! and often wrongly.

use super::protocol::ToRank;
use crate::runtime::error::{Exit, fail};
use anyhow::Result;
use std::collections::VecDeque;
use std::io::{self, IsTerminal, PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes that are kept of what mpiexec says.
const KEPT: usize = 4096;

/// How long what was written may take to be read to its end.
const LAST_BYTES: Duration = Duration::from_secs(2);

type Sink = Arc<Mutex<Box<dyn Write + Send>>>;

pub(super) struct Output {
    /// For rank 0: paths of what it opens.
    stdout: PathBuf,
    stderr: PathBuf,
    /// Ends of pipes that rank 0 has not opened yet.
    unopened: Vec<PipeWriter>,
    /// For mpiexec, until it has started.
    pipes: Option<(PipeWriter, PipeWriter)>,
    /// Whether what mpiexec writes is shown: where a rank could open nothing, it is the rank's.
    is_shown: Arc<AtomicBool>,
    kept: Arc<Mutex<VecDeque<u8>>>,
    /// Closed when everything was read to its end.
    relays: Vec<Receiver<()>>,
}

impl Output {
    /// Rank 0 writes results to `stdout`.
    ///
    /// # Errors
    /// [`Exit::Io`] if the system gives no pipes or threads.
    pub(super) fn new(stdout: Box<dyn Write + Send>, stdout_is_terminal: bool) -> Result<Self> {
        let sinks: [Sink; 2] = [Arc::new(Mutex::new(stdout)), Arc::new(Mutex::new(Box::new(io::stderr())))];
        let ((from_mpiexec, pipe_out), (errors_of_mpiexec, pipe_err)) = (new_pipe()?, new_pipe()?);
        let mut output = Self {
            stdout: descriptor(1),
            stderr: descriptor(2),
            unopened: Vec::new(),
            pipes: Some((pipe_out, pipe_err)),
            is_shown: Arc::default(),
            kept: Arc::default(),
            relays: Vec::new(),
        };
        output.relay_mpiexec(from_mpiexec, &sinks[0])?;
        output.relay_mpiexec(errors_of_mpiexec, &sinks[1])?;
        if !stdout_is_terminal {
            output.stdout = output.relay_rank(&sinks[0])?;
        }
        if !io::stderr().is_terminal() {
            output.stderr = output.relay_rank(&sinks[1])?;
        }
        Ok(output)
    }

    /// Reads what rank 0 writes to the path that is returned, and writes it to `sink`.
    fn relay_rank(&mut self, sink: &Sink) -> Result<PathBuf> {
        let (reader, writer) = new_pipe()?;
        let sink = sink.clone();
        self.relay(reader, move |bytes| {
            let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
            sink.write_all(bytes).and_then(|()| sink.flush())
        })?;
        let path = descriptor(writer.as_raw_fd());
        self.unopened.push(writer);
        Ok(path)
    }

    fn relay_mpiexec(&mut self, reader: PipeReader, sink: &Sink) -> Result<()> {
        let (sink, kept, is_shown) = (sink.clone(), self.kept.clone(), self.is_shown.clone());
        self.relay(reader, move |bytes| {
            if is_shown.load(Ordering::Relaxed) {
                let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
                return sink.write_all(bytes).and_then(|()| sink.flush());
            }
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(bytes);
            let surplus = kept.len().saturating_sub(KEPT);
            kept.drain(..surplus);
            Ok(())
        })
    }

    /// Hands all that comes from `reader` to `write`. If that fails the pipe is closed, so that its writer fails as well.
    fn relay(
        &mut self,
        mut reader: PipeReader,
        mut write: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let (done, is_done) = channel();
        self.relays.push(is_done);
        crate::runtime::thread::spawn("output of ranks", move || {
            let _done = done;
            let mut buffer = vec![0; 1 << 16];
            loop {
                match reader.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(n) if write(&buffer[..n]).is_err() => return,
                    Err(e) if e.kind() != io::ErrorKind::Interrupted => return,
                    _ => {}
                }
            }
        })
    }

    /// What the parent sends to supervisors.
    pub(super) fn for_rank(&self) -> ToRank {
        ToRank::Output { stdout: self.stdout.clone(), stderr: self.stderr.clone() }
    }

    /// Gives mpiexec, or a supervisor in its place, its pipes.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn attach<'a>(&self, command: &'a mut Command) -> std::io::Result<&'a mut Command> {
        Ok(match &self.pipes {
            Some((stdout, stderr)) => command.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?),
            None => command,
        })
    }

    /// All that are to have the pipes have them.
    pub(super) fn close_pipes(&mut self) {
        self.pipes = None;
    }

    /// Rank 0 has opened what it writes to, or it writes to mpiexec.
    pub(super) fn rank_has_started(&mut self, writes_directly: bool) {
        self.unopened.clear();
        if !writes_directly {
            self.is_shown.store(true, Ordering::Relaxed);
        }
    }

    /// Waits until all that was written has been read.
    pub(super) fn finish(&mut self) {
        self.unopened.clear();
        for is_done in &self.relays {
            let _ = is_done.recv_timeout(LAST_BYTES);
        }
    }

    /// The last lines that mpiexec has written and that were not shown.
    pub(super) fn words_of_mpiexec(&self) -> Vec<String> {
        let kept: Vec<u8> = self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = String::from_utf8_lossy(&kept);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].iter().map(|line| (*line).to_owned()).collect()
    }
}

/// The path by which another process of this user opens the descriptor `number` of this one.
fn descriptor(number: i32) -> PathBuf {
    format!("/proc/{}/fd/{number}", std::process::id()).into()
}

fn new_pipe() -> Result<(PipeReader, PipeWriter)> {
    Ok(pipe().map_err(|e| {
        fail(Exit::Io, format!("cannot make a pipe: {e}")).hint("raise the limit of open files (`ulimit -n`)")
    })?)
}
