//! A probe: a few real steps of a run, a validation, samples and tasks, which write nothing and say how long the run will take.

use super::passes_of;
use crate::config::Config;
use crate::data::loader::Loader;
use crate::distributed::group::ProcessGroup;
use crate::eval::benchmark::evaluate;
use crate::eval::{ByteLengths, score};
use crate::model::Llama;
use crate::ops::precision::Precision;
use crate::ops::product_rate::ProductRates;
use crate::runtime::memory;
use crate::sample::sampler::{Sampler, SamplerConfig};
use crate::sample::{Limits, encode_prompt, generate};
use crate::tokenizer::Tokenizer;
use crate::train::checks::check_machine;
use crate::train::hardware_change::median;
use crate::train::identity::precision;
use crate::train::model_state::ModelState;
use crate::train::precision_remark::product_shape;
use crate::train::session::Session;
use crate::train::setup::{RunSetup, prepare_benchmarks};
use crate::train::step::take_step;
use anyhow::Result;
use candle_core::Device;
use std::time::{Duration, Instant};

/// Steps of a probe; the first one warms up and does not count.
const PROBED: usize = 4;

/// Short steps are taken more often, for this long.
const PROBE_TIME: Duration = Duration::from_secs(5);

/// The same for steps in the precision that the run does not use: they are compared, and nothing is predicted from them.
const OTHER_PROBED: usize = 3;
const OTHER_PROBE_TIME: Duration = Duration::from_secs(2);

/// Documents of each benchmark task that a probe evaluates.
const PROBED_DOCUMENTS: u64 = 16;

/// Measurements of a few steps.
#[derive(Clone, Debug)]
pub struct Probe {
    pub step_seconds: f64,
    /// Steps in the precision that the run does not use; none on a GPU.
    pub other_precision: Option<OtherPrecision>,
    /// Seconds of a step in which it only reads data.
    pub data_seconds: f64,
    /// Seconds of one validation; none without validation data.
    pub validation_seconds: Option<f64>,
    pub sample_seconds: f64,
    /// Seconds of all benchmark tasks, extrapolated from some documents of each.
    pub task_seconds: f64,
    /// Most memory this process has held.
    pub peak: Option<u64>,
    /// How often the run passes over each of its sources.
    pub passes: Vec<(String, f64)>,
}

/// Measurements in the precision that a run does not use.
#[derive(Clone, Debug)]
pub struct OtherPrecision {
    pub precision: Precision,
    pub step_seconds: f64,
    /// Of both, in products like those of the run.
    pub rates: ProductRates,
}

impl Probe {
    /// Seconds of a step of `ranks`, each with all of a machine like this one or with a GPU of its own, that send `bytes` for each step at
    /// `bandwidth` bytes a second: passes and update are shared out, data are read by each.
    pub fn step_of_ranks(&self, ranks: usize, bytes: u64, bandwidth: f64) -> f64 {
        self.data_seconds + (self.step_seconds - self.data_seconds) / ranks as f64 + bytes as f64 / bandwidth
    }

    /// Seconds that the whole run will take, saving aside.
    pub fn total(&self, config: &Config) -> f64 {
        let steps = config.train.steps;
        let samples = if config.sample.every > 0 { times_in_run(steps, config.sample.every) } else { 0.0 };
        steps as f64 * self.step_seconds
            + times_in_run(steps, config.eval.every) * self.validation_seconds.unwrap_or(0.0)
            + samples * self.sample_seconds
            + times_in_run(steps, config.eval.steps_between_tasks()) * self.task_seconds
    }
}

/// How often something happens that is due at both ends of a run and every `every` steps between them.
fn times_in_run(steps: u64, every: u64) -> f64 {
    (steps.saturating_sub(1).checked_div(every).unwrap_or(0) + 2) as f64
}

/// Takes a few steps of the run of `config`, on its own data, and writes nothing.
///
/// # Errors
/// Those of data and memory.
pub fn probe(config: Config, session: &Session) -> Result<(Config, Probe)> {
    check_machine(&config, session)?;
    let (mut setup, _) = RunSetup::initial(config, None, session)?;
    let config = setup.config;
    let steps = time_steps(&mut setup.state, &setup.loader, &config, PROBED, PROBE_TIME)?;
    let started = Instant::now();
    let lengths = ByteLengths::new(&setup.data.dataset.tokenizer);
    let validation = setup.data.dataset.val.as_ref().map(|rows| {
        score(&session.group, &setup.state.model, rows, &lengths, config.train.micro_batch_size, |_| Ok(()))
            .map(|_| started.elapsed().as_secs_f64())
    });
    // Before samples and tasks, whose memory is not that of training.
    let peak = memory::peak();
    let mut probe = Probe {
        step_seconds: steps.seconds,
        other_precision: None,
        data_seconds: steps.data_seconds,
        validation_seconds: validation.transpose()?,
        sample_seconds: sample_seconds(&config, &setup.state.model, &setup.data.dataset.tokenizer)?,
        task_seconds: task_seconds(&config, &setup.state.model, &setup.data.dataset.tokenizer)?,
        peak,
        passes: passes_of(&config, &setup.loader),
    };
    // Last: nothing else is measured in the other precision.
    probe.other_precision = other_precision(setup.state, &setup.loader, &config, &session.device)?;
    Ok((config, probe))
}

/// Medians over some steps.
struct StepTimes {
    seconds: f64,
    /// Of these those that read data.
    data_seconds: f64,
}

/// Takes the next steps of `state`: at least `least` of them, and as many as the run has while they take less than `time`. The first one
/// warms up and does not count.
fn time_steps(
    state: &mut ModelState,
    loader: &Loader,
    config: &Config,
    least: usize,
    time: Duration,
) -> Result<StepTimes> {
    let count = config.train.sequences_per_step();
    let started = Instant::now();
    let mut seconds = Vec::new();
    let mut data_seconds = Vec::new();
    while seconds.len() < least || (started.elapsed() < time && (seconds.len() as u64) < config.train.steps) {
        let started = Instant::now();
        let batch = loader.batch(state.run.next_sequence, count)?;
        data_seconds.push(started.elapsed().as_secs_f64());
        take_step(state, config, &batch)?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(StepTimes { seconds: median(seconds.split_off(1)), data_seconds: median(data_seconds.split_off(1)) })
}

/// Takes some steps of `state` in the precision that the run does not use. `auto` never chooses it on a CPU, whatever the outcome.
fn other_precision(
    mut state: ModelState,
    loader: &Loader,
    config: &Config,
    device: &Device,
) -> Result<Option<OtherPrecision>> {
    if !device.is_cpu() {
        return Ok(None);
    }
    let rates = ProductRates::measure(product_shape(config))?;
    let precision = match precision(&config.train, device) {
        Precision::F32 => Precision::Bf16,
        Precision::Bf16 => Precision::F32,
    };
    state.model = state.model.with_precision(precision)?;
    let steps = time_steps(&mut state, loader, config, OTHER_PROBED, OTHER_PROBE_TIME)?;
    Ok(Some(OtherPrecision { precision, step_seconds: steps.seconds, rates }))
}

fn sample_seconds(config: &Config, model: &Llama, tokenizer: &Tokenizer) -> Result<f64> {
    let started = Instant::now();
    let limits = Limits { max_tokens: config.sample.max_tokens, ..Default::default() };
    for prompt in config.sample.prompts.iter().filter(|_| config.sample.every > 0) {
        let mut sampler = Sampler::new(SamplerConfig::default(), tokenizer.vocab_size(), config.sample.seed, 0)?;
        let ids = encode_prompt(tokenizer, prompt)?;
        generate(model, tokenizer, &ids, std::slice::from_mut(&mut sampler), &limits, |_, _| Ok(()))?;
    }
    Ok(started.elapsed().as_secs_f64())
}

fn task_seconds(config: &Config, model: &Llama, tokenizer: &Tokenizer) -> Result<f64> {
    let mut some = config.clone();
    some.eval.limit = Some(config.eval.limit.map_or(PROBED_DOCUMENTS, |limit| limit.min(PROBED_DOCUMENTS)));
    let mut seconds = 0.0;
    for (part, whole) in prepare_benchmarks(&some, tokenizer)?.into_iter().zip(prepare_benchmarks(config, tokenizer)?) {
        let started = Instant::now();
        let share = whole.documents() as f64 / part.documents().max(1) as f64;
        evaluate(&ProcessGroup::one(), model, &[part], |_, _| Ok(()))?;
        seconds += started.elapsed().as_secs_f64() * share;
    }
    Ok(seconds)
}
