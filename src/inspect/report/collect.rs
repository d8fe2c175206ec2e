//! A run directory as the data of a report.

mod clock;
mod compare;
mod event;

use crate::config::{Config, current_key};
use crate::metrics::{Eval, Layers, Record, SampleRecord, Times, Train, Val, read, read_events, read_log};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::read_bounded;
use anyhow::Result;
use clock::{StepParts, parts, spent};
use compare::{Difference, differences, given_up, replicas, tell_apart};
use event::Event;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Points of a curve: more than a screen has pixels.
const POINTS: usize = 1500;

/// Share of a step in the smoothed loss, if a run is not so short that all of it would be one.
const SMOOTHING: f64 = 0.05;

/// A configuration is text written by people.
const MAX_CONFIG: u64 = 1 << 20;

#[derive(Debug, Serialize)]
pub struct RunReport {
    /// The runs, in the order given.
    pub runs: Vec<ReportedRun>,
    /// Keys in which their configurations differ.
    pub differences: Vec<Difference>,
    /// Runs that differ in their seeds alone: what lies between them is noise.
    pub replicas: Vec<Vec<usize>>,
}

#[derive(Debug, Serialize)]
pub struct ReportedRun {
    /// What tells it from the others: the end of its path.
    pub name: String,
    pub step: u64,
    /// Whether its last process reached its last step.
    pub finished: bool,
    /// Thinned to what a chart can show.
    pub train: Curve,
    pub val: Vec<Point<Val>>,
    pub evals: Vec<Point<Eval>>,
    pub layers: Vec<Point<Layers>>,
    /// State that was given up or data that were skipped on the way, on purpose.
    pub given_up: Vec<String>,
    pub samples: Vec<SampleRecord>,
    pub events: Vec<Event>,
    /// Seconds spent in all, by what they were spent on.
    pub spent: BTreeMap<String, f64>,
    /// The parts of its steps, thinned.
    pub parts: StepParts,
    /// Floating-point operations of training on one token.
    pub flops_per_token: Option<u64>,
    pub config: BTreeMap<String, String>,
    /// The machine and build of its last start.
    pub build: Map<String, Value>,
    /// Its first step, as the log has it, clock readings aside: equal for runs with a common past.
    #[serde(skip)]
    pub began: Option<String>,
}

/// A record and its place on the axis of tokens.
#[derive(Debug, Serialize)]
pub struct Point<T> {
    /// Tokens trained on up to its step.
    pub seen: u64,
    #[serde(flatten)]
    pub record: T,
}

/// The steps of a run: each point stands for one step or several.
#[derive(Debug, Default, Serialize)]
pub struct Curve {
    /// The last step of each point.
    pub step: Vec<u64>,
    /// Tokens trained on up to that step.
    pub tokens: Vec<u64>,
    pub smooth: Vec<f64>,
    pub low: Vec<f64>,
    pub high: Vec<f64>,
    pub grad_norm: Vec<f64>,
    pub lr: Vec<f64>,
    pub tokens_per_second: Vec<f64>,
    /// The mean utilisation of the device, where its peak is known.
    pub mfu: Vec<f64>,
}

/// The report of the runs in `dirs`.
///
/// # Errors
/// [`Exit::Io`] for a directory that is no run.
pub fn collect(dirs: &[PathBuf]) -> Result<RunReport> {
    let mut runs = dirs.iter().map(|dir| run(dir)).collect::<Result<Vec<_>>>()?;
    tell_apart(&mut runs, dirs);
    Ok(RunReport { differences: differences(&runs), replicas: replicas(&runs), runs })
}

fn run(dir: &Path) -> Result<ReportedRun> {
    let metrics = dir.join("metrics.jsonl");
    if !metrics.exists() {
        return Err(fail(Exit::Io, format!("{}: no run: it has no metrics.jsonl", dir.display()))
            .hint("give the directory of a run, such as runs/quickstart")
            .into());
    }
    let mut train = Vec::new();
    let mut val = Vec::new();
    let mut evals = Vec::new();
    let mut layers = Vec::new();
    for record in read(&metrics)? {
        match record {
            Record::Train(step) => train.push(step),
            Record::Val(v) => val.push(v),
            Record::Eval(eval) => evals.push(eval),
            Record::Layers(norms) => layers.push(norms),
        }
    }
    let samples = read_log::<SampleRecord>(dir)?;
    let times = read_log::<Times>(dir)?;
    let raw = read_events(dir)?;
    let events: Vec<Event> = raw.iter().map(|event| Event::new(event, &train)).collect();
    let text = config(dir)?;
    let build = raw.iter().rev().find_map(|event| event["build"].as_object().cloned()).unwrap_or_default();
    Ok(ReportedRun {
        name: dir.display().to_string(),
        step: train.last().map_or(0, |step| step.step),
        finished: has_finished(&events),
        val: val.into_iter().map(|v| Point { seen: tokens_at(&train, v.step), record: v }).collect(),
        evals: evals.into_iter().map(|e| Point { seen: tokens_at(&train, e.step), record: e }).collect(),
        layers: thin_records(layers).map(|l| Point { seen: tokens_at(&train, l.step), record: l }).collect(),
        samples,
        spent: spent(&times),
        parts: parts(&times, &train),
        given_up: given_up(&raw),
        events,
        flops_per_token: flops_per_token(&text),
        config: flat(&text),
        build,
        began: train
            .first()
            .map(|first| format!("{} {} {:?} {:?}", first.step, first.chain, first.loss, first.grad_norm)),
        train: curve(&train),
    })
}

/// Whether the last process of the run came to the end of it: a run that is extended goes on after it has finished.
fn has_finished(events: &[Event]) -> bool {
    let ends = events.iter().rev().find(|event| ["start", "resume", "finish"].contains(&event.kind.as_str()));
    ends.is_some_and(|event| event.kind == "finish")
}

/// Some of `records`, equally spaced: as many as a curve can show.
fn thin_records<T>(records: Vec<T>) -> impl Iterator<Item = T> {
    let every = records.len().div_ceil(POINTS / 4).max(1);
    records.into_iter().step_by(every)
}

/// Tokens after `step`, by the last record up to it.
fn tokens_at(train: &[Train], step: u64) -> u64 {
    let until = train.partition_point(|record| record.step <= step);
    until.checked_sub(1).map_or(0, |i| train[i].tokens)
}

/// The resolved configuration of a run; nothing where there is none.
fn config(dir: &Path) -> Result<String> {
    let path = dir.join("config.toml");
    if !path.exists() {
        return Ok(String::new());
    }
    Ok(String::from_utf8_lossy(&read_bounded(&path, MAX_CONFIG, true)?).into_owned())
}

fn flops_per_token(text: &str) -> Option<u64> {
    let config = Config::from_toml_str(text, "config.toml").ok()?;
    Some(config.model.flops_per_token(config.train.sequence_length))
}

fn flat(text: &str) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    // Renamed keys have their present names; beyond that a report shows what the file holds and validates nothing.
    let table: toml::Table = text.parse().unwrap_or_default();
    for (section, keys) in &table {
        for (key, value) in keys.as_table().into_iter().flatten() {
            flat.insert(current_key(&format!("{section}.{key}")).to_owned(), value.to_string());
        }
    }
    flat
}

/// The steps as at most [`POINTS`] points.
fn curve(train: &[Train]) -> Curve {
    let mut curve = Curve::default();
    let mut smooth = 0.0;
    let mut weight = 0.0;
    // Short runs are smoothed over fewer steps.
    let keep = 1.0 - SMOOTHING.max(5.0 / train.len().max(1) as f64).min(1.0);
    let mut tokens = 0;
    for piece in train.chunks(train.len().div_ceil(POINTS).max(1)) {
        for loss in piece.iter().map(|step| step.loss).filter(|loss| loss.is_finite()) {
            smooth = keep * smooth + (1.0 - keep) * loss;
            weight = keep * weight + (1.0 - keep);
        }
        let Some(last) = piece.last() else { continue };
        let losses = piece.iter().map(|step| step.loss);
        let fed = last.tokens.saturating_sub(tokens) as f64;
        let tokens_per_step = fed / piece.len() as f64;
        let took: f64 = piece.iter().map(|step| tokens_per_step / step.tokens_per_second).sum();
        // A slow step counts for as long as it took, as in tokens over time: a mean of rates would flatter uneven steps.
        let utilised: f64 = piece.iter().map(|step| step.mfu * (tokens_per_step / step.tokens_per_second)).sum();
        tokens = last.tokens;
        curve.step.push(last.step);
        curve.tokens.push(last.tokens);
        curve.smooth.push(smooth / weight);
        curve.low.push(losses.clone().fold(f64::NAN, f64::min));
        curve.high.push(losses.fold(f64::NAN, f64::max));
        curve.grad_norm.push(piece.iter().map(|step| step.grad_norm).fold(f64::NAN, f64::max));
        curve.lr.push(last.lr);
        curve.tokens_per_second.push(fed / took);
        curve.mfu.push(utilised / took);
    }
    curve
}

impl RunReport {
    /// As the page holds it. Numbers that are not finite are null.
    pub(super) fn to_json(&self) -> Result<String> {
        // Within a script element only "<" could end it or begin a comment.
        Ok(serde_json::to_string(self)?.replace('<', "\\u003c"))
    }
}

#[cfg(test)]
mod tests;
