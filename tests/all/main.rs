//! Behaviour of the program and proof of its numbers, in one test binary (each one links candle).
//!
//! | file | proves |
//! |---|---|
//! | `autograd.rs` | loss and every gradient of the whole model against candle's autograd and candle-transformers |
//! | `huggingface.rs` | logits, gradients and greedy text against files made by transformers |
//! | `resume.rs` | a resumed run is the uninterrupted run, bit for bit |
//! | `data.rs` | preparing corpora and training on shards: kills, faults, changes |
//! | `messages.rs` | every kind of failure: exit code, message, and a hint whose command parses |
//! | `replay.rs` | `resume --verify`, `--reset`, checkpoints of earlier formats |
//! | `exactly_once.rs` | the data loader through 10,000 random histories |
//! | `training.rs` | micro-batches, schedule horizon, validation, refused updates |
//! | `generation.rs` | `sample`: texts, prompts, conversations |
//! | `gguf.rs` | `export --format gguf` as its users meet it |
//! | `insight.rs` | `plan`, `report`, event files |
//! | `hub_models.rs` | models of the Hub: downloads, refusals, the commit that a run remembers |
//! | `sft.rs` | fine-tuning: proof, adapters, resume to the bit, formats |
//! | `new_tokens.rs` | fine-tuning with new special tokens: rows, resume, export |
//! | `benchmarks.rs` | benchmark tasks against the harness's numbers |
//! | `torture.rs` | the promises of reliability, each broken on purpose many times |
//! | `ranks.rs` | several processes as the ranks of one run |
//! | `cases.rs` | inputs from public bug reports, by the kind of mistake |
//! | `launcher.rs` | ranks: what launchers say, and what is refused |
//! | `commands.rs` | every command as a user meets it: output, files, exit codes, hints |
//! | `bad_config.rs` | a configuration that is refused leaves nothing behind |
//! | `damaged.rs`, `damaged_data.rs` | every file that is read, damaged: no panic, no memory out of proportion |
//! | `hostile_names.rs` | names in manifests, links and pipes: nothing outside is opened, nothing is waited for |
//! | `tidy.rs` | the rules of the code base |
//! | `hints.rs` | every command, flag and key that a message, the README or docs/ names exists |
//! | `docs.rs` | README and docs/: length, links, named files, the list of configuration keys |

#![allow(clippy::unwrap_used)]

mod allocation;
mod autograd;
mod bad_config;
mod benchmarks;
mod cases;
mod commands;
#[path = "../../src/runtime/tests/damage.rs"]
mod damage;
mod damaged;
mod damaged_data;
mod data;
mod docs;
mod exactly_once;
mod families;
mod generation;
mod gguf;
mod hints;
#[cfg(target_os = "linux")]
mod hostile_names;
mod hub_models;
mod huggingface;
mod insight;
mod launcher;
mod messages;
mod new_tokens;
mod ranks;
mod replay;
mod resume;
mod sft;
mod simd;
mod support;
mod tidy;
mod torture;
mod training;
