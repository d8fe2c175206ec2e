//! Which texts came before, in memory that does not depend on how many there were.
//!
//! Every text's 128-bit key goes to a log, in order. The newest keys are also held in memory as a set; older ones lie
//! on disk in sorted segments, which are merged pairwise so that their number grows with the logarithm of the corpus.
//! Keys are uniform, so interpolation finds one in a segment with a page or two. The log alone counts after an
//! interruption: segments that are missing are made from it again.

use std::collections::HashSet;
use std::fs::{self, File};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rayon::slice::ParallelSliceMut as _;

use crate::corpus::split::Key;
use crate::runtime::files::{self, AtomicFile, Growing, io_context};

/// Name of the log; the names of segments begin with it.
pub(super) const HASHES_FILE: &str = ".part-hashes";

/// Bytes of a key: 128 bits.
const WIDTH: u64 = 16;

/// Keys fetched at a time when a segment is searched: four kilobytes.
const PAGE: u64 = 256;

pub(super) struct Dedup {
    dir: PathBuf,
    /// Keys in a segment before any merge.
    segment: u64,
    log: Growing,
    newest: Newest,
    older: Vec<Segment>,
}

type Newest = HashSet<Key, BuildHasherDefault<KeyHasher>>;

/// The hash of a key is its lower half: a key is a hash already.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |sum, &b| sum.rotate_left(8) ^ u64::from(b));
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

impl Dedup {
    /// Opens the log in `dir` after its first `len` texts, with `segment` keys in memory.
    pub(super) fn open(dir: &Path, segment: usize, len: u64) -> Result<Self> {
        let log = Growing::open(&dir.join(HASHES_FILE), len * WIDTH)?;
        let segment = segment.max(1) as u64;
        let mut dedup = Self { dir: dir.to_path_buf(), segment, log, newest: Newest::default(), older: Vec::new() };
        dedup.arrange()?;
        Ok(dedup)
    }

    pub(super) fn len(&self) -> u64 {
        self.log.len() / WIDTH
    }

    /// Whether the text's key is among those on disk.
    pub(super) fn is_old(&self, key: Key) -> Result<bool> {
        for segment in &self.older {
            if segment.contains(key).map_err(|e| files::io_failure("read", &self.dir.join(HASHES_FILE), &e))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds a text whose key [`Dedup::is_old`] did not find; false if it came before.
    pub(super) fn insert(&mut self, key: Key) -> Result<bool> {
        if !self.newest.insert(key) {
            return Ok(false);
        }
        self.log.write_all(&key.to_le_bytes()).map_err(|e| io_context("write", self.log.path())(e))?;
        Ok(true)
    }

    /// Moves keys to disk if memory holds enough of them. Answers of [`Dedup::is_old`] from before are then out of date.
    pub(super) fn settle(&mut self) -> Result<()> {
        if self.newest.len() as u64 >= self.segment { self.arrange() } else { Ok(()) }
    }

    pub(super) fn sync(&mut self) -> Result<()> {
        self.log.sync()
    }

    /// Brings segments and set into the state that follows from the log's length: whole segments in groups of powers
    /// of two, the largest first, and the rest in memory.
    fn arrange(&mut self) -> Result<()> {
        let whole = self.len() / self.segment;
        let mut older = Vec::new();
        let mut first = 0;
        // The binary digits of `whole`: few segments to search, and a key is rewritten once for each doubling.
        for group in (0..u64::BITS).rev().map(|bit| whole & 1 << bit).filter(|&group| group != 0) {
            let count = group * self.segment;
            let known = self.older.iter().position(|s| (s.first, s.count) == (first, count));
            older.push(match known {
                Some(i) => self.older.swap_remove(i),
                None => self.segment(first, count)?,
            });
            first += count;
        }
        self.older = older;
        let rest = self.logged(first, self.len() - first)?;
        // Room for the batch in which the set becomes full.
        self.newest = Newest::with_capacity_and_hasher(self.segment as usize + rest.len(), Default::default());
        self.newest.extend(rest);
        Ok(())
    }

    /// The sorted keys of `count` texts from `first` on, made if they are not there.
    fn segment(&mut self, first: u64, count: u64) -> Result<Segment> {
        let path = self.dir.join(format!("{HASHES_FILE}-{first}-{count}"));
        // A file of this size is whole: it gets its name only when it is.
        if path.metadata().map_or(0, |meta| meta.len()) != count * WIDTH {
            if count == self.segment {
                let mut keys = self.logged(first, count)?;
                keys.par_sort_unstable();
                write_keys(&path, keys.into_iter().map(Ok))?;
            } else {
                let halves = [self.segment(first, count / 2)?, self.segment(first + count / 2, count / 2)?];
                write_keys(&path, merge(halves.each_ref().map(Segment::keys)))?;
                // Only now that the merged file is durable.
                for half in halves {
                    fs::remove_file(&half.path).map_err(|e| files::io_failure("remove", &half.path, &e))?;
                }
            }
        }
        let (file, _) = files::open_input(&path, false)?;
        Ok(Segment { path, file, first, count })
    }

    /// `count` keys of the log from `first` on.
    fn logged(&mut self, first: u64, count: u64) -> Result<Vec<Key>> {
        let mut bytes = vec![0; (count * WIDTH) as usize];
        let reader = self.log.reader()?;
        let read = reader.read_exact_at(&mut bytes, first * WIDTH);
        read.map_err(|e| files::io_failure("read", self.log.path(), &e))?;
        Ok(bytes.as_chunks().0.iter().map(|raw| Key::from_le_bytes(*raw)).collect())
    }
}

/// A file of sorted keys.
struct Segment {
    path: PathBuf,
    file: File,
    /// Position in the log of the first text that it covers.
    first: u64,
    /// How many texts it covers.
    count: u64,
}

impl Segment {
    fn contains(&self, key: Key) -> io::Result<bool> {
        // The key can only be among the entries lo..hi, whose values are from `low` to `high`.
        let mut lo = 0;
        let mut hi = self.count;
        let mut low = 0;
        let mut high = Key::MAX;
        let mut page = [0; (PAGE * WIDTH) as usize];
        // Interpolation search: keys are hashes and spread evenly, so the guessed page is nearly always the right one.
        for round in 0.. {
            if lo >= hi || key < low || key > high {
                return Ok(false);
            }
            let n = PAGE.min(hi - lo);
            // Should the keys not be uniform after all, halving finds them too.
            let share = if round < 8 { (key - low) as f64 / (high - low).max(1) as f64 } else { 0.5 };
            let guess = lo + ((hi - lo) as f64 * share) as u64;
            let start = guess.saturating_sub(n / 2).clamp(lo, hi - n);
            let page = &mut page[..(n * WIDTH) as usize];
            self.file.read_exact_at(page, start * WIDTH)?;
            let keys = page.as_chunks().0;
            let first = Key::from_le_bytes(keys[0]);
            let last = Key::from_le_bytes(keys[keys.len() - 1]);
            if key < first {
                (hi, high) = (start, first);
            } else if key > last {
                (lo, low) = (start + n, last);
            } else {
                return Ok(keys.binary_search_by_key(&key, |raw| Key::from_le_bytes(*raw)).is_ok());
            }
        }
        Ok(false)
    }

    /// All keys in order, read with a buffer.
    fn keys(&self) -> impl Iterator<Item = Result<Key>> {
        let mut reader = BufReader::with_capacity(1 << 20, &self.file);
        (0..self.count).map(move |_| {
            let mut raw = [0; WIDTH as usize];
            reader.read_exact(&mut raw).map_err(|e| files::io_failure("read", &self.path, &e))?;
            Ok(Key::from_le_bytes(raw))
        })
    }
}

/// The keys of two sorted sequences, sorted.
fn merge(parts: [impl Iterator<Item = Result<Key>>; 2]) -> impl Iterator<Item = Result<Key>> {
    let [mut a, mut b] = parts.map(Iterator::peekable);
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(Ok(x)), Some(Ok(y))) if y < x => b.next(),
        // An error goes out at once, before keys that would look complete.
        (None, _) | (_, Some(Err(_))) => b.next(),
        _ => a.next(),
    })
}

fn write_keys(path: &Path, keys: impl Iterator<Item = Result<Key>>) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    let mut keys = keys.peekable();
    let mut bytes = Vec::with_capacity(1 << 16);
    while keys.peek().is_some() {
        bytes.clear();
        for key in keys.by_ref().take((1 << 16) / WIDTH as usize) {
            bytes.extend_from_slice(&key?.to_le_bytes());
        }
        file.write_all(&bytes).map_err(io_context("write", path))?;
    }
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::split::key;

    /// Whether each text came before, asked in batches of `batch` as the job does.
    fn seen(dedup: &mut Dedup, texts: &[u64], batch: usize) -> Vec<bool> {
        let mut answers = Vec::new();
        for texts in texts.chunks(batch) {
            let keys: Vec<Key> = texts.iter().map(|i| key(&i.to_string())).collect();
            let old: Vec<bool> = keys.iter().map(|&key| dedup.is_old(key).unwrap()).collect();
            answers.extend(keys.iter().zip(old).map(|(&key, old)| old || !dedup.insert(key).unwrap()));
            dedup.settle().unwrap();
        }
        answers
    }

    #[test]
    fn agrees_with_a_set_for_all_sizes_and_after_every_interruption() {
        // Repetitions near and far, within and across segments.
        let texts: Vec<u64> = (0..2000u64).map(|i| if i % 3 == 0 { i * i % 1301 } else { i }).collect();
        let mut set = HashSet::new();
        let expected: Vec<bool> = texts.iter().map(|i| !set.insert(*i)).collect();
        for (segment, batch) in [(64, 7), (300, 100), (10_000, 500)] {
            let dir = tempfile::tempdir().unwrap();
            let mut dedup = Dedup::open(dir.path(), segment, 0).unwrap();
            assert!(seen(&mut dedup, &texts, batch) == expected, "{segment}");
            assert_eq!(dedup.older.len(), (dedup.len() / segment as u64).count_ones() as usize);
            for end in (0..texts.len()).rev().step_by(677) {
                let len = expected[..end].iter().filter(|old| !**old).count() as u64;
                dedup.sync().unwrap();
                drop(dedup);
                // Segments are lost, are there, or are there and too many.
                for entry in fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()) {
                    if end % 2 == 0 && !entry.ends_with(HASHES_FILE) {
                        fs::remove_file(entry).unwrap();
                    }
                }
                dedup = Dedup::open(dir.path(), segment, len).unwrap();
                assert!(seen(&mut dedup, &texts[end..], batch) == expected[end..], "{segment} from {end}");
                dedup = Dedup::open(dir.path(), segment, len).unwrap();
            }
        }
    }

    #[test]
    fn keys_that_are_not_uniform_are_found_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut dedup = Dedup::open(dir.path(), 5000, 0).unwrap();
        let keys = |i: u128| if i < 4000 { i * 3 } else { Key::MAX - i * i };
        for i in 0..5000 {
            assert!(dedup.insert(keys(i)).unwrap());
        }
        dedup.settle().unwrap();
        assert!(dedup.newest.is_empty());
        for i in 0..5000 {
            assert!(dedup.is_old(keys(i)).unwrap() && !dedup.is_old(keys(i) + 1).unwrap(), "{i}");
        }
        assert!(dedup.is_old(Key::MAX - 4000 * 4000).unwrap() && !dedup.is_old(Key::MAX).unwrap());
    }
}
