//! How several runs differ: in their names, configurations and seeds.

use super::ReportedRun;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A key with a value for each run.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `section.key`.
    pub key: String,
    /// One for each run; none where it has none.
    pub values: Vec<Option<String>>,
}

/// Gives each run the shortest end of its path that no other run has as well.
pub(super) fn tell_apart(runs: &mut [ReportedRun], dirs: &[PathBuf]) {
    let parts: Vec<Vec<String>> =
        dirs.iter().map(|dir| dir.iter().map(|part| part.to_string_lossy().into_owned()).collect()).collect();
    let longest = parts.iter().map(Vec::len).max().unwrap_or(1);
    for n in 1..=longest {
        let names: Vec<String> = parts.iter().map(|parts| parts[parts.len().saturating_sub(n)..].join("/")).collect();
        let mut distinct = names.clone();
        distinct.sort();
        distinct.dedup();
        if distinct.len() == names.len() || n == longest {
            runs.iter_mut().zip(names).for_each(|(run, name)| run.name = name);
            return;
        }
    }
}

/// Keys in which the configurations of `runs` differ.
pub(super) fn differences(runs: &[ReportedRun]) -> Vec<Difference> {
    let mut keys: Vec<&String> = runs.iter().flat_map(|run| run.config.keys()).collect();
    keys.sort();
    keys.dedup();
    let mut differences = Vec::new();
    for key in keys {
        let values: Vec<Option<String>> = runs.iter().map(|run| run.config.get(key).cloned()).collect();
        if values.iter().any(|value| *value != values[0]) {
            differences.push(Difference { key: key.clone(), values });
        }
    }
    differences
}

/// Groups of two runs or more with one configuration but for seeds, each with a seed and a past of its own: a copy or a branch of a
/// run says nothing about noise.
pub(super) fn replicas(runs: &[ReportedRun]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (i, run) in runs.iter().enumerate().filter(|(_, run)| !run.config.is_empty()) {
        let group = groups.entry((config_without_seeds(run), &run.given_up)).or_default();
        if group.iter().all(|other| independent(&runs[*other], run)) {
            group.push(i);
        }
    }
    groups.into_values().filter(|group| group.len() > 1).collect()
}

fn config_without_seeds(run: &ReportedRun) -> BTreeMap<String, String> {
    const SEEDS: [&str; 4] = ["train.seed", "data.seed", "sample.seed", "data.allow_change"];
    run.config.clone().into_iter().filter(|(key, _)| !SEEDS.contains(&key.as_str())).collect()
}

/// Whether two runs have other weights or data by their seeds, and other first steps in their logs.
fn independent(a: &ReportedRun, b: &ReportedRun) -> bool {
    let same_seeds = ["train.seed", "data.seed"].iter().all(|seed| a.config.get(*seed) == b.config.get(*seed));
    !same_seeds && a.began.is_some() && b.began.is_some() && a.began != b.began
}

/// What resumes have done to a run besides changing its configuration.
pub(super) fn given_up(events: &[Value]) -> Vec<String> {
    let mut given_up = Vec::new();
    for event in events {
        let reset = event["reset"].as_array().filter(|pieces| !pieces.is_empty());
        let skipped = event["skipped_sequences"].as_array();
        given_up.extend(reset.into_iter().chain(skipped).map(|list| format!("{list:?}")));
    }
    given_up
}
