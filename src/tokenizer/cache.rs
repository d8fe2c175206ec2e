//! The ids of words seen before: text repeats its words, and looking one up takes a tenth of the time of encoding it.
//!
//! A table of slots of fixed size: a word can be in either of two slots, and a new word takes the second, so a word that was
//! seen twice is not replaced by words seen once. A word that does not fit is encoded again each time.

/// Longest cached word in bytes: three 64-bit words less one byte for the length.
const MOST_BYTES: usize = 23;

const MOST_IDS: usize = 9;

/// Number of pairs of slots; a pair has 128 bytes.
const PAIRS: usize = 1 << 15;

/// A word of at most 23 bytes: padded with zeros, its length in the last byte.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key([u64; 3]);

/// A word and its ids, in one line of the processor's cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct CachedWord {
    key: Key,
    count: u32,
    ids: [u32; MOST_IDS],
}

/// The words seen lately; about 4 MiB.
pub(super) struct Cache {
    slots: Vec<[CachedWord; 2]>,
}

impl Key {
    /// The key of `text[start..end]`, if that is short enough.
    #[inline]
    pub(super) fn new(text: &[u8], start: usize, end: usize) -> Option<Self> {
        let length = end - start;
        if length > MOST_BYTES {
            return None;
        }
        // The same three loads for every length, if the text is long enough; they are masked below.
        let padded;
        let bytes = match text[start..].first_chunk::<24>() {
            Some(bytes) => bytes,
            None => {
                let mut copy = [0; 24];
                copy[..length].copy_from_slice(&text[start..end]);
                padded = copy;
                &padded
            }
        };
        let [low, middle, high] = bytes.as_chunks::<8>().0 else { return None };
        let low = u64::from_le_bytes(*low) & MASKS[length][0];
        let middle = u64::from_le_bytes(*middle) & MASKS[length][1];
        let high = u64::from_le_bytes(*high) & MASKS[length][2];
        Some(Self([low, middle, high | (length as u64) << 56]))
    }

    #[inline]
    fn hash(self) -> usize {
        let [low, middle, high] = self.0;
        let product =
            u128::from(low ^ 0x9e37_79b9_7f4a_7c15) * u128::from(middle ^ high.rotate_left(32) ^ 0xd1b5_4a32_d192_ed03);
        let folded = (product as u64) ^ (product >> 64) as u64;
        (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PAIRS.trailing_zeros())) as usize
    }
}

/// The bytes of three words that belong to a key, by its length.
static MASKS: [[u64; 3]; MOST_BYTES + 1] = {
    let mut masks = [[0; 3]; MOST_BYTES + 1];
    let mut length = 0;
    while length <= MOST_BYTES {
        let mut at = 0;
        while at < length {
            masks[length][at / 8] |= 0xff << (8 * (at % 8));
            at += 1;
        }
        length += 1;
    }
    masks
};

impl Cache {
    pub(super) fn new() -> Self {
        let empty = CachedWord { key: Key([0; 3]), count: 0, ids: [0; MOST_IDS] };
        Self { slots: vec![[empty; 2]; PAIRS] }
    }

    /// The ids of a word, if it is there.
    #[inline]
    pub(super) fn get(&mut self, key: Key) -> Option<&[u32]> {
        let pair = &mut self.slots[key.hash()];
        if pair[0].key != key {
            if pair[1].key != key {
                return None;
            }
            // The word found last stands first; a new one takes the place of the other.
            pair.swap(0, 1);
        }
        pair[0].ids.get(..pair[0].count as usize)
    }

    /// Adds the ids of a word that is not there, if they fit.
    pub(super) fn insert(&mut self, key: Key, ids: &[u32]) {
        if ids.len() <= MOST_IDS {
            let mut entry = CachedWord { key, count: ids.len() as u32, ids: [0; MOST_IDS] };
            entry.ids[..ids.len()].copy_from_slice(ids);
            let pair = &mut self.slots[key.hash()];
            pair[usize::from(pair[0].count > 0)] = entry;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(word: &[u8]) -> Key {
        Key::new(word, 0, word.len()).unwrap()
    }

    #[test]
    fn a_key_is_its_word_wherever_that_stands() {
        let text = b"abcdefghijklmnopqrstuvwxyz\0\0\0 more than twenty-four bytes";
        let mut seen = std::collections::BTreeSet::new();
        for start in 0..text.len() {
            for end in start + 1..text.len().min(start + MOST_BYTES) + 1 {
                let inside = Key::new(text, start, end).unwrap();
                assert!(inside == key(&text[start..end]));
                assert_eq!(
                    seen.insert(inside.0),
                    !text[..end - 1].windows(end - start).any(|w| w == &text[start..end])
                );
            }
        }
        assert!(Key::new(text, 0, MOST_BYTES + 1).is_none());
    }

    #[test]
    fn what_is_found_is_what_was_put_in() {
        let mut cache = Cache::new();
        let words: Vec<String> = (0..300_000).map(|n| format!("w{n}")).collect();
        let ids = |n: usize| vec![n as u32; 1 + n % (MOST_IDS + 2)];
        let mut kept = 0;
        for (n, word) in words.iter().enumerate() {
            assert!(cache.get(key(word.as_bytes())).is_none());
            cache.insert(key(word.as_bytes()), &ids(n));
        }
        for (n, word) in words.iter().enumerate() {
            if let Some(found) = cache.get(key(word.as_bytes())) {
                assert_eq!(found, ids(n));
                kept += 1;
            }
        }
        assert!((PAIRS..=2 * PAIRS).contains(&kept), "{kept} kept");
    }

    #[test]
    fn a_word_met_again_is_not_lost_to_words_met_once() {
        let mut cache = Cache::new();
        let once = |cache: &mut Cache, numbers: std::ops::Range<u32>| {
            numbers.for_each(|n| cache.insert(key(format!("w{n}").as_bytes()), &[n]));
        };
        once(&mut cache, 0..300_000);
        for (word, again) in [(b" the", true), (b" cat", false)] {
            cache.insert(key(word), &[1]);
            assert!(!again || cache.get(key(word)).is_some());
            once(&mut cache, 300_000..600_000);
            assert_eq!(cache.get(key(word)).is_some(), again);
        }
    }
}
