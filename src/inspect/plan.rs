//! `plan`: what a run will take, before it starts; and, with a probe, measured on a few of its steps.

mod probe;
mod speed;

use crate::config::{CLASSES, Config};
use crate::data::dataset::Dataset;
use crate::data::loader::Loader;
use crate::train::run_data::RunData;
use crate::train::schedule::Schedule;
use anyhow::Result;
pub use probe::{OtherPrecision, Probe, probe};
pub use speed::Speed;

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
    fn the_plot_of_the_rate_is_the_whole_run() {
        let rates = rates(&config("")).unwrap();
        assert_eq!((rates.len(), rates[399].0), (400, 1000.0));
    }
}
