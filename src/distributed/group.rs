//! What the ranks of a run agree on.
//!
//! All ranks call the same functions of a [`ProcessGroup`] in the same order. A rank that fails anywhere sends its failure in place of
//! what it was about to send: the others end with it at their next message, so that no rank waits for one that is gone.

use super::message::{LENGTH, Message, pack, take_length, unpack};
use super::{Collective, OneRank, WhileWaiting};
use crate::runtime::error::{Exit, Failure, StopAsked, alarm, fail, failure_in};
use crate::runtime::{machine, thread};
use anyhow::Result;
use candle_core::Tensor;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of a message that travel with its length; more follow in an exchange of their own. No tensor has an odd number of bytes: a rank
/// that fails sends this to one that expects gradients, which must not take it for them.
const FRAME: usize = 1023;

/// How long a rank waits for another one until a run says otherwise: reading data and weights takes its time.
const PATIENCE: Duration = Duration::from_secs(3600);

/// How long a rank that fails tries to tell the others.
const LAST_WORDS: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub rank: usize,
    pub host: String,
    pub pid: u32,
    pub device: String,
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} (host {}, process {}, {})", self.rank, self.host, self.pid, self.device)
    }
}

/// All processes that train one model, as one of them sees it. Clones are the same group.
#[derive(Clone)]
pub struct ProcessGroup(Arc<Inner>);

struct Inner {
    collective: Box<dyn Collective>,
    /// All processes by rank, once they have introduced themselves.
    members: OnceLock<Vec<Member>>,
    /// Milliseconds that a rank waits for another one.
    patience: AtomicU64,
    /// A failure that all ranks know of.
    ended_together: AtomicBool,
    bytes_sent: AtomicU64,
    /// Called again and again while this rank waits.
    waiting: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl std::fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.ranks())
    }
}

impl Default for ProcessGroup {
    fn default() -> Self {
        Self::one()
    }
}

impl ProcessGroup {
    /// This process alone.
    pub fn one() -> Self {
        Self::of_strangers(Box::new(OneRank))
    }

    /// The processes that `collective` joins; `device` is what this one computes on.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn new(collective: Box<dyn Collective>, device: &str) -> Result<Self> {
        let own = Member {
            rank: collective.rank(),
            host: machine::host(),
            pid: std::process::id(),
            device: device.to_owned(),
        };
        let group = Self::of_strangers(collective);
        let members = group.gather("members", &own)?;
        // No clone exists yet: they are set this once.
        let _ = group.0.members.set(members);
        Ok(group)
    }

    fn of_strangers(collective: Box<dyn Collective>) -> Self {
        Self(Arc::new(Inner {
            collective,
            members: OnceLock::new(),
            patience: AtomicU64::new(PATIENCE.as_millis() as u64),
            ended_together: AtomicBool::new(false),
            bytes_sent: AtomicU64::new(0),
            waiting: Mutex::default(),
        }))
    }

    pub fn rank(&self) -> usize {
        self.0.collective.rank()
    }

    pub fn ranks(&self) -> usize {
        self.0.collective.ranks()
    }

    /// Whether this is the rank that writes files and messages.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// All processes, by rank; empty for one that is alone.
    pub fn members(&self) -> &[Member] {
        self.0.members.get().map_or(&[], Vec::as_slice)
    }

    /// How many of the processes share this machine, this one included.
    pub fn ranks_on_this_host(&self) -> usize {
        let own = self.members().get(self.rank()).map(|member| &member.host);
        self.members().iter().filter(|member| Some(&member.host) == own).count().max(1)
    }

    /// Bytes that this rank has sent so far.
    pub fn bytes_sent(&self) -> u64 {
        self.0.bytes_sent.load(Ordering::Relaxed)
    }

    /// From now on this rank waits for another one for `patience` at most; returns how long it did so far.
    pub fn set_patience(&self, patience: Duration) -> Duration {
        let patience = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.0.patience.swap(patience, Ordering::Relaxed))
    }

    /// Calls `waiting` again and again while this rank waits for another one.
    pub fn on_waiting(&self, waiting: impl Fn() + Send + Sync + 'static) {
        *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(waiting));
    }

    /// What every rank tells under the name `about`, by rank.
    ///
    /// # Errors
    /// The failure that a rank tells instead; those of the exchange.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, about: &str, own: &T) -> Result<Vec<T>> {
        self.gather_messages(about, Message::Value(about.to_owned(), own))
    }

    /// `own` on every rank if it is no error anywhere; otherwise the failure of the first rank that has one, on all of them, or
    /// [`StopAsked`] if that is all that has happened.
    ///
    /// # Errors
    /// That failure or request; those of the exchange.
    pub fn agree<T>(&self, about: &str, own: Result<T>) -> Result<T> {
        if self.ranks() == 1 {
            return own;
        }
        match own {
            Ok(value) => self.gather::<()>(about, &()).map(|_| value),
            Err(error) => Err(self.tell_error(about, error)),
        }
    }

    /// Tells the others that this rank has `error` in place of what it should tell about `about`; returns what all of them return.
    pub(super) fn tell_error(&self, about: &str, error: anyhow::Error) -> anyhow::Error {
        if !error.is::<StopAsked>() {
            return self.tell_failure(error);
        }
        // No failure: the others are on their way to the same place, and all go on from there.
        let stopped: Message<()> = Message::Stopped(about.to_owned());
        self.gather_messages::<()>(about, stopped).err().unwrap_or(error)
    }

    /// Tells the others of `error` and returns it, or the failure of a rank before this one.
    fn tell_failure(&self, error: anyhow::Error) -> anyhow::Error {
        if self.ranks() == 1 || self.0.ended_together.load(Ordering::Relaxed) {
            return error;
        }
        let failure = failure_in(&error);
        let message: Message<()> = Message::Failed {
            exit: failure.map_or(Exit::Internal, |failure| failure.exit) as i32,
            message: format!("{error:#}"),
            hint: failure.and_then(|failure| failure.hint.clone()),
        };
        // The others may be in the middle of something else, or gone: then the engine ends them.
        self.set_patience(LAST_WORDS);
        match self.gather_messages::<()>("failure", message) {
            Err(of_all) if self.0.ended_together.load(Ordering::Relaxed) => of_all,
            _ => error,
        }
    }

    /// Ends a command on all ranks with the first failure of any.
    ///
    /// # Errors
    /// That failure. If the others could not hear of this rank's, they are ended and the function does not return.
    pub fn end(&self, result: Result<()>) -> Result<()> {
        let result = self.agree("the end", result);
        if let Err(error) = &result
            && self.ranks() > 1
            && !self.0.ended_together.load(Ordering::Relaxed)
            && !error.is::<StopAsked>()
        {
            let exit = failure_in(error).map_or(Exit::Internal, |failure| failure.exit);
            alarm(&format!("error: {}: {error:#}", self.name_of(self.rank())));
            self.0.collective.abort(exit as i32);
        }
        // All ranks know the result and are here or on their way.
        self.0.collective.leave();
        result
    }

    /// Whether `flag` is set on any rank.
    ///
    /// # Errors
    /// Those of [`gather`](Self::gather).
    pub fn any(&self, about: &str, flag: bool) -> Result<bool> {
        if self.ranks() == 1 {
            return Ok(flag);
        }
        Ok(self.gather(about, &flag)?.contains(&true))
    }

    /// Sends floats to `peer` and receives as many as `receive` holds.
    ///
    /// # Errors
    /// Those of the exchange.
    pub fn exchange_floats(&self, peer: usize, send: &[f32], receive: &mut [f32]) -> Result<()> {
        self.exchange(peer, bytemuck::cast_slice(send), bytemuck::cast_slice_mut(receive))
    }

    /// The same with tensors, see [`Collective::exchange_tensors`].
    ///
    /// # Errors
    /// Those of the exchange and of the device.
    pub fn exchange_tensors(&self, peer: usize, send: &Tensor, receive: &Tensor) -> Result<()> {
        if send.elem_count() == 0 && receive.elem_count() == 0 {
            return Ok(());
        }
        let bytes = send.elem_count() * send.dtype().size_in_bytes();
        self.counted(peer, bytes, |wait| self.0.collective.exchange_tensors(peer, send, receive, wait))
    }

    fn exchange(&self, peer: usize, send: &[u8], receive: &mut [u8]) -> Result<()> {
        if send.is_empty() && receive.is_empty() {
            return Ok(());
        }
        self.counted(peer, send.len(), |wait| self.0.collective.exchange(peer, send, receive, wait))
    }

    /// Does an exchange with `peer` under this rank's patience, and counts it.
    fn counted(&self, peer: usize, bytes: usize, exchange: impl FnOnce(WhileWaiting) -> Result<()>) -> Result<()> {
        let started = Instant::now();
        let patience = Duration::from_millis(self.0.patience.load(Ordering::Relaxed));
        let waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let result = exchange(&mut || {
            if let Some(waiting) = &waiting {
                waiting();
            }
            if let Some(failure) = thread::dead() {
                return Err(failure.into());
            }
            if started.elapsed() > patience {
                let failure = self.silent(peer, patience);
                // At once, because others may be about to say the same of ranks that only wait in their turn.
                alarm(&format!("error: {failure}"));
                return Err(failure.into());
            }
            Ok(())
        });
        self.0.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
        result
    }

    fn silent(&self, peer: usize, patience: Duration) -> Failure {
        let what = format!("{} has not answered for {} s", self.name_of(peer), patience.as_secs());
        fail(Exit::Internal, what).hint("look at that process, or resume: the last checkpoint is whole")
    }

    pub(super) fn name_of(&self, rank: usize) -> String {
        self.members().get(rank).map_or_else(|| format!("rank {rank}"), Member::to_string)
    }

    fn gather_messages<T: DeserializeOwned>(&self, about: &str, own: impl Serialize) -> Result<Vec<T>> {
        let texts = self.all_gather(serde_json::to_vec(&own)?)?;
        // Without the values: they may be of another kind where ranks have got out of step.
        let messages = texts.iter().map(|text| Ok(serde_json::from_slice::<Message<IgnoredAny>>(text)?));
        let messages: Vec<_> = messages.collect::<Result<_>>()?;
        // Before all else: a rank that fails tells so where the others tell something else.
        for (rank, message) in messages.iter().enumerate() {
            if let Message::Failed { exit, message, hint } = message {
                return Err(self.failure_of(rank, *exit, message, hint.clone()).into());
            }
        }
        for (rank, message) in messages.iter().enumerate() {
            if let Some(theirs) = message.about().filter(|theirs| *theirs != about) {
                return Err(self.out_of_step(rank, theirs, about).into());
            }
        }
        // Before any value is read: the rank that was stopped does not know what the others tell.
        if messages.iter().any(|message| matches!(message, Message::Stopped(_))) {
            return Err(StopAsked.into());
        }
        let values = texts.iter().filter_map(|text| match serde_json::from_slice(text) {
            Ok(Message::Value(_, value)) => Some(Ok(value)),
            Ok(Message::Stopped(_) | Message::Failed { .. }) => None,
            Err(error) => Some(Err(error.into())),
        });
        values.collect()
    }

    fn out_of_step(&self, rank: usize, theirs: &str, ours: &str) -> Failure {
        let what = format!("{} is at {theirs:?}, {} at {ours:?}", self.name_of(rank), self.name_of(self.rank()));
        fail(Exit::Internal, what).hint("this is a bug; please report it")
    }

    fn failure_of(&self, rank: usize, exit: i32, message: &str, hint: Option<String>) -> Failure {
        self.0.ended_together.store(true, Ordering::Relaxed);
        let exit = Exit::from_code(exit).unwrap_or(Exit::Internal);
        // Rank 0 speaks for the run: its failures read as they do without ranks.
        let message = if rank == 0 { message.to_owned() } else { format!("{}: {message}", self.name_of(rank)) };
        Failure { exit, message, hint }
    }

    /// The bytes of every rank, by rank: pairs double what they know in each round.
    fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let mut known = vec![own];
        for bit in 0..self.ranks().trailing_zeros() {
            let peer = self.rank() ^ (1 << bit);
            let theirs = unpack(&self.swap(peer, &pack(&known))?)?;
            let at = if peer < self.rank() { 0 } else { known.len() };
            known.splice(at..at, theirs);
        }
        Ok(known)
    }

    /// Sends `own` to `peer` and returns what it sends.
    fn swap(&self, peer: usize, own: &[u8]) -> Result<Vec<u8>> {
        let mut frame = [0; FRAME];
        let ahead = own.len().min(FRAME - LENGTH);
        frame[..LENGTH].copy_from_slice(&(own.len() as u64).to_le_bytes());
        frame[LENGTH..LENGTH + ahead].copy_from_slice(&own[..ahead]);
        let mut received = [0; FRAME];
        self.exchange(peer, &frame, &mut received)?;
        let (length, start) = take_length(&received)?;
        let mut theirs = start[..length.min(start.len())].to_vec();
        let rest = length - theirs.len();
        if rest > 0 || own.len() > ahead {
            let mut more = vec![0; rest];
            self.exchange(peer, &own[ahead..], &mut more)?;
            theirs.extend(more);
        }
        Ok(theirs)
    }
}
