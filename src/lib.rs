//! llama-lite: pretrain, resume, evaluate and sample LLaMA models of up to a few billion parameters.
//!
//! One idea carries the crate: **explicit forward and backward on candle tensors**. Every operation of the training path is a pair of
//! functions (`ops`); a block's forward returns what its backward consumes by value (`model`); candle's autograd is not in
//! the training path: the tests and `doctor` compare with it.
//!
//! Data flow, one way: config → text → tokenizer → tokens → [`data::loader::Loader`] → sequences → [`model`] and [`ops`] → losses and
//! gradients → [`train::optimizer`] → [`metrics`] and [`checkpoint`].
//!
//! Commands meet only through files: `pretrain` writes a run directory; `resume`, `eval`, `sample` and `export` read it.
//!
//! | module | may use |
//! |---|---|
//! | `runtime` | nothing |
//! | `config`, `ops` | `runtime` |
//! | `distributed` | `ops`, `runtime` |
//! | `model` | `config`, `ops`, `runtime` |
//! | `tokenizer`, `hub`, `stories`, `metrics` | `config`, `runtime` |
//! | `corpus` | `config`, `hub`, `runtime`, `tokenizer` |
//! | `chat` | `config`, `runtime`, `tokenizer` |
//! | `data` | `config`, `corpus`, `hub`, `runtime`, `stories`, `tokenizer` |
//! | `sft` | `chat`, `config`, `corpus`, `data`, `runtime`, `tokenizer` |
//! | `checkpoint` | `config`, `hub`, `model`, `ops`, `runtime`, `tokenizer` |
//! | `sample` | `checkpoint`, `config`, `model`, `ops`, `runtime`, `tokenizer` |
//! | `eval` | `checkpoint`, `config`, `corpus`, `data`, `distributed`, `hub`, `metrics`, `model`, `ops`, `runtime`, `sample`, `tokenizer` |
//! | `train` | all of the above |
//! | `inspect` | all of the above |
//! | `commands` | all of the above |
//! | `cli` | all of the above |
//!
//! No file imports one that imports it; only a folder's face (`x.rs` beside `x/`) and its parts may name each other.
//!
//! Invariants: `ops` knows no Llama; `model` does no I/O and knows no optimizer; only `runtime::files` writes files; `unsafe` only in
//! `ops` and for the allocator in `main.rs`; stdout is for data, all else goes to stderr; no iteration over hash maps; results do not depend on the number of
//! threads. `tests/all/tidy.rs` holds the code to these.

pub mod chat;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod corpus;
pub mod data;
pub mod distributed;
pub mod eval;
pub mod hub;
pub mod inspect;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod runtime;
pub mod sample;
pub mod sft;
pub mod stories;
pub mod tokenizer;
pub mod train;

/// Version and commit, as `--version` prints them.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), env!("LLAMA_LITE_COMMIT"));
