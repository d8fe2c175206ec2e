//! A run as a whole, checkpoints and logs together, against losses of power and failing disks.
//!
//! [`story`] plays a run with the code that the program writes files with, on one thread, and says what a resume must
//! find at each moment; [`power_loss`] and [`failing_disk`] break it there.

mod failing_disk;
mod gpu;
mod power_loss;
mod ranks;
mod story;

/// Whether the thorough versions of the tests were asked for: `LLAMA_LITE_TORTURE=full`.
fn thorough() -> bool {
    std::env::var_os("LLAMA_LITE_TORTURE").is_some_and(|how| how == "full")
}
