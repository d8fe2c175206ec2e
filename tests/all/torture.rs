//! The whole program, broken on purpose: what reliability promises, each kept against many faults of one kind.
//!
//! `cargo test` runs a short version of every torture; `scripts/torture.sh` sets `LLAMA_LITE_TORTURE=full`, which runs the full counts,
//! and prints the figures reached as one table. Every draw comes from a fixed seed, named with the figures.
//!
//! | file | breaks |
//! |---|---|
//! | `subject.rs` | nothing: the run that is tortured, and the one that is not, to compare with |
//! | `kill.rs` | SIGKILL at random moments of training, `sft`, `eval`, `export` and `data prepare` |
//! | `syscalls.rs` | SIGKILL at, and failure of, chosen system calls, injected by strace |
//! | `corruption.rs` | every file of a checkpoint |
//! | `disk.rs` | limits of file size, a disk that is full |
//! | `signals.rs` | SIGTERM, SIGINT, SIGHUP, SIGUSR1 and the file `STOP` at random moments |
//! | `writers.rs` | many processes for one run directory, readers beside a writer |
//! | `logs.rs` | lines of the log that is repeated, secrets of the environment |

mod corruption;
mod disk;
mod kill;
mod logs;
mod signals;
mod subject;
mod syscalls;
mod writers;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Whether the full counts are asked for.
fn is_full() -> bool {
    std::env::var("LLAMA_LITE_TORTURE").is_ok_and(|level| level == "full")
}

/// How often to torture: `quick` inside `cargo test`, `full` for the script.
fn count(quick: usize, full: usize) -> usize {
    if is_full() { full } else { quick }
}

/// One line for the table of `scripts/torture.sh`, which takes it from stderr.
fn figures(promise: &str, name: &str, reached: &str) {
    eprintln!("torture: {promise} {name}: {reached}");
}

/// The draws of a seed.
fn draws(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}
