//! Inputs from public bug reports, rebuilt small, by the kind of mistake that they uncover: a name decided instead of the content, a
//! value was copied before it was final, a default replaced what a file says, something was left out without a count.
//!
//! | file | the kind |
//! |---|---|
//! | `models.rs` | what a directory is, which adapters and weights it holds, is read from its content |
//! | `tokens.rs` | special tokens, fragments of text, ends of turns, contexts |
//! | `schedule.rs` | the schedule that is shown is the schedule that runs, over every continuation |
//! | `run_directory.rs` | logs, locks and configurations that were removed, altered or replaced |
//! | `corpora.rs` | files of text and of tokens: everything is read, refused by name, or counted |
//! | `conversations.rs` | records, roles, marks and templates of fine-tuning |
//! | `bounds.rs` | no number in a file and no shape of a text decides memory or time |
//! | `promises.rs` | results that no other test would have missed |

mod bounds;
mod conversations;
mod corpora;
mod models;
mod promises;
mod run_directory;
mod schedule;
mod tokens;
