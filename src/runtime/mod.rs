//! The machine below the trainer: errors, files, memory.

pub mod error;
pub mod files;
pub mod guard;
pub mod memory;
pub mod thread;
