//! The encoder of byte-level BPE: text is split into words; a word is looked up in a cache, or merged if it is new.
//!
//! Each thread takes a cache of its own for a text and puts it back afterwards, so threads share nothing that is written.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use anyhow::Result;

use super::cache::{Cache, Key};
use super::merges::{Merge, Merges};
use crate::tokenizer::pretokenize::Pretokenizer;

/// Encodes text by a list of merges; any number of threads at once.
pub(super) struct Encoder {
    pretokenizer: Pretokenizer,
    merges: Merges,
    pool: Mutex<CachePool>,
}

/// The caches that no thread is using, each with the thread that used it last.
struct CachePool {
    caches: Vec<(ThreadId, Cache)>,
    made: usize,
    /// Number of caches after which a new thread takes that of another instead of making one.
    enough: usize,
}

impl Encoder {
    /// The encoder of the vocabulary of these merges, whose ids are their ranks.
    pub(super) fn new(byte_ids: [u32; 256], merges: &[Merge]) -> Result<Self> {
        let enough = thread::available_parallelism().map_or(1, usize::from);
        let pool = Mutex::new(CachePool { caches: Vec::new(), made: 0, enough });
        Ok(Self { pretokenizer: Pretokenizer::new()?, merges: Merges::new(byte_ids, merges), pool })
    }

    /// Appends the encoding of `text` to `ids`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut cache = self.take_cache();
        let bytes = text.as_bytes();
        let mut start = 0;
        while start < text.len() {
            let end = self.pretokenizer.word_end(text, start);
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
        self.lock_pool().caches.push((thread::current().id(), cache));
    }

    fn lock_pool(&self) -> MutexGuard<'_, CachePool> {
        // A thread that panicked has not returned its cache. The pool is valid without it.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This thread's cache, or a new one, or, if there is one for every core, another thread's.
    fn take_cache(&self) -> Cache {
        let mut pool = self.lock_pool();
        let this_thread = thread::current().id();
        let own = pool.caches.iter().position(|(owner, _)| *owner == this_thread);
        let any = (pool.made >= pool.enough && !pool.caches.is_empty()).then_some(0);
        match own.or(any) {
            Some(at) => pool.caches.swap_remove(at).1,
            None => {
                pool.made += 1;
                // A cache has megabytes: it is made outside the lock.
                drop(pool);
                Cache::new()
            }
        }
    }
}

#[cfg(test)]
mod tests;
