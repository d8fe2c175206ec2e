//! How ranks find each other without MPI: over TCP, at a place that their launcher names.
//!
//! Rank 0 listens there; the others try to connect until it does. Each says what it is, and when all are there rank 0 gives them a few
//! bytes, by which an engine can join them. What moves gradients is that engine. The connections stay open for one purpose: a rank
//! that is gone is noticed ([`Link`]).

mod link;
#[cfg(test)]
mod tests;

pub use link::{Ending, Link};

use crate::distributed::message::send_line;
use crate::runtime::error::{Exit, Failure, fail};
use anyhow::Result;
use link::Peer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// What rank 0 says first: another service there says something else.
const GREETING: &str = "llama-lite ranks 1";

/// How long rank 0 may take for its greeting, and another rank to say what it is.
const FIRST_WORDS: Duration = Duration::from_secs(5);

/// How often rank 0 looks for the next rank, and the others try again.
const LOOK: Duration = Duration::from_millis(10);
const AGAIN: Duration = Duration::from_millis(100);

/// How long one attempt to connect may take.
const ATTEMPT: Duration = Duration::from_secs(3);

/// Bytes of a line at most.
const LINE: u64 = 4096;

/// Where and with whom a rank is to meet.
#[derive(Clone, Debug)]
pub struct Meeting {
    pub host: String,
    pub port: u16,
    pub rank: usize,
    pub ranks: usize,
    /// The same for all ranks of a run, and for no other run.
    pub run: String,
    /// This rank, for messages.
    pub name: String,
    /// The GPU that it computes on: no two ranks may have the same.
    pub gpu: String,
    /// How long it waits for the others.
    pub limit: Duration,
}

/// What a rank says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Hello {
    version: String,
    run: String,
    rank: usize,
    ranks: usize,
    name: String,
    gpu: String,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Welcome { greeting: Vec<u8> },
    Refused { exit: i32, message: String, hint: Option<String> },
}

/// Who has connected to rank 0.
enum Guest {
    Rank(Peer, Hello),
    /// None of this run, and why.
    Stray(String),
}

/// Waits until all ranks are there; returns what rank 0 tells them, and the connections.
///
/// # Errors
/// [`Exit::Config`] if something else is in the way, or if these ranks cannot be one group: on all of them; [`Exit::Io`] if not all are
/// there in time.
pub fn meet(meeting: &Meeting, greeting: impl FnOnce() -> Result<Vec<u8>>) -> Result<(Vec<u8>, Link)> {
    let deadline = Instant::now() + meeting.limit;
    if meeting.rank > 0 {
        let (greeting, peer) = meeting.join(deadline)?;
        return Ok((greeting, Link::new(vec![peer])));
    }
    let greeting = greeting()?;
    let listener = meeting.listen()?;
    let mut peers = meeting.receive(&listener, deadline)?;
    for peer in &mut peers {
        // One that is gone is noticed by its link.
        let _ = send_line(peer.writer(), &Answer::Welcome { greeting: greeting.clone() });
    }
    Ok((greeting, Link::new(peers)))
}

impl Meeting {
    fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn first_words(&self) -> Duration {
        FIRST_WORDS.min(self.limit)
    }

    fn hello(&self) -> Hello {
        Hello {
            version: crate::VERSION.to_owned(),
            run: self.run.clone(),
            rank: self.rank,
            ranks: self.ranks,
            name: self.name.clone(),
            gpu: self.gpu.clone(),
        }
    }

    /// The listener of rank 0. The name of a host may mean another address on that host itself: it listens at all of them, unless all
    /// ranks are on one host.
    fn listen(&self) -> Result<TcpListener, Failure> {
        let bound = if ["127.0.0.1", "localhost", "::1"].contains(&self.host.as_str()) {
            TcpListener::bind((self.host.as_str(), self.port))
        } else {
            let everywhere = TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.port));
            everywhere.or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, self.port)))
        };
        let listener = bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        listener.map_err(|e| {
            let what = format!("rank 0 cannot listen at {} for the other ranks: {e}", self.place());
            let exit = if e.kind() == ErrorKind::AddrInUse { Exit::Config } else { Exit::Io };
            fail(exit, what).hint("set MASTER_PORT to another number: ranks meet at the port after it")
        })
    }

    /// Takes in all other ranks.
    fn receive(&self, listener: &TcpListener, deadline: Instant) -> Result<Vec<Peer>> {
        let mut hellos = vec![self.hello()];
        let mut peers: Vec<Peer> = Vec::new();
        let mut stray = None;
        while peers.len() + 1 < self.ranks {
            if Instant::now() > deadline {
                return Err(self.refuse_all(peers, self.not_all(&hellos, stray)).into());
            }
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(LOOK);
                    continue;
                }
                // One that has gone again.
                Err(_) => continue,
            };
            match self.greet(stream) {
                Guest::Stray(why) => stray = Some(why),
                Guest::Rank(peer, hello) => {
                    peers.push(peer);
                    if let Some(failure) = self.contradiction(&hello, &hellos) {
                        return Err(self.refuse_all(peers, failure).into());
                    }
                    hellos.push(hello);
                }
            }
        }
        peers.sort_by_key(Peer::rank);
        Ok(peers)
    }

    /// Finds out who has connected.
    fn greet(&self, stream: TcpStream) -> Guest {
        let from = stream.peer_addr().map_or_else(|_| "an unknown address".to_owned(), |from| from.to_string());
        let said = prepare(&stream).and_then(|mut connection| {
            writeln!(connection.writer, "{GREETING}")?;
            let hello: Hello = parse(&read_line(&mut connection.reader, self.first_words())?)?;
            Ok((connection, hello))
        });
        match said {
            Err(e) => Guest::Stray(format!("{from} has connected and is no rank ({e})")),
            Ok((mut connection, hello)) if hello.run != self.run => {
                let message = "rank 0, which listens there, belongs to another run".to_owned();
                let hint = Some("give each run a MASTER_PORT of its own".to_owned());
                let _ =
                    send_line(&mut connection.writer, &Answer::Refused { exit: Exit::Config as i32, message, hint });
                Guest::Stray(format!("{} of another run has come from {from}", hello.name))
            }
            Ok((connection, hello)) => Guest::Rank(Peer::new(hello.rank, connection.reader, connection.writer), hello),
        }
    }

    /// Why a rank cannot be one of this group.
    fn contradiction(&self, hello: &Hello, others: &[Hello]) -> Option<Failure> {
        let same_program = "start the same program with the same launcher on every host";
        if hello.version != crate::VERSION {
            let what = format!("{} is llama-lite {}, rank 0 is {}", hello.name, hello.version, crate::VERSION);
            return Some(fail(Exit::Config, what).hint(same_program));
        }
        if hello.ranks != self.ranks || hello.rank >= self.ranks {
            let what = format!("{} is one of {} ranks, rank 0 one of {}", hello.name, hello.ranks, self.ranks);
            return Some(fail(Exit::Config, what).hint(same_program));
        }
        if let Some(same) = others.iter().find(|other| other.rank == hello.rank) {
            let what = format!("there are two of rank {}: {} and {}", hello.rank, same.name, hello.name);
            return Some(fail(Exit::Config, what).hint(same_program));
        }
        let same = others.iter().find(|other| !hello.gpu.is_empty() && other.gpu == hello.gpu)?;
        Some(shared_gpu(&same.name, &hello.name, self.ranks))
    }

    fn not_all(&self, hellos: &[Hello], stray: Option<String>) -> Failure {
        let missing: Vec<String> = (0..self.ranks)
            .filter(|rank| hellos.iter().all(|hello| hello.rank != *rank))
            .map(|rank| rank.to_string())
            .collect();
        let stray = stray.map_or_else(String::new, |why| format!("; {why}"));
        let seconds = self.limit.as_secs();
        let what = format!("rank {} has not come to {} for {seconds} s{stray}", missing.join(", "), self.place());
        fail(Exit::Io, what).hint("look at the output of that rank; its host must reach that address and port")
    }

    /// Tells all ranks that have come why there will be no group; returns it.
    fn refuse_all(&self, mut peers: Vec<Peer>, failure: Failure) -> Failure {
        for peer in &mut peers {
            let Failure { exit, message, hint } = failure.clone();
            let _ = send_line(peer.writer(), &Answer::Refused { exit: exit as i32, message, hint });
        }
        failure
    }

    /// Goes to rank 0; returns what it tells.
    fn join(&self, deadline: Instant) -> Result<(Vec<u8>, Peer)> {
        let mut connection = loop {
            match self.connect() {
                Ok(connection) => break connection,
                Err(Refusal::Final(failure)) => return Err(failure.into()),
                Err(Refusal::Later(_)) if Instant::now() < deadline => std::thread::sleep(AGAIN),
                Err(Refusal::Later(why)) => {
                    let what = format!("rank 0 has not come to {} for {} s: {why}", self.place(), self.limit.as_secs());
                    let hint = "look at the output of rank 0; MASTER_ADDR must be its host, and ranks meet at the port after MASTER_PORT";
                    return Err(fail(Exit::Io, what).hint(hint).into());
                }
            }
        };
        send_line(&mut connection.writer, &self.hello()).map_err(|e| self.lost(&e))?;
        // Rank 0 answers when all are there, or when its own time is over.
        let patience = deadline.saturating_duration_since(Instant::now()) + FIRST_WORDS;
        let line = read_line(&mut connection.reader, patience).map_err(|e| self.lost(&e))?;
        match parse(&line).map_err(|e| self.lost(&e))? {
            Answer::Welcome { greeting } => Ok((greeting, Peer::new(0, connection.reader, connection.writer))),
            Answer::Refused { exit, message, hint } => {
                let exit = Exit::from_code(exit).unwrap_or(Exit::Internal);
                Err(Failure { exit, message, hint }.into())
            }
        }
    }

    fn connect(&self) -> Result<Connection, Refusal> {
        let addresses = (self.host.as_str(), self.port).to_socket_addrs();
        let addresses = addresses.map_err(|e| Refusal::Later(format!("{e}")))?;
        let mut why = "the host has no address".to_owned();
        for address in addresses {
            let stream = match TcpStream::connect_timeout(&address, ATTEMPT) {
                Ok(stream) => stream,
                Err(e) => {
                    why = e.to_string();
                    continue;
                }
            };
            let greeted = prepare(&stream).and_then(|mut connection| {
                let line = read_line(&mut connection.reader, self.first_words())?;
                Ok((connection, line))
            });
            match greeted {
                Ok((connection, line)) if line == GREETING => return Ok(connection),
                Ok((_, line)) if line.is_empty() => why = "who listens there hangs up".into(),
                Ok((_, line)) => return Err(Refusal::Final(self.not_ours(&format!("says {line:?}")))),
                Err(e) if is_timeout(&e) => return Err(Refusal::Final(self.not_ours("says nothing"))),
                Err(e) => why = e.to_string(),
            }
        }
        Err(Refusal::Later(why))
    }

    fn not_ours(&self, says: &str) -> Failure {
        let what = format!("who listens at {} is not rank 0 of llama-lite: it {says}", self.place());
        fail(Exit::Config, what).hint("set MASTER_PORT to another number: ranks meet at the port after it")
    }

    fn lost(&self, e: &std::io::Error) -> Failure {
        let what = format!("rank 0 at {} has gone before all ranks were there: {e}", self.place());
        fail(Exit::Io, what).hint("look at the output of rank 0")
    }
}

/// Why there is no connection.
enum Refusal {
    Final(Failure),
    /// It is worth another attempt.
    Later(String),
}

/// Two ranks on one GPU, which NCCL does not join.
pub(super) fn shared_gpu(one: &str, other: &str, ranks: usize) -> Failure {
    fail(Exit::Config, format!("{one} and {other} compute on the same GPU, which NCCL refuses"))
        .hint(format!("give each rank a GPU of its own; or share it over MPI, which is slow: mpiexec -n {ranks}"))
}

/// An open connection to one rank.
struct Connection {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

fn prepare(stream: &TcpStream) -> std::io::Result<Connection> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(FIRST_WORDS))?;
    Ok(Connection { reader: BufReader::new(stream.try_clone()?), writer: stream.try_clone()? })
}

/// A line without its end; empty where the other end has hung up.
fn read_line(reader: &mut BufReader<TcpStream>, patience: Duration) -> std::io::Result<String> {
    reader.get_ref().set_read_timeout(Some(patience.max(LOOK)))?;
    let mut line = Vec::new();
    reader.by_ref().take(LINE).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn parse<T: DeserializeOwned>(line: &str) -> std::io::Result<T> {
    Ok(serde_json::from_str(line)?)
}

fn is_timeout(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
