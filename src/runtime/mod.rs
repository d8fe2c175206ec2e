//! The machine below the trainer: errors, files, memory, threads.

#[cfg(test)]
pub(crate) mod damage;
pub mod error;
pub(crate) mod failpoint;
pub mod files;
pub mod guard;
pub mod machine;
pub mod memory;
pub mod shell;
pub mod thread;
