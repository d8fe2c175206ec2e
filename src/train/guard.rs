//! Checks every step before the optimizer sees its gradient: is it finite, and is it like those before it?
//!
//! Its memory (the last accepted values, the refused steps, the rollbacks) is part of the run's state: a resumed run decides as the
//! uninterrupted one does. Refused values never enter the window, or one NaN would make every later comparison false.

use crate::config::{GuardConfig, SpikePolicy};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;

/// Accepted values that a new one is compared with.
const WINDOW: usize = 128;

/// With fewer accepted values, deviations are not computed.
const ENOUGH: usize = 64;

/// While there are fewer than [`ENOUGH`] values, a loss of this many times the largest so far, or times the loss of guessing if that is
/// larger, is an explosion.
const EXPLODING: f64 = 2.0;

/// Refused updates in a row that lead to a rollback.
const MOST_IN_A_ROW: u64 = 3;

/// Refused updates within [`SPAN`] steps that lead to a rollback.
const MOST_REFUSED: usize = 10;

/// Steps over which refused updates are counted.
const SPAN: u64 = 1000;

/// The guard's decision about a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Accept,
    /// The update is applied and a warning printed: the quantity, and how far it lies above those before it.
    Spike(&'static str, Excess),
    /// The update is refused for such a spike.
    RefuseSpike(&'static str, Excess),
    /// The update is refused: loss or gradient is not finite.
    RefuseNonFinite,
}

/// How far a value lies above those before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Excess {
    /// Standard deviations above their mean.
    Deviations(f64),
    /// The loss as a multiple of the largest of them.
    TimesLargest(f64),
    /// The loss as a multiple of that of guessing, which is larger than all of them.
    TimesGuessing(f64),
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deviations(z) => write!(f, "{z:.1} deviations above its mean"),
            Self::TimesLargest(times) => write!(f, "{times:.1} times the largest so far"),
            Self::TimesGuessing(times) => write!(f, "{times:.1} times the loss of guessing"),
        }
    }
}

impl Verdict {
    /// Whether the update is refused.
    pub fn refuses(self) -> bool {
        matches!(self, Verdict::RefuseSpike(..) | Verdict::RefuseNonFinite)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guard {
    losses: VecDeque<f64>,
    grad_norms: VecDeque<f64>,
    /// Refused updates in a row up to the last step. Files call a refused update skipped.
    #[serde(rename = "skipped_in_a_row")]
    refused_in_a_row: u64,
    /// The steps of the refused updates within the last [`SPAN`].
    #[serde(rename = "skipped")]
    refused: VecDeque<u64>,
    /// Rollbacks of the run so far.
    pub rollbacks: u64,
}

impl Guard {
    /// Decides about step number `step` and remembers it. `uniform` is the loss of a model that knows nothing, `ln(vocab_size)`.
    pub fn check(&mut self, config: &GuardConfig, step: u64, loss: f64, grad_norm: f64, uniform: f64) -> Verdict {
        // Before the windows take the values in: a value is compared with those before it.
        let verdict = self.verdict(config, loss, grad_norm, uniform);
        while self.refused.front().is_some_and(|&old| old + SPAN <= step) {
            self.refused.pop_front();
        }
        if verdict.refuses() {
            self.refused_in_a_row += 1;
            self.refused.push_back(step);
        } else {
            self.refused_in_a_row = 0;
            // Refused values stay out: a window that held spikes would find the next one ordinary.
            for (window, value) in [(&mut self.losses, loss), (&mut self.grad_norms, grad_norm)] {
                if window.len() == WINDOW {
                    window.pop_front();
                }
                window.push_back(value);
            }
        }
        verdict
    }

    fn verdict(&self, config: &GuardConfig, loss: f64, grad_norm: f64, uniform: f64) -> Verdict {
        // Whatever `guard.spike` says: one NaN in the weights or moments cannot be undone.
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Verdict::RefuseNonFinite;
        }
        let sigma = config.spike_sigma;
        let spike = self.explosion(loss, uniform).map(|excess| ("loss", excess));
        let spike = spike.or_else(|| Some(("loss", deviations(&self.losses, loss, sigma)?)));
        match spike.or_else(|| Some(("gradient norm", deviations(&self.grad_norms, grad_norm, sigma)?))) {
            Some((what, excess)) if config.spike == SpikePolicy::Skip => Verdict::RefuseSpike(what, excess),
            Some((what, excess)) if config.spike == SpikePolicy::Warn => Verdict::Spike(what, excess),
            _ => Verdict::Accept,
        }
    }

    /// Whether `loss` explodes in the first steps: there are no deviations yet, but a learning rate that is far too high shows already.
    fn explosion(&self, loss: f64, uniform: f64) -> Option<Excess> {
        if self.losses.is_empty() || self.losses.len() >= ENOUGH {
            return None;
        }
        let largest = self.losses.iter().fold(uniform, |largest, &loss| largest.max(loss));
        let times = loss / largest;
        let excess = if largest > uniform { Excess::TimesLargest(times) } else { Excess::TimesGuessing(times) };
        (times > EXPLODING).then_some(excess)
    }

    /// Whether refusing has not helped: the weights themselves, or a stretch of data, must be left.
    pub fn should_roll_back(&self) -> bool {
        self.refused_in_a_row >= MOST_IN_A_ROW || self.refused.len() >= MOST_REFUSED
    }

    /// Whether the last update was refused: the present weights may be bad.
    pub fn last_was_refused(&self) -> bool {
        self.refused_in_a_row > 0
    }

    /// Forgets refused updates and rollbacks, but not the accepted values.
    pub fn forget_refusals(&mut self) {
        self.refused_in_a_row = 0;
        self.rollbacks = 0;
        self.refused.clear();
    }

    /// The step before the first of the present refusals.
    pub fn last_good_step(&self, step: u64) -> u64 {
        let row_begins = step.saturating_sub(self.refused_in_a_row);
        // Either count may have led to the rollback; the earlier beginning is right for both.
        self.refused.front().map_or(row_begins, |&first| row_begins.min(first.saturating_sub(1)))
    }
}

/// By how many standard deviations `value` lies above the mean of `window`, if by more than `sigma`; none while the window says little.
fn deviations(window: &VecDeque<f64>, value: f64, sigma: f64) -> Option<Excess> {
    if window.len() < ENOUGH {
        return None;
    }
    let n = window.len() as f64;
    // The mean first: the difference of two large sums would lose a small variance.
    let mean = window.iter().sum::<f64>() / n;
    let variance = window.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    // Equal values give no scale to measure a deviation by.
    let z = if variance > 0.0 { (value - mean) / variance.sqrt() } else { 0.0 };
    (z > sigma).then_some(Excess::Deviations(z))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(spike: SpikePolicy) -> GuardConfig {
        GuardConfig { spike, spike_sigma: 6.0, rollbacks: 2, hang_seconds: 120 }
    }

    /// The loss of guessing one of twenty tokens.
    const UNIFORM: f64 = 3.0;

    /// `n` ordinary steps.
    fn seasoned(n: u64) -> Guard {
        let mut guard = Guard::default();
        for step in 1..=n {
            let wobble = (step % 7) as f64 * 0.01;
            assert_eq!(
                guard.check(&config(SpikePolicy::Skip), step, 3.0 + wobble, 1.0 - wobble, UNIFORM),
                Verdict::Accept
            );
        }
        guard
    }

    #[test]
    fn what_is_not_finite_is_refused_and_never_remembered() {
        let mut guard = seasoned(100);
        let before = guard.clone();
        for (loss, norm) in [(f64::NAN, 1.0), (3.0, f64::NAN), (f64::INFINITY, 1.0), (3.0, f64::INFINITY)] {
            let mut guard = guard.clone();
            assert_eq!(guard.check(&config(SpikePolicy::Off), 101, loss, norm, UNIFORM), Verdict::RefuseNonFinite);
            assert_eq!((&guard.losses, &guard.grad_norms), (&before.losses, &before.grad_norms));
            assert_eq!((guard.refused_in_a_row, guard.last_good_step(101)), (1, 100));
        }
        // A spike after it is still seen.
        guard.check(&config(SpikePolicy::Warn), 101, f64::NAN, f64::NAN, UNIFORM);
        assert!(
            matches!(guard.check(&config(SpikePolicy::Warn), 102, 30.0, 1.0, UNIFORM), Verdict::Spike("loss", Excess::Deviations(z)) if z > 6.0)
        );
    }

    #[test]
    fn a_spike_needs_sixty_four_values_before_it() {
        for (n, seen) in [(63, false), (64, true), (500, true)] {
            for (policy, refused) in [(SpikePolicy::Off, false), (SpikePolicy::Warn, false), (SpikePolicy::Skip, true)]
            {
                let verdict = seasoned(n).check(&config(policy), n + 1, 3.0, 9.0, UNIFORM);
                assert_eq!(verdict.refuses(), seen && refused, "{n} {policy:?}");
                assert_eq!(verdict != Verdict::Accept, seen && policy != SpikePolicy::Off, "{n} {policy:?}");
            }
        }
        assert_eq!(
            seasoned(200).check(&config(SpikePolicy::Skip), 201, 0.1, 0.1, UNIFORM),
            Verdict::Accept,
            "low is well"
        );
        assert_eq!(seasoned(500).losses.len(), WINDOW);
    }

    /// A learning rate that is far too high shows in the second step, not when there are enough values to know their deviation.
    #[test]
    fn an_explosion_is_seen_in_the_first_steps() {
        for (policy, refused) in [(SpikePolicy::Off, false), (SpikePolicy::Warn, false), (SpikePolicy::Skip, true)] {
            let mut guard = Guard::default();
            let verdicts =
                [10.9, 32_906.0, 477_162.0, 480_000.0].map(|loss| guard.check(&config(policy), 1, loss, 1.0, 10.8));
            assert_eq!(verdicts.map(Verdict::refuses), [false, refused, refused, refused], "{policy:?}");
            if policy == SpikePolicy::Warn {
                let seen = verdicts.map(|verdict| verdict != Verdict::Accept);
                assert_eq!(seen, [false, true, true, false], "{verdicts:?}");
                assert!(matches!(verdicts[1], Verdict::Spike("loss", Excess::TimesLargest(times)) if times > 3000.0));
            }
        }
        // The divisor is named: here the loss of guessing is above all losses so far.
        let mut guard = Guard::default();
        let verdicts = [10.0, 32_906.0].map(|loss| guard.check(&config(SpikePolicy::Warn), 1, loss, 1.0, 10.8));
        assert!(matches!(verdicts[1], Verdict::Spike("loss", Excess::TimesGuessing(times)) if times > 3000.0));
        // A fine-tuned model's losses vary from batch to batch: below that of guessing that is no explosion.
        let mut guard = Guard::default();
        for loss in [0.2, 0.9, 0.1, 4.0, 12.0] {
            assert_eq!(guard.check(&config(SpikePolicy::Warn), 1, loss, 1.0, 10.8), Verdict::Accept, "{loss}");
        }
    }

    #[test]
    fn three_in_a_row_or_ten_in_a_thousand_roll_back() {
        let mut guard = seasoned(100);
        for step in 101..=103 {
            assert!(!guard.should_roll_back());
            guard.check(&config(SpikePolicy::Off), step, f64::NAN, 1.0, UNIFORM);
        }
        assert!(guard.should_roll_back());
        assert_eq!(guard.last_good_step(103), 100);
        for (gap, roll_back) in [(100, true), (112, false)] {
            let mut guard = seasoned(10);
            for i in 0..10u64 {
                assert!(!guard.should_roll_back());
                let step = 20 + i * gap;
                guard.check(&config(SpikePolicy::Off), step, f64::NAN, 1.0, UNIFORM);
                guard.check(&config(SpikePolicy::Off), step + 1, 3.0, 1.0, UNIFORM);
            }
            assert_eq!(guard.should_roll_back(), roll_back, "every {gap} steps");
            assert!(!guard.last_was_refused());
        }
    }

    #[test]
    fn its_memory_survives_being_saved() {
        let mut guard = seasoned(90);
        guard.check(&config(SpikePolicy::Off), 91, f64::NAN, 1.0, UNIFORM);
        let text = serde_json::to_string(&guard).unwrap();
        assert!(text.contains(r#""skipped_in_a_row":1,"skipped":[91]"#), "the names in files: {text}");
        assert_eq!(serde_json::from_str::<Guard>(&text).unwrap(), guard);
        assert_eq!(serde_json::from_str::<Guard>("{}").unwrap(), Guard::default());
    }
}
