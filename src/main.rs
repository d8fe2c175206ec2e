//! parse → run → exit code. Errors are one line (what, where), then a `hint:`; the exit code is the failure's class.

use clap::Parser;
use llama_lite::cli::Cli;
use llama_lite::commands;
use std::process::ExitCode;

// Training allocates and frees the same activations every step: an allocator that keeps its pages saves a page fault and a zeroing
// per 4 KiB, which was up to half of the time of a small model's step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keep_freed_pages();
    let cli = Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => commands::report(&error),
    }
}

/// Turns off the return of freed memory to the system: the next step wants it again.
fn keep_freed_pages() {
    /// `mi_option_purge_delay` of mimalloc.h (versions 2 and 3), which the crate does not name.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: sets an option of the allocator before any other thread exists; a negative delay means never.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}
