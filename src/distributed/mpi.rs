//! The engine on CPUs: MPI, through the standard binary interface of MPI 5.
//!
//! Its library is opened when the program runs ([`library`]); processes are started by that library's `mpiexec`, or by a launcher that
//! works with it. Of MPI only messages between two processes are used: sums are formed in an order of our own ([`super::tree`]).
//!
//! How a process leaves matters to the launcher. After [`leave`](Collective::leave) on all ranks each may end when it likes and with its
//! own exit code. A process that ends without it, killed or by a failure that it could not tell, takes all others with it: MPICH's
//! launcher kills them at once.

mod abi;
mod library;
mod shared_memory;
#[cfg(test)]
mod tests;

use super::{Collective, WhileWaiting};
use crate::runtime::error::{Exit, Failure, alarm, fail, note};
use abi::{Abi, Request};
use anyhow::Result;
use signal_hook::low_level;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// Bytes of a message at most: MPI counts with 32 bits. Tests send more than one at a time.
const CHUNK: usize = if cfg!(test) { 1 << 20 } else { 1 << 30 };

/// MPI promises tags up to this number.
const TAGS: usize = 32_749;

/// How often a rank looks for the end of a transfer before it lets others compute, and before it sleeps between looks. Two ranks with a
/// processor each exchange a small message in 5 microseconds; with four or eight ranks on two processors, looking for longer makes
/// everything slower.
const SPINS: u32 = 20;
const YIELDS: u32 = 20;

/// How long it sleeps. The system adds about 50 microseconds.
const NAP: Duration = Duration::from_micros(50);

/// Bytes from which on two ranks meet before they move data, and then do not sleep. A library that cannot read the memory of the other
/// process (no `process_vm_readv`, or another machine) moves data through small buffers, and only while both ranks look: 64 MB took 0.6 s
/// with sleeps between looks and 0.06 s without.
const LARGE: usize = 1 << 16;

/// How long they do not sleep: a little, and for each byte what a slow network takes.
const AWAKE: Duration = Duration::from_millis(10);
const AWAKE_PER_BYTE: Duration = Duration::from_nanos(10);

/// How long a rank waits for a transfer to stop that it has given up, and for the right to end all ranks.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// How long a rank that ends all lets the launcher pass on what it has printed.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// How long a rank waits for all others to join, and to leave. MPI itself waits for ever: for one that has ended before, too.
const JOINING: Duration = Duration::from_secs(60);
const LEAVING: Duration = Duration::from_secs(30);

/// The files that the library may be in the installation of the launcher `mpiexec`.
pub(super) fn libraries_beside(mpiexec: &Path) -> Vec<PathBuf> {
    library::beside(mpiexec)
}

/// This process as one of those that an MPI launcher has started.
pub struct Mpi {
    /// The library lets any thread call, but only one at a time.
    calls: Mutex<Abi>,
    /// Held through an exchange: messages of two at a time would be mixed up.
    exchanging: Mutex<()>,
    /// An exchange was given up: its messages may still arrive and would be taken for others.
    is_broken: AtomicBool,
    has_left: AtomicBool,
    rank: usize,
    ranks: usize,
    version: String,
}

/// Whether there is a library by which this process can be joined with others.
pub(super) fn is_there() -> bool {
    library::open(&library::candidates()).is_ok()
}

/// Joins the processes that an MPI launcher has started; once in a process. `expected` is how many there are by the launcher's variables.
/// What can fail on one rank alone comes after this: a rank that ends before it has joined lets the others wait for a minute.
///
/// # Errors
/// No MPI library, one that is too old, one that is not the launcher's; a number of processes that is no power of two.
pub fn join(expected: Option<usize>) -> Result<Mpi> {
    join_within(JOINING, expected)
}

fn join_within(limit: Duration, expected: Option<usize>) -> Result<Mpi> {
    let abi = library::open(&library::candidates())?;
    let missing = "not all ranks have started; one of them may have ended before it has joined the others";
    within(limit, missing, || abi.init())?;
    let (rank, ranks) = abi.rank_and_size()?;
    let mpi = Mpi {
        version: abi.version(),
        calls: Mutex::new(abi),
        exchanging: Mutex::default(),
        is_broken: AtomicBool::new(false),
        has_left: AtomicBool::new(false),
        rank,
        ranks,
    };
    let Some(refusal) = mpi.refusal(expected) else {
        mpi.meet(limit)?;
        shared_memory::remove_names();
        return Ok(mpi);
    };
    // All processes see the same and leave together.
    mpi.leave();
    Err(refusal.into())
}

impl Mpi {
    /// Name and version of the library.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Why this is not the group of processes that was meant to be.
    fn refusal(&self, expected: Option<usize>) -> Option<Failure> {
        let Self { ranks, version, .. } = self;
        if let Some(expected) = expected.filter(|expected| expected != ranks) {
            let what =
                format!("the launcher has started {expected} processes, and the MPI library ({version}) sees {ranks}");
            let hint = "the launcher belongs to another MPI: start the program with the mpiexec of that library";
            return Some(fail(Exit::Config, what).hint(hint));
        }
        let fewer = 1 << ranks.ilog2();
        let what = format!("{ranks} ranks: their number must be a power of two");
        (fewer != *ranks).then(|| fail(Exit::Config, what).hint(format!("start {fewer} of them: mpiexec -n {fewer}")))
    }

    /// Returns when all ranks are here.
    fn meet(&self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        for bit in 0..self.ranks.trailing_zeros() {
            let peer = self.rank ^ (1 << bit);
            let missing = || fail(Exit::Internal, format!("rank {peer} has not answered for {} s", limit.as_secs()));
            self.exchange(peer, &[0], &mut [0], &mut || {
                if started.elapsed() > limit { Err(missing().into()) } else { Ok(()) }
            })?;
        }
        Ok(())
    }

    fn calls(&self) -> MutexGuard<'_, Abi> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Exchanges what fits into one message each; does not sleep for `awake`.
    fn exchange_chunk(
        &self,
        peer: usize,
        send: &[u8],
        receive: &mut [u8],
        awake: Duration,
        wait: WhileWaiting,
    ) -> Result<()> {
        let (sent, received) = (tag(send.len()), tag(receive.len()));
        let mut transfers = Transfers { mpi: self, receive: Request::none(), send: Request::none() };
        if !receive.is_empty() {
            // SAFETY: `receive` is borrowed for longer than `transfers` lives, which ends only when the request is done.
            transfers.receive = unsafe { self.calls().start_receive(receive, peer, received)? };
        }
        if !send.is_empty() {
            // SAFETY: `send` is borrowed for longer than `transfers` lives. If that ends before the request is done, the engine is
            // broken and calls nothing but `abort`.
            transfers.send = unsafe { self.calls().start_send(send, peer, sent)? };
        }
        let started = Instant::now();
        let mut looks = 0u32;
        while !transfers.are_done()? {
            looks = looks.saturating_add(1);
            if looks > SPINS {
                wait()?;
            }
            pause(looks, started.elapsed() < awake);
        }
        Ok(())
    }
}

/// Does `call`, which cannot be interrupted. If it takes longer than `limit`, the process ends with `problem`.
pub(super) fn within<T>(limit: Duration, problem: &'static str, call: impl FnOnce() -> T) -> T {
    let (done, waiting) = channel::<()>();
    let end_late = move || {
        if waiting.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            alarm(&format!(
                "error: {problem} (waited for {} s)\nhint: look at the output of the other ranks",
                limit.as_secs()
            ));
            low_level::exit(Exit::Internal as i32);
        }
    };
    // Without the thread only the limit is missing.
    let _ = std::thread::Builder::new().name("time limit".into()).spawn(end_late);
    let result = call();
    drop(done);
    result
}

/// Messages of other lengths do not match: a rank that sends its failure while this one expects gradients is not mistaken for them.
fn tag(length: usize) -> i32 {
    (length % TAGS) as i32
}

/// Waits a little before the next look, the longer the more `looks` there were, but never sleeps while `awake`. Ranks may be more than
/// processors: one that only spun would keep the one that it waits for from computing.
pub(super) fn pause(looks: u32, awake: bool) {
    if looks <= SPINS {
        std::hint::spin_loop();
    } else if awake || looks <= SPINS + YIELDS {
        std::thread::yield_now();
    } else {
        std::thread::sleep(NAP);
    }
}

/// Both halves of an exchange.
struct Transfers<'a> {
    mpi: &'a Mpi,
    receive: Request,
    send: Request,
}

impl Transfers<'_> {
    fn are_done(&mut self) -> Result<bool> {
        let calls = self.mpi.calls();
        let received = calls.is_done(&mut self.receive)?;
        let sent = calls.is_done(&mut self.send)?;
        Ok(received && sent)
    }
}

impl Drop for Transfers<'_> {
    fn drop(&mut self) {
        if self.receive.is_none() && self.send.is_none() {
            return;
        }
        self.mpi.is_broken.store(true, Ordering::Relaxed);
        let started = Instant::now();
        self.mpi.calls().cancel(&mut self.receive);
        // The library must not write into memory that will be something else. What is being sent is only read, and only in calls,
        // which there are none of any more.
        while !matches!(self.mpi.calls().is_done(&mut self.receive), Ok(true) | Err(_)) || !self.receive.is_none() {
            if started.elapsed() > LAST_MOMENT {
                alarm("error: a transfer between ranks cannot be stopped");
                self.mpi.abort(Exit::Internal as i32);
            }
            std::thread::sleep(NAP);
        }
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn exchange(&self, peer: usize, send: &[u8], receive: &mut [u8], wait: WhileWaiting) -> Result<()> {
        let _turn = self.exchanging.lock().unwrap_or_else(PoisonError::into_inner);
        anyhow::ensure!(!self.is_broken.load(Ordering::Relaxed), "an exchange with other ranks was given up before");
        let chunks = send.len().max(receive.len()).div_ceil(CHUNK);
        for i in 0..chunks {
            let sent = &send[(i * CHUNK).min(send.len())..((i + 1) * CHUNK).min(send.len())];
            let end = ((i + 1) * CHUNK).min(receive.len());
            let received = &mut receive[(i * CHUNK).min(end)..end];
            let bytes = sent.len().max(received.len());
            let mut awake = Duration::ZERO;
            if bytes >= LARGE {
                // One may still compute, and the other must not take its processor meanwhile.
                self.exchange_chunk(peer, &[0], &mut [0], awake, wait)?;
                awake = AWAKE.saturating_add(AWAKE_PER_BYTE.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX)));
            }
            self.exchange_chunk(peer, sent, received, awake, wait)?;
        }
        Ok(())
    }

    fn leave(&self) {
        if self.has_left.swap(true, Ordering::Relaxed) || self.is_broken.load(Ordering::Relaxed) {
            return;
        }
        // A rank that is killed now would be waited for, unless the launcher ends all.
        let left = within(LEAVING, "not all ranks have ended", || self.calls().finalize());
        if let Err(error) = left {
            note(&format!("warning: {error:#}"));
        }
    }

    fn abort(&self, code: i32) -> ! {
        // The launcher drops what a rank has printed and it has not passed on yet.
        std::thread::sleep(LAST_WORDS);
        let started = Instant::now();
        // Not while another thread is in a call, unless that call never ends.
        while started.elapsed() < LAST_MOMENT && !self.has_left.load(Ordering::Relaxed) {
            match self.calls.try_lock() {
                Err(TryLockError::WouldBlock) => std::thread::sleep(NAP),
                Err(TryLockError::Poisoned(calls)) => calls.into_inner().abort(code),
                Ok(calls) => calls.abort(code),
            }
        }
        // The launcher ends the others when one ends without having left.
        low_level::exit(code)
    }
}
