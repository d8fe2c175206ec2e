//! Which part of the flat buffers each rank owns: its shard of the summed gradient, of the weights it updates and of the optimizer's
//! state. Ownership is computed here and nowhere else.

use std::ops::Range;

/// Elements of a flat buffer, cut into as many shards as there are ranks. Cuts are at multiples of the pieces over which norms are
/// summed, so that a piece has one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    total: usize,
    piece: usize,
    ranks: usize,
}

impl Shards {
    /// `ranks` is a power of two. With fewer pieces than ranks some shards are empty.
    pub fn new(total: usize, piece: usize, ranks: usize) -> Self {
        Self { total, piece, ranks }
    }

    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The elements of the shards `first..last`.
    pub fn span(&self, shards: Range<usize>) -> Range<usize> {
        let pieces = self.total.div_ceil(self.piece);
        let cut = |shard: usize| (shard * pieces / self.ranks * self.piece).min(self.total);
        cut(shards.start)..cut(shards.end)
    }

    /// The elements that `rank` owns.
    pub fn of_rank(&self, rank: usize) -> Range<usize> {
        let shard = self.shard_of(rank);
        self.span(shard..shard + 1)
    }

    /// The index of the shard of `rank`: the bits of the rank in reverse, because the exchange with the nearest neighbour is the first
    /// one and halves the whole buffer.
    pub fn shard_of(&self, rank: usize) -> usize {
        let bits = self.ranks.trailing_zeros();
        if bits == 0 { 0 } else { rank.reverse_bits() >> (usize::BITS - bits) }
    }

    /// The ranks in the order of their shards.
    pub fn owners(&self) -> impl Iterator<Item = usize> + use<> {
        let shards = *self;
        // Reversing the bits twice gives the rank again.
        (0..shards.ranks).map(move |shard| shards.shard_of(shard))
    }

    /// In each round of recursive halving by `rank`, from the first: the peer, the shards that are kept, and those that go to the peer.
    pub fn rounds(&self, rank: usize) -> Vec<Round> {
        let mut held = 0..self.ranks;
        let mut rounds = Vec::new();
        for bit in 0..self.ranks.trailing_zeros() {
            let middle = held.start + held.len() / 2;
            let lower = held.start..middle;
            let upper = middle..held.end;
            let keeps_lower = rank >> bit & 1 == 0;
            let (kept, given) = if keeps_lower { (lower, upper) } else { (upper, lower) };
            rounds.push(Round { peer: rank ^ (1 << bit), kept: self.span(kept.clone()), given: self.span(given) });
            held = kept;
        }
        rounds
    }
}

/// One exchange of recursive halving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    pub peer: usize,
    /// The elements that this rank goes on with.
    pub kept: Range<usize>,
    /// The elements that the peer goes on with.
    pub given: Range<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_round_leaves_every_rank_its_own_shard() {
        for (total, piece) in [(1000, 64), (64, 64), (65, 64), (1 << 20, 4096), (1, 1), (12345, 1)] {
            for ranks in [1, 2, 4, 8, 16] {
                let shards = Shards::new(total, piece, ranks);
                let mut covered = 0;
                for rank in shards.owners() {
                    let own = shards.of_rank(rank);
                    assert_eq!(own.start, covered, "shards follow each other");
                    assert!(own.start.is_multiple_of(piece) || own.start == total);
                    covered = own.end;
                    assert_eq!(shards.rounds(rank).last().map_or(0..total, |round| round.kept.clone()), own);
                }
                assert_eq!(covered, total);
            }
        }
    }

    #[test]
    fn peers_agree_on_what_each_of_them_keeps() {
        let shards = Shards::new(100_000, 1000, 8);
        for rank in 0..8 {
            for (i, round) in shards.rounds(rank).iter().enumerate() {
                let theirs = &shards.rounds(round.peer)[i];
                assert_eq!((theirs.peer, &theirs.kept, &theirs.given), (rank, &round.given, &round.kept));
            }
        }
        assert_eq!(shards.rounds(0).iter().map(|round| round.peer).collect::<Vec<_>>(), [1, 2, 4]);
    }
}
