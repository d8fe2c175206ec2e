//! Hugging Face's files of a model: tensor names, `config.json` and `generation_config.json`, both ways.
//!
//! What is written reads the same in transformers 4 and 5: those disagree on where RoPE's theta lives (top level in 4,
//! `rope_parameters` in 5) and on the name of the dtype, so both places are filled. Token ids that the tokenizer lacks
//! are written as null, because an absent key would mean transformers' own defaults (1 and 2).
//!
//! What is read may come from anyone: everything that this program would compute differently is refused by name. `hf/reader.rs` reads the keys,
//! `hf/defaults.rs` has what each architecture takes absent ones for, `hf/rope.rs` the settings of RoPE.

mod defaults;
mod reader;
mod rope;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::dtype::Dtype;
use crate::config::{Architecture, Choice, ModelConfig};
use crate::runtime::error::{Exit, fail};
use reader::Reader;

/// Name of the output projection.
pub const LM_HEAD: &str = "lm_head.weight";
/// Name of the token embedding.
pub const EMBED: &str = "model.embed_tokens.weight";

/// `config.json`. Several `eos` ids are written as a list.
pub fn config_json(model: &ModelConfig, bos: Option<u32>, eos: &[u32], dtype: Dtype) -> Value {
    // Two things stand here twice: newer versions of transformers read `dtype` and `rope_parameters`, older ones
    // `torch_dtype` and `rope_theta`.
    let mut config = json!({
        "architectures": [model.architecture.class_name()],
        "model_type": model.architecture.name(),
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "dtype": dtype.torch_name(),
        "eos_token_id": ids(eos),
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "initializer_range": model.initializer_range,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": model.max_position_embeddings,
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_hidden_layers,
        "num_key_value_heads": model.num_key_value_heads,
        "pad_token_id": null,
        "pretraining_tp": 1,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_parameters": rope::parameters(model),
        "rope_scaling": rope::scaling(model),
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tie_word_embeddings,
        "torch_dtype": dtype.torch_name(),
        "use_cache": true,
        "vocab_size": model.vocab_size,
    });
    for (key, value) in architecture_settings(model) {
        config[key] = value;
    }
    if model.residual_scaling {
        // Our own key, and only about initialisation: other programs ignore it.
        config["residual_scaling"] = true.into();
    }
    config
}

/// The keys that only some architectures have.
fn architecture_settings(model: &ModelConfig) -> Vec<(&'static str, Value)> {
    let architecture = model.architecture;
    let mut settings = Vec::new();
    if architecture.takes_attention_bias() {
        settings.push(("attention_bias", model.attention_bias.into()));
    }
    if architecture.takes_mlp_bias() {
        settings.push(("mlp_bias", model.mlp_bias.into()));
    }
    if architecture.takes_sliding_window() || architecture == Architecture::SmolLm3 {
        settings.push(("sliding_window", model.sliding_window.into()));
    }
    if architecture.takes_max_window_layers() {
        // Without a window transformers still reads the number.
        let layers = if model.sliding_window.is_some() { model.max_window_layers } else { model.num_hidden_layers };
        settings.push(("max_window_layers", layers.into()));
        settings.push(("use_sliding_window", model.sliding_window.is_some().into()));
    }
    if architecture == Architecture::SmolLm3 {
        settings.push(("no_rope_layers", model.no_rope_layers.clone().into()));
        settings.push(("use_sliding_window", false.into()));
    }
    settings
}

/// `generation_config.json`: without it `generate()` would not know where to stop.
pub fn generation_json(bos: Option<u32>, eos: &[u32]) -> Value {
    json!({ "bos_token_id": bos, "eos_token_id": ids(eos) })
}

fn ids(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

/// What a `config.json` says that we use.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    pub model: ModelConfig,
    pub bos: Option<u32>,
    pub eos: Vec<u32>,
}

/// Reads a `config.json`. What is not supported is refused (exit 78), naming each key and value; `place` is for messages.
pub fn parse_config(json: &Value, place: &str) -> Result<HfConfig> {
    let Some(object) = json.as_object() else {
        return Err(fail(Exit::Data, format!("{place} is not a JSON object")).hint("copy or download it again").into());
    };
    let mut reader = Reader::new(object);
    let model = reader.model();
    let eos = reader.token_ids("eos_token_id");
    let bos = reader.token_ids("bos_token_id").first().copied();
    if reader.problems.is_empty() {
        return Ok(HfConfig { model, bos, eos });
    }
    let message = format!("{place} describes a model that is not supported: {}", reader.problems.join("; "));
    Err(fail(Exit::Config, message).hint(unsupported_hint(object)).into())
}

/// What can be done about a `config.json` that is not supported.
fn unsupported_hint(object: &Map<String, Value>) -> String {
    let class = object.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str).unwrap_or_default();
    if let Some(body) = class.strip_suffix("Model") {
        let whole = format!("{body}ForCausalLM");
        if Architecture::ALL.iter().any(|architecture| architecture.class_name() == whole) {
            return format!("{class} is the body of a model, without its head: save the {whole} that it belongs to");
        }
    }
    let classes = Architecture::ALL.map(Architecture::class_name);
    format!("what can be loaded: {}, with silu and not quantised", classes.join(", "))
}

/// The end-of-text ids of a `config.json` or `generation_config.json`; what is not an id is skipped.
pub fn eos_ids(json: &Value) -> Vec<u32> {
    match &json["eos_token_id"] {
        Value::Array(list) => list.iter().filter_map(token_id).collect(),
        one => token_id(one).into_iter().collect(),
    }
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
#[path = "tests/hf_config.rs"]
mod tests;
