//! `plan`: what a run will take, before it starts; and, with a probe, measured on a few of its steps.

mod probe;

use crate::config::{CLASSES, Config, RecomputeSetting};
use crate::data::dataset::Dataset;
use crate::data::loader::Loader;
use crate::model::Recompute;
use crate::train::footprint::{HostFootprint, RanksHere, checkpoint_bytes, recompute_within};
use crate::train::run_data::RunData;
use crate::train::schedule::Schedule;
use anyhow::Result;
use candle_core::Device;
pub use probe::{OtherPrecision, Probe, probe};

/// Parts of a model's parameters by what they do.
pub fn parameters(config: &Config) -> Vec<(&'static str, u64)> {
    CLASSES.map(|class| (class, config.model.count_elements(|p| p.class() == class))).to_vec()
}

/// How often the run passes over each of its sources: (name, passes). None where that is not known before the data are read as text.
///
/// # Errors
/// Those of the data, if they are shards.
pub fn passes(config: &Config) -> Result<Option<Vec<(String, f64)>>> {
    if !Dataset::is_sharded(config)? {
        return Ok(None);
    }
    let data = RunData::open(config, None)?;
    Ok(Some(passes_of(config, &data.dataset.loader(config)?)))
}

fn passes_of(config: &Config, loader: &Loader) -> Vec<(String, f64)> {
    let all = config.train.steps * config.train.sequences_per_step() as u64;
    loader.drawn(all).iter().map(|drawn| (drawn.name.to_owned(), drawn.passes)).collect()
}

/// Checkpoints on the disk when the run has ended, one being written included.
pub fn kept_checkpoints(config: &Config) -> u64 {
    let c = &config.checkpoint;
    let steps = config.train.steps;
    let often = steps.checked_div(c.keep_every).unwrap_or(0);
    let early = if c.log_spaced { u64::from(steps.ilog2()) + 1 } else { 0 };
    let written = steps.checked_div(c.every).unwrap_or(0).max(1) + early;
    (often + early + c.keep as u64 + 1).min(written + 1)
}

/// Bytes of the checkpoints that [`kept_checkpoints`] counts.
pub fn disk(config: &Config) -> u64 {
    checkpoint_bytes(config).saturating_mul(kept_checkpoints(config))
}

/// The learning rate over the run, as points of a plot.
///
/// # Errors
/// Those of the schedule.
pub fn rates(config: &Config) -> Result<Vec<(f64, f64)>> {
    let schedule = Schedule::new(&config.schedule, config.optimizer.lr)?;
    let steps = config.train.steps;
    let points = steps.clamp(1, 400);
    let updates = (0..points).map(|i| i * steps.saturating_sub(1) / points.saturating_sub(1).max(1));
    Ok(updates.map(|update| ((update + 1) as f64, schedule.lr(update))).collect())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Its sequences; they divide those of a step.
    pub micro_batch_size: usize,
    pub recompute: Recompute,
    /// Whether there is room for the copy of a checkpoint as well, from which it is written while training continues.
    pub with_copy: bool,
}

/// The largest micro-batch with which training on `ranks` fits into `limit` bytes, with the same tokens per step, and as a run there would
/// decide it. If whole blocks are then computed again because of `train.recompute = "auto"`, the largest one without that comes
/// second. Empty if not even one sequence fits.
pub fn fit(config: &Config, limit: u64, device: &Device, ranks: RanksHere) -> Vec<Fit> {
    let largest = largest_fit(config, limit, device, ranks);
    let mut lighter = config.clone();
    lighter.train.recompute = RecomputeSetting::Selective;
    let choice =
        largest.is_some_and(|fit| fit.recompute == Recompute::Full) && config.train.recompute == RecomputeSetting::Auto;
    let second = if choice { largest_fit(&lighter, limit, device, ranks) } else { None };
    largest.into_iter().chain(second).collect()
}

fn largest_fit(config: &Config, limit: u64, device: &Device, ranks: RanksHere) -> Option<Fit> {
    let sequences = config.train.sequences_per_step();
    let most = sequences / config.train.lanes();
    let mut other = config.clone();
    for micro_batch_size in (1..=most).rev().filter(|micro| sequences.is_multiple_of(*micro)) {
        other.train.micro_batch_size = micro_batch_size;
        let footprint = HostFootprint::within(&other, limit, device, ranks);
        if footprint.needed() <= limit {
            let recompute = recompute_within(&other, Some(limit), device, ranks);
            return Some(Fit { micro_batch_size, recompute, with_copy: footprint.peak() <= limit });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> Config {
        let text = "[model]\nhidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 2\nnum_attention_heads = 4\nvocab_size = 512\n\
            [data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 64\nmicro_batch_size = 2\n\
            tokens_per_step = 1536\nsteps = 1000\n";
        Config::from_toml_str(&format!("{text}{more}"), "a.toml").unwrap()
    }

    #[test]
    fn classes_add_up_to_the_model() {
        let config = config("");
        let total: u64 = parameters(&config).iter().map(|(_, n)| n).sum();
        assert_eq!(total, config.model.n_params());
        let footprint = HostFootprint::new(&config, &Device::Cpu, RanksHere::ONE);
        assert_eq!(footprint.first.classes().iter().map(|(_, n)| n).sum::<u64>(), footprint.peak());
    }

    #[test]
    fn the_largest_micro_batch_that_fits_divides_the_step() {
        let config = config("");
        // 24 sequences a step.
        let with = |micro, recompute| {
            let mut other = config.clone();
            (other.train.micro_batch_size, other.train.recompute) = (micro, recompute);
            HostFootprint::new(&other, &Device::Cpu, RanksHere::ONE)
        };
        let largest = |limit: u64| {
            fit(&config, limit, &Device::Cpu, RanksHere::ONE)
                .first()
                .map(|fit| (fit.micro_batch_size, fit.recompute, fit.with_copy))
        };
        assert_eq!(largest(u64::MAX), Some((24, Recompute::Selective, true)));
        assert_eq!(largest(1000), None);
        // What a run cannot do without decides, not the copy that it makes if there is room.
        let (all, full) = (with(24, RecomputeSetting::Selective), with(24, RecomputeSetting::Full));
        assert_eq!(largest(all.peak()), Some((24, Recompute::Selective, true)));
        assert_eq!(largest(all.peak() - 1), Some((24, Recompute::Selective, false)));
        assert_eq!(largest(all.needed() - 1).unwrap().1, Recompute::Full);
        // The largest comes first, whatever it computes again; the largest that need not, second.
        assert_eq!(largest(full.needed()).unwrap().0, 24);
        let [_, lighter] = fit(&config, full.needed(), &Device::Cpu, RanksHere::ONE)[..] else { panic!() };
        assert!(lighter.recompute == Recompute::Selective && lighter.micro_batch_size < 24);
        assert_eq!(largest(with(1, RecomputeSetting::Full).needed()).unwrap().0, 1);
        assert_eq!(largest(with(1, RecomputeSetting::Full).needed() - 1), None);
        for limit in (0..all.peak()).step_by(100_000) {
            for found in fit(&config, limit, &Device::Cpu, RanksHere::ONE) {
                let mut other = config.clone();
                other.train.micro_batch_size = found.micro_batch_size;
                assert!(
                    HostFootprint::within(&other, limit, &Device::Cpu, RanksHere::ONE).needed() <= limit,
                    "the run itself refuses {found:?} in {limit}"
                );
            }
        }
    }

    #[test]
    fn time_and_work_are_those_of_the_whole_run() {
        let mut config = config("[eval]\nevery = 100\n[sample]\nevery = 300\nprompts = [\"a\"]\n");
        config.eval.tasks_every = 0;
        let probe = Probe {
            step_seconds: 0.5,
            other_precision: None,
            data_seconds: 0.1,
            validation_seconds: Some(3.0),
            sample_seconds: 0.25,
            task_seconds: 0.0,
            peak: None,
            passes: Vec::new(),
        };
        // Validated before the first step, at 100, 200 ... 900, and at the end; sampled at 0, 300, 600, 900 and 1000.
        assert_eq!(probe.total(&config), 1000.0 * 0.5 + 11.0 * 3.0 + 5.0 * 0.25);
        // Four times less of what is shared out, and 300 bytes at 1,000 a second.
        assert!((probe.step_of_ranks(4, 300, 1000.0) - (0.1 + 0.1 + 0.3)).abs() < 1e-12);
        let per_token = config.model.flops_per_token(64) as f64;
        assert_eq!(
            [0, 600, 2000].map(|step| config.flops_after(step)),
            [1000.0, 400.0, 0.0].map(|n| n * 1536.0 * per_token)
        );
        // 24 sequences a step over a source of 240.
        let source = crate::data::loader::TokenSource {
            name: "text".into(),
            tokens: crate::data::Tokens::Memory(std::sync::Arc::new(vec![0; 240 * 64 + 1])),
        };
        let plan = crate::data::loader::LoaderConfig {
            sequence_length: 64,
            seed: 1,
            shuffle: true,
            weights: vec![],
            boundary: None,
        };
        let loader = Loader::new(vec![source], &plan).unwrap();
        assert_eq!(passes_of(&config, &loader), [("text".to_owned(), 100.0)]);
    }

    #[test]
    fn the_disk_holds_what_is_kept() {
        // 1000 steps: the last two, one being written, and every 200th.
        let kept = config("[checkpoint]\nevery = 100\nkeep = 2\nkeep_every = 200\n");
        assert_eq!(kept_checkpoints(&kept), 5 + 2 + 1);
        assert_eq!(disk(&kept), 8 * 12 * kept.model.n_params());
        assert_eq!(kept_checkpoints(&config("[checkpoint]\nevery = 0\n")), 2);
        let rates = rates(&kept).unwrap();
        assert_eq!((rates.len(), rates[399].0), (400, 1000.0));
    }
}
