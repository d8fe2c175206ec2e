//! The machine below the trainer: errors, files and what they hold, memory, threads.

pub mod content;
#[cfg(test)]
pub(crate) mod damage;
pub mod error;
pub(crate) mod failpoint;
pub mod files;
pub mod format;
pub mod home;
pub mod machine;
pub mod memory;
pub mod panic;
pub mod python_json;
pub mod shell;
pub mod thread;
