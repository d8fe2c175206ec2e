//! What the parent itself starts: mpiexec, or the supervisors of the ranks where they meet without MPI.

use super::mpiexec;
use super::output::Output;
use super::protocol::SOCKET;
use crate::distributed::environment::VARIABLES;
use crate::runtime::error::Failure;
use crate::runtime::files::io_failure;
use anyhow::Result;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

#[derive(Clone, Debug)]
pub enum Starter {
    /// The mpiexec of this path, or the one that can be found.
    Mpiexec(Option<PathBuf>),
    /// The program itself: the ranks meet by TCP on this machine, as those of torchrun do.
    Program,
}

impl Starter {
    /// With the path of an mpiexec that is there.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn found(self) -> Result<Self, Failure> {
        match self {
            Self::Mpiexec(None) => Ok(Self::Mpiexec(Some(mpiexec::find()?))),
            other => Ok(other),
        }
    }
}

/// Processes that were started here.
pub(super) struct Processes {
    /// mpiexec alone, or the supervisor of each rank.
    children: Vec<Child>,
    ends: Vec<Option<ExitStatus>>,
    ended: Option<Instant>,
    is_mpiexec: bool,
}

/// Starts `ranks` supervisors, each with the arguments of this process, which find the parent at `socket`.
///
/// # Errors
/// Those of the system.
pub(super) fn start(starter: &Starter, ranks: usize, socket: &Path, output: &mut Output) -> Result<Processes> {
    let commands = match starter {
        Starter::Mpiexec(path) => {
            vec![mpiexec::command(path.as_deref().unwrap_or(Path::new("mpiexec")), ranks, socket)?]
        }
        Starter::Program => supervisors(ranks, socket)?,
    };
    let mut processes = Processes {
        children: Vec::new(),
        ends: Vec::new(),
        ended: None,
        is_mpiexec: !matches!(starter, Starter::Program),
    };
    for mut command in commands {
        // A group of its own: Ctrl-C in the terminal is for this process alone, which hands it on.
        let started = output.attach(&mut command)?.process_group(0).spawn();
        match started {
            Ok(child) => processes.children.push(child),
            Err(e) => {
                processes.kill(0..ranks);
                return Err(io_failure("start", Path::new(command.get_program()), &e).into());
            }
        }
        processes.ends.push(None);
    }
    // These ends of the pipes would keep them open.
    output.close_pipes();
    Ok(processes)
}

/// The commands of the supervisors of ranks that meet on this machine.
fn supervisors(ranks: usize, socket: &Path) -> Result<Vec<Command>> {
    let program = std::env::current_exe().map_err(|e| io_failure("find", Path::new("the program itself"), &e))?;
    let port = free_port().map_err(|e| io_failure("find a free port at", Path::new("127.0.0.1"), &e))?;
    let commands = (0..ranks).map(|rank| {
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1)).stdin(Stdio::null()).env(SOCKET, socket);
        // What launchers around this process have left would be taken for the place of a rank.
        for name in VARIABLES {
            command.env_remove(name);
        }
        let numbers = [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", ranks), ("LOCAL_WORLD_SIZE", ranks)];
        command.envs(numbers.map(|(name, number)| (name, number.to_string())));
        // Ranks meet at the port after this one.
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", (port - 1).to_string());
        command
    });
    Ok(commands.collect())
}

/// A port that is free.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Processes {
    /// When the last of them has ended.
    pub(super) fn ended(&mut self) -> Option<Instant> {
        for (child, end) in self.children.iter_mut().zip(&mut self.ends) {
            if end.is_none() {
                *end = child.try_wait().ok().flatten();
            }
        }
        if self.ended.is_none() && self.ends.iter().all(Option::is_some) {
            self.ended = Some(Instant::now());
        }
        self.ended
    }

    /// What they are, and how they have ended: the first that has failed, if any has.
    pub(super) fn end(&self) -> (&'static str, Option<ExitStatus>) {
        let mut ends = self.ends.iter().flatten();
        let end = ends.clone().find(|status| !status.success()).or_else(|| ends.next());
        (if self.is_mpiexec { "mpiexec" } else { "the supervisor of a rank" }, end.copied())
    }

    /// Ends mpiexec, and its own part of the ranks with it; or the supervisors of the ranks `unheard`: the others end when they have ended
    /// their ranks.
    pub(super) fn kill(&mut self, unheard: impl Iterator<Item = usize>) {
        if self.is_mpiexec {
            let _ = self.children.iter_mut().try_for_each(Child::kill);
            return;
        }
        for rank in unheard {
            if let Some(child) = self.children.get_mut(rank) {
                let _ = child.kill();
            }
        }
    }

    /// What helps when no rank has started.
    pub(super) fn hint(&self) -> &'static str {
        if self.is_mpiexec {
            "try whether it can start anything: mpiexec -n 2 hostname"
        } else {
            "run the command again"
        }
    }
}
