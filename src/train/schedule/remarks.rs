//! What a user should know of a run's learning rates before it starts: where they stop falling, and whether anything is learned.

use super::Schedule;
use crate::config::Config;
use crate::runtime::error::{Exit, Failure, fail};
use crate::train::remark::Remark;

/// Steps that would change nothing, and the setting under which they learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standstill {
    pub message: String,
    /// `key=value`.
    pub setting: String,
    pub effect: String,
}

/// About the rates of the steps after `step`, if there is something to say.
///
/// # Errors
/// Those of the schedule.
pub fn remark(config: &Config, step: u64) -> Result<Option<Remark>, Failure> {
    let schedule = Schedule::new(&config.schedule, config.optimizer.lr)?;
    let steps = config.train.steps;
    if step >= steps {
        return Ok(None);
    }
    let peak = config.optimizer.lr;
    let least = config.schedule.min_lr;
    if schedule.peak_step() > steps {
        let warmup = config.schedule.warmup_steps;
        let highest = schedule.lr(steps - 1);
        let text = format!(
            "the warm-up of {warmup} steps is not over when the run ends at step {steps}: the learning rate comes to \
             {highest:.2e} and never to its peak, {peak:?}"
        );
        return Ok(Some(Remark { text, warning: true }));
    }
    if let Some(floor) = schedule.floor_step().filter(|floor| *floor <= steps) {
        let from = floor.max(step + 1);
        let setting = stretched(config);
        let text = match least {
            0.0 => format!(
                "the learning rate is 0 from step {from} to the end at step {steps}, and nothing is learned there; it would \
                 fall until the end with {setting}"
            ),
            _ => format!(
                "the learning rate is at its least, {least:?}, from step {from} to the end at step {steps}; it would fall until \
                 the end with {setting}"
            ),
        };
        return Ok(Some(Remark { text, warning: least == 0.0 }));
    }
    let unreached = schedule.tail_start().filter(|start| *start >= steps);
    Ok(unreached.map(|start| Remark {
        text: format!(
            "the run ends at step {steps}, before the learning rate falls (after step {start}); it would fall until the end \
             with {}",
            stretched(config)
        ),
        warning: false,
    }))
}

/// Refuses a schedule that started anew in the middle of another run: before that step the rates would be those of no schedule.
///
/// # Errors
/// [`Exit::Config`].
pub fn check_new_run(config: &Config) -> Result<(), Failure> {
    match config.schedule.start_step.filter(|step| *step > 0) {
        None => Ok(()),
        Some(step) => {
            let message = format!("schedule.start_step is {step}, but a new run and its schedule start at step 0");
            Err(fail(Exit::Config, message).hint("add --set schedule.start_step=0, or remove the key from the file"))
        }
    }
}

/// Whether the rate is 0 in all steps after `step`, of which there is at least one.
///
/// # Errors
/// Those of the schedule.
pub fn standstill(config: &Config, step: u64) -> Result<Option<Standstill>, Failure> {
    let schedule = Schedule::new(&config.schedule, config.optimizer.lr)?;
    let steps = config.train.steps;
    let at_floor = schedule.floor_step().is_some_and(|floor| floor <= step.saturating_add(1));
    if step >= steps || !at_floor || config.schedule.min_lr > 0.0 {
        return Ok(None);
    }
    let mut other = config.schedule.clone();
    let length = length(config);
    *(if other.total_steps.is_some() { &mut other.total_steps } else { &mut other.decay_steps }) = Some(length);
    let rate = Schedule::new(&other, config.optimizer.lr)?.lr(step);
    Ok(Some(Standstill {
        message: format!("the learning rate is 0 in all of steps {} to {steps}: nothing would be learned", step + 1),
        setting: stretched(config),
        effect: format!("the rate is then {rate:.2e} at step {} and falls to 0 at the end", step + 1),
    }))
}

/// The setting with which the schedule ends where the run does.
fn stretched(config: &Config) -> String {
    let key = if config.schedule.total_steps.is_some() { "total_steps" } else { "decay_steps" };
    format!("schedule.{key}={}", length(config))
}

/// Steps from the start of the schedule to the end of the run.
fn length(config: &Config) -> u64 {
    config.train.steps.saturating_sub(config.schedule.start_step.unwrap_or(0))
}
