//! The connections by which ranks without MPI notice that one of them is gone, or wants to end all.
//!
//! Every rank is connected with rank 0, which passes on what concerns all. Nothing else is sent.

use crate::distributed::message::send_line;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug)]
pub(super) struct Peer {
    rank: usize,
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Peer {
    pub(super) fn new(rank: usize, reader: BufReader<TcpStream>, writer: TcpStream) -> Self {
        Self { rank, reader, writer }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn writer(&mut self) -> &mut TcpStream {
        &mut self.writer
    }
}

/// Why this rank has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The connection with this rank is gone.
    Lost(usize),
    /// Rank 0 has lost this one, and has said so.
    Told(usize),
    /// A rank ends all, with this exit code.
    Asked(i32),
}

#[derive(Serialize, Deserialize)]
enum Message {
    /// The sender ends by itself.
    Leaving,
    Ending(Ending),
}

/// The connections of one rank.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    /// Until they are watched.
    readers: Mutex<Vec<(usize, BufReader<TcpStream>)>>,
}

#[derive(Debug)]
struct Shared {
    writers: Mutex<Vec<(usize, TcpStream)>>,
    has_left: AtomicBool,
}

impl Link {
    pub(super) fn new(peers: Vec<Peer>) -> Self {
        let mut readers = Vec::new();
        let mut writers = Vec::new();
        for peer in peers {
            readers.push((peer.rank, peer.reader));
            writers.push((peer.rank, peer.writer));
        }
        let shared = Shared { writers: Mutex::new(writers), has_left: AtomicBool::new(false) };
        Self { shared: Arc::new(shared), readers: Mutex::new(readers) }
    }

    /// Calls `end` on a thread of its own when this rank has to end.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn watch(&self, end: impl Fn(Ending) + Clone + Send + 'static) -> Result<()> {
        let readers = std::mem::take(&mut *self.readers.lock().unwrap_or_else(PoisonError::into_inner));
        for (rank, reader) in readers {
            let shared = self.shared.clone();
            let end = end.clone();
            crate::runtime::thread::spawn("other ranks", move || {
                let Some(ending) = shared.hear(rank, reader) else { return };
                let of_others = match ending {
                    Ending::Lost(rank) => Ending::Told(rank),
                    other => other,
                };
                shared.tell(&Message::Ending(of_others), Some(rank));
                end(ending);
            })?;
        }
        Ok(())
    }

    /// Tells all other ranks to end with `code`.
    pub fn abort(&self, code: i32) {
        self.shared.tell(&Message::Ending(Ending::Asked(code)), None);
    }

    /// Tells the others that this rank ends by itself from now on.
    pub fn leave(&self) {
        self.shared.has_left.store(true, Ordering::Relaxed);
        self.shared.tell(&Message::Leaving, None);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Without that the threads that watch would take it for the end of the others.
        self.shared.has_left.store(true, Ordering::Relaxed);
        // They have descriptors of their own, which would keep the connections open.
        for (_, stream) in self.shared.writers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    /// Returns when `rank` says that this one has to end, or is gone; nothing if it leaves.
    fn hear(&self, rank: usize, mut reader: BufReader<TcpStream>) -> Option<Ending> {
        let mut line = String::new();
        // What ends the wait for a line ends the connection, too.
        let _ = reader.get_ref().set_read_timeout(None);
        let _ = reader.read_line(&mut line);
        match serde_json::from_str(&line) {
            // Ranks leave when all have done their work: what becomes of the others after that is their own business.
            _ if self.has_left.load(Ordering::Relaxed) => None,
            Ok(Message::Leaving) => None,
            Ok(Message::Ending(ending)) => Some(ending),
            Err(_) => Some(Ending::Lost(rank)),
        }
    }

    /// Tells it to all connected ranks but `except`.
    fn tell(&self, message: &Message, except: Option<usize>) {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, writer) in writers.iter_mut().filter(|(rank, _)| Some(*rank) != except) {
            // One that is gone needs no message.
            let _ = send_line(writer, message);
        }
    }
}
