//! The next step's sequences, read and checked by a thread while the present step is computed.
//!
//! The thread guesses that the next step begins where this one ends. A wrong guess costs a read, never a wrong sequence: a
//! result is used only for the request that it answers.

use super::batch::Batch;
use super::loader::Loader;
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::failpoint::failpoint;
use crate::runtime::thread::spawn;
use anyhow::Result;
use std::sync::mpsc::{Receiver, Sender, channel};

type Request = (u64, usize);

/// A loader with a thread that reads ahead. The thread ends with it.
pub struct Prefetch {
    loader: Loader,
    requests: Sender<Request>,
    results: Receiver<Result<Batch>>,
    /// The request that the thread is answering or has answered.
    ahead: Option<Request>,
}

impl Prefetch {
    /// # Errors
    /// [`Exit::Io`] if the system cannot start a thread.
    pub fn new(loader: Loader) -> Result<Self> {
        let (requests, incoming) = channel::<Request>();
        let (answers, results) = channel();
        let reader = loader.clone();
        spawn("prefetch", move || {
            for (first, count) in incoming {
                assert!(failpoint("panicked-prefetch", first).is_none(), "planted");
                if answers.send(reader.batch(first, count)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { loader, requests, results, ahead: None })
    }

    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// Sequences `first..first + count`, as [`Loader::batch`] gives them; begins to read as many after them.
    ///
    /// # Errors
    /// Those of reading shards; [`Exit::Internal`] if the thread has died.
    pub fn batch(&mut self, first: u64, count: usize) -> Result<Batch> {
        let ready = match self.ahead.take() {
            Some(asked) => {
                let result = self.results.recv().map_err(|_| thread_died())?;
                // After a rollback this answers another question, and is dropped.
                (asked == (first, count)).then_some(result)
            }
            None => None,
        };
        let batch = ready.unwrap_or_else(|| self.loader.batch(first, count))?;
        let next = (first + count as u64, count);
        // One request at a time: at most one batch waits in memory.
        self.requests.send(next).map_err(|_| thread_died())?;
        self.ahead = Some(next);
        Ok(batch)
    }
}

fn thread_died() -> Failure {
    fail(Exit::Internal, "the thread that reads data has died")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Tokens;
    use crate::data::loader::{LoaderConfig, TokenSource};
    use std::sync::Arc;

    #[test]
    fn what_is_read_ahead_is_what_the_loader_reads() {
        let tokens = Tokens::Memory(Arc::new((0..1000).collect()));
        let plan = LoaderConfig { sequence_length: 7, seed: 1, shuffle: true, weights: vec![], boundary: None };
        let loader = Loader::new(vec![TokenSource { name: "x".into(), tokens }], &plan).unwrap();
        let mut ahead = Prefetch::new(loader.clone()).unwrap();
        // In order, repeated, with another count, back and forth.
        for (first, count) in [(0, 4), (4, 4), (8, 4), (8, 4), (12, 2), (14, 6), (0, 6), (6, 6), (1000, 1)] {
            assert_eq!(ahead.batch(first, count).unwrap(), loader.batch(first, count).unwrap());
        }
    }
}
