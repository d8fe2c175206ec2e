//! The machine below the trainer: errors, files, devices.

pub mod error;
pub mod files;
