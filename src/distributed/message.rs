//! What ranks send each other when they talk: messages, and their lengths.

use crate::runtime::error::{Exit, Failure, fail};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::io::Write;

/// What a rank sends where all tell each other something.
#[derive(Serialize, Deserialize)]
pub(super) enum Message<T> {
    /// A value, and what it is about: ranks that have got out of step must not take one thing for another.
    Value(String, T),
    /// A request to stop has cut short what the value should come from; the rank goes on after that.
    Stopped(String),
    Failed {
        exit: i32,
        message: String,
        hint: Option<String>,
    },
}

impl<T> Message<T> {
    /// What it is about; a failure can come in place of anything.
    pub(super) fn about(&self) -> Option<&str> {
        match self {
            Self::Value(about, _) | Self::Stopped(about) => Some(about),
            Self::Failed { .. } => None,
        }
    }
}

pub(super) const LENGTH: usize = size_of::<u64>();

/// Byte strings one after the other, each after its length.
pub(super) fn pack(strings: &[Vec<u8>]) -> Vec<u8> {
    let framed = strings.iter().flat_map(|bytes| [(bytes.len() as u64).to_le_bytes().to_vec(), bytes.clone()].concat());
    framed.collect()
}

pub(super) fn unpack(mut packed: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut strings = Vec::new();
    while !packed.is_empty() {
        let (length, rest) = take_length(packed)?;
        let (bytes, rest) = rest.split_at_checked(length).ok_or_else(garbled)?;
        strings.push(bytes.to_vec());
        packed = rest;
    }
    Ok(strings)
}

pub(super) fn take_length(bytes: &[u8]) -> Result<(usize, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>().ok_or_else(garbled)?;
    Ok((usize::try_from(u64::from_le_bytes(*length))?, rest))
}

pub(super) fn garbled() -> Failure {
    fail(Exit::Internal, "a message between ranks is garbled").hint("use the same program on every host")
}

/// Writes `message` as a line, to a socket between two processes.
///
/// # Errors
/// Those of the socket: the other end is gone.
pub(super) fn send_line(stream: &mut impl Write, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}
