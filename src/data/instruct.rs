//! Conversations to learn from: records → conversations → text by a chat template → ids and which of them are trained → rows.
//!
//! | file | holds |
//! |---|---|
//! | `instruct/records.rs`, `fields.rs`, `marks.rs`, `conversation.rs` | from a record to a conversation, by the table in `config::record_shapes` |
//! | `instruct/load.rs` | from files to conversations and examples, with what becomes of every record |
//! | `instruct/split.rs` | which conversations are held out |
//! | `instruct/template.rs` | the built-in chat templates, and the choice of one |
//! | `instruct/mask.rs` | which tokens of a conversation are answers |
//! | `instruct/pack.rs` | several conversations in a row, each with a context of its own |
//! | `instruct/proof.rs` | what will be trained, shown and judged before it is |
//! | `instruct/open.rs` | all of it, as a configuration asks |

pub mod conversation;
mod fields;
pub mod load;
mod marks;
pub mod mask;
pub mod open;
pub mod pack;
pub mod proof;
pub mod records;
mod split;
pub mod template;

#[cfg(test)]
mod tests;

pub use mask::Example;
pub use open::{Judged, Tuning};
pub use pack::PackedRows;
