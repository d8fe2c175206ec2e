//! What is known of a model that is exported: its shape, and what the run left that it is a checkpoint of.

use crate::checkpoint::Opened;
use crate::config::ModelConfig;
use crate::corpus::shards::manifest::ShardManifest;
use crate::hub::{HubName, RepoKind, repository_of};
use crate::inspect::report::{ReportedRun, collect};
use crate::metrics::{Eval, SampleRecord, Val, read_events};
use anyhow::Result;
use std::path::{Path, PathBuf};

pub struct Facts {
    /// The name of the exported directory.
    pub(super) name: String,
    /// The shape that is exported.
    pub(super) model: ModelConfig,
    /// Whether adapters are merged into the weights.
    pub(super) merged: bool,
    /// Whether it has a template for conversations.
    pub(super) is_chat: bool,
    /// Data sets of the Hub that it was trained on, as far as files tell.
    pub(super) datasets: Vec<String>,
    /// `OWNER/NAME` of the model that training started from, if it came from the Hub.
    pub(super) base_on_hub: Option<String>,
    /// The name of its directory otherwise.
    pub(super) base_here: Option<String>,
    /// The last step in the weights; none for a model that is no checkpoint.
    pub(super) step: Option<u64>,
    /// The run up to that step, as its logs have it.
    pub(super) run: Option<ReportedRun>,
}

impl Facts {
    /// The facts of `source`, which is to be exported in the shape `model` to the directory `out`.
    ///
    /// # Errors
    /// Those of reading the logs of its run. A model without a run or logs has fewer facts.
    pub fn gather(source: &Opened, model: ModelConfig, out: &Path) -> Result<Self> {
        let step = source.manifest.as_ref().map(|manifest| manifest.step);
        let run_dir = step.and_then(|_| run_dir(&source.dir));
        let run = run_dir.as_ref().map(|dir| collect(std::slice::from_ref(dir))).transpose()?;
        let run = run.and_then(|report| report.runs.into_iter().next());
        let run = run.zip(step).map(|(run, step)| until(run, step));
        let base = started_from(source, run_dir.as_deref())?;
        let base_on_hub = base.as_deref().and_then(|dir| repository(dir, RepoKind::Model));
        let base_here = base.filter(|_| base_on_hub.is_none()).as_deref().and_then(last_name);
        let name = std::path::absolute(out)?;
        Ok(Self {
            name: last_name(&name).unwrap_or_else(|| "model".to_owned()),
            model,
            merged: source.adapter().is_some(),
            is_chat: run.as_ref().is_some_and(is_tuned) || source.tokenizer_dir().join("chat_template.jinja").exists(),
            datasets: run.as_ref().map(datasets).unwrap_or_default(),
            base_on_hub,
            base_here,
            step,
            run,
        })
    }

    pub(super) fn is_tuned(&self) -> bool {
        self.run.as_ref().is_some_and(is_tuned)
    }

    /// The value of a configuration key as text; none where there is no run or no value.
    pub(super) fn key(&self, key: &str) -> Option<String> {
        let value = self.run.as_ref()?.config.get(key)?;
        Some(value.trim_matches('"').to_owned()).filter(|text| !text.is_empty())
    }

    /// The benchmark scores of the last step that has any.
    pub(super) fn scores(&self) -> Vec<&Eval> {
        let evals = self.run.as_ref().map_or(&[][..], |run| &run.evals);
        let last = evals.last().map(|point| point.record.step);
        evals.iter().map(|point| &point.record).filter(|eval| Some(eval.step) == last).collect()
    }

    pub(super) fn last_validation(&self) -> Option<&Val> {
        Some(&self.run.as_ref()?.val.last()?.record)
    }

    /// The samples of the last step that has any.
    pub(super) fn samples(&self) -> Vec<&SampleRecord> {
        let samples = self.run.as_ref().map_or(&[][..], |run| &run.samples);
        let last = samples.last().map(|sample| sample.step);
        samples.iter().filter(|sample| Some(sample.step) == last).collect()
    }
}

/// The directory of the run that `checkpoint` is one of, if its logs are there.
fn run_dir(checkpoint: &Path) -> Option<PathBuf> {
    let full = checkpoint.canonicalize().ok()?;
    let dir = full.parent()?.parent()?;
    dir.join("metrics.jsonl").exists().then(|| dir.to_owned())
}

/// `run` without what came after `step`: a checkpoint need not be the last.
fn until(mut run: ReportedRun, step: u64) -> ReportedRun {
    run.val.retain(|point| point.record.step <= step);
    run.evals.retain(|point| point.record.step <= step);
    run.samples.retain(|sample| sample.step <= step);
    let points = run.train.step.partition_point(|&of| of <= step);
    run.train.step.truncate(points);
    run.train.tokens.truncate(points);
    run.train.smooth.truncate(points);
    run
}

fn is_tuned(run: &ReportedRun) -> bool {
    run.config.contains_key("sft.base")
}

/// The directory of the model that training started from, by the events of the run or, for adapters, their model.
fn started_from(source: &Opened, run_dir: Option<&Path>) -> Result<Option<PathBuf>> {
    let events = run_dir.map(read_events).transpose()?.unwrap_or_default();
    let start = events.iter().find_map(|event| event["init_from"].as_str().map(PathBuf::from));
    Ok(start.or_else(|| source.base().map(|base| base.dir.clone())))
}

/// The repository of this kind whose part of the Hub's cache `path` lies in.
fn repository(path: &Path, wanted: RepoKind) -> Option<String> {
    repository_of(path).filter(|(kind, _)| *kind == wanted).map(|(_, name)| name)
}

fn last_name(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

/// The data sets of the Hub among the training data: files of its cache, and what prepared directories say that they were made of.
fn datasets(run: &ReportedRun) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths(run, "data.train") {
        found.extend(repository(Path::new(&path), RepoKind::Dataset));
        // Where the shards are gone or have no manifest, nothing is known of their sources.
        let manifest = ShardManifest::load(Path::new(&path)).ok().flatten();
        let sources = manifest.map(|manifest| manifest.sources).unwrap_or_default();
        found.extend(sources.iter().filter_map(|source| source.path.parse::<HubName>().ok()).map(|name| name.repo));
    }
    found.sort();
    found.dedup();
    found
}

/// The strings of a key that holds a list.
fn paths(run: &ReportedRun, key: &str) -> Vec<String> {
    let Some(text) = run.config.get(key) else { return Vec::new() };
    let table: toml::Table = format!("paths = {text}").parse().unwrap_or_default();
    let list = table.get("paths").and_then(toml::Value::as_array).into_iter().flatten();
    list.filter_map(|value| value.as_str().map(str::to_owned)).collect()
}
