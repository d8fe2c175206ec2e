//! Training: how a run begins and goes on, its loop, its state.
//!
//! | file | holds |
//! |---|---|
//! | `begin.rs`, `resume.rs` | `pretrain` and `resume`: they differ only in how the state is made |
//! | `continuation.rs` | the configuration with which a run goes on |
//! | `tune.rs` | `sft`: the same with conversations and a model to begin with |
//! | `run.rs` | the loop; `run/`: what happens between steps |
//! | `step.rs` | one optimizer step |
//! | `state.rs` | everything a checkpoint must hold |
//! | `optimizer.rs`, `schedule.rs` | AdamW's rules, the learning rate and what is said of it |
//! | `guard.rs` | the judge of every step |
//! | `saver.rs`, `snapshot.rs` | checkpoints written beside training |
//! | `requests.rs` | signals and the `STOP` file |
//! | `watchdog.rs` | the end of a run that is stuck |
//! | `fork.rs` | branches from one checkpoint |
//! | `oracle.rs`, `verify.rs` | repeated steps must give the same bits |
//! | `reset.rs` | state given up on purpose |
//! | `poison.rs` | checkpoints whose loading panics |
//! | `indicators.rs` | norms of every layer |
//! | `moved.rs` | a run on another machine than before |
//! | `numerics.rs` | whether this machine and build compute the same bits, and what rounding does to a loss |
//! | `footprint.rs`, `plan.rs` | the memory, time and disk a run takes |
//! | `why.rs` | the documents of a step |
//! | `tests.rs` | a whole run against power losses and failing disks |

pub mod arithmetic_fingerprint;
pub mod continuation;
pub mod crash_loop;
pub mod footprint;
pub mod fork;
pub mod guard;
pub mod hardware_change;
pub mod indicators;
pub mod optimizer;
pub mod plan;
pub mod replay;
pub mod requests;
pub mod reset;
pub mod resume;
pub mod run;
pub mod run_data;
pub mod saver;
pub mod schedule;
pub mod setup;
pub mod sft;
pub mod snapshot;
pub mod state;
pub mod step;
#[cfg(test)]
mod tests;
pub mod verify;
pub mod watchdog;

use crate::config::{PrecisionSetting, TrainConfig};
use crate::ops::device;
use crate::ops::precision::Precision;
use crate::runtime::machine;
use serde_json::Value;

/// What is computed in here: `train.precision`, where "auto" is f32 on the CPU and bf16 on a GPU.
fn precision(config: &TrainConfig) -> Precision {
    match config.precision {
        PrecisionSetting::Auto if device::used().is_cpu() => Precision::F32,
        PrecisionSetting::F32 => Precision::F32,
        PrecisionSetting::Auto | PrecisionSetting::Bf16 => Precision::Bf16,
    }
}

/// What produced a run's numbers: build and machine, from an allow-list (never the environment).
pub fn identity(config: &TrainConfig) -> Value {
    let (gpu, driver) = device::describe().unzip();
    serde_json::json!({
        "version": crate::VERSION,
        "arch": std::env::consts::ARCH,
        "os": std::env::consts::OS,
        "kernel": machine::kernel(),
        "host": machine::host(),
        "cpu": machine::cpu(),
        "simd": crate::ops::simd_level(),
        "threads": rayon::current_num_threads(),
        "device": if device::used().is_cpu() { "cpu" } else { "cuda" },
        "gpu": gpu,
        "driver": driver,
        "attention": (!device::used().is_cpu()).then(|| device::attention_library().unwrap_or_else(|_| "own".into())),
        "dtype": match precision(config) {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        },
        "numerics": arithmetic_fingerprint::fingerprint(),
    })
}
