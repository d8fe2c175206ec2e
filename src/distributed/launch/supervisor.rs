//! The process between mpiexec and a rank: it knows how the rank has ended, hands signals on, and ends the rank when the parent of
//! all is gone.

use super::protocol::{self, FromRank, Outcome, SOCKET, SUPERVISOR, ToRank};
use crate::distributed::environment;
use crate::distributed::message::send_line;
use crate::runtime::error::{Exit, Failure, alarm, fail};
use crate::runtime::files::{io_failure, open_for_output, remove_tree};
use crate::runtime::{machine, thread};
use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::SIGKILL;
use signal_hook::low_level;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often a rank looks whether its supervisor is still there, and that whether mpiexec is.
const LOOK: Duration = Duration::from_millis(500);

/// How long the last lines of a rank may take to arrive.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Bytes of a line that are passed on.
const LINE: u64 = 2000;

/// Whether this process is a supervisor.
pub fn is_wanted() -> bool {
    std::env::var_os(SOCKET).is_some() && std::env::var_os(SUPERVISOR).is_none()
}

/// In a rank of our own: ends it when its supervisor is gone. Elsewhere nothing.
///
/// # Errors
/// [`Exit::Io`] if the system gives no thread.
pub fn watch_own() -> Result<()> {
    let Some(supervisor) = std::env::var(SUPERVISOR).ok().and_then(|pid| pid.parse::<u32>().ok()) else {
        return Ok(());
    };
    thread::spawn("supervisor", move || {
        while machine::parent() == supervisor {
            std::thread::sleep(LOOK);
        }
        alarm("error: the process that has started this rank is gone");
        // As a kill would: others may hold any lock, and files are made for it.
        low_level::exit(Exit::Internal as i32);
    })
}

/// Runs the rank with the arguments of this process, to its end; returns the exit code.
///
/// # Errors
/// [`Exit::Config`] if mpiexec does not say which rank this is; [`Exit::Io`] if the rank cannot be started.
pub fn supervise() -> Result<i32> {
    let launched = environment::launched().ok_or_else(unknown_launcher)?;
    // A signal may be sent to every process of a job. The rank answers it; a supervisor that died of it would end the rank amid its save.
    let _caught = super::listen()?;
    let socket = PathBuf::from(std::env::var_os(SOCKET).unwrap_or_default());
    let stream = UnixStream::connect(&socket).map_err(|e| io_failure("reach the parent at", &socket, &e))?;
    let mut commands = protocol::receive(stream.try_clone()?);
    let Some(ToRank::Output { stdout, stderr }) = commands.next() else {
        return Err(fail(Exit::Internal, "the parent of the ranks is gone").hint("run the command again").into());
    };
    let mut command = rank_command()?;
    let opened = if launched.rank == 0 { open_output(&mut command, &stdout, &stderr) } else { None };
    if launched.rank > 0 {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    }
    let mut rank = command.spawn().map_err(|e| io_failure("start", Path::new(command.get_program()), &e))?;
    // Its copies of what the rank writes to would keep readers waiting for more.
    drop(command);
    let stream = Arc::new(Mutex::new(stream));
    tell(&stream, &FromRank::Started { rank: launched.rank, pid: rank.id(), writes_directly: opened.is_some() });
    let lines = rank.stderr.take().map(|stderr| pass_on_lines(stderr, stream.clone())).transpose()?;
    obey(commands, rank.id(), socket)?;
    end_without_mpiexec(stream.clone(), rank.id())?;
    let outcome = wait_for(&mut rank)?;
    if let Some(lines) = lines {
        let _ = lines.recv_timeout(LAST_LINES);
    }
    tell(&stream, &FromRank::Ended(outcome));
    Ok(match outcome {
        Outcome::Code(code) => code,
        Outcome::Signal(_) => Exit::Internal as i32,
    })
}

fn unknown_launcher() -> Failure {
    // Without this every rank would start all of them again.
    fail(Exit::Config, "the mpiexec that was found does not tell ranks their number by any variable known here")
        .hint("pip install mpich, which brings an mpiexec that works")
}

fn rank_command() -> Result<Command> {
    let program = std::env::current_exe().map_err(|e| io_failure("find", Path::new("the program itself"), &e))?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).stdin(Stdio::null());
    command.env(SUPERVISOR, std::process::id().to_string());
    Ok(command)
}

/// Lets the rank write where the parent would. If one of the two cannot be opened, both stay as mpiexec has made them.
fn open_output(command: &mut Command, stdout: &Path, stderr: &Path) -> Option<()> {
    let stdout = open_for_output(stdout).ok()?;
    let stderr = open_for_output(stderr).ok()?;
    command.stdout(stdout).stderr(stderr);
    Some(())
}

fn tell(stream: &Mutex<UnixStream>, message: &FromRank) {
    // If the parent is gone, the thread that listens to it ends the rank.
    let _ = send_line(&mut *stream.lock().unwrap_or_else(PoisonError::into_inner), message);
}

/// Passes on the lines of `stderr`; what is returned ends when they do.
fn pass_on_lines(stderr: impl Read + Send + 'static, stream: Arc<Mutex<UnixStream>>) -> Result<Receiver<()>> {
    let (done, is_done) = channel();
    thread::spawn("lines of a rank", move || {
        let _done = done;
        let mut reader = BufReader::new(stderr);
        let mut line = Vec::new();
        while reader.by_ref().take(LINE).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            tell(&stream, &FromRank::Said(String::from_utf8_lossy(&line).trim_end().to_owned()));
            line.clear();
        }
    })?;
    Ok(is_done)
}

/// Does what the parent says, on a thread of its own; ends the rank when the parent is gone.
fn obey(commands: impl Iterator<Item = ToRank> + Send + 'static, rank: u32, socket: PathBuf) -> Result<()> {
    thread::spawn("parent", move || {
        for command in commands {
            if let ToRank::Signal(signal) = command {
                send_signal(rank, signal);
            }
        }
        // The parent removes this itself, if it has the time.
        if let Some(dir) = socket.parent().filter(|dir| dir.exists()) {
            let _ = remove_tree(dir);
        }
        send_signal(rank, SIGKILL);
    })
}

/// Ends the rank when the part of mpiexec that has started it is gone: the others could not be reached at their end.
fn end_without_mpiexec(stream: Arc<Mutex<UnixStream>>, rank: u32) -> Result<()> {
    let started_by = machine::parent();
    thread::spawn("mpiexec", move || {
        while machine::parent() == started_by {
            std::thread::sleep(LOOK);
        }
        tell(&stream, &FromRank::Said("the part of mpiexec that has started this rank is gone".into()));
        send_signal(rank, SIGKILL);
    })
}

fn send_signal(process: u32, signal: i32) {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    if let Some((pid, signal)) = pid.zip(Signal::from_named_raw(signal)) {
        let _ = kill_process(pid, signal);
    }
}

fn wait_for(rank: &mut Child) -> Result<Outcome> {
    let status = rank.wait().map_err(|e| io_failure("wait for", Path::new("a rank"), &e))?;
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => Outcome::Code(code),
        (None, signal) => Outcome::Signal(signal.unwrap_or(SIGKILL)),
    })
}
