//! Writing a checkpoint.
//!
//! Order is everything: each file is written and fsynced in a temporary directory, the manifest last, then the directory
//! is fsynced, renamed, and its parent fsynced; only then does [`save`] return or delete anything older.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::dtype::Dtype;
use super::manifest::{self, FileEntry, Manifest, VERSION};
use super::retain::{REREAD_BELOW, Retention, prune, sweep_leftovers};
use super::tensors::{ShapeRef, TensorRef, data_size, header, write_values};
use super::{checkpoints_dir, hf, names, step_name};
use crate::config::{LoraConfig, ModelConfig};
use crate::model::lora;
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files::{self, Digest, DirTxn, io_context};

/// Above this size the weights are split into shards; 5 GB is what the Hugging Face libraries use.
pub const SHARD_BYTES: usize = 5_000_000_000;

/// Room for the small files of checkpoints in the check of free space: far more than those of one take, and enough for several.
const SMALL_FILES: u64 = 16 << 20;

#[derive(Debug)]
pub struct Contents<'a> {
    /// The last optimizer step contained.
    pub step: u64,
    /// Tokens consumed up to and including that step.
    pub tokens: u64,
    /// The f32 master weights: the tensors of [`ModelConfig::tensor_shapes`], in any order; or adapters.
    pub weights: Vec<TensorRef<'a>>,
    /// The optimizer's state, `<weight>.<name>`: for AdamW `exp_avg` and `exp_avg_sq`.
    pub optimizer_state: Vec<TensorRef<'a>>,
    pub model: &'a ModelConfig,
    /// Names and contents of the tokenizer's files.
    pub tokenizer_files: Vec<(&'static str, Vec<u8>)>,
    /// Begin-of-text id, if the tokenizer has one.
    pub bos: Option<u32>,
    /// Ids at which generation stops.
    pub eos: Vec<u32>,
    /// Set if `weights` are adapters: their kind, and the directory of their model.
    pub adapter: Option<(&'a LoraConfig, &'a str)>,
    /// All else that training needs to go on.
    pub trainer_state: serde_json::Value,
}

/// Saves `RUN/checkpoints/step-%08d`, then deletes what `keep` does not retain; returns the new directory, which is
/// durable. A checkpoint of the same step is replaced in one atomic step. The caller holds the run's lock and has made
/// its logs durable up to this step. `attempt` numbers the process in the run's history.
///
/// Non-finite tensors are refused (exit 76), lack of space and I/O errors are exit 74: older checkpoints are then as
/// they were, and nothing is left behind.
pub fn save(run_dir: &Path, attempt: u64, contents: &Contents<'_>, keep: Retention) -> Result<PathBuf> {
    save_sharded(run_dir, attempt, contents, keep, SHARD_BYTES)
}

/// [`save`] with weights of more than `shard_bytes` split into files of at most that size.
pub fn save_sharded(
    run_dir: &Path,
    attempt: u64,
    contents: &Contents<'_>,
    keep: Retention,
    shard_bytes: usize,
) -> Result<PathBuf> {
    // First: a mistake of the caller must leave no trace on the disk.
    check(contents)?;
    let root = checkpoints_dir(run_dir);
    files::create_dirs(&root)?;
    // Before the free space is measured, some of which leftovers take.
    sweep_leftovers(&root)?;
    let tensors = contents.weights.iter().chain(&contents.optimizer_state);
    ensure_space(&root, space_for(tensors.map(|t| size_of_val(t.data) as u64).sum(), 1))?;
    let dir = root.join(step_name(contents.step));
    let mut writer = Writer::create(&dir, &attempt.to_string())?;
    write_contents(&mut writer, contents, shard_bytes)?;
    let manifest = Manifest {
        version: VERSION,
        step: contents.step,
        tokens: contents.tokens,
        files: std::mem::take(&mut writer.entries),
    };
    // Last: it lists the sizes and hashes of all other files.
    writer.bytes(names::MANIFEST, manifest.render()?.as_bytes())?;
    // Every file was synced when it was finished, so the name appears over whole contents only.
    writer.txn.commit()?;
    if manifest.total_size() < REREAD_BELOW {
        // Catches a disk that loses what it acknowledged while the older checkpoints still exist.
        manifest::verify(&dir)?;
    }
    // Only after the new one is durable: at every moment there is a good checkpoint on the disk.
    prune(run_dir, keep, &dir)?;
    Ok(dir)
}

fn write_contents(writer: &mut Writer, contents: &Contents<'_>, shard_bytes: usize) -> Result<()> {
    let eos = &contents.eos;
    match contents.adapter {
        None => writer.json(names::CONFIG, &hf::config_json(contents.model, contents.bos, eos, Dtype::F32))?,
        Some((config, base)) => writer.json(names::ADAPTER_CONFIG, &super::adapter::json(config, base))?,
    }
    writer.json(names::GENERATION, &hf::generation_json(contents.bos, eos))?;
    for (name, bytes) in &contents.tokenizer_files {
        writer.bytes(name, bytes)?;
    }
    let specs: Vec<ShapeRef<'_>> = contents.weights.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    let mut weights = contents.weights.iter();
    match contents.adapter {
        None => writer.weights(&specs, Dtype::F32, shard_bytes, &mut |sink| write_next(&mut weights, sink))?,
        Some(_) => {
            writer.tensor_file(names::ADAPTER, &specs, Dtype::F32, &mut |sink| write_next(&mut weights, sink))?;
        }
    }
    let specs: Vec<ShapeRef<'_>> =
        contents.optimizer_state.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    let mut optimizer_state = contents.optimizer_state.iter();
    writer.tensor_file(names::OPTIMIZER, &specs, Dtype::F32, &mut |sink| write_next(&mut optimizer_state, sink))?;
    writer.json(names::TRAINER, &contents.trainer_state)
}

/// Hands the values of the next of `tensors` to `sink`.
fn write_next<'a>(tensors: &mut impl Iterator<Item = &'a TensorRef<'a>>, sink: &mut Sink<'_>) -> Result<()> {
    tensors.next().map_or(Ok(()), |tensor| sink(tensor.data))
}

/// Refuses contents that would make a checkpoint that does not load: a mistake of the caller.
fn check(contents: &Contents<'_>) -> Result<()> {
    let step = contents.step;
    for TensorRef { name, shape, data } in contents.weights.iter().chain(&contents.optimizer_state) {
        if data_size(shape, Dtype::F32)? != size_of_val(*data) {
            return Err(cannot_save(step, &format!("{name} has {} values for the shape {shape:?}", data.len())).into());
        }
    }
    let mut given: Vec<_> = contents.weights.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    let mut wanted = match contents.adapter {
        None => contents.model.tensor_shapes(),
        Some((config, _)) => lora::specs(contents.model, config),
    };
    given.sort();
    wanted.sort();
    if given != wanted {
        return Err(cannot_save(step, "the weights are not those of the model's configuration").into());
    }
    for (name, _) in &contents.tokenizer_files {
        if !manifest::valid_name(name) {
            return Err(cannot_save(step, &format!("{name:?} cannot be the name of a tokenizer file")).into());
        }
    }
    Ok(())
}

fn cannot_save(step: u64, what: &str) -> Failure {
    fail(Exit::Internal, format!("cannot save step {step}: {what}"))
}

/// Bytes that must be free for `count` checkpoints with `tensors` bytes of tensors each.
pub fn space_for(tensors: u64, count: u64) -> u64 {
    let small_files = if count > 0 { SMALL_FILES } else { 0 };
    tensors.saturating_mul(count).saturating_add(small_files)
}

/// Refuses to start what cannot be finished: `needed` bytes on the file system of `dir`, which need not exist yet.
pub fn ensure_space(dir: &Path, needed: u64) -> Result<()> {
    let free = match files::free_space(dir)? {
        Some(free) if free < needed => free,
        _ => return Ok(()),
    };
    let place = dir.display();
    let message = format!("writing to {place} needs {needed} bytes, but its file system has {free} bytes free");
    Err(fail(Exit::Io, message).hint("free disk space, keep fewer checkpoints, or use another disk").into())
}

/// Receives the values of one tensor.
pub(super) type Sink<'s> = dyn FnMut(&[f32]) -> Result<()> + 's;
/// Called once per tensor, in order; hands its values to the sink.
pub(super) type ValueSource<'s> = dyn FnMut(&mut Sink<'_>) -> Result<()> + 's;

/// A model directory being written: every file is recorded with its size and hash.
pub(super) struct Writer {
    pub(super) txn: DirTxn,
    pub(super) entries: Vec<FileEntry>,
}

impl Writer {
    pub(super) fn create(dir: &Path, tag: &str) -> Result<Writer> {
        Ok(Writer { txn: DirTxn::create(dir, tag)?, entries: Vec::new() })
    }

    pub(super) fn record(&mut self, name: &str, Digest { size, blake3 }: Digest) {
        self.entries.push(FileEntry { name: name.to_owned(), size, blake3 });
    }

    pub(super) fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let digest = self.txn.write(name, bytes)?;
        self.record(name, digest);
        Ok(())
    }

    pub(super) fn json(&mut self, name: &str, value: &serde_json::Value) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        self.bytes(name, text.as_bytes())
    }

    pub(super) fn tensor_file(
        &mut self,
        name: &str,
        specs: &[ShapeRef<'_>],
        dtype: Dtype,
        source: &mut ValueSource<'_>,
    ) -> Result<()> {
        let mut file = self.txn.file(name)?;
        let path = Path::new(name);
        std::io::Write::write_all(&mut file, &header(specs, dtype)?).map_err(io_context("write", path))?;
        for (tensor, shape) in specs {
            let mut written = 0;
            source(&mut |values| {
                written += values.len() * dtype.size();
                write_values(&mut file, path, tensor, values, dtype)
            })?;
            // The header is written already, and promises this size.
            if written != data_size(shape, dtype)? {
                return Err(fail(Exit::Internal, format!("{tensor} was not written whole to {name}")).into());
            }
        }
        let digest = file.finish()?;
        self.record(name, digest);
        Ok(())
    }

    /// The model's weights: `model.safetensors`, or shards with their index when larger than `shard_bytes`.
    pub(super) fn weights(
        &mut self,
        specs: &[ShapeRef<'_>],
        dtype: Dtype,
        shard_bytes: usize,
        source: &mut ValueSource<'_>,
    ) -> Result<()> {
        let shards = split(specs, dtype, shard_bytes)?;
        if let [only] = shards.as_slice() {
            return self.tensor_file(names::WEIGHTS, only, dtype, source);
        }
        let mut map = serde_json::Map::new();
        let mut total = 0;
        for (n, shard) in shards.iter().enumerate() {
            // The names that Hugging Face's libraries write and look for.
            let file = format!("model-{:05}-of-{:05}.safetensors", n + 1, shards.len());
            self.tensor_file(&file, shard, dtype, source)?;
            for (name, shape) in *shard {
                map.insert(name.to_string(), file.clone().into());
                total += data_size(shape, dtype)?;
            }
        }
        self.json(names::INDEX, &serde_json::json!({ "metadata": { "total_size": total }, "weight_map": map }))
    }
}

/// Cuts the list of tensors, in order, into runs of at most `limit` bytes (or a single tensor that is larger).
fn split<'s, 'a>(specs: &'s [ShapeRef<'a>], dtype: Dtype, limit: usize) -> Result<Vec<&'s [ShapeRef<'a>]>> {
    let mut shards = Vec::new();
    let mut start = 0;
    let mut filled = 0_usize;
    for (n, (_, shape)) in specs.iter().enumerate() {
        let size = data_size(shape, dtype)?;
        if n > start && filled.saturating_add(size) > limit {
            shards.push(&specs[start..n]);
            start = n;
            filled = 0;
        }
        filled = filled.saturating_add(size);
    }
    shards.push(&specs[start..]);
    Ok(shards)
}
