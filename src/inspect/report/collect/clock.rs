//! Where a run's time went.

use super::{POINTS, tokens_at};
use crate::metrics::{Times, Train};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Mean seconds of the parts of a step: each point stands for one step or several.
#[derive(Debug, Default, Serialize)]
pub struct StepParts {
    /// The last step of each point.
    pub step: Vec<u64>,
    /// Tokens trained on up to that step.
    pub tokens: Vec<u64>,
    /// "data", "forward", "head", "backward", "optimizer", "other" and, of several ranks, "exchange"; 0 where steps have no such part.
    pub seconds: BTreeMap<String, Vec<f64>>,
}

/// The parts of a step by the clock; what is left of it is "other".
fn parts_of_step(times: &Times) -> Option<BTreeMap<String, f64>> {
    let mut parts = times.seconds.clone();
    let whole = parts.remove("step")?;
    let other = (whole - parts.values().sum::<f64>()).max(0.0);
    parts.insert("other".to_owned(), other);
    Some(parts)
}

/// Seconds in all, by what they were spent on.
pub(super) fn spent(times: &[Times]) -> BTreeMap<String, f64> {
    let mut spent = BTreeMap::new();
    for (what, seconds) in times.iter().flat_map(|times| parts_of_step(times).unwrap_or_else(|| times.seconds.clone()))
    {
        *spent.entry(what).or_default() += seconds;
    }
    spent
}

/// The parts of the steps, averaged over as many steps as one point of the plot stands for.
pub(super) fn parts(times: &[Times], train: &[Train]) -> StepParts {
    let steps: Vec<_> = times.iter().filter_map(|times| Some((times.step, parts_of_step(times)?))).collect();
    let mut parts = StepParts::default();
    // All that any step has: a run may have had several ranks at times, and exchanged nothing at others.
    let names: BTreeSet<&String> = steps.iter().flat_map(|(_, of)| of.keys()).collect();
    for piece in steps.chunks(steps.len().div_ceil(POINTS / 8).max(1)) {
        let Some((step, _)) = piece.last() else { continue };
        parts.step.push(*step);
        parts.tokens.push(tokens_at(train, *step));
        for &name in &names {
            let mean = piece.iter().filter_map(|(_, of)| of.get(name)).sum::<f64>() / piece.len() as f64;
            parts.seconds.entry(name.clone()).or_default().push(mean);
        }
    }
    parts
}
