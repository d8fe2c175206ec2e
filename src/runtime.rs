//! What every module builds on: errors, files, memory, threads, and facts about the machine.

pub mod content;
pub mod error;
pub(crate) mod failpoint;
pub mod files;
pub mod format;
pub mod home;
pub mod machine;
pub mod memory;
pub mod nvidia;
pub mod panic;
pub mod python_json;
pub mod shell;
pub mod thread;

#[cfg(test)]
pub(crate) mod tests;
