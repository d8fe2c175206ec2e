//! What the parent and the supervisors of ranks tell each other: lines of JSON over a socket.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

/// The variable that names the socket: a process that has it is a supervisor.
pub(super) const SOCKET: &str = "LLAMA_LITE_LAUNCH";

/// The variable by which a rank knows the process that supervises it.
pub(super) const SUPERVISOR: &str = "LLAMA_LITE_SUPERVISOR";

/// From the parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToRank {
    /// Comes first: where rank 0 is to write.
    Output { stdout: PathBuf, stderr: PathBuf },
    /// A signal for the rank.
    Signal(i32),
}

/// To the parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromRank {
    /// Comes first. `writes_directly` is false if what it writes arrives through mpiexec.
    Started {
        rank: usize,
        pid: u32,
        writes_directly: bool,
    },
    /// A line that it has written to stderr.
    Said(String),
    Ended(Outcome),
}

/// How a rank has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    Code(i32),
    Signal(i32),
}

/// The messages that arrive, until the other end is gone or says what is none.
pub(super) fn receive<T: DeserializeOwned>(stream: impl Read) -> impl Iterator<Item = T> {
    BufReader::new(stream).lines().map_while(|line| serde_json::from_str(&line.ok()?).ok())
}
