//! Behaviour of the program and proof of its numbers, in one test binary (each one links candle).
//!
//! | file | proves |
//! |---|---|
//! | `autograd.rs` | loss and every gradient of the whole model against candle's autograd and candle-transformers |
//! | `huggingface.rs` | logits, gradients and greedy text against files made by transformers |
//! | `resume.rs` | a resumed run is the uninterrupted run, bit for bit |
//! | `data.rs` | preparing corpora and training on shards: kills, faults, changes |
//! | `exactly_once.rs` | the data loader through 10,000 random histories |
//! | `training.rs` | micro-batches, schedule horizon, validation, refused updates |
//! | `commands.rs` | every command as a user meets it: output, files, exit codes, hints |
//! | `tidy.rs` | the rules of the code base |

#![allow(clippy::unwrap_used)]

mod autograd;
mod commands;
mod data;
mod exactly_once;
mod huggingface;
mod resume;
mod support;
mod tidy;
mod training;
