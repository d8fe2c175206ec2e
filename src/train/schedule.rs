//! The learning rate of every update, as a pure function of the configuration and the update's index.
//!
//! `[schedule]` of a resolved configuration determines all of it: where it starts, how long it is, where it ends. The loop, `plan` and a
//! resume all use [`Schedule::new`], so that what is shown is what runs. Lengths are fixed when a run starts:
//! extending `train.steps` does not stretch a rate that is already under way (it would jump up in mid-run, and the loss with it).
//! Nothing else is remembered: a rate is never accumulated, so any step's rate can be recomputed at any time.

mod remarks;

use crate::config::{ScheduleConfig, ScheduleKind};
use crate::runtime::error::{Exit, Failure, fail};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

pub use remarks::{Standstill, check_new_run, remark, standstill};

/// A resolved schedule. Equal schedules give bit-equal rates; its JSON form restores it exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    kind: ScheduleKind,
    #[serde(rename = "lr")]
    peak_lr: f64,
    min_lr: f64,
    warmup_steps: u64,
    decay_steps: u64,
    horizon: u64,
    /// The update it begins with; not 0 only after it was reset on purpose.
    #[serde(default, skip_serializing_if = "is_zero")]
    origin: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Schedule {
    /// The schedule of a resolved `config` with the peak rate `lr`.
    ///
    /// # Errors
    /// [`Exit::Config`] if a rate is negative or not finite or `min_lr` exceeds `lr`, or if
    /// the decay would begin before the warm-up ends.
    pub fn new(config: &ScheduleConfig, lr: f64) -> Result<Self, Failure> {
        // A resolved configuration has its lengths; without them `check` refuses it.
        let decay_steps = config.decay_steps.unwrap_or(0);
        let schedule = Self {
            kind: config.kind,
            peak_lr: lr,
            min_lr: config.min_lr,
            warmup_steps: config.warmup_steps,
            decay_steps,
            horizon: config.total_steps.unwrap_or(decay_steps),
            origin: config.start_step.unwrap_or(0),
        };
        schedule.check()?;
        Ok(schedule)
    }

    fn check(&self) -> Result<(), Failure> {
        let Self { peak_lr: lr, min_lr, warmup_steps, .. } = *self;
        if !(lr.is_finite() && min_lr.is_finite() && 0.0 <= min_lr && min_lr <= lr) {
            return Err(fail(Exit::Config, format!("schedule.min_lr is {min_lr:?} and optimizer.lr is {lr:?}"))
                .hint("both must be finite, with 0 <= schedule.min_lr <= optimizer.lr"));
        }
        let (start, end) = self.decay_range();
        let too_long = self.kind == ScheduleKind::Wsd && self.decay_steps > self.horizon;
        if self.kind != ScheduleKind::Constant && (start < warmup_steps || end <= start || too_long) {
            return Err(fail(
                Exit::Config,
                format!(
                    "schedule: a warm-up of {warmup_steps} steps leaves no room for decay_steps = {} within {} steps",
                    self.decay_steps, self.horizon
                ),
            )
            .hint("shorten schedule.warmup_steps, or change schedule.decay_steps or train.steps"));
        }
        Ok(())
    }

    /// The update indices at which the decay starts (the peak rate) and ends (rate `min_lr`).
    fn decay_range(&self) -> (u64, u64) {
        match self.kind {
            ScheduleKind::Wsd => (self.horizon.saturating_sub(self.decay_steps), self.horizon),
            ScheduleKind::Cosine | ScheduleKind::Linear | ScheduleKind::Constant => {
                (self.warmup_steps, self.decay_steps)
            }
        }
    }

    /// The rate of update `it`, counted from 0: step n of a run uses `lr(n - 1)`.
    ///
    /// ```text
    /// it < warmup:          peak * (it + 1) / warmup
    /// it > end of decay:    min_lr
    /// otherwise:            min_lr + c(r) * (peak - min_lr),   r = (it - start) / (end - start)
    ///                       cosine: c = (1 + cos(pi r)) / 2      linear, wsd: c = 1 - r
    /// ```
    pub fn lr(&self, it: u64) -> f64 {
        let it = it.saturating_sub(self.origin);
        if it < self.warmup_steps {
            // Counted from 1: the first update already moves, and the last of the warm-up has the full rate.
            return self.peak_lr * (it + 1) as f64 / self.warmup_steps as f64;
        }
        let (start, end) = self.decay_range();
        if self.kind == ScheduleKind::Constant || it < start {
            return self.peak_lr;
        }
        // The schedule may end before the run does.
        if it > end {
            return self.min_lr;
        }
        let ratio = (it - start) as f64 / (end - start) as f64;
        let coefficient = match self.kind {
            ScheduleKind::Cosine => 0.5 * (1.0 + (PI * ratio).cos()),
            ScheduleKind::Linear | ScheduleKind::Wsd | ScheduleKind::Constant => 1.0 - ratio,
        };
        self.min_lr + coefficient * (self.peak_lr - self.min_lr)
    }

    /// The number of the first step whose rate is `min_lr` and stays so; none if the rate never falls.
    pub fn floor_step(&self) -> Option<u64> {
        let falls = self.kind != ScheduleKind::Constant && self.min_lr < self.peak_lr;
        falls.then(|| self.origin.saturating_add(self.decay_range().1).saturating_add(1))
    }

    /// The number of the step that is the first at the peak rate.
    pub fn peak_step(&self) -> u64 {
        self.origin.saturating_add(self.warmup_steps.max(1))
    }

    /// Steps of the run before the tail, for a schedule that has one.
    pub fn tail_start(&self) -> Option<u64> {
        (self.kind == ScheduleKind::Wsd).then(|| self.origin.saturating_add(self.decay_range().0))
    }

    /// Fills in `total_steps` and `start_step` of a checkpoint's configuration; older versions kept them only here.
    pub fn complete(&self, config: &mut ScheduleConfig) {
        config.total_steps = (self.kind == ScheduleKind::Wsd).then_some(self.horizon);
        config.start_step = (self.origin > 0).then_some(self.origin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    fn config(kind: ScheduleKind, warmup_steps: u64, decay_steps: u64, min_lr: f64) -> ScheduleConfig {
        let (decay_steps, total_steps, start_step) = (Some(decay_steps), None, None);
        ScheduleConfig { kind, warmup_steps, decay_steps, total_steps, start_step, min_lr }
    }

    fn wsd(warmup_steps: u64, decay_steps: u64, total_steps: u64, min_lr: f64) -> ScheduleConfig {
        ScheduleConfig {
            total_steps: Some(total_steps),
            ..config(ScheduleKind::Wsd, warmup_steps, decay_steps, min_lr)
        }
    }

    #[track_caller]
    fn assert_close(got: f64, want: f64) {
        assert!((got - want).abs() <= 4.0 * f64::EPSILON * want, "{got:e} is not {want:e}");
    }

    /// Values of the recipe's formula, computed in Python.
    #[test]
    fn the_recipe_gives_its_known_rates() {
        let schedule = Schedule::new(&config(ScheduleKind::Cosine, 715, 19_073, 6e-5), 6e-4).unwrap();
        let golden = [
            (0, 8.39160839160839e-07),
            (1, 1.678321678321678e-06),
            (357, 0.0003004195804195804),
            (713, 0.0005991608391608391),
            (714, 0.0006),
            (715, 0.0006),
            (716, 0.0005999999960464906),
            (5_000, 0.0005306037514359256),
            (9_894, 0.00032999999999999994),
            (12_000, 0.00023478528787110247),
            (19_071, 6.00000158140377e-05),
            (19_072, 6.000000395350947e-05),
            (19_073, 6e-05),
            (19_074, 6e-05),
            (43_500, 6e-05),
            (u64::MAX, 6e-05),
        ];
        for (it, want) in golden {
            assert_close(schedule.lr(it), want);
        }
        assert_eq!(schedule.lr(19_073), 6e-5, "the cosine ends at exactly min_lr");
    }

    #[test]
    fn linear_wsd_and_constant_have_their_shapes() {
        let linear = Schedule::new(&config(ScheduleKind::Linear, 10, 100, 1e-4), 1e-3).unwrap();
        for (it, want) in [(0, 1e-4), (9, 1e-3), (10, 1e-3), (55, 5.5e-4), (99, 1.1e-4), (100, 1e-4), (101, 1e-4)] {
            assert_close(linear.lr(it), want);
        }
        let wsd = Schedule::new(&wsd(10, 40, 100, 0.0), 1e-3).unwrap();
        for (it, want) in [(0, 1e-4), (9, 1e-3), (30, 1e-3), (60, 1e-3), (70, 7.5e-4), (99, 2.5e-5), (100, 0.0)] {
            assert_close(wsd.lr(it), want);
        }
        let constant = Schedule::new(&config(ScheduleKind::Constant, 4, 2, 0.0), 1e-3).unwrap();
        assert_eq!([0, 3, 4, 1_000].map(|it| constant.lr(it)), [2.5e-4, 1e-3, 1e-3, 1e-3]);
    }

    /// What a checkpoint stores is the schedule to the bit, and completes a configuration that lacks a part of it.
    #[test]
    fn a_stored_schedule_gives_the_same_rates() {
        let anew = ScheduleConfig { start_step: Some(60), ..wsd(7, 20, 100, 1e-5) };
        for config in [
            config(ScheduleKind::Cosine, 7, 90, 1e-5),
            config(ScheduleKind::Linear, 7, 90, 1e-5),
            wsd(7, 20, 100, 1e-5),
            anew,
        ] {
            let first = Schedule::new(&config, 3e-4).unwrap();
            let text = serde_json::to_string(&first).unwrap();
            assert!(text.contains(r#""lr":0.0003"#), "the name in files: {text}");
            let restored: Schedule = serde_json::from_str(&text).unwrap();
            let mut older = ScheduleConfig { total_steps: None, start_step: None, ..config.clone() };
            restored.complete(&mut older);
            assert_eq!(older, config);
            for it in 0..300 {
                assert_eq!(first.lr(it).to_bits(), restored.lr(it).to_bits(), "{config:?} {it}");
            }
        }
    }

    #[test]
    fn the_steps_at_which_a_rate_turns_are_known() {
        let anew = |config| ScheduleConfig { start_step: Some(60), ..config };
        for (config, peak, floor, tail) in [
            (config(ScheduleKind::Cosine, 7, 90, 1e-5), 7, Some(91), None),
            (config(ScheduleKind::Linear, 0, 90, 0.0), 1, Some(91), None),
            (anew(config(ScheduleKind::Cosine, 7, 90, 1e-5)), 67, Some(151), None),
            (wsd(7, 20, 100, 0.0), 7, Some(101), Some(80)),
            (anew(wsd(7, 20, 100, 0.0)), 67, Some(161), Some(140)),
            (config(ScheduleKind::Constant, 7, 90, 0.0), 7, None, None),
            (config(ScheduleKind::Cosine, 7, 90, 3e-4), 7, None, None),
        ] {
            let schedule = Schedule::new(&config, 3e-4).unwrap();
            assert_eq!((schedule.peak_step(), schedule.floor_step(), schedule.tail_start()), (peak, floor, tail));
            assert_close(schedule.lr(peak - 1), 3e-4);
            if let Some(floor) = floor {
                assert!(
                    schedule.lr(floor - 1) == config.min_lr && schedule.lr(floor - 2) > config.min_lr,
                    "{config:?}"
                );
            }
        }
    }

    #[test]
    fn impossible_schedules_are_refused_with_a_hint() {
        let bad = [
            (config(ScheduleKind::Cosine, 10, 10, 0.0), 1.0, "warm-up of 10"),
            (wsd(5, 6, 10, 0.0), 1.0, "decay_steps = 6"),
            (wsd(0, 0, 10, 0.0), 1.0, "decay_steps = 0"),
            (wsd(0, 11, 10, 0.0), 1.0, "decay_steps = 11 within 10"),
            (config(ScheduleKind::Linear, 0, 0, 0.0), 1.0, "decay_steps = 0"),
            (config(ScheduleKind::Cosine, 0, 10, 2.0), 1.0, "min_lr is 2.0"),
            (config(ScheduleKind::Cosine, 0, 10, -1.0), 1.0, "min_lr is -1.0"),
            (config(ScheduleKind::Constant, 0, 10, 0.0), f64::NAN, "lr is NaN"),
        ];
        for (config, lr, named) in bad {
            let failure = Schedule::new(&config, lr).unwrap_err();
            assert_eq!(failure.exit, Exit::Config);
            assert!(failure.message.contains(named), "{:?} does not name {named}", failure.message);
            assert!(failure.hint.is_some());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default()
        })]

        /// Up during the warm-up, never up after it, no jump larger than the steepest slope, and never out of bounds.
        #[test]
        fn rates_rise_then_fall_without_jumps(
            kind in prop::sample::select(vec![ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Wsd]),
            warmup in 0u64..40,
            decay in 1u64..60,
            stable in 0u64..40,
            lr in 1e-6f64..1.0,
            floor in 0.0f64..1.0,
        ) {
            let horizon = warmup + stable + decay;
            let min_lr = lr * floor;
            let config = match kind {
                ScheduleKind::Wsd => wsd(warmup, decay, horizon, min_lr),
                _ => config(kind, warmup, warmup + decay, min_lr),
            };
            let schedule = Schedule::new(&config, lr).unwrap();
            let slack = 1.0 + 1e-12;
            for it in 0..horizon + 50 {
                let (now, next) = (schedule.lr(it), schedule.lr(it + 1));
                prop_assert!(now > 0.0 || min_lr == 0.0);
                prop_assert!(now <= lr * slack);
                if it + 1 < warmup {
                    prop_assert!(now < next);
                    prop_assert!(next - now <= lr / warmup as f64 * slack + 1e-15);
                } else if it >= warmup {
                    prop_assert!(next <= now * slack);
                    prop_assert!(now >= min_lr / slack);
                    prop_assert!(now - next <= (lr - min_lr) * PI / 2.0 / decay as f64 * slack + 1e-15);
                }
            }
            prop_assert!((schedule.lr(warmup) / lr - 1.0).abs() < 1e-12);
            prop_assert_eq!(schedule.lr(horizon), min_lr);
        }
    }
}
