//! Training: how a run starts and resumes, its loop, its state.
//!
//! Data flows down this table; a file uses those below it.
//!
//! | file | holds |
//! |---|---|
//! | `fork.rs` | branches from one checkpoint, each a resumed run |
//! | `pretrain.rs`, `sft.rs`, `resume.rs` | the commands that train |
//! | `new_run.rs`, `run_dir.rs` | the directory of a new run; what a resume finds in one |
//! | `trainer.rs`, `trainer/` | the loop, and what happens between steps |
//! | `setup.rs`, `resume_config.rs` | everything a run needs, built from its final configuration |
//! | `checks.rs`, `paths.rs` | what is checked and made absolute before a run creates anything |
//! | `saver.rs`, `snapshot.rs`, `logs.rs` | checkpoints written beside training; logs cut and synced with them |
//! | `indicators.rs`, `reset.rs`, `hardware_change.rs` | norms of every layer; state given up on purpose; a run on another machine |
//! | `step.rs`, `passes.rs` | one optimizer step; its forward and backward passes |
//! | `ranks.rs`, `desync.rs` | lanes and ranks; whether all ranks train the same run |
//! | `model_state.rs` | model, gradients, optimizer and `TrainerState` |
//! | `trainer_state.rs` | what a step changes and a checkpoint keeps beside its tensors |
//! | `footprint.rs`, `disk.rs` | the memory and the disk that a run takes |
//! | `optimizer.rs`, `schedule.rs`, `guard.rs` | AdamW's rules, the learning rate, the check of every step |
//! | `remark.rs`, `precision_remark.rs` | what is said of a run before its first step; whether the other precision is faster here |
//! | `products.rs` | the algorithms of a GPU's matrix products that a run had before |
//! | `identity.rs`, `arithmetic_fingerprint.rs` | build and machine; whether they compute the same bits |
//! | `requests.rs`, `watchdog.rs`, `crash_loop.rs`, `replay.rs` | signals; a run that is stuck; a checkpoint whose loading panics; repeated steps must give the same bits |
//! | `session.rs`, `run_data.rs` | device and console; all that a run reads |
//! | `tests.rs` | a whole run against power losses and failing disks |

pub mod arithmetic_fingerprint;
pub mod checks;
pub mod crash_loop;
pub mod desync;
pub mod disk;
pub mod footprint;
pub mod fork;
pub mod guard;
pub mod hardware_change;
pub mod identity;
pub mod indicators;
pub mod logs;
pub mod model_state;
pub mod new_run;
pub mod new_tokens;
pub mod optimizer;
pub mod passes;
pub mod paths;
pub mod precision_remark;
pub mod pretrain;
pub mod products;
pub mod ranks;
pub mod remark;
pub mod replay;
pub mod requests;
pub mod reset;
pub mod resume;
pub mod resume_config;
pub mod run_data;
pub mod run_dir;
pub mod saver;
pub mod schedule;
pub mod session;
pub mod setup;
pub mod sft;
pub mod snapshot;
pub mod step;
#[cfg(test)]
mod tests;
pub mod trainer;
pub mod trainer_state;
pub mod watchdog;
