//! Ranks that the program starts itself: `--ranks N` on one machine.
//!
//! ```text
//! parent ── mpiexec ── N x supervisor ── rank      on CPUs
//! parent ───────────── N x supervisor ── rank      on GPUs
//! ```
//!
//! The parent is the process that the user has started. It starts `mpiexec`, which knows how ranks meet, but mixes up who has ended
//! first with whom it has ended for it. So what it starts is the program as a supervisor ([`supervisor`]): the parent of one rank, which
//! knows how that ended and hands signals on. Ranks on GPUs meet without MPI, and the parent starts their supervisors itself
//! ([`processes`]). Parent and supervisors talk over a socket; where one end is gone, the other ends too, so
//! that no process is left behind.

mod mpiexec;
mod output;
mod processes;
mod protocol;
pub mod supervisor;
mod verdict;

use crate::distributed::message::send_line;
use crate::runtime::error::{Exit, Failure, fail, note};
use crate::runtime::files::{TempDir, io_failure};
use crate::runtime::machine::ignores;
use anyhow::Result;
use output::Output;
pub use processes::Starter;
use processes::{Processes, start};
use protocol::{FromRank, Outcome, SOCKET, ToRank};
use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use verdict::{RankEnd, Verdict};

/// How often the parent looks for signals.
const LOOK: Duration = Duration::from_millis(20);

/// How long the first rank may take to start.
const STARTING: Duration = Duration::from_secs(60);

/// How long the others may take to end by themselves, after a rank that has failed and after one that was killed.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
const AFTER_DEATH: Duration = Duration::from_secs(1);

/// How long the last messages of ranks may take after mpiexec has ended, and mpiexec after the last rank.
const LAST_MESSAGES: Duration = Duration::from_secs(2);

/// Lines that are kept of what a rank writes to stderr.
const LAST_LINES: usize = 12;

/// The ranks to start.
pub struct Launch {
    pub ranks: usize,
    pub starter: Starter,
    /// Where rank 0 writes results, and whether that is a terminal.
    pub stdout: Box<dyn Write + Send>,
    pub stdout_is_terminal: bool,
    /// What helps when a rank has died.
    pub hint: String,
}

/// What tells the ranks of this launch from those of any other; empty if this process is no rank that the program has started.
pub(super) fn own_launch() -> String {
    std::env::var(SOCKET).unwrap_or_default()
}

/// Starts the ranks, each with the arguments of this process, and waits for them; returns their exit code, if they agree.
///
/// # Errors
/// [`Exit::Config`] without an mpiexec that can start them; the failure of the rank that has failed first.
pub fn launch(launch: Launch) -> Result<i32> {
    let starter = launch.starter.found()?;
    let signals = listen()?;
    let dir = TempDir::create("ranks")?;
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).map_err(|e| io_failure("listen at", &socket, &e))?;
    let mut output = Output::new(launch.stdout, launch.stdout_is_terminal)?;
    let (sender, events) = channel();
    accept(listener, output.for_rank(), sender)?;
    let processes = start(&starter, launch.ranks, &socket, &mut output)?;
    let ranks = (0..launch.ranks).map(|_| Rank::default()).collect();
    let mut parent =
        Parent { processes, ranks, failed: None, events, signals, received: Vec::new(), output, killed: false };
    parent.wait();
    let verdict = parent.verdict();
    match verdict {
        Verdict::Agreed(code) => {
            if code != 0 {
                // Others than rank 0 write only what rank 0 cannot.
                parent.show_last_lines(None);
            }
            Ok(code)
        }
        Verdict::Failed { exit, message, rank } => {
            parent.show_last_lines(rank);
            Err(fail(exit, message).hint(launch.hint).into())
        }
        Verdict::NotStarted(how) => Err(parent.not_started(&how).into()),
    }
}

/// The signals that ranks are to have. What `nohup` has this process ignore is left ignored.
fn listen() -> Result<Signals> {
    let wanted = [SIGINT, SIGTERM, SIGHUP, SIGUSR1].into_iter().filter(|&signal| !ignores(signal));
    Signals::new(wanted).map_err(|e| {
        fail(Exit::Io, format!("cannot listen for signals: {e}"))
            .hint("raise the limit of open files (`ulimit -n`)")
            .into()
    })
}

enum Event {
    Started {
        rank: usize,
        pid: u32,
        writes_directly: bool,
        stream: UnixStream,
    },
    Said {
        rank: usize,
        line: String,
    },
    Ended {
        rank: usize,
        outcome: Outcome,
    },
    /// Nothing comes from its supervisor any more.
    Gone {
        rank: usize,
    },
}

/// Listens to the supervisors, each on a thread of its own. The threads end with the process.
fn accept(listener: UnixListener, for_rank: ToRank, events: Sender<Event>) -> Result<()> {
    crate::runtime::thread::spawn("ranks", move || {
        for mut stream in listener.incoming().flatten() {
            let events = events.clone();
            let greeted = send_line(&mut stream, &for_rank);
            let hear = move || hear(stream, &events);
            // A supervisor that is not heard ends its rank.
            if greeted.is_ok() && std::thread::Builder::new().name("rank".into()).spawn(hear).is_err() {
                note("warning: cannot start a thread for a rank");
            }
        }
    })
}

/// Passes on what one supervisor says.
fn hear(stream: UnixStream, events: &Sender<Event>) {
    let Ok(writer) = stream.try_clone() else { return };
    let mut messages = protocol::receive(stream);
    let Some(FromRank::Started { rank, pid, writes_directly }) = messages.next() else { return };
    let _ = events.send(Event::Started { rank, pid, writes_directly, stream: writer });
    for message in messages {
        let event = match message {
            FromRank::Said(line) => Event::Said { rank, line },
            FromRank::Ended(outcome) => Event::Ended { rank, outcome },
            FromRank::Started { .. } => continue,
        };
        let _ = events.send(event);
    }
    let _ = events.send(Event::Gone { rank });
}

/// What the parent knows of a rank.
#[derive(Default)]
struct Rank {
    pid: Option<u32>,
    stream: Option<UnixStream>,
    /// How many of the received signals it has been sent.
    signalled: usize,
    lines: Vec<String>,
    outcome: Option<Outcome>,
    is_gone: bool,
}

struct Parent {
    processes: Processes,
    ranks: Vec<Rank>,
    /// The first rank that has failed, and when.
    failed: Option<(usize, Instant)>,
    events: Receiver<Event>,
    signals: Signals,
    received: Vec<i32>,
    output: Output,
    /// Whether everything was ended from here.
    killed: bool,
}

impl Parent {
    /// Returns when what was started has ended and nothing more is to be heard of the ranks.
    fn wait(&mut self) {
        let started = Instant::now();
        let mut insisted = None;
        loop {
            let event = self.events.recv_timeout(LOOK).ok();
            let is_idle = event.is_none();
            if let Some(event) = event {
                self.note_event(event);
            }
            self.received.extend(self.signals.pending());
            self.forward_signals();
            if let Some(when) = self.processes.ended()
                && ((is_idle && self.all_gone()) || when.elapsed() > LAST_MESSAGES)
            {
                break;
            }
            if self.insists() {
                insisted.get_or_insert_with(Instant::now);
            }
            let is_late = self.ranks.iter().all(|rank| rank.pid.is_none()) && started.elapsed() > STARTING;
            if is_late || self.patience_is_over() || insisted.is_some_and(|when| when.elapsed() > AFTER_DEATH) {
                self.kill();
            }
        }
        self.output.finish();
    }

    fn note_event(&mut self, event: Event) {
        let (Event::Started { rank, .. } | Event::Said { rank, .. } | Event::Ended { rank, .. } | Event::Gone { rank }) =
            event;
        let Some(known) = self.ranks.get_mut(rank) else { return };
        match event {
            Event::Started { pid, stream, writes_directly, .. } => {
                (known.pid, known.stream) = (Some(pid), Some(stream));
                if rank == 0 {
                    self.output.rank_has_started(writes_directly);
                }
            }
            Event::Said { line, .. } => {
                if known.lines.len() == LAST_LINES {
                    known.lines.remove(0);
                }
                known.lines.push(line);
            }
            Event::Ended { outcome, .. } => {
                known.outcome = Some(outcome);
                if outcome != Outcome::Code(0) {
                    self.note_failure(rank);
                }
            }
            Event::Gone { .. } => {
                known.is_gone = true;
                known.stream = None;
                if known.outcome.is_none() {
                    self.note_failure(rank);
                }
            }
        }
    }

    /// Notes that `rank` has failed. One whose end is known counts as before those that are gone without a word: mpiexec has ended those
    /// because of it, and the news of them may arrive first.
    fn note_failure(&mut self, rank: usize) {
        let when = match self.failed {
            None => Instant::now(),
            Some((first, when)) if self.ranks[rank].outcome.is_some() && self.ranks[first].outcome.is_none() => when,
            Some(_) => return,
        };
        self.failed = Some((rank, when));
    }

    /// Sends every rank the signals that it has not had: one that starts late gets those of before.
    fn forward_signals(&mut self) {
        for rank in &mut self.ranks {
            let Some(stream) = &mut rank.stream else { continue };
            for signal in &self.received[rank.signalled..] {
                // One that is gone needs no signal.
                let _ = send_line(stream, &ToRank::Signal(*signal));
            }
            rank.signalled = self.received.len();
        }
    }

    /// Whether the user has pressed Ctrl-C again.
    fn insists(&self) -> bool {
        self.received.iter().filter(|&&signal| signal == SIGINT).count() > 1
    }

    fn all_gone(&self) -> bool {
        self.ranks.iter().all(|rank| rank.is_gone || rank.pid.is_none())
    }

    /// Whether the others have had their time since a rank has failed.
    fn patience_is_over(&self) -> bool {
        self.failed.is_some_and(|(rank, when)| {
            let is_failure = matches!(self.ranks[rank].outcome, Some(Outcome::Code(_)));
            when.elapsed() > if is_failure { AFTER_FAILURE } else { AFTER_DEATH }
        })
    }

    /// Ends all ranks and what has started them at once.
    fn kill(&mut self) {
        if self.killed {
            return;
        }
        self.killed = true;
        for stream in self.ranks.iter_mut().filter_map(|rank| rank.stream.as_mut()) {
            let _ = send_line(stream, &ToRank::Signal(SIGKILL));
        }
        let unheard = (0..self.ranks.len()).filter(|&rank| self.ranks[rank].pid.is_none());
        self.processes.kill(unheard);
    }

    fn verdict(&self) -> Verdict {
        if self.insists() {
            return Verdict::Agreed(Exit::Interrupted as i32);
        }
        let ends: Vec<RankEnd> =
            self.ranks.iter().map(|rank| RankEnd { pid: rank.pid, outcome: rank.outcome }).collect();
        let first = self.failed.map(|(rank, _)| rank);
        let (starter, end) = self.processes.end();
        // How it ends when it is killed from here says nothing.
        verdict::verdict(&ends, first, &self.received, (starter, end.filter(|_| !self.killed)))
    }

    /// Shows what the rank wrote last, or every rank if it is not known which one has failed. Rank 0 has shown it already.
    fn show_last_lines(&self, failed: Option<usize>) {
        let shown = self.ranks.iter().enumerate().filter(|(rank, _)| failed.is_none_or(|failed| *rank == failed));
        for (rank, line) in shown.flat_map(|(rank, known)| known.lines.iter().map(move |line| (rank, line))) {
            note(&crate::runtime::format::escape_control(&format!("rank {rank}: {line}")));
        }
    }

    fn not_started(&self, how: &str) -> Failure {
        let words = self.output.words_of_mpiexec();
        let words = if words.is_empty() { String::new() } else { format!(": {}", words.join(" / ")) };
        fail(Exit::Config, format!("{how} before any rank had started{words}")).hint(self.processes.hint())
    }
}
