//! LoRA adapters in PEFT's own format: `adapter_config.json` and `adapter_model.safetensors`, beside nothing of the model they belong to.

use super::open::{Opened, TensorSink};
use super::tensors::TensorFile;
use crate::config::{LORA_TARGETS, LoraConfig, ModelConfig};
use crate::model::lora::{self, A, B, PREFIX};
use crate::runtime::error::{Exit, fail};
use crate::runtime::shell::quoted;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Adapters, and the model beside whose weights they work.
#[derive(Debug)]
pub struct Adapter {
    /// The model.
    pub base: Box<Opened>,
    /// Their kind.
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
    /// The adapters of `dir`, whose `adapter_config.json` is `json`.
    ///
    /// # Errors
    /// [`Exit::Config`] for kinds that are not supported, [`Exit::Data`] if files do not fit together, those of opening the model.
    pub(super) fn open(dir: &Path, json: &Value, file: TensorFile) -> Result<Self> {
        let at = || format!("{}/adapter_config.json", dir.display());
        refuse_other_kinds(json).with_context(at)?;
        let base = base_dir(dir, json)?;
        let base = Opened::open(&base).with_context(|| format!("the model of the adapter {}", dir.display()))?;
        if base.adapter().is_some() {
            return Err(fail(Exit::Config, format!("{}: the model of an adapter is an adapter itself", at()))
                .hint(format!(
                    "merge that one first: llama-lite export --ckpt {} --merge-lora --out DIR",
                    quoted(&base.dir)
                ))
                .into());
        }
        let config = parse(json, &file).with_context(at)?;
        check(dir, &base.model, &config, &file)?;
        Ok(Self { base: Box::new(base), config, file })
    }

    /// Hands every matrix to `sink` under PEFT's name.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(&self, sink: &mut TensorSink<'_>) -> Result<()> {
        for name in self.file.names() {
            let (shape, values) = self.file.read(&name)?;
            sink(&name, &shape, values)?;
        }
        Ok(())
    }

    /// The weight `name` of the model, with its adapter in it if it has one.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn merged(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let (shape, weight) = self.base.weight(name)?;
        let module = format!("{PREFIX}{}", name.trim_end_matches(".weight"));
        let (a, b) = (format!("{module}{A}"), format!("{module}{B}"));
        if lora::module(name).is_none() || self.file.shape(&a).is_none() {
            return Ok((shape, weight));
        }
        let (a, b) = (self.file.read(&a)?.1, self.file.read(&b)?.1);
        let merged = lora::merged(&weight, &a, &b, self.config.rank, lora::scale(&self.config));
        Ok((shape, merged))
    }
}

/// The directory of the model: as written, or beside the adapter.
fn base_dir(dir: &Path, json: &Value) -> Result<PathBuf> {
    let name = json["base_model_name_or_path"].as_str().unwrap_or_default();
    let found = [PathBuf::from(name), dir.join(name)].into_iter().find(|path| !name.is_empty() && path.is_dir());
    found.ok_or_else(|| {
        fail(Exit::Io, format!("{}: its model {name:?} is not a directory here", dir.display()))
            .hint("put the model's directory into base_model_name_or_path of adapter_config.json")
            .into()
    })
}

fn refuse_other_kinds(json: &Value) -> Result<()> {
    let absent = |key: &str| match &json[key] {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let unsupported =
        ["use_dora", "modules_to_save", "layers_to_transform", "rank_pattern", "alpha_pattern", "fan_in_fan_out"];
    let found = unsupported.into_iter().find(|key| !absent(key));
    let bias = json["bias"].as_str().is_some_and(|bias| bias != "none").then_some("bias");
    let kind = (json["peft_type"] != "LORA").then_some("peft_type");
    match found.or(bias).or(kind) {
        None => Ok(()),
        Some(key) => Err(fail(Exit::Config, format!("{key} = {} is not supported", json[key]))
            .hint("adapters are plain LoRA on the linear layers of all blocks; merge others with PEFT first")
            .into()),
    }
}

/// Rank and factor as the file says, the layers as the tensors do: PEFT may give the names of the layers as a pattern.
fn parse(json: &Value, file: &TensorFile) -> Result<LoraConfig> {
    let wrong = |what: &str| fail(Exit::Data, format!("{what} is not what it should be")).hint("get the adapter again");
    let rank = json["r"].as_u64().filter(|rank| (1..=65536).contains(rank)).ok_or_else(|| wrong("r"))?;
    let alpha = json["lora_alpha"].as_f64().filter(|alpha| alpha.is_finite()).ok_or_else(|| wrong("lora_alpha"))?;
    let names = file.names();
    let has = |target: &&str| names.iter().any(|name| name.ends_with(&format!(".{target}{A}")));
    let targets = LORA_TARGETS.into_iter().filter(has).map(str::to_owned).collect();
    let dropout = json["lora_dropout"].as_f64().filter(|p| (0.0..1.0).contains(p)).unwrap_or(0.0);
    let rslora = json["use_rslora"].as_bool().unwrap_or(false);
    Ok(LoraConfig { rank: rank as usize, alpha, dropout, targets, rslora })
}

/// Compares the matrices with those that the model needs.
fn check(dir: &Path, model: &ModelConfig, config: &LoraConfig, file: &TensorFile) -> Result<()> {
    let mut wanted = lora::specs(model, config);
    wanted.sort();
    let mut given: Vec<_> =
        file.names().into_iter().map(|name| (file.shape(&name).unwrap_or_default().to_vec(), name)).collect();
    given.sort_by(|a, b| a.1.cmp(&b.1));
    let given: Vec<(String, Vec<usize>)> = given.into_iter().map(|(shape, name)| (name, shape)).collect();
    if given == wanted {
        return Ok(());
    }
    let odd = given.iter().find(|g| !wanted.contains(g)).or_else(|| wanted.iter().find(|w| !given.contains(w)));
    let odd = odd.map_or_else(String::new, |(name, shape)| format!(": {name} {shape:?}"));
    Err(fail(Exit::Data, format!("{}: the adapters do not fit the model's layers{odd}", dir.display()))
        .hint("use the adapter with the model that it was trained on")
        .into())
}
