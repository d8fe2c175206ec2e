//! Conversations to learn from: records → conversations → text by a chat template → ids and which of them are trained → rows.
//!
//! | file | holds |
//! |---|---|
//! | `records.rs`, `fields.rs`, `marks.rs`, `conversation.rs` | from a record to a conversation, by the table in `config::record_shapes` |
//! | `load.rs` | from files to conversations and examples, with what becomes of every record |
//! | `split.rs` | which conversations are held out |
//! | `template.rs` | the built-in chat templates, and the choice of one |
//! | `mask.rs` | which tokens of a conversation are answers |
//! | `pack.rs` | several conversations in a row, each with a context of its own |
//! | `mask_report.rs` | what will be trained, shown and judged before it is |
//! | `open.rs` | all of it, as a configuration asks |

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

pub use open::{Judged, SftData};
