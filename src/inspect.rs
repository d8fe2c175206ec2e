//! What only reads runs: their page, and the documents of a step.

pub mod report;
pub mod why;
