//! RoPE in a `config.json`: theta and scaling, from `rope_theta` and `rope_scaling` (transformers 4) and `rope_parameters` (5).

use serde_json::{Map, Value};
use std::collections::BTreeMap;

use super::reader::Reader;
use crate::config::{ModelConfig, RopeScaling};

const ORIGINAL: &str = "original_max_position_embeddings";

/// `rope_parameters`, as transformers 5 reads it.
pub(super) fn parameters(model: &ModelConfig) -> Value {
    let mut parameters = Map::new();
    parameters.insert("rope_type".into(), "default".into());
    if let Some(scaling) = model.rope_scaling {
        parameters.extend(scaling.settings().into_iter().map(|(name, value)| (name.to_owned(), value)));
    }
    parameters.insert("rope_theta".into(), model.rope_theta.into());
    Value::Object(parameters)
}

/// `rope_scaling`, as transformers 4 reads it: null without scaling.
pub(super) fn scaling(model: &ModelConfig) -> Value {
    let settings = model.rope_scaling.map(|scaling| scaling.settings());
    settings.map_or(Value::Null, |settings| {
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>().into()
    })
}

impl Reader<'_> {
    /// Theta from any place, `default` where none has it.
    pub(super) fn rope_theta(&mut self, default: f64) -> f64 {
        let mut theta = None;
        if self.get("rope_theta").is_some() {
            theta = Some(self.number("rope_theta", default));
        }
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(rope) = self.get(key).cloned() else { continue };
            let Some(value) = rope.get("rope_theta").filter(|value| !value.is_null()) else { continue };
            match (value.as_f64().filter(|t| t.is_finite() && *t > 0.0), theta) {
                (None, _) => self.problem(key, &rope, "rope_theta must be a positive number"),
                (Some(here), Some(there)) if here != there => {
                    self.problem(key, &rope, &format!("it contradicts rope_theta = {there}"));
                }
                (here, _) => theta = here,
            }
        }
        theta.unwrap_or(default)
    }

    /// The scaling that both places describe, if they do.
    pub(super) fn rope_scaling(&mut self, max_position_embeddings: usize) -> Option<RopeScaling> {
        let mut found: Option<Option<RopeScaling>> = None;
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(rope) = self.get(key).cloned() else { continue };
            match settings(&rope, max_position_embeddings).and_then(|settings| RopeScaling::from_settings(&settings)) {
                Err((what, _)) => self.problem(key, &rope, &what),
                Ok(scaling) if found.is_some_and(|other| other != scaling) => {
                    self.problem(key, &rope, "it contradicts rope_scaling");
                }
                Ok(scaling) => found = Some(scaling),
            }
        }
        let scaling = found.flatten();
        if scaling.is_some() {
            // Beside the settings, where some architectures have it, it would replace theirs.
            self.only(ORIGINAL, &[], "only inside rope_scaling it is");
        }
        scaling
    }
}

/// The settings that decide the frequencies, with what transformers puts in for absent ones.
fn settings(rope: &Value, max_position_embeddings: usize) -> Result<BTreeMap<String, Value>, (String, String)> {
    let refuse = |what: &str| Err((what.to_owned(), String::new()));
    let Some(object) = rope.as_object() else { return refuse("it is no object") };
    let mut settings: BTreeMap<String, Value> =
        object.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    settings.remove("rope_theta");
    if settings.remove("partial_rotary_factor").is_some_and(|factor| !factor.is_null() && factor.as_f64() != Some(1.0))
    {
        return refuse("only full rotation is");
    }
    let old_name = settings.remove("type");
    let rope_type = settings.entry("rope_type".into()).or_insert(Value::Null);
    if rope_type.is_null() {
        *rope_type = old_name.filter(|name| !name.is_null()).unwrap_or_else(|| "default".into());
    }
    let rope_type = rope_type.clone();
    match rope_type.as_str() {
        Some("llama3") => {
            settings.entry(ORIGINAL.into()).or_insert_with(|| max_position_embeddings.into());
        }
        Some("yarn") => {
            let original = settings.entry(ORIGINAL.into()).or_insert_with(|| max_position_embeddings.into()).as_f64();
            let factor = settings.entry("factor".into()).or_insert(Value::Null);
            if let (true, Some(original)) = (factor.is_null(), original) {
                *factor = (max_position_embeddings as f64 / original).into();
            }
        }
        // Their formulas take the model's own length: another one beside it would be ignored.
        Some("linear" | "dynamic")
            if settings.get(ORIGINAL).and_then(Value::as_u64) == Some(max_position_embeddings as u64) =>
        {
            settings.remove(ORIGINAL);
        }
        // A factor of 1 changes nothing.
        Some("default") if settings.get("factor").and_then(Value::as_f64) == Some(1.0) => {
            settings.remove("factor");
        }
        _ => {}
    }
    Ok(settings)
}
