//! parse → run → exit code. Errors are one line (what, where), then a `hint:`; the exit code is the failure's class.

use clap::Parser;
use llama_lite::cli::{self, Cli};
use llama_lite::commands;
use llama_lite::runtime::error::Exit;
use std::alloc::{GlobalAlloc, Layout};
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;

// Training allocates and frees the same activations every step: an allocator that keeps its pages saves a page fault and a zeroing
// per 4 KiB, which was up to half of the time of a small model's step.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator(mimalloc::MiMalloc);

/// An allocator whose failure ends the process with the exit code for it. Rust's answer to a failed allocation is to abort, as a
/// bug would.
struct Allocator(mimalloc::MiMalloc);

impl Allocator {
    fn checked(at: *mut u8, size: usize) -> *mut u8 {
        if at.is_null() {
            out_of_memory(size);
        }
        at
    }
}

// SAFETY: every call goes to mimalloc as it came, and so does its answer, unless the process ends.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        Self::checked(unsafe { self.0.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        Self::checked(unsafe { self.0.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { self.0.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        Self::checked(unsafe { self.0.realloc(at, layout, size) }, size)
    }
}

/// Prints how much could not be allocated and ends the process, without an allocation and without anything that runs at an orderly exit: other
/// threads may hold any lock. Files are as a kill would leave them, which is what they are made for.
#[cold]
fn out_of_memory(size: usize) -> ! {
    let mut text = [0; 256];
    let mut rest = &mut text[..];
    let _ = write!(
        rest,
        "error: out of memory: cannot allocate {size} bytes ({:.3} GB)\nhint: end other programs, raise the limit (`ulimit -v`, the \
         container's), or use a smaller model, batch or number of samples\n",
        size as f64 / 1e9
    );
    let unused = rest.len();
    // SAFETY: descriptor 2 is borrowed for one write; that it is open is the best one can hope for here.
    let stderr = unsafe { BorrowedFd::borrow_raw(2) };
    let _ = rustix::io::write(stderr, &text[..text.len() - unused]);
    signal_hook::low_level::exit(Exit::Memory as i32)
}

fn main() -> ExitCode {
    keep_freed_pages();
    leave_signals_alone();
    let cli = Cli::parse();
    // A panic is a bug and has an exit code of its own. Its message is on stderr already.
    let result = std::panic::catch_unwind(|| cli::run(cli)).unwrap_or_else(|_| Err(commands::panicked().into()));
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

/// Keeps the communication library of some MPIs (UCX) from handling signals as it likes: SIGHUP would have it print what it does, and
/// a crash would print its stack in place of ending the process.
fn leave_signals_alone() {
    for (name, value) in [("UCX_DEBUG_SIGNO", "0"), ("UCX_ERROR_SIGNALS", ""), ("UCX_HANDLE_ERRORS", "none")] {
        if std::env::var_os(name).is_none() {
            // SAFETY: no other thread exists that could read or write a variable now.
            unsafe { std::env::set_var(name, value) };
        }
    }
}
