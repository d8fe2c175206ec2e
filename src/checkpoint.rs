//! Checkpoints: save, verify, retain, fall back; and Hugging Face Llama directories in and out.
//!
//! A checkpoint is a directory `RUN/checkpoints/step-00000100` that IS a Hugging Face model directory, with the
//! optimizer's moments, the trainer's state and a manifest (size and BLAKE3 of every file) beside the weights. It
//! gets its name in one rename after everything in it is durable, and nothing older is deleted before that.
//! Readers verify it first: a safetensors file has no checksum of its own.
//!
//! Tensors come and go as named slices of `f32`: nothing here knows a device. Weights are streamed to the disk and back
//! one tensor at a time, so that saving needs no second copy of the model in memory.
//!
//! [`manifest`] is the record of a checkpoint, [`save`] writes one, [`find`] lists and verifies those of a run, [`retain`]
//! deletes old ones, [`open`] reads whole models and, with [`adapter`], LoRA adapters; [`recognize`] distinguishes a
//! checkpoint from a plain directory, [`fit`] compares weights with a configuration, [`advice`] says what else a path
//! holds; [`hf`] translates the configuration, [`tensors`] and [`dtype`] are the file format. [`export`](mod@export) writes plain directories, which
//! it reads back and compares with their model, and [`gguf`] the file that llama.cpp and Ollama read.

pub mod adapter;
mod advice;
pub mod dtype;
pub mod export;
pub mod find;
mod fit;
mod from_hub;
pub mod gguf;
pub mod hf;
pub mod manifest;
pub mod open;
mod peft_keys;
mod recognize;
pub mod retain;
pub mod save;
pub mod tensors;

#[cfg(test)]
pub(crate) mod tests;

pub use dtype::{Dtype, ExportDtype};
pub use export::certificate::Certificate;
pub use export::{TextFile, export, export_with};
pub use find::{NewestValid, Valid, list_valid, newest_valid, newest_valid_until, quarantine, resolve, supersede};
pub use from_hub::model_files;
pub use gguf::{GgufExport, export_gguf};
pub use manifest::{Manifest, verify};
pub use open::Opened;
pub use recognize::is_checkpoint;
pub use retain::{Retention, prune};
pub use save::{Contents, ensure_space, save, save_sharded, space_for};
pub use tensors::TensorRef;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::runtime::files::io_failure;

/// Characters of a value from a file in a message.
const MOST_SHOWN: usize = 80;

/// Names of the files of a checkpoint.
pub mod names {
    pub const CONFIG: &str = "config.json";
    /// Stop tokens for `generate()`.
    pub const GENERATION: &str = "generation_config.json";
    /// Weights, f32, Hugging Face names; absent when sharded.
    pub const WEIGHTS: &str = "model.safetensors";
    /// Which shard holds which weight.
    pub const INDEX: &str = "model.safetensors.index.json";
    /// The kind of the adapters, and the directory of their model.
    pub const ADAPTER_CONFIG: &str = "adapter_config.json";
    /// Adapters, f32, under PEFT's names; instead of the weights.
    pub const ADAPTER: &str = "adapter_model.safetensors";
    /// The optimizer's state, f32: `<weight>.<name>`, for AdamW `exp_avg` and `exp_avg_sq`.
    pub const OPTIMIZER: &str = "optimizer.safetensors";
    /// Everything else that a resume needs.
    pub const TRAINER: &str = "trainer_state.json";
    /// Sizes and hashes of the others.
    pub const MANIFEST: &str = "manifest.json";
}

/// The directory of a run's checkpoints.
pub fn checkpoints_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("checkpoints")
}

/// The directory name of the checkpoint after `step` steps.
pub fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The entries of `root` in name order; none if it does not exist.
fn entries(root: &Path) -> Result<Vec<PathBuf>> {
    let read = match std::fs::read_dir(root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|e| io_failure("list", root, &e))?,
    };
    let paths: std::io::Result<Vec<PathBuf>> = read.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(|e| io_failure("list", root, &e))?;
    paths.sort();
    Ok(paths)
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
