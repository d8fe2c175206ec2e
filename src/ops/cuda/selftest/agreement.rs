//! What a comparison has found, and by how much a claim about the most likely token is wrong.

use crate::ops::targets::{IGNORE, Scored};

/// The largest difference of one quantity, and its limit; or why there is none.
#[derive(Clone, Debug)]
pub(crate) struct Agreement {
    /// The op, the quantity, the type of the elements.
    pub(crate) what: String,
    /// Relative to the largest element.
    pub(crate) difference: f64,
    pub(crate) limit: f64,
    /// Why the comparison ended before its time.
    pub(crate) error: Option<String>,
}

impl Agreement {
    /// Of a comparison that did not get to its end.
    pub(crate) fn failed(what: String, error: &candle_core::Error) -> Self {
        // The first line: the others are candle's backtrace.
        let error = error.to_string().lines().next().unwrap_or_default().to_owned();
        Self { what, difference: f64::INFINITY, limit: 0.0, error: Some(error) }
    }

    /// Whether the GPU computes what the CPU does.
    pub(crate) fn passed(&self) -> bool {
        self.error.is_none() && self.difference <= self.limit
    }
}

/// As a line of `llama-lite doctor`.
impl std::fmt::Display for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.passed() { "ok" } else { "FAILED" };
        match &self.error {
            Some(error) => write!(f, "  {:<32} {verdict}: {error}", self.what),
            None => write!(f, "  {:<32} {:.1e} of {:.1e}  {verdict}", self.what, self.difference, self.limit),
        }
    }
}

/// By how much `best` of a target is wrong, relative to the largest of the row's logits `z`: the distance between the target's logit and the
/// largest other one, if that is on the wrong side. Logits of two products may be rounded differently, so near-ties may be decided either way.
pub(super) fn distance_from_best(scored: &Scored, target: u32, z: &[f32]) -> f64 {
    if target == IGNORE {
        return if scored.best { f64::INFINITY } else { 0.0 };
    }
    let target = target as usize;
    let others = z.iter().enumerate().filter(|(i, _)| *i != target).map(|(_, x)| *x);
    let ahead = f64::from(others.fold(f32::NEG_INFINITY, f32::max) - z[target]);
    let largest = z.iter().fold(1e-30f32, |most, x| most.max(x.abs()));
    let wrong = if scored.best { ahead } else { -ahead };
    wrong.max(0.0) / f64::from(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_ties_may_be_decided_either_way_and_nothing_else() {
        let scored = |best| Scored { loss: 1.0, best };
        let z = [1.0, 2.0, -4.0, 1.99];
        for (target, best, expected) in
            [(1, true, 0.0), (1, false, 0.0025), (3, true, 0.0025), (3, false, 0.0), (2, true, 1.5), (0, true, 0.25)]
        {
            let found = distance_from_best(&scored(best), target, &z);
            assert!((found - expected).abs() < 1e-6, "{target} {best}: {found}");
        }
        assert_eq!(distance_from_best(&scored(false), 0, &[2.0, 2.0]), 0.0, "of equals either may be the first");
        assert_eq!(distance_from_best(&scored(false), IGNORE, &z), 0.0);
        assert_eq!(distance_from_best(&scored(true), IGNORE, &z), f64::INFINITY);
    }

    #[test]
    fn an_error_is_a_failed_line() {
        let error = candle_core::Error::Msg("launch of x: out of order\nbacktrace".into());
        let failed = Agreement::failed("rope and swiglu, f32".into(), &error);
        assert!(!failed.passed());
        assert_eq!(failed.to_string(), "  rope and swiglu, f32             FAILED: launch of x: out of order");
    }
}
