//! The encoder of byte-level BPE: words are split off, looked up among those met before, and merged if new.
//!
//! Each thread has a cache of words to itself, kept here between texts, so threads share nothing that is written.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use anyhow::Result;

use super::cache::{Cache, Key};
use super::merges::{Merge, Merges};
use crate::tokenizer::pretokenize::Words;

/// Encodes text by a list of merges; any number of threads at once.
pub(super) struct Encoder {
    words: Words,
    merges: Merges,
    shelf: Mutex<Shelf>,
}

/// The caches that no thread is using, each with the thread that used it last.
struct Shelf {
    caches: Vec<(ThreadId, Cache)>,
    made: usize,
    /// Caches after which a new thread takes over another's.
    enough: usize,
}

impl Encoder {
    /// The encoder of the vocabulary of these merges, whose ids are their ranks.
    pub(super) fn new(byte_ids: [u32; 256], merges: &[Merge]) -> Result<Self> {
        let enough = thread::available_parallelism().map_or(1, usize::from);
        let shelf = Mutex::new(Shelf { caches: Vec::new(), made: 0, enough });
        Ok(Self { words: Words::new()?, merges: Merges::new(byte_ids, merges), shelf })
    }

    /// Appends the encoding of `text` to `ids`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut cache = self.take();
        let bytes = text.as_bytes();
        let mut start = 0;
        while start < text.len() {
            let end = self.words.end(text, start);
            match Key::new(bytes, start, end) {
                Some(key) => match cache.get(key) {
                    Some([id]) => ids.push(*id),
                    Some(known) => ids.extend_from_slice(known),
                    None => {
                        let before = ids.len();
                        self.merges.encode(&bytes[start..end], ids);
                        cache.insert(key, &ids[before..]);
                    }
                },
                None => self.merges.encode(&bytes[start..end], ids),
            }
            start = end;
        }
        self.shelf().caches.push((thread::current().id(), cache));
    }

    /// A panic elsewhere leaves a shelf with one cache less, which is as good as any.
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This thread's cache, or a new one, or, if there is one for every core, another thread's.
    fn take(&self) -> Cache {
        let mut shelf = self.shelf();
        let here = thread::current().id();
        let own = shelf.caches.iter().position(|(owner, _)| *owner == here);
        let any = (shelf.made >= shelf.enough && !shelf.caches.is_empty()).then_some(0);
        match own.or(any) {
            Some(at) => shelf.caches.swap_remove(at).1,
            None => {
                shelf.made += 1;
                drop(shelf);
                Cache::new()
            }
        }
    }
}

#[cfg(test)]
mod tests;
