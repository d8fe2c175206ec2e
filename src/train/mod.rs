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

/// What produced a run's numbers: build and machine, from an allow-list (never the environment).
pub fn identity(config: &crate::config::TrainConfig) -> serde_json::Value {
    serde_json::json!({
        "version": crate::VERSION,
        "arch": std::env::consts::ARCH,
        "os": std::env::consts::OS,
        "simd": crate::ops::simd_level(),
        "threads": rayon::current_num_threads(),
        "device": "cpu",
        "dtype": if config.precision == "bf16" { "bf16" } else { "f32" },
    })
}
