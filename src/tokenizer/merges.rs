//! Byte-pair encoding of one word: as long as a merge exists for two neighbours, the pair of lowest rank is merged (the first
//! such pair in the word).
//!
//! Short words are scanned again for each merge, which is fastest for them; long ones keep their pairs in a heap, so that a
//! megabyte without a space takes n log n steps and not n squared.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A merge: the ids of its two parts, and of what they make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    pub(super) left: u32,
    pub(super) right: u32,
    pub(super) id: u32,
}

/// No id: a pair without a merge, an empty slot, the end of a list.
const NONE: u32 = u32::MAX;

/// Words of more bytes than this go through the heap.
const LONG: usize = 128;

/// The merges by their pairs: open addressing, at most half full.
///
/// Most pairs that are looked up have no merge. A bit for every hash, in an array that stays in the cache, answers nine of
/// ten of those before the table is read.
pub(super) struct Pairs {
    slots: Vec<Merge>,
    bits: Vec<u64>,
    /// A hash shifted right by this is the number of a slot.
    shift: u32,
}

/// Binary logarithm of the number of bits for each slot.
const LOG_BITS_PER_SLOT: u32 = 2;

impl Pairs {
    /// An empty table with room for `count` merges.
    pub(super) fn with_capacity(count: usize) -> Self {
        // Half empty, so that a search meets an empty slot after a step or two.
        let slots = (2 * count).next_power_of_two().max(64);
        let empty = Merge { left: NONE, right: NONE, id: NONE };
        let bits = vec![0; (slots << LOG_BITS_PER_SLOT) / 64];
        Self { slots: vec![empty; slots], bits, shift: 64 - slots.trailing_zeros() }
    }

    /// Adds a merge whose pair is not in the table yet. The table does not grow beyond its capacity.
    pub(super) fn insert(&mut self, merge: Merge) {
        let hash = hash(merge.left, merge.right);
        let (word, bit) = self.bit(hash);
        self.bits[word] |= bit;
        let at = self.slot(hash, merge.left, merge.right);
        self.slots[at] = merge;
    }

    /// The id that joins `left` and `right`.
    pub(super) fn get(&self, left: u32, right: u32) -> Option<u32> {
        Some(self.rank(left, right)).filter(|id| *id != NONE)
    }

    /// The id that joins `left` and `right`, or [`NONE`].
    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        let hash = hash(left, right);
        let (word, bit) = self.bit(hash);
        if self.bits[word] & bit == 0 { NONE } else { self.slots[self.slot(hash, left, right)].id }
    }

    #[inline]
    fn bit(&self, hash: u64) -> (usize, u64) {
        let at = hash >> (self.shift - LOG_BITS_PER_SLOT);
        ((at / 64) as usize, 1 << (at % 64))
    }

    /// The slot of the pair, or the empty slot where it belongs.
    #[inline]
    fn slot(&self, hash: u64, left: u32, right: u32) -> usize {
        let mut at = (hash >> self.shift) as usize;
        loop {
            let held = &self.slots[at];
            if (held.left, held.right) == (left, right) || held.id == NONE {
                return at;
            }
            // The next slot, because it is usually in the same line of the cache.
            at = (at + 1) & (self.slots.len() - 1);
        }
    }
}

#[inline]
fn hash(left: u32, right: u32) -> u64 {
    // Fibonacci hashing: only the high bits of the product are used, which depend on all bits of the pair.
    (u64::from(left) << 32 | u64::from(right)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The merges of a vocabulary, in a form that is fast to encode with.
pub(super) struct Merges {
    byte_ids: [u32; 256],
    /// The merged id of two bytes, at `left * 256 + right`: the pairs that are looked up most.
    byte_pairs: Vec<u32>,
    pairs: Pairs,
}

/// A part of a word: its id, and the id that merges it with the next part.
#[derive(Clone, Copy)]
struct WordPart {
    id: u32,
    rank: u32,
}

/// A part of a long word, in a linked list.
struct Link {
    id: u32,
    before: u32,
    after: u32,
}

impl Merges {
    /// The encoder of a vocabulary of these merges, whose ids are their ranks.
    pub(super) fn new(byte_ids: [u32; 256], merges: &[Merge]) -> Self {
        let mut pairs = Pairs::with_capacity(merges.len());
        for merge in merges {
            pairs.insert(*merge);
        }
        let byte_pairs =
            byte_ids.iter().flat_map(|left| byte_ids.iter().map(|right| pairs.rank(*left, *right))).collect();
        Self { byte_ids, byte_pairs, pairs }
    }

    /// Appends the ids of `word` to `ids`.
    pub(super) fn encode(&self, word: &[u8], ids: &mut Vec<u32>) {
        if word.len() <= LONG {
            self.encode_short(word, ids);
        } else {
            self.encode_long(word, ids);
        }
    }

    fn rank_of_bytes(&self, left: u8, right: u8) -> u32 {
        self.byte_pairs[usize::from(left) << 8 | usize::from(right)]
    }

    fn encode_short(&self, word: &[u8], ids: &mut Vec<u32>) {
        // On the stack, because nearly all words are short.
        let mut parts = [WordPart { id: NONE, rank: NONE }; LONG];
        let mut count = word.len();
        for (part, (at, byte)) in parts.iter_mut().zip(word.iter().enumerate()) {
            part.id = self.byte_ids[usize::from(*byte)];
            part.rank = word.get(at + 1).map_or(NONE, |next| self.rank_of_bytes(*byte, *next));
        }
        loop {
            // Rank and position as one number, because a comparison that branches is mispredicted at every second part.
            let ranks = parts[..count].iter().zip(0u64..).map(|(part, at)| u64::from(part.rank) << 32 | at);
            let lowest = ranks.min().unwrap_or(u64::MAX);
            let id = (lowest >> 32) as u32;
            let at = (lowest & 0xffff_ffff) as usize;
            if id == NONE {
                break;
            }
            parts.copy_within(at + 2..count, at + 1);
            count -= 1;
            // Only the pairs on both sides of the new part have changed.
            let rank = if at + 1 < count { self.pairs.rank(id, parts[at + 1].id) } else { NONE };
            parts[at] = WordPart { id, rank };
            if at > 0 {
                parts[at - 1].rank = self.pairs.rank(parts[at - 1].id, id);
            }
        }
        ids.extend(parts[..count].iter().map(|part| part.id));
    }

    /// [`encode_short`](Self::encode_short) with a heap of the pairs. A part that was merged into the one before it stays in the
    /// list without an id; a pair whose parts have changed is skipped when it leaves the heap.
    fn encode_long(&self, word: &[u8], ids: &mut Vec<u32>) {
        let count = word.len() as u32;
        let mut links: Vec<Link> = (0..count)
            .zip(word)
            .map(|(at, byte)| Link {
                id: self.byte_ids[usize::from(*byte)],
                before: at.wrapping_sub(1),
                after: if at + 1 < count { at + 1 } else { NONE },
            })
            .collect();
        let first = word.windows(2).zip(0u32..).map(|(pair, at)| (self.rank_of_bytes(pair[0], pair[1]), at));
        // Of equal ranks the smaller position comes first: the leftmost pair is merged first, as in `encode_short`.
        let mut heap: BinaryHeap<_> = first.filter(|(rank, _)| *rank != NONE).map(Reverse).collect();
        while let Some(Reverse((rank, at))) = heap.pop() {
            if self.rank_at(&links, at) != rank {
                continue;
            }
            let gone = links[at as usize].after as usize;
            let before = links[at as usize].before;
            let after = links[gone].after;
            links[gone].id = NONE;
            links[at as usize].id = rank;
            links[at as usize].after = after;
            if after != NONE {
                links[after as usize].before = at;
            }
            for at in [before, at] {
                let rank = if at == NONE { NONE } else { self.rank_at(&links, at) };
                if rank != NONE {
                    heap.push(Reverse((rank, at)));
                }
            }
        }
        ids.extend(links.iter().map(|link| link.id).filter(|id| *id != NONE));
    }

    /// The id that merges the part at `at` with the one after it, or [`NONE`].
    fn rank_at(&self, links: &[Link], at: u32) -> u32 {
        let link = &links[at as usize];
        match links.get(link.after as usize) {
            Some(next) if link.id != NONE => self.pairs.rank(link.id, next.id),
            _ => NONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    /// A vocabulary of random merges over the letters a to c: each of two ids made before.
    fn random_merges(random: &mut impl Rng, count: u32) -> Vec<Merge> {
        let mut merges: Vec<Merge> = Vec::new();
        let any = |random: &mut dyn rand::RngCore, made: u32| match random.random_range(0..made + 3) {
            letter @ 0..3 => u32::from(b'a') + letter,
            earlier => 256 + earlier - 3,
        };
        for id in 256..256 + count {
            let (left, right) = (any(random, id - 256), any(random, id - 256));
            if !merges.iter().any(|m| (m.left, m.right) == (left, right)) {
                merges.push(Merge { left, right, id });
            }
        }
        merges
    }

    #[test]
    fn short_and_long_words_are_encoded_as_the_rule_says() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let byte_ids = std::array::from_fn(|byte| byte as u32);
        for round in 0..300 {
            let list = random_merges(&mut random, round % 60);
            let merges = Merges::new(byte_ids, &list);
            let word: Vec<u8> = (0..random.random_range(1..=LONG)).map(|_| random.random_range(b'a'..=b'c')).collect();
            let mut expected: Vec<u32> = word.iter().map(|byte| u32::from(*byte)).collect();
            while let Some((merge, at)) = list.iter().find_map(|merge| {
                let at = expected.windows(2).position(|pair| pair == [merge.left, merge.right])?;
                Some((merge, at))
            }) {
                expected.splice(at..at + 2, [merge.id]);
            }
            let (mut short, mut long) = (Vec::new(), Vec::new());
            merges.encode_short(&word, &mut short);
            merges.encode_long(&word, &mut long);
            assert_eq!((&short, &long), (&expected, &expected), "{list:?}");
        }
    }

    #[test]
    fn pairs_are_found_and_others_are_not() {
        let mut pairs = Pairs::with_capacity(1000);
        for id in 0..1000 {
            pairs.insert(Merge { left: id % 37, right: id / 37 * 1000, id });
        }
        for id in 0..1000 {
            assert_eq!(pairs.get(id % 37, id / 37 * 1000), Some(id));
            assert_eq!(pairs.get(id, 1), None);
        }
        assert_eq!(Pairs::with_capacity(0).get(0, 0), None);
    }
}
