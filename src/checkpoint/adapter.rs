//! LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`. The model that they belong to is elsewhere.

use super::tensors::{TensorFile, TensorSink};
use crate::config::{Choice as _, LoraConfig, LoraTarget, ModelConfig};
use crate::hub::{ModelName, RepoKind, Settings, repository_of};
use crate::model::lora::{self, A, B, PREFIX};
use crate::runtime::error::{Exit, Failure, fail};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Adapters as they are stored, without the model beside whose weights they work.
#[derive(Debug)]
pub struct Adapter {
    pub config: LoraConfig,
    file: TensorFile,
}

/// `adapter_config.json`; `base` is the model's directory.
pub fn json(config: &LoraConfig, base: &str) -> Value {
    // PEFT declares an integer, and takes any number.
    let alpha = if config.alpha.fract() == 0.0 { json!(config.alpha as i64) } else { json!(config.alpha) };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": config.targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "use_dora": false,
        "modules_to_save": null,
        "layers_to_transform": null,
        "layers_pattern": null,
        "rank_pattern": {},
        "alpha_pattern": {},
    })
}

impl Adapter {
    /// The adapters of `dir`, whose `adapter_config.json` is `json`, for a model of the shape `model`.
    ///
    /// # Errors
    /// [`Exit::Data`] and [`Exit::Config`] if the files do not fit together or do not fit the model.
    pub(super) fn read(dir: &Path, json: &Value, file: TensorFile, model: &ModelConfig) -> Result<Self> {
        let config = parse(json, &file).with_context(|| config_path(dir))?;
        check_matrices(dir, model, &config, &file)?;
        Ok(Self { config, file })
    }

    /// Hands every matrix to `sink` under PEFT's name.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read_tensors(&self, sink: &mut TensorSink<'_>) -> Result<()> {
        for name in self.file.names() {
            let (shape, values) = self.file.read(&name)?;
            sink(&name, &shape, values)?;
        }
        Ok(())
    }

    /// The values of the matrix with this name of PEFT's.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn matrix(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.file.read(name)?.1)
    }

    /// The model's weight `name`, whose values are `weight`, with its adapter merged into it if it has one.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn merged(&self, name: &str, weight: Vec<f32>) -> Result<Vec<f32>> {
        let module = format!("{PREFIX}{}", name.trim_end_matches(".weight"));
        let a_name = format!("{module}{A}");
        if self.file.shape(&a_name).is_none() {
            return Ok(weight);
        }
        let a = self.matrix(&a_name)?;
        let b = self.matrix(&format!("{module}{B}"))?;
        Ok(lora::merged(&weight, &a, &b, self.config.rank, lora::scale(&self.config)))
    }
}

/// The path of `adapter_config.json`, for messages.
pub(super) fn config_path(dir: &Path) -> String {
    format!("{}/{}", dir.display(), super::names::ADAPTER_CONFIG)
}

/// The directory of the model: `given`, or as the adapter's file says, or beside the adapter.
pub(super) fn base_dir(dir: &Path, json: &Value, given: Option<&Path>) -> Result<PathBuf> {
    let written = json["base_model_name_or_path"].as_str().unwrap_or_default();
    let places = match given {
        // Nowhere else: a mistyped path must not lead to another model.
        Some(given) => vec![given.to_owned()],
        None => vec![PathBuf::from(written), dir.join(written)],
    };
    let name = given.map_or(written.into(), Path::to_string_lossy);
    let found = places.into_iter().find(|path| !name.is_empty() && path.is_dir());
    found.ok_or_else(|| {
        let download = name_on_hub(&name, json["revision"].as_str());
        let download = download.map_or_else(String::new, |name| format!("; from the Hub: --base {name}"));
        fail(Exit::Io, format!("{}: its model {name:?} is not a directory here", dir.display()))
            .hint(format!("say where the model is{}: {BASE_HINT}{download}", cached(&name)))
            .into()
    })
}

/// The name on the Hub of the model that adapters call `written`: `OWNER/NAME`, or a directory of the Hub's cache that is gone.
fn name_on_hub(written: &str, revision: Option<&str>) -> Option<String> {
    let parts: Vec<&str> = written.rsplit('/').collect();
    let name = match parts.as_slice() {
        [commit, "snapshots", ..] => {
            let (_, repo) = repository_of(Path::new(written)).filter(|(kind, _)| *kind == RepoKind::Model)?;
            format!("hub:{repo}@{commit}")
        }
        [_, _] => format!("hub:{written}{}", revision.map_or_else(String::new, |revision| format!("@{revision}"))),
        _ => return None,
    };
    name.parse::<ModelName>().is_ok().then_some(name)
}

/// How a user names the model of adapters.
pub const BASE_HINT: &str = "eval, sample, export, resume and why take --base DIR (a branch of fork: sft.base=DIR)";

/// Where the Hub's cache has the model `name`, if it has it.
fn cached(name: &str) -> String {
    let Some((owner, model)) = name.split_once('/').filter(|(owner, model)| !owner.is_empty() && !model.contains('/'))
    else {
        return String::new();
    };
    let Ok(settings) = Settings::from_env() else { return String::new() };
    let folder = settings.cache.join(format!("models--{owner}--{model}"));
    let inside = super::advice::model_below(&folder);
    inside.map_or_else(String::new, |dir| format!(" (the cache of the Hub has it in {})", dir.display()))
}

/// Rank and factor as the file says, the layers as the tensors do: PEFT may give the names of the layers as a pattern.
fn parse(json: &Value, file: &TensorFile) -> Result<LoraConfig> {
    let rank = json["r"].as_u64().filter(|rank| (1..=65536).contains(rank)).ok_or_else(|| bad_value("r"))?;
    let alpha = json["lora_alpha"].as_f64().filter(|alpha| alpha.is_finite()).ok_or_else(|| bad_value("lora_alpha"))?;
    let names = file.names();
    let mut targets = LoraTarget::ALL.to_vec();
    targets.retain(|target| {
        let suffix = format!(".{}{A}", target.name());
        names.iter().any(|name| name.ends_with(&suffix))
    });
    let dropout = json["lora_dropout"].as_f64().filter(|p| (0.0..1.0).contains(p)).unwrap_or(0.0);
    let rslora = json["use_rslora"].as_bool().unwrap_or(false);
    Ok(LoraConfig { rank: rank as usize, alpha, dropout, targets, rslora })
}

fn bad_value(key: &str) -> Failure {
    fail(Exit::Data, format!("{key} is not what it should be")).hint("get the adapter again")
}

/// Compares the matrices with those that the model needs.
fn check_matrices(dir: &Path, model: &ModelConfig, config: &LoraConfig, file: &TensorFile) -> Result<()> {
    let mut wanted = lora::specs(model, config);
    wanted.sort();
    let mut given: Vec<_> =
        file.names().into_iter().map(|name| (file.shape(&name).unwrap_or_default().to_vec(), name)).collect();
    given.sort_by(|a, b| a.1.cmp(&b.1));
    let given: Vec<(String, Vec<usize>)> = given.into_iter().map(|(shape, name)| (name, shape)).collect();
    if given == wanted {
        return Ok(());
    }
    Err(misfit(dir, &given, &wanted).into())
}

/// Why the matrices `given` are not those `wanted`.
fn misfit(dir: &Path, given: &[(String, Vec<usize>)], wanted: &[(String, Vec<usize>)]) -> Failure {
    let place = dir.display();
    if let Some((name, _)) = given.iter().find(|(name, _)| !name.ends_with(A) && !name.ends_with(B)) {
        let what = match name.contains("embed_tokens") || name.contains("lm_head") {
            true => "whole weights beside its adapters, as PEFT saves when the vocabulary was changed",
            false => "more than the matrices of LoRA",
        };
        return fail(Exit::Config, format!("{place}: the adapter holds {what}: {name}")).hint(
            "adapters that are plain LoRA on the linear layers of all blocks are read; merge others into their model with PEFT \
             first (merge_and_unload, then save_pretrained)",
        );
    }
    for (name, shape) in given {
        match wanted.iter().find(|(wanted, _)| wanted == name).map(|(_, shape)| shape) {
            Some(model) if model == shape => {}
            Some(model) => {
                return fail(
                    Exit::Data,
                    format!("{place}: {name} is {shape:?}, but beside this model it must be {model:?}"),
                )
                .hint(format!("use the adapter with the model that it was trained on: {BASE_HINT}"));
            }
            None => {
                return fail(Exit::Config, format!("{place}: {name} belongs to no linear layer of a block of the model"))
                    .hint(format!(
                        "adapters on {} are read; if the model is another than the adapter was trained on, give that: {BASE_HINT}",
                        LoraTarget::NAMES.join(", ")
                    ));
            }
        }
    }
    let missing = wanted.iter().find(|(name, _)| !given.iter().any(|(given, _)| given == name));
    let missing = missing.map_or("", |(name, _)| name.as_str());
    fail(Exit::Config, format!("{place}: not all blocks have the same adapters: there is no {missing}"))
        .hint("adapters on the same layers of all blocks are read; merge others into their model with PEFT first")
}

/// Identifies the weights of a model: hashed in the order of its layout.
pub fn base_hasher() -> blake3::Hasher {
    blake3::Hasher::new_derive_key("llama-lite base weights v1")
}

/// Adds `values` to the hash of a model's weights.
pub fn hash_weights(hasher: &mut blake3::Hasher, values: &[f32]) {
    for piece in values.chunks(1 << 16) {
        let bytes: Vec<u8> = piece.iter().flat_map(|x| x.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
}

/// The failure of adapters beside other weights than those they were trained with.
pub fn other_base(dir: &Path) -> Failure {
    let message = format!("{}: the weights are not those that the adapters were trained with", dir.display());
    fail(Exit::Data, message).hint(format!("give the model that `sft` was started from: {BASE_HINT}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_is_named_where_it_has_the_model() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (written, revision, expected) in [
            ("owner/name", None, Some("hub:owner/name".to_owned())),
            ("owner/name", Some("v1"), Some("hub:owner/name@v1".to_owned())),
            (&format!("/c/hub/models--owner--name/snapshots/{commit}"), None, Some(format!("hub:owner/name@{commit}"))),
            ("/models/base", None, None),
            ("../base", None, None),
            ("base", None, None),
            ("", None, None),
        ] {
            assert_eq!(name_on_hub(written, revision), expected, "{written}");
        }
    }
}
