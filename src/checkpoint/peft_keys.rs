//! Which `adapter_config.json` of PEFT describes plain LoRA. What is known is listed, not what is refused: PEFT gains kinds with
//! every version, and each of them is a key or a value that changes what the same matrices mean.

use anyhow::Result;
use serde_json::{Map, Value};

use super::MOST_SHOWN;
use crate::runtime::error::{Exit, fail};
use crate::runtime::format::shortened;

/// Keys that describe an adapter's origin, or choose the layers that its tensors name anyway, or tune an initialisation that is over.
const NO_EFFECT: [&str; 12] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
];

/// Keys whose numbers are read, and checked, by the caller.
const NUMBERS: [&str; 3] = ["lora_alpha", "lora_dropout", "r"];

/// Ways to begin that leave the model's own weights as they are. Others (PiSSA, OLoRA, CorDA, LoftQ, …) change them, and PEFT does so
/// again whenever such an adapter is loaded.
const INITS: [&str; 3] = ["eva", "gaussian", "orthogonal"];

/// Kinds that PEFT's `merge_and_unload` turns into plain weights.
const MERGEABLE: [&str; 13] = [
    "alpha_pattern",
    "bias",
    "corda_config",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_to_transform",
    "loftq_config",
    "lora_bias",
    "lora_ga_config",
    "modules_to_save",
    "rank_pattern",
    "trainable_token_indices",
    "use_dora",
];

/// Refuses, by key and value, what is not plain LoRA of a causal language model.
///
/// # Errors
/// [`Exit::Config`].
pub(super) fn refuse_other_kinds(json: &Value) -> Result<()> {
    let empty = Map::new();
    let config = json.as_object().unwrap_or(&empty);
    if !config.contains_key("peft_type") {
        return Err(fail(Exit::Config, "peft_type is missing: this is no configuration of PEFT's")
            .hint("adapters are read as PEFT's save_pretrained writes them")
            .into());
    }
    // Unknown keys count too: a newer kind of adapter must not be read as plain LoRA.
    let Some((key, value)) = config.iter().find(|(key, value)| !is_plain(key, value)) else { return Ok(()) };
    let shown = shortened(&value.to_string(), MOST_SHOWN);
    let hint = match MERGEABLE.contains(&key.as_str()) {
        true => {
            "adapters that are plain LoRA on the linear layers of all blocks are read; merge others into their model with \
                 PEFT first (merge_and_unload, then save_pretrained)"
        }
        false => "adapters that are plain LoRA on the linear layers of all blocks are read",
    };
    Err(fail(Exit::Config, format!("{key} = {shown} is not supported")).hint(hint).into())
}

fn is_plain(key: &str, value: &Value) -> bool {
    if NO_EFFECT.contains(&key) || NUMBERS.contains(&key) {
        return true;
    }
    match (key, value) {
        ("peft_type", value) => value == "LORA",
        ("task_type", Value::String(task)) => task == "CAUSAL_LM",
        ("bias", Value::String(bias)) => bias == "none",
        ("use_rslora" | "init_lora_weights", Value::Bool(_)) => true,
        ("init_lora_weights", Value::String(init)) => INITS.contains(&init.to_lowercase().as_str()),
        // A key that is switched off is as good as absent, whether it is known here or not.
        (_, value) => is_off(value),
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// As PEFT 0.21 writes it for plain LoRA.
    fn plain() -> Value {
        json!({
            "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
            "base_model_name_or_path": "base", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
            "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
            "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null,
            "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 8, "lora_bias": false, "lora_dropout": 0.0,
            "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
            "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 4,
            "rank_pattern": {}, "revision": null, "target_modules": ["v_proj", "q_proj"], "target_parameters": null,
            "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null, "use_dora": false,
            "use_qalora": false, "use_rslora": false, "velora_config": null,
        })
    }

    fn with(key: &str, value: Value) -> Value {
        let mut json = plain();
        json[key] = value;
        json
    }

    #[test]
    fn plain_adapters_of_any_version_are_accepted() {
        refuse_other_kinds(&plain()).unwrap();
        for (key, value) in [
            ("init_lora_weights", json!(false)),
            ("init_lora_weights", json!("gaussian")),
            ("init_lora_weights", json!("eva")),
            ("use_rslora", json!(true)),
            ("task_type", Value::Null),
            ("eva_config", json!({"rho": 2.0})),
            ("auto_mapping", json!({"base_model_class": "LlamaForCausalLM"})),
            ("target_modules", json!("all-linear")),
            // Keys of future versions that are switched off.
            ("use_next", json!(false)),
            ("next_config", Value::Null),
        ] {
            refuse_other_kinds(&with(key, value)).unwrap_or_else(|error| panic!("{key}: {error}"));
        }
        refuse_other_kinds(&json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}))
            .unwrap();
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (key, value) in [
            ("init_lora_weights", json!("pissa")),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("init_lora_weights", json!("olora")),
            ("init_lora_weights", json!("corda")),
            ("init_lora_weights", json!("loftq")),
            ("init_lora_weights", json!("kind-of-next-year")),
            ("init_lora_weights", json!(1)),
            ("alora_invocation_tokens", json!([5, 6])),
            ("use_rslora", json!("true")),
            ("use_qalora", json!(true)),
            ("task_type", json!("SEQ_CLS")),
            ("bias", json!("all")),
            ("target_parameters", json!(["lm_head.weight"])),
            ("layer_replication", json!([[0, 2]])),
            ("unknown", json!(true)),
            ("unknown", json!(0.5)),
            ("unknown", json!("x")),
            ("unknown", json!({"a": 1})),
            ("peft_type", json!("LOHA")),
            ("peft_type", Value::Null),
        ] {
            let error = refuse_other_kinds(&with(key, value.clone())).expect_err(key).to_string();
            assert!(error.contains(key) && error.contains(&value.to_string()), "{error}");
        }
        assert!(refuse_other_kinds(&json!({"r": 8})).unwrap_err().to_string().contains("peft_type"));
        assert!(refuse_other_kinds(&json!([])).is_err());
    }
}
