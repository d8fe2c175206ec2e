//! Hugging Face Llama: tensor names, `config.json` and `generation_config.json`, both ways.
//!
//! What is written reads the same in transformers 4 and 5: those disagree on where RoPE's theta lives (top level in 4,
//! `rope_parameters` in 5) and on the name of the dtype, so both places are filled. Token ids that the tokenizer lacks
//! are written as null, because an absent key would mean transformers' own defaults (1 and 2).
//!
//! What is read may come from anyone: everything that this program would compute differently is refused by name.

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::dtype::Dtype;
use crate::config::ModelConfig;
use crate::runtime::error::{Exit, fail};

/// Name of the output projection.
pub const LM_HEAD: &str = "lm_head.weight";
/// Name of the token embedding.
pub const EMBED: &str = "model.embed_tokens.weight";

/// `config.json`. Several `eos` ids are written as a list.
pub fn config_json(model: &ModelConfig, bos: Option<u32>, eos: &[u32], dtype: Dtype) -> Value {
    // Two things stand here twice: newer versions of transformers read `dtype` and `rope_parameters`, older ones
    // `torch_dtype` and `rope_theta`.
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": false,
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
        "mlp_bias": false,
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_hidden_layers,
        "num_key_value_heads": model.num_key_value_heads,
        "pad_token_id": null,
        "pretraining_tp": 1,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_parameters": { "rope_theta": model.rope_theta, "rope_type": "default" },
        "rope_scaling": null,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tie_word_embeddings,
        "torch_dtype": dtype.torch_name(),
        "use_cache": true,
        "vocab_size": model.vocab_size,
    });
    if model.residual_scaling {
        // Our own key, and only about initialisation: other programs ignore it.
        config["residual_scaling"] = true.into();
    }
    config
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
    let mut reader = Reader { object, problems: Vec::new() };
    reader.refuse_unsupported();
    let model = reader.model();
    let eos = reader.token_ids("eos_token_id");
    let bos = reader.token_ids("bos_token_id").first().copied();
    if reader.problems.is_empty() {
        return Ok(HfConfig { model, bos, eos });
    }
    let message = format!("{place} describes a model that is not supported: {}", reader.problems.join("; "));
    let hint = if json["architectures"] == json!(["LlamaModel"]) {
        "LlamaModel is the body of a model, without its head: save the LlamaForCausalLM that it belongs to"
    } else {
        "only plain Llama models (LlamaForCausalLM: silu, no biases, default RoPE, not quantised) can be loaded"
    };
    Err(fail(Exit::Config, message).hint(hint).into())
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

/// Reads keys, collecting what is wrong with them.
struct Reader<'a> {
    object: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl Reader<'_> {
    /// The value of `key`; null counts as absent, as it does for transformers.
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn problem(&mut self, key: &str, value: &Value, why: &str) {
        let mut shown: String = value.to_string().chars().take(80).collect();
        if shown.len() < value.to_string().len() {
            shown.push('…');
        }
        self.problems.push(format!("{key} = {shown} ({why})"));
    }

    /// Refuses `key` unless it is absent or one of `allowed`.
    fn only(&mut self, key: &str, allowed: &[Value], why: &str) {
        if let Some(value) = self.get(key).filter(|value| !allowed.contains(value)).cloned() {
            self.problem(key, &value, why);
        }
    }

    fn refuse_unsupported(&mut self) {
        if self.get("model_type").is_none() && self.get("architectures").is_none() {
            self.problems.push("model_type is missing (it must be \"llama\")".to_owned());
        }
        self.only("model_type", &[json!("llama")], "only \"llama\" is");
        self.only("architectures", &[json!(["LlamaForCausalLM"])], "only [\"LlamaForCausalLM\"] is");
        self.only("hidden_act", &[json!("silu"), json!("swish")], "only \"silu\" is");
        self.only("attention_bias", &[json!(false)], "biases are not");
        self.only("mlp_bias", &[json!(false)], "biases are not");
        self.only("quantization_config", &[], "quantised weights are not");
        self.only("compression_config", &[], "compressed weights are not");
        self.only("sliding_window", &[], "windowed attention is not");
        self.only("partial_rotary_factor", &[json!(1.0), json!(1)], "only full rotation is");
    }

    fn model(&mut self) -> ModelConfig {
        let hidden_size = self.size("hidden_size", None);
        let num_attention_heads = self.size("num_attention_heads", None);
        let even_split =
            hidden_size.checked_div(num_attention_heads).filter(|d| d * num_attention_heads == hidden_size);
        if even_split.is_none() && self.get("head_dim").is_none() {
            self.problems.push("hidden_size is no multiple of num_attention_heads and head_dim is missing".to_owned());
        }
        let model = ModelConfig {
            hidden_size,
            intermediate_size: self.size("intermediate_size", None),
            num_hidden_layers: self.size("num_hidden_layers", None),
            num_attention_heads,
            num_key_value_heads: self.size("num_key_value_heads", Some(num_attention_heads)),
            // 2 only stands in until the problem noted above is reported.
            head_dim: self.size("head_dim", Some(even_split.unwrap_or(2))),
            vocab_size: self.size("vocab_size", None),
            // The defaults that transformers' LlamaConfig has for absent keys.
            max_position_embeddings: self.size("max_position_embeddings", Some(2048)),
            rms_norm_eps: self.number("rms_norm_eps", 1e-6),
            rope_theta: self.rope_theta(),
            tie_word_embeddings: self.flag("tie_word_embeddings"),
            initializer_range: self.number("initializer_range", 0.02),
            residual_scaling: self.flag("residual_scaling"),
        };
        self.check_shape(&model);
        model
    }

    fn check_shape(&mut self, model: &ModelConfig) {
        if !model.num_attention_heads.is_multiple_of(model.num_key_value_heads.max(1)) {
            let value = json!(model.num_key_value_heads);
            self.problem("num_key_value_heads", &value, "it must divide num_attention_heads");
        }
        if !model.head_dim.is_multiple_of(2) {
            self.problem("head_dim", &json!(model.head_dim), "RoPE needs an even one");
        }
        if model.num_hidden_layers > 10_000 {
            self.problem("num_hidden_layers", &json!(model.num_hidden_layers), "more than 10,000");
        }
    }

    /// A positive integer; bounded so that products of two cannot overflow.
    fn size(&mut self, key: &str, default: Option<usize>) -> usize {
        let Some(value) = self.get(key).cloned() else {
            if default.is_none() {
                self.problems.push(format!("{key} is missing"));
            }
            return default.unwrap_or(1);
        };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..1 << 30).contains(&n) => n,
            _ => {
                self.problem(key, &value, "a positive integer is needed");
                1
            }
        }
    }

    fn number(&mut self, key: &str, default: f64) -> f64 {
        let Some(value) = self.get(key).cloned() else { return default };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => x,
            _ => {
                self.problem(key, &value, "a positive number is needed");
                default
            }
        }
    }

    fn flag(&mut self, key: &str) -> bool {
        let Some(value) = self.get(key).cloned() else { return false };
        value.as_bool().unwrap_or_else(|| {
            self.problem(key, &value, "true or false is needed");
            false
        })
    }

    fn token_ids(&mut self, key: &str) -> Vec<u32> {
        let Some(value) = self.get(key).cloned() else { return Vec::new() };
        let ids = eos_ids(&json!({ "eos_token_id": value }));
        let expected = value.as_array().map_or(1, Vec::len);
        if ids.len() != expected {
            self.problem(key, &value, "a token id or a list of them is needed");
        }
        ids
    }

    /// RoPE's theta from either place; 10,000 where neither has one. Any other kind of RoPE is refused.
    fn rope_theta(&mut self) -> f64 {
        let mut theta = None;
        if self.get("rope_theta").is_some() {
            theta = Some(self.number("rope_theta", 1e4));
        }
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(rope) = self.get(key).cloned() else { continue };
            let kind = rope.get("rope_type").or(rope.get("type")).unwrap_or(&Value::Null);
            let scaled =
                ["factor", "short_factor", "long_factor"].iter().any(|k| rope.get(k).is_some_and(|f| *f != json!(1.0)));
            let partial = rope.get("partial_rotary_factor").is_some_and(|f| f.as_f64() != Some(1.0));
            if !rope.is_object() || !(kind.is_null() || kind == "default") || scaled || partial {
                self.problem(key, &rope, "only the default RoPE is");
                continue;
            }
            let Some(value) = rope.get("rope_theta").filter(|value| !value.is_null()) else { continue };
            match (value.as_f64().filter(|t| t.is_finite() && *t > 0.0), theta) {
                (None, _) => self.problem(key, &rope, "rope_theta must be a positive number"),
                (Some(here), Some(there)) if here != there => {
                    self.problem(key, &rope, &format!("it contradicts rope_theta = {there}"));
                }
                (here, _) => theta = here,
            }
        }
        theta.unwrap_or(1e4)
    }
}

#[cfg(test)]
#[path = "tests/hf_config.rs"]
mod tests;
