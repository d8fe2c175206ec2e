//! Which micro-batches fit, and what they compute again: the one answer for `plan`, the run's own check, and its hints.

use super::{Hardware, HostFootprint, bytes};
use crate::config::{Config, RecomputeSetting};
use crate::model::Recompute;

/// How a micro-batch trains on some hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Its sequences; they divide those of a step.
    pub micro_batch_size: usize,
    pub recompute: Recompute,
    pub footprint: HostFootprint,
    /// Whether there is room for the copy of a checkpoint as well, from which it is written while training continues.
    pub with_copy: bool,
}

impl Fit {
    /// The micro-batch of `config`, whether it fits or not.
    pub fn of_config(config: &Config, hardware: &Hardware) -> Self {
        let recompute = recompute(config, hardware);
        let footprint = HostFootprint::with(config, recompute, hardware);
        let with_copy = hardware.fits(footprint.peak());
        Self { micro_batch_size: config.train.sequences_per_pass(), recompute, footprint, with_copy }
    }
}

/// `train.recompute`, where "auto" is the least that lets training fit.
pub fn recompute(config: &Config, hardware: &Hardware) -> Recompute {
    let fits = |recompute: &Recompute| hardware.fits(HostFootprint::with(config, *recompute, hardware).needed());
    match config.train.recompute {
        RecomputeSetting::None => Recompute::None,
        RecomputeSetting::Selective => Recompute::Selective,
        RecomputeSetting::Full => Recompute::Full,
        RecomputeSetting::Auto => choices(hardware).iter().copied().find(fits).unwrap_or(Recompute::Full),
    }
}

/// What "auto" chooses from, the least first. On a CPU norms and SwiGLU are computed again in any case: it costs next to nothing beside the
/// products there, and takes a third less memory.
fn choices(hardware: &Hardware) -> &'static [Recompute] {
    match hardware.is_gpu {
        true => &[Recompute::None, Recompute::Selective, Recompute::Full],
        false => &[Recompute::Selective, Recompute::Full],
    }
}

/// The micro-batches with the same tokens per step, from the largest to the smallest, as a run would train with each.
pub fn micro_batches(config: &Config, hardware: &Hardware) -> impl Iterator<Item = Fit> {
    let sequences = config.train.sequences_per_step();
    // A pass stays within a lane.
    let most = sequences / config.train.lanes();
    let mut other = config.clone();
    (1..=most).rev().filter(move |size| sequences.is_multiple_of(*size)).map(move |size| {
        other.train.micro_batch_size = size;
        Fit::of_config(&other, hardware)
    })
}

/// The largest micro-batch that fits into the hardware's room. If whole blocks are then computed again because of
/// `train.recompute = "auto"`, the largest one without that comes second. Empty if not even one sequence fits.
pub fn largest_fits(config: &Config, hardware: &Hardware) -> Vec<Fit> {
    let mut fitting = micro_batches(config, hardware).filter(|fit| hardware.fits(fit.footprint.needed()));
    let Some(largest) = fitting.next() else { return Vec::new() };
    let is_chosen = config.train.recompute == RecomputeSetting::Auto;
    let lighter = if is_chosen && largest.recompute == Recompute::Full {
        fitting.find(|fit| fit.recompute != Recompute::Full)
    } else {
        None
    };
    [largest].into_iter().chain(lighter).collect()
}

/// What to do where not even a micro-batch of one sequence fits.
pub fn what_to_shrink(config: &Config, hardware: &Hardware) -> String {
    let state = HostFootprint::with(config, Recompute::Full, hardware).without_passes();
    if hardware.fits(state) {
        return "shorten train.sequence_length or choose a smaller [model]".to_owned();
    }
    format!("choose a smaller [model]: what does not depend on the micro-batch takes {}", bytes(state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::footprint::RanksHere;

    /// 24 sequences a step.
    fn config() -> Config {
        let text = "[model]\nhidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 2\nnum_attention_heads = 4\nvocab_size = 512\n\
            [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 64\nmicro_batch_size = 2\n\
            tokens_per_step = 1536\nsteps = 1000\n";
        Config::from_toml_str(text, "a.toml").unwrap()
    }

    fn hardware(is_gpu: bool) -> Hardware {
        Hardware { is_gpu, has_cudnn: false, room: None, ranks: RanksHere::ONE }
    }

    fn with(size: usize, recompute: Recompute, is_gpu: bool) -> HostFootprint {
        let mut other = config();
        other.train.micro_batch_size = size;
        HostFootprint::with(&other, recompute, &hardware(is_gpu))
    }

    fn largest(limit: u64) -> Option<(usize, Recompute, bool)> {
        let fits = largest_fits(&config(), &hardware(false).with_room(limit));
        fits.first().map(|fit| (fit.micro_batch_size, fit.recompute, fit.with_copy))
    }

    #[test]
    fn the_largest_micro_batch_that_fits_divides_the_step() {
        assert_eq!(largest(u64::MAX), Some((24, Recompute::Selective, true)));
        assert_eq!(largest(1000), None);
        // What a run cannot do without decides, not the copy that it makes if there is room.
        let all = with(24, Recompute::Selective, false);
        assert_eq!(largest(all.peak()), Some((24, Recompute::Selective, true)));
        assert_eq!(largest(all.peak() - 1), Some((24, Recompute::Selective, false)));
        assert_eq!(largest(all.needed() - 1).unwrap().1, Recompute::Full);
        let one = with(1, Recompute::Full, false).needed();
        assert_eq!(largest(one).unwrap().0, 1);
        assert_eq!(largest(one - 1), None);
        for limit in (0..all.peak()).step_by(100_000) {
            let hardware = hardware(false).with_room(limit);
            for found in largest_fits(&config(), &hardware) {
                let mut other = config();
                other.train.micro_batch_size = found.micro_batch_size;
                let needed = Fit::of_config(&other, &hardware).footprint.needed();
                assert!(needed <= limit, "the run itself refuses {found:?} in {limit}");
            }
        }
    }

    /// The largest comes first, whatever it computes again; the largest that need not, second.
    #[test]
    fn a_lighter_micro_batch_is_proposed_beside_whole_blocks() {
        let room = with(24, Recompute::Full, false).needed();
        let [largest, lighter] = largest_fits(&config(), &hardware(false).with_room(room))[..] else { panic!() };
        assert_eq!((largest.micro_batch_size, largest.recompute), (24, Recompute::Full));
        assert!(lighter.recompute == Recompute::Selective && lighter.micro_batch_size < 24);
    }

    /// Nothing is computed again on a GPU with room for it.
    #[test]
    fn a_gpu_computes_again_only_what_does_not_fit() {
        let [none, selective] = [Recompute::None, Recompute::Selective].map(|level| with(2, level, true).needed());
        for (room, chosen) in
            [(none, Recompute::None), (none - 1, Recompute::Selective), (selective - 1, Recompute::Full)]
        {
            assert_eq!(recompute(&config(), &hardware(true).with_room(room)), chosen);
        }
        assert_eq!(recompute(&config(), &hardware(false)), Recompute::Selective);
    }

    #[test]
    fn classes_add_up_to_the_peak() {
        let footprint = with(2, Recompute::Selective, false);
        assert_eq!(footprint.first.classes().iter().map(|(_, n)| n).sum::<u64>(), footprint.peak());
    }
}
