//! llama-lite
pub mod config;
pub mod model;
pub mod ops;
pub mod runtime;
