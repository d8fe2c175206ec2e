//! Reading a model: a checkpoint of ours, verified, or any Hugging Face model directory, checked for what it can be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::adapter::{self, Adapter};
use super::advice::{no_adapters, no_weights};
use super::find::{Valid, resolve_verified};
use super::fit::check_tensors;
use super::hf::{self, EMBED, HfConfig, LM_HEAD};
use super::manifest::{Manifest, check_hashes, check_sizes, valid_name};
use super::names;
use super::peft_keys::refuse_other_kinds;
use super::recognize::is_checkpoint;
use super::tensors::{TensorFile, TensorSink, replacement_hint};
use crate::config::ModelConfig;
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files;
use crate::runtime::shell::quoted;

/// Bounds on what is read whole.
const MAX_CONFIG: u64 = 1 << 20;
pub(super) const MAX_INDEX: u64 = 16 << 20;
const MAX_TRAINER: u64 = 256 << 20;

/// A model directory opened for reading. Its configuration and the names, shapes and dtypes of its weights have been
/// checked; those of a checkpoint have also been compared with their hashes.
#[derive(Debug)]
pub struct Opened {
    /// The directory (for a run directory: its newest good checkpoint).
    pub dir: PathBuf,
    pub model: ModelConfig,
    pub bos: Option<u32>,
    /// Ids at which generation stops: those of `config.json` and of `generation_config.json`.
    pub eos: Vec<u32>,
    /// The record of a checkpoint; none for a plain Hugging Face directory.
    pub manifest: Option<Manifest>,
    files: Vec<TensorFile>,
    /// Weight name -> index in `files`.
    place: BTreeMap<String, usize>,
    optimizer_verified: bool,
    /// Set for a directory of adapters: the weights are those of their model, with the adapters merged into them.
    adapted: Option<AdaptedModel>,
}

#[derive(Debug)]
struct AdaptedModel {
    adapter: Adapter,
    base: Box<Opened>,
}

impl Opened {
    /// Opens what `--ckpt` names: a checkpoint, a run directory (its newest good checkpoint), a Hugging Face Llama
    /// directory or one of adapters. The optimizer's state of a checkpoint is compared with its hash only when it is read.
    pub fn open(ckpt: &Path) -> Result<Opened> {
        Opened::open_beside(ckpt, None)
    }

    /// [`open`](Self::open); if they are adapters, their model is in `base`, if that is given, whatever their own file says.
    pub fn open_beside(ckpt: &Path, base: Option<&Path>) -> Result<Opened> {
        if let Some(valid) = resolve_verified(ckpt)? {
            return Opened::open_valid(valid, base);
        }
        if !is_checkpoint(ckpt)? {
            return Opened::read(ckpt.to_owned(), None, true, base);
        }
        let checked = check_sizes(ckpt).and_then(|manifest| {
            // The optimizer's state is most of the bytes, and only a resume reads it.
            check_hashes(ckpt, &manifest, |name| name != names::OPTIMIZER)?;
            Ok(manifest)
        });
        let manifest = checked.map_err(|fault| fault.into_error(ckpt))?;
        Opened::read(ckpt.to_owned(), Some(manifest), false, base)
    }

    /// Opens a checkpoint that [`newest_valid`](super::newest_valid) has verified, without hashing it again. `base` as in
    /// [`open_beside`](Self::open_beside).
    pub fn open_valid(valid: Valid, base: Option<&Path>) -> Result<Opened> {
        Opened::read(valid.dir, Some(valid.manifest), true, base)
    }

    fn read(dir: PathBuf, manifest: Option<Manifest>, optimizer_verified: bool, base: Option<&Path>) -> Result<Opened> {
        let members = Members { dir: &dir, manifest: manifest.as_ref() };
        if members.are_adapters()? {
            return Opened::read_adapter(&dir, manifest.clone(), optimizer_verified, base);
        }
        if base.is_some() {
            return Err(fail(Exit::Config, format!("{} is a whole model, which needs no other", dir.display()))
                .hint("leave --base out: it says where the model of adapters is")
                .into());
        }
        let config = members.json(names::CONFIG, MAX_CONFIG)?;
        let HfConfig { model, bos, mut eos } =
            hf::parse_config(&config, &dir.join(names::CONFIG).display().to_string())?;
        if members.has(names::GENERATION) {
            let more = hf::eos_ids(&members.json(names::GENERATION, MAX_CONFIG)?);
            eos.extend(more);
            eos.sort_unstable();
            eos.dedup();
        }
        let files = open_weights(&members)?;
        let mut place = BTreeMap::new();
        for (n, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(before) = place.insert(name.clone(), n) {
                    let both = format!("{} and {}", files[before].path().display(), file.path().display());
                    return Err(fail(Exit::Data, format!("{name} is in both {both}"))
                        .hint("keep one of the two")
                        .into());
                }
            }
        }
        check_tensors(&dir, &model, &files, &place)?;
        Ok(Opened { dir, model, bos, eos, manifest, files, place, optimizer_verified, adapted: None })
    }

    fn read_adapter(
        dir: &Path,
        manifest: Option<Manifest>,
        optimizer_verified: bool,
        base: Option<&Path>,
    ) -> Result<Opened> {
        let members = Members { dir, manifest: manifest.as_ref() };
        let config = members.json(names::ADAPTER_CONFIG, MAX_CONFIG)?;
        if !members.has(names::ADAPTER) {
            return Err(no_adapters(dir).into());
        }
        let file = members.tensors(names::ADAPTER)?;
        refuse_other_kinds(&config).with_context(|| adapter::config_path(dir))?;
        let base = open_base(dir, &adapter::base_dir(dir, &config, base)?)?;
        let adapter = Adapter::read(dir, &config, file, &base.model)?;
        let mut eos = base.eos.clone();
        if members.has(names::GENERATION) {
            let own = hf::eos_ids(&members.json(names::GENERATION, MAX_CONFIG)?);
            if !own.is_empty() {
                eos = own;
            }
        }
        Ok(Opened {
            dir: dir.to_owned(),
            model: base.model.clone(),
            bos: base.bos,
            eos,
            manifest,
            files: Vec::new(),
            place: BTreeMap::new(),
            optimizer_verified,
            adapted: Some(AdaptedModel { adapter, base: Box::new(base) }),
        })
    }

    /// The adapters, if it is a directory of them.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapted.as_ref().map(|adapted| &adapted.adapter)
    }

    /// The model beside whose weights the adapters work, if it is a directory of adapters.
    pub fn base(&self) -> Option<&Opened> {
        self.adapted.as_ref().map(|adapted| adapted.base.as_ref())
    }

    /// Where the tokenizer is: here, or with the model of adapters.
    pub fn tokenizer_dir(&self) -> &Path {
        match self.base() {
            Some(base) if !self.dir.join("tokenizer.json").exists() => &base.dir,
            _ => &self.dir,
        }
    }

    /// Hands every weight to `sink` as f32, in the order of [`ModelConfig::tensor_shapes`], one in memory at a time.
    pub fn read_weights(&self, sink: &mut TensorSink<'_>) -> Result<()> {
        self.check_tied()?;
        self.check_base()?;
        for (name, _) in self.model.tensor_shapes() {
            let (shape, values) = self.weight(&name)?;
            sink(&name, &shape, values)?;
        }
        Ok(())
    }

    /// Shape and values of the weight `name`; of adapters that of their model with the adapter merged into it.
    pub fn weight(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        if let Some(AdaptedModel { adapter, base }) = &self.adapted {
            let (shape, weight) = base.weight(name)?;
            return Ok((shape, adapter.merged(name, weight)?));
        }
        let tied = name == EMBED && self.model.tie_word_embeddings && !self.place.contains_key(EMBED);
        // Tied weights may be saved under the head's name alone.
        let name = if tied { LM_HEAD } else { name };
        match self.place.get(name) {
            Some(&n) => self.files[n].read(name),
            None => Err(fail(Exit::Data, format!("{} has no tensor {name}", self.dir.display())).into()),
        }
    }

    /// Adapters of a run mean nothing beside other weights than those they were trained with: compares the weights of their model with
    /// the digest in the checkpoint. Adapters of other programs have no digest.
    pub(super) fn check_base(&self) -> Result<()> {
        let Some(base) = self.base().filter(|_| self.manifest.is_some()) else { return Ok(()) };
        let state = self.trainer_state()?;
        let Some(digest) = state["base"].as_str() else { return Ok(()) };
        let mut hasher = adapter::base_hasher();
        base.read_weights(&mut |_, _, values| {
            adapter::hash_weights(&mut hasher, &values);
            Ok(())
        })?;
        if hasher.finalize().to_hex().as_str() == digest { Ok(()) } else { Err(adapter::other_base(&base.dir).into()) }
    }

    /// A tied model may carry its head as well, if it is the embedding.
    pub(super) fn check_tied(&self) -> Result<()> {
        if let Some(base) = self.base() {
            return base.check_tied();
        }
        if !(self.model.tie_word_embeddings && [EMBED, LM_HEAD].iter().all(|name| self.place.contains_key(*name))) {
            return Ok(());
        }
        let (_, embed) = self.weight(EMBED)?;
        let (_, head) = self.weight(LM_HEAD)?;
        // As bits, so that a NaN equals itself.
        if embed.iter().map(|v| v.to_bits()).eq(head.iter().map(|v| v.to_bits())) {
            return Ok(());
        }
        let message =
            format!("{}: tie_word_embeddings is true, but {LM_HEAD} differs from {EMBED}", self.dir.display());
        Err(fail(Exit::Data, message)
            .hint("set tie_word_embeddings to false in config.json if the head is meant")
            .into())
    }

    /// Hands the optimizer's state to `sink`, in the order of the file. An error for a directory that is no checkpoint.
    pub fn read_optimizer_state(&self, sink: &mut TensorSink<'_>) -> Result<()> {
        let manifest = self.manifest.as_ref().ok_or_else(|| self.no_checkpoint(names::OPTIMIZER))?;
        if !self.optimizer_verified {
            let checked = check_hashes(&self.dir, manifest, |name| name == names::OPTIMIZER);
            checked.map_err(|fault| fault.into_error(&self.dir))?;
        }
        let file = Members { dir: &self.dir, manifest: Some(manifest) }.tensors(names::OPTIMIZER)?;
        for name in file.names() {
            let (shape, values) = file.read(&name)?;
            sink(&name, &shape, values)?;
        }
        Ok(())
    }

    /// The trainer's state of a checkpoint. An error for a directory that is no checkpoint.
    pub fn trainer_state(&self) -> Result<Value> {
        let manifest = self.manifest.as_ref().ok_or_else(|| self.no_checkpoint(names::TRAINER))?;
        Members { dir: &self.dir, manifest: Some(manifest) }.json(names::TRAINER, MAX_TRAINER)
    }

    fn no_checkpoint(&self, what: &str) -> Failure {
        let message = format!("{} is a plain model directory: it has no {what}", self.dir.display());
        fail(Exit::Config, message)
            .hint("resume needs a checkpoint of ours; `pretrain --init-from` takes a plain model")
    }
}

/// The files of a model directory. Those of a checkpoint are what its manifest lists: what else lies there was never compared with
/// a hash. They are no links, of which a Hugging Face cache is made.
struct Members<'a> {
    dir: &'a Path,
    /// None for a plain directory.
    manifest: Option<&'a Manifest>,
}

impl Members<'_> {
    fn has(&self, name: &str) -> bool {
        match self.manifest {
            Some(manifest) => manifest.entry(name).is_some(),
            None => self.dir.join(name).symlink_metadata().is_ok(),
        }
    }

    /// Whether they are adapters, not a model. Some trainers put the model's config.json beside its adapters.
    fn are_adapters(&self) -> Result<bool> {
        if !self.has(names::ADAPTER_CONFIG) {
            return Ok(false);
        }
        let whole = self.has(names::CONFIG) && (self.has(names::WEIGHTS) || self.has(names::INDEX));
        if whole && self.has(names::ADAPTER) {
            return Err(fail(Exit::Config, format!("{} holds a whole model and adapters", self.dir.display()))
                .hint("put the adapters (adapter_config.json, adapter_model.safetensors) into a directory of their own")
                .into());
        }
        Ok(!whole)
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        if self.manifest.is_some() && !self.has(name) {
            let message =
                format!("the checkpoint {} is damaged: its manifest does not list {name}", self.dir.display());
            return Err(fail(Exit::Data, message).hint("use another checkpoint").into());
        }
        Ok(self.dir.join(name))
    }

    fn tensors(&self, name: &str) -> Result<TensorFile> {
        let path = self.path(name)?;
        let (file, size) = files::open_input(&path, self.manifest.is_none())?;
        TensorFile::open(file, size, &path)
    }

    fn json(&self, name: &str, max: u64) -> Result<Value> {
        let path = self.path(name)?;
        let bytes = files::read_bounded(&path, max, self.manifest.is_none())?;
        serde_json::from_slice(&bytes).map_err(|e| {
            let message = format!("{} is not valid JSON: {e}", path.display());
            fail(Exit::Data, message).hint(replacement_hint(&path)).into()
        })
    }
}

/// Opens the model in `base` of the adapters in `dir`.
fn open_base(dir: &Path, base: &Path) -> Result<Opened> {
    let base = Opened::open(base).with_context(|| format!("the model of the adapter {}", dir.display()))?;
    if base.adapter().is_none() {
        return Ok(base);
    }
    let message = format!("{}: its model {} is an adapter itself", dir.display(), base.dir.display());
    let ckpt = quoted(&base.dir);
    Err(fail(Exit::Config, message)
        .hint(format!(
            "merge that one first: llama-lite export --merge-lora --ckpt {ckpt} --out MERGED; then give --base MERGED"
        ))
        .into())
}

/// Opens `model.safetensors` or, in its absence, the shards of the index.
fn open_weights(members: &Members<'_>) -> Result<Vec<TensorFile>> {
    if members.has(names::WEIGHTS) {
        return Ok(vec![members.tensors(names::WEIGHTS)?]);
    }
    if !members.has(names::INDEX) {
        return Err(no_weights(members.dir).into());
    }
    let index = members.json(names::INDEX, MAX_INDEX)?;
    let index_path = members.dir.join(names::INDEX);
    let shards = shard_names(&index, &index_path)?;
    if let Some(missing) = shards.iter().find(|name| !members.dir.join(name).exists()) {
        return Err(fail(Exit::Data, format!("{} names the shard {missing}, which is missing", index_path.display()))
            .hint("copy or download that file as well")
            .into());
    }
    shards.iter().map(|name| members.tensors(name)).collect()
}

fn malformed(path: &Path, what: &str) -> Failure {
    fail(Exit::Data, format!("{}: {what}", path.display())).hint(replacement_hint(path))
}

/// The distinct files of a weight index, in name order.
pub(super) fn shard_names(index: &Value, path: &Path) -> Result<Vec<String>> {
    let map = index["weight_map"].as_object().ok_or_else(|| malformed(path, "it has no weight_map"))?;
    let mut shards = Vec::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| valid_name(name) && name.ends_with(".safetensors"));
        let name = name
            .ok_or_else(|| malformed(path, &format!("{tensor:?} is in {file}, which is not allowed as a file name")))?;
        shards.push(name.to_owned());
    }
    shards.sort();
    shards.dedup();
    Ok(shards)
}
