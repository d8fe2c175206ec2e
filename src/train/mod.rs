//! Training: how a run begins, its loop, its state.
//!
//! | file | holds |
//! |---|---|
//! | `begin.rs` | `pretrain` and `resume`: they differ only in how the state is made |
//! | `run.rs` | the loop, and what happens between steps |
//! | `step.rs` | one optimizer step |
//! | `state.rs` | everything a checkpoint must hold |
//! | `optimizer.rs`, `schedule.rs` | AdamW's rules, the learning rate |
//! | `guard.rs` | requests to stop |

pub mod begin;
pub mod guard;
pub mod optimizer;
pub mod run;
pub mod schedule;
pub mod state;
pub mod step;

use crate::config::TrainConfig;
use crate::ops::precision::Precision;

/// What matrix products are computed in here: `train.precision` with "auto" resolved for the CPU.
fn precision(config: &TrainConfig) -> Precision {
    if config.precision == "bf16" { Precision::Bf16 } else { Precision::F32 }
}

/// What produced a run's numbers: build and machine, from an allow-list (never the environment).
pub fn identity(config: &TrainConfig) -> serde_json::Value {
    serde_json::json!({
        "version": crate::VERSION,
        "arch": std::env::consts::ARCH,
        "os": std::env::consts::OS,
        "simd": crate::ops::simd_level(),
        "threads": rayon::current_num_threads(),
        "device": "cpu",
        "dtype": match precision(config) {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        },
    })
}
