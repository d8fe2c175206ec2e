//! The data of fine-tuning: records → conversations → text by a chat template → ids and which of them are trained → rows.
//!
//! | file | holds |
//! |---|---|
//! | `records.rs`, `fields.rs`, `marks.rs`, `conversation.rs` | from a record to a conversation, by the table in `config::record_shapes` |
//! | `load.rs` | from files to conversations and examples, with the outcome of every record |
//! | `split.rs` | which conversations are held out |
//! | `template.rs` | the built-in chat templates, and the choice of one |
//! | `mask.rs` | which tokens of a conversation are answers |
//! | `mask_report.rs` | what will be trained: counts, excerpts, and reasons to refuse it |
//! | `open.rs` | all of it, for a configuration |
//! | `dataset.rs` | the same as the data set of a run |

pub mod conversation;
pub mod dataset;
mod fields;
pub mod load;
mod marks;
pub mod mask;
pub mod mask_report;
pub mod open;
pub mod records;
mod split;
pub mod template;

#[cfg(test)]
mod tests;

pub use open::{EvalPrompt, SftData};
