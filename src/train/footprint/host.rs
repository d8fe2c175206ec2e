//! The memory of all ranks of a run that share it: on CPUs those of one machine.

use super::{DevicePolicy, Footprint, Hardware, Place, bytes};
use crate::config::Config;
use crate::distributed::group::ProcessGroup;
use crate::model::Recompute;
use std::fmt;

/// The ranks of a run, and those of them on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RanksHere {
    pub ranks: u64,
    pub here: u64,
    /// Whether rank 0, which writes checkpoints, is on this machine.
    pub first_is_here: bool,
}

impl RanksHere {
    /// A run in one process.
    pub const ONE: Self = Self::all(1);

    /// A run with `ranks`, all of them on this machine.
    pub const fn all(ranks: u64) -> Self {
        Self { ranks, here: ranks, first_is_here: true }
    }

    /// The ranks of `group`.
    pub fn in_group(group: &ProcessGroup) -> Self {
        let members = group.members();
        let own = members.get(group.rank());
        Self {
            ranks: group.ranks() as u64,
            here: group.ranks_on_this_host() as u64,
            first_is_here: members.first().map(|first| &first.host) == own.map(|own| &own.host),
        }
    }
}

/// What the ranks of a run take on one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFootprint {
    /// Of rank 0.
    pub first: Footprint,
    /// Of every other rank; of a single process it is that of this one.
    pub other: Footprint,
    ranks: RanksHere,
    /// Every rank has the memory of a GPU of its own.
    is_apart: bool,
}

impl HostFootprint {
    /// The memory of training with `config`, computing again what `recompute` says.
    pub fn with(config: &Config, recompute: Recompute, hardware: &Hardware) -> Self {
        let policy = DevicePolicy::new(config, hardware);
        let ranks = hardware.ranks;
        let place = |is_first| Place { ranks: ranks.ranks, is_first: is_first || ranks.ranks == 1 };
        let of = |is_first| Footprint::estimate(config, recompute, policy, place(is_first));
        Self { first: of(true), other: of(false), ranks, is_apart: policy.gpu }
    }

    /// What training cannot do without, of all ranks that share the memory. The copy of a checkpoint is made if there is room for it,
    /// and otherwise saving interrupts training.
    pub fn needed(&self) -> u64 {
        self.joint(Footprint::needed)
    }

    /// What training needs without its passes: weights, gradients, moments, the program, and what ranks keep for each other.
    pub fn without_passes(&self) -> u64 {
        self.joint(|of| of.needed().saturating_sub(of.activations).saturating_sub(of.workspace))
    }

    /// With the copy that a checkpoint is written from.
    pub fn peak(&self) -> u64 {
        self.joint(Footprint::peak)
    }

    fn joint(&self, bytes: impl Fn(&Footprint) -> u64) -> u64 {
        let RanksHere { here, first_is_here, .. } = self.ranks;
        let first = if first_is_here { bytes(&self.first) } else { 0 };
        let others = here - u64::from(first_is_here);
        match (self.is_apart, others) {
            (_, 0) => first,
            (true, _) => first.max(bytes(&self.other)),
            (false, _) => first.saturating_add(bytes(&self.other).saturating_mul(others)),
        }
    }
}

impl fmt::Display for HostFootprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "about {}", bytes(self.peak()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::footprint::recompute;

    fn config(more: &str) -> Config {
        let text = "[model]\nhidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 2\nnum_attention_heads = 4\nvocab_size = 512\n\
                    [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 64\nmicro_batch_size = 2\n\
                    tokens_per_step = 1024\nsteps = 9\n";
        Config::from_toml_str(&format!("{text}{more}"), "a.toml").unwrap()
    }

    fn on_cpu(ranks: RanksHere) -> Hardware {
        Hardware { is_gpu: false, has_cudnn: false, room: None, ranks }
    }

    fn of_ranks(config: &Config, ranks: RanksHere) -> HostFootprint {
        HostFootprint::with(config, Recompute::Selective, &on_cpu(ranks))
    }

    /// With 8 lanes: weights and gradients are on every rank, moments once over all of them, and a rank with 8, 4, 2 or 1 lanes keeps
    /// 3, 2, 1 or no sums.
    #[test]
    fn ranks_share_out_moments_and_lanes() {
        let config = config("lanes = 8\n");
        let n = config.model.n_params();
        for (ranks, sums) in [(1, 3), (2, 2), (4, 1), (8, 0)] {
            let HostFootprint { first, other, .. } = of_ranks(&config, RanksHere::all(ranks));
            for rank in [first, other] {
                assert_eq!((rank.weights, rank.gradients), (4 * n, 4 * n));
                assert_eq!((rank.moments, rank.lane_sums), (8 * n / ranks, 4 * n * sums), "{ranks} ranks");
            }
            // Micro-batches stay within a lane, on whichever rank it is.
            assert_eq!(first.activations, of_ranks(&config, RanksHere::ONE).first.activations);
            let copies = if ranks == 1 { (12 * n, 12 * n) } else { (12 * n, 0) };
            assert_eq!((first.snapshot, other.snapshot), copies);
        }
    }

    /// One process with one lane has no sums; with lanes it has, and they count for what it needs.
    #[test]
    fn lanes_cost_their_sums_on_one_rank_too() {
        let one = of_ranks(&config(""), RanksHere::ONE);
        let four = of_ranks(&config("lanes = 4\n"), RanksHere::ONE);
        let n = config("").model.n_params();
        assert_eq!((one.first.lane_sums, four.first.lane_sums), (0, 2 * 4 * n));
        assert_eq!(four.needed() - one.needed(), 8 * n);
    }

    /// Rank 0 cannot save without a copy once others keep parts of what is saved, and others have none.
    #[test]
    fn the_memory_of_a_machine_is_that_of_its_ranks() {
        let config = config("lanes = 4\n[checkpoint]\nbackground = false\n");
        assert_eq!(of_ranks(&config, RanksHere::ONE).first.snapshot, 0);
        let all = of_ranks(&config, RanksHere::all(4));
        let copy = 12 * config.model.n_params();
        assert_eq!(all.first.peak() - all.other.peak(), copy);
        assert_eq!((all.first.needed(), all.needed()), (all.first.peak(), 4 * all.other.peak() + copy));
        // Two machines with two ranks each: rank 0 is on one of them.
        let beside_first = RanksHere { ranks: 4, here: 2, first_is_here: true };
        let elsewhere = RanksHere { first_is_here: false, ..beside_first };
        assert_eq!(of_ranks(&config, beside_first).peak(), 2 * all.other.peak() + copy);
        assert_eq!(of_ranks(&config, elsewhere).peak(), 2 * all.other.peak());
    }

    /// What must fit decides what is computed again: here all ranks of a machine together.
    #[test]
    fn ranks_that_share_a_machine_have_its_memory_together() {
        let config = config("lanes = 4\n");
        let room = of_ranks(&config, RanksHere::all(2)).needed();
        let chosen = |ranks| recompute(&config, &on_cpu(RanksHere::all(ranks)).with_room(room));
        assert_eq!([1, 2, 4].map(chosen), [Recompute::Selective, Recompute::Selective, Recompute::Full]);
    }
}
