//! parse → run → exit code. Errors are one line (what, where), then a `hint:`; the exit code is the failure's class.

use clap::Parser;
use llama_lite::cli::Cli;
use llama_lite::commands;
use llama_lite::runtime::error::{Exit, fail};
use std::process::ExitCode;

// Training allocates and frees the same activations every step: an allocator that keeps its pages saves a page fault and a zeroing
// per 4 KiB, which was up to half of the time of a small model's step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keep_freed_pages();
    let cli = Cli::parse();
    // A panic is a bug, which has an exit code of its own; what it has to say is on stderr already.
    let result = std::panic::catch_unwind(|| commands::run(cli)).unwrap_or_else(|_| {
        Err(fail(Exit::Internal, "a panic")
            .hint("this is a bug; please report it with the command and its output")
            .into())
    });
    match result {
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
