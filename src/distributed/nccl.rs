//! The engine on GPUs: NCCL, of which only messages between two ranks are used: sums are formed in an order of our own
//! ([`super::tree`]).
//!
//! Its library is opened when the program runs ([`library`]). NCCL moves what is in the memory of GPUs and knows nothing of processes:
//! how ranks find each other, and how one that is gone is noticed, is the business of MPI where a launcher of MPI has started them, and
//! else of TCP connections ([`super::meeting`]).

mod abi;
mod joining;
mod library;

pub use joining::join;

use super::meeting::Link;
use super::mpi::{Mpi, pause, within};
use super::{Collective, WhileWaiting};
use crate::ops::stream::Stream;
use crate::ops::transfer::to_host;
use crate::runtime::error::{Exit, fail};
use abi::{Communicator, Memory};
use anyhow::Result;
use candle_core::Tensor;
use signal_hook::low_level;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a rank waits for the others to leave.
const LEAVING: Duration = Duration::from_secs(30);

/// How long ending what goes on may take.
const ABORTING: Duration = Duration::from_secs(10);

/// How long what a rank says last may take to be passed on.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// How long a rank that is elsewhere has to end all: it has failed, and knows why.
const OTHERS_FAILURE: Duration = Duration::from_secs(10);

/// Bytes that travel with the beginning of an exchange, and bytes of a message after it.
const AHEAD: usize = 1024;
const MESSAGE: usize = 16 << 20;

/// How often a rank looks for the end of a transfer before it asks whether it should go on waiting.
const SPINS: u32 = 20;

/// This process as one of those that NCCL joins.
struct Nccl {
    communicator: Communicator,
    stream: Stream,
    control: Control,
    rank: usize,
    ranks: usize,
    /// Held through an exchange: messages of two at a time would be mixed up.
    exchanging: Mutex<()>,
    /// An exchange was given up: there is no communicator any more.
    is_broken: AtomicBool,
    has_left: AtomicBool,
}

/// What knows of processes.
enum Control {
    Mpi(Arc<Mpi>),
    Link(Link),
}

/// What a rank says at the beginning of an exchange: ranks that have got out of step must not take one thing for another, and NCCL
/// itself would wait for ever for the rest of a message that is shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Opening {
    is_tensors: bool,
    sends: usize,
    receives: usize,
}

/// Bytes of an opening, and of a frame: an opening and the bytes ahead.
const OPENING: usize = 24;
const FRAME: usize = OPENING + AHEAD;

impl Opening {
    fn frame(self, ahead: &[u8]) -> Vec<u8> {
        let numbers = [u64::from(self.is_tensors), self.sends as u64, self.receives as u64];
        let mut frame: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        frame.extend_from_slice(ahead);
        frame.resize(FRAME, 0);
        frame
    }

    fn read(frame: &[u8]) -> Self {
        let number =
            |i: usize| frame[8 * i..8 * (i + 1)].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
        Self { is_tensors: number(0) == 1, sends: number(1) as usize, receives: number(2) as usize }
    }

    /// What the peer must open with.
    fn mirrored(self) -> Self {
        Self { sends: self.receives, receives: self.sends, ..self }
    }
}

impl Nccl {
    fn new(communicator: Communicator, stream: Stream, control: Control, rank: usize, ranks: usize) -> Self {
        Self {
            communicator,
            stream,
            control,
            rank,
            ranks,
            exchanging: Mutex::default(),
            is_broken: AtomicBool::new(false),
            has_left: AtomicBool::new(false),
        }
    }

    fn check_whole(&self) -> Result<()> {
        anyhow::ensure!(!self.is_broken.load(Ordering::Relaxed), "an exchange with other ranks was given up before");
        Ok(())
    }

    /// Sends `ahead` with the opening; returns what the peer has sent with its own.
    fn open(&self, peer: usize, opening: Opening, ahead: &[u8], wait: WhileWaiting) -> Result<Vec<u8>> {
        let frame = self.stream.upload(&opening.frame(ahead))?;
        let received = self.stream.empty(FRAME)?;
        self.transfer(peer, &frame, &received, wait)?;
        let received = to_host(&received)?.to_vec1::<u8>()?;
        let theirs = Opening::read(&received);
        if theirs == opening.mirrored() {
            return Ok(received[OPENING..].to_vec());
        }
        self.give_up();
        // Who tells something where gradients are due has failed, and will end all with its own words.
        let started = Instant::now();
        while opening.is_tensors && !theirs.is_tensors && started.elapsed() < OTHERS_FAILURE {
            std::thread::sleep(LAST_WORDS);
        }
        let what = format!(
            "rank {peer} is elsewhere: it opens an exchange with {theirs:?}, rank {} with {opening:?}",
            self.rank
        );
        Err(fail(Exit::Internal, what).hint("this is a bug; please report it").into())
    }

    /// Sends bytes of the machine's memory: the first ones with the opening, the others in messages.
    fn exchange_bytes(&self, peer: usize, send: &[u8], receive: &mut [u8], wait: WhileWaiting) -> Result<()> {
        let opening = Opening { is_tensors: false, sends: send.len(), receives: receive.len() };
        let (ahead, send) = send.split_at(send.len().min(AHEAD));
        let came_ahead = self.open(peer, opening, ahead, wait)?;
        let (first, receive) = receive.split_at_mut(receive.len().min(AHEAD));
        first.copy_from_slice(&came_ahead[..first.len()]);
        for i in 0..send.len().max(receive.len()).div_ceil(MESSAGE) {
            let sent = part(i, send.len());
            let received = part(i, receive.len());
            let to_send = if sent.is_empty() { None } else { Some(self.stream.upload(&send[sent])?) };
            let to_fill = if received.is_empty() { None } else { Some(self.stream.empty(received.len())?) };
            self.transfer_some(peer, to_send.as_ref(), to_fill.as_ref(), wait)?;
            if let Some(filled) = to_fill {
                receive[received].copy_from_slice(&to_host(&filled)?.to_vec1::<u8>()?);
            }
        }
        Ok(())
    }

    fn transfer(&self, peer: usize, send: &Tensor, receive: &Tensor, wait: WhileWaiting) -> Result<()> {
        let send = Some(send).filter(|t| t.elem_count() > 0);
        let receive = Some(receive).filter(|t| t.elem_count() > 0);
        self.transfer_some(peer, send, receive, wait)
    }

    /// Sends a tensor and fills another one; returns when both is done.
    fn transfer_some(
        &self,
        peer: usize,
        send: Option<&Tensor>,
        receive: Option<&Tensor>,
        wait: WhileWaiting,
    ) -> Result<()> {
        let sent = self.memory(send)?;
        let received = self.memory(receive)?;
        let stream = self.stream.handle()?;
        // SAFETY: the tensors live until this function returns: then the stream has passed the transfer, or the communicator is aborted.
        let queued = unsafe { self.communicator.queue(peer, sent, received, stream) };
        let done = queued.and_then(|()| self.wait(wait));
        if done.is_err() {
            self.give_up();
        }
        done
    }

    fn give_up(&self) {
        self.is_broken.store(true, Ordering::Relaxed);
        within(ABORTING, "NCCL cannot be stopped", || self.communicator.abort());
    }

    fn memory(&self, tensor: Option<&Tensor>) -> Result<Memory> {
        let Some(tensor) = tensor else { return Ok(Memory { at: null_mut(), bytes: 0 }) };
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        Ok(Memory { at: self.stream.address(tensor)?, bytes })
    }

    /// Waits until the stream has passed what was queued.
    fn wait(&self, wait: WhileWaiting) -> Result<()> {
        let mark = self.stream.mark()?;
        let mut looks = 0u32;
        while !mark.is_reached()? {
            looks = looks.saturating_add(1);
            if looks > SPINS {
                wait()?;
                self.communicator.check_progress()?;
            }
            pause(looks, false);
        }
        Ok(())
    }
}

/// The bytes of message number `i` of `length` bytes.
fn part(i: usize, length: usize) -> std::ops::Range<usize> {
    (i * MESSAGE).min(length)..((i + 1) * MESSAGE).min(length)
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn exchange(&self, peer: usize, send: &[u8], receive: &mut [u8], wait: WhileWaiting) -> Result<()> {
        if let Control::Mpi(mpi) = &self.control {
            return mpi.exchange(peer, send, receive, wait);
        }
        let _turn = self.exchanging.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_whole()?;
        self.exchange_bytes(peer, send, receive, wait)
    }

    fn exchange_tensors(&self, peer: usize, send: &Tensor, receive: &Tensor, wait: WhileWaiting) -> Result<()> {
        let _turn = self.exchanging.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_whole()?;
        let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        if let Control::Link(_) = self.control {
            let opening = Opening { is_tensors: true, sends: bytes(send), receives: bytes(receive) };
            self.open(peer, opening, &[], wait)?;
        }
        self.transfer(peer, send, receive, wait)
    }

    fn leave(&self) {
        if self.has_left.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Control::Link(link) = &self.control {
            link.leave();
        }
        if !self.is_broken.load(Ordering::Relaxed) {
            within(LEAVING, "NCCL has not ended", || self.communicator.destroy());
        }
        if let Control::Mpi(mpi) = &self.control {
            mpi.leave();
        }
    }

    fn abort(&self, code: i32) -> ! {
        match &self.control {
            Control::Mpi(mpi) => mpi.abort(code),
            Control::Link(link) => {
                link.abort(code);
                std::thread::sleep(LAST_WORDS);
                low_level::exit(code)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_arrive_as_they_were() {
        for opening in [
            Opening { is_tensors: true, sends: 64 << 20, receives: 0 },
            Opening { is_tensors: false, sends: 3, receives: usize::MAX },
        ] {
            let frame = opening.frame(&[7; 5]);
            assert_eq!((Opening::read(&frame), frame.len()), (opening, FRAME));
            assert_eq!(frame[OPENING..OPENING + 6], [7, 7, 7, 7, 7, 0]);
            assert_eq!(opening.mirrored().mirrored(), opening);
        }
    }
}
