//! How fast a run trains and when it will end.
//!
//! Speed counts training alone: the caller passes each step's own time, so that a step that also validated or saved
//! does not look slow. The time left counts those interruptions too, each at its own period and cost.

use std::time::Duration;

/// Weight of the past in the moving averages: half of it is the last 14 steps.
const MEMORY: f64 = 0.95;

/// Moving averages of step time and tokens, and what the interruptions cost.
#[derive(Clone, Debug)]
pub struct Pace {
    step: u64,
    total: u64,
    seconds: f64,
    tokens: f64,
    weight: f64,
    interruptions: Vec<Interruption>,
}

#[derive(Clone, Debug)]
struct Interruption {
    name: &'static str,
    every: u64,
    seconds: f64,
}

impl Pace {
    /// For a run that has taken `step` of its `total` steps.
    pub fn new(step: u64, total: u64) -> Self {
        Self { step, total, seconds: 0.0, tokens: 0.0, weight: 0.0, interruptions: Vec::new() }
    }

    /// Counts `step`, which took `training` for `tokens` tokens.
    pub fn step(&mut self, step: u64, tokens: f64, training: Duration) {
        self.step = step;
        let tokens = if tokens.is_finite() { tokens } else { 0.0 };
        self.seconds = MEMORY * self.seconds + (1.0 - MEMORY) * training.as_secs_f64();
        self.tokens = MEMORY * self.tokens + (1.0 - MEMORY) * tokens;
        // The averages began at 0; dividing by this takes the zeros out again, as Adam's bias correction does.
        self.weight = MEMORY * self.weight + (1.0 - MEMORY);
    }

    /// Counts an interruption called `name` (validation, a save) that comes every `every` steps and at the end of the
    /// run, or only at its end if `every` is 0. The latest cost stands for those to come.
    pub fn interruption(&mut self, name: &'static str, every: u64, time: Duration) {
        let latest = Interruption { name, every, seconds: time.as_secs_f64() };
        match self.interruptions.iter_mut().find(|known| known.name == name) {
            Some(known) => *known = latest,
            None => self.interruptions.push(latest),
        }
    }

    /// Speed of training alone; NaN before the first step.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens / self.seconds
    }

    /// Until the run ends, interruptions included; unknown before the first step.
    pub fn time_left(&self) -> Option<Duration> {
        if self.weight == 0.0 {
            return None;
        }
        let left = self.total.saturating_sub(self.step);
        let training = left as f64 * self.seconds / self.weight;
        let interruptions: f64 =
            self.interruptions.iter().map(|known| known.seconds * self.still_to_come(known.every) as f64).sum();
        Duration::try_from_secs_f64(training + interruptions).ok()
    }

    fn still_to_come(&self, every: u64) -> u64 {
        if self.step >= self.total {
            return 0;
        }
        let in_all = self.total.checked_div(every).unwrap_or(0);
        let so_far = self.step.checked_div(every).unwrap_or(0);
        let at_the_end = u64::from(self.total.checked_rem(every) != Some(0));
        in_all - so_far + at_the_end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn left(pace: &Pace) -> f64 {
        pace.time_left().unwrap().as_secs_f64()
    }

    #[test]
    fn a_steady_run_is_predicted_exactly_from_its_first_step() {
        let mut pace = Pace::new(40, 100);
        assert_eq!(pace.time_left(), None);
        assert!(pace.tokens_per_second().is_nan());
        for step in 41..=50 {
            pace.step(step, 512.0, seconds(0.25));
            assert!((left(&pace) - 0.25 * (100 - step) as f64).abs() < 1e-6);
            assert!((pace.tokens_per_second() - 2048.0).abs() < 1e-6);
        }
    }

    #[test]
    fn averages_follow_a_change_of_speed() {
        let mut pace = Pace::new(0, 1000);
        (1..=100).for_each(|step| pace.step(step, 100.0, seconds(1.0)));
        (101..=200).for_each(|step| pace.step(step, 100.0, seconds(2.0)));
        assert!((left(&pace) / 1600.0 - 1.0).abs() < 0.01, "{}", left(&pace));
        pace.step(201, f64::NAN, seconds(2.0));
        assert!(pace.tokens_per_second().is_finite());
    }

    #[test]
    fn interruptions_still_to_come_are_counted_with_the_end() {
        let mut pace = Pace::new(0, 100);
        pace.step(25, 1.0, seconds(1.0));
        pace.interruption("validation", 10, seconds(99.0));
        pace.interruption("validation", 10, seconds(2.0)); // at 30, 40, ... 100: eight, at the latest cost
        assert!((left(&pace) - (75.0 + 16.0)).abs() < 1e-6);
        pace.interruption("save", 30, seconds(5.0)); // at 30, 60, 90 and the end
        assert!((left(&pace) - (75.0 + 16.0 + 20.0)).abs() < 1e-6);
        pace.interruption("samples", 0, seconds(0.5)); // only at the end
        assert!((left(&pace) - (75.0 + 16.0 + 20.0 + 0.5)).abs() < 1e-6);
        pace.step(100, 1.0, seconds(1.0));
        assert_eq!(left(&pace), 0.0);
    }
}
