//! What tells runs apart.

use super::Run;
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

/// Names without what they have in common.
pub(super) fn tell_apart(runs: &mut [Run], dirs: &[PathBuf]) {
    let parts: Vec<Vec<String>> =
        dirs.iter().map(|dir| dir.iter().map(|part| part.to_string_lossy().into_owned()).collect()).collect();
    let longest = parts.iter().map(Vec::len).max().unwrap_or(1);
    let name = |parts: &[String], n: usize| parts[parts.len().saturating_sub(n)..].join("/");
    for n in 1..=longest {
        let names: Vec<String> = parts.iter().map(|parts| name(parts, n)).collect();
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
pub(super) fn differences(runs: &[Run]) -> Vec<Difference> {
    let mut keys: Vec<&String> = runs.iter().flat_map(|run| run.config.keys()).collect();
    keys.sort();
    keys.dedup();
    let of = |key: &String| Difference {
        key: key.clone(),
        values: runs.iter().map(|run| run.config.get(key).cloned()).collect(),
    };
    keys.into_iter().map(of).filter(|d| d.values.iter().any(|value| *value != d.values[0])).collect()
}

/// Groups of two runs or more with one configuration but for seeds, each with a seed and a past of its own: a copy or a branch of a
/// run says nothing about noise.
pub(super) fn replicas(runs: &[Run]) -> Vec<Vec<usize>> {
    const SEEDS: [&str; 4] = ["train.seed", "data.seed", "sample.seed", "data.allow_change"];
    let but_seeds = |run: &Run| -> BTreeMap<String, String> {
        run.config.clone().into_iter().filter(|(key, _)| !SEEDS.contains(&key.as_str())).collect()
    };
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (i, run) in runs.iter().enumerate().filter(|(_, run)| !run.config.is_empty()) {
        let group = groups.entry((but_seeds(run), &run.given_up)).or_default();
        if group.iter().all(|other| independent(&runs[*other], run)) {
            group.push(i);
        }
    }
    groups.into_values().filter(|group| group.len() > 1).collect()
}

/// Whether two runs drew other weights or data, and began otherwise.
fn independent(a: &Run, b: &Run) -> bool {
    let drawn = |run: &Run| ["train.seed", "data.seed"].map(|seed| run.config.get(seed).cloned());
    drawn(a) != drawn(b) && a.began.is_some() && b.began.is_some() && a.began != b.began
}

/// What resumes have done to a run besides changing its configuration.
pub(super) fn given_up(events: &[Value]) -> Vec<String> {
    let of = |event: &Value| {
        let reset = event["reset"].as_array().filter(|pieces| !pieces.is_empty()).map(|pieces| format!("{pieces:?}"));
        reset.into_iter().chain(event["skipped_sequences"].as_array().map(|skipped| format!("{skipped:?}"))).collect()
    };
    events.iter().flat_map(|event| -> Vec<String> { of(event) }).collect()
}
