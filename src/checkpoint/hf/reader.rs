//! Reads the keys of a `config.json`, collecting what is wrong with them.

use serde_json::{Map, Value, json};

use super::defaults::Defaults;
use super::eos_ids;
use crate::checkpoint::MOST_SHOWN;
use crate::config::{Architecture, Choice, ModelConfig, RopeScaling};
use crate::runtime::format::shortened;

pub(super) struct Reader<'a> {
    object: &'a Map<String, Value>,
    pub(super) problems: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, problems: Vec::new() }
    }

    /// The value of `key`; null counts as absent, as it does for transformers.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn problem(&mut self, key: &str, value: &Value, why: &str) {
        self.problems.push(format!("{key} = {} ({why})", shortened(&value.to_string(), MOST_SHOWN)));
    }

    /// Refuses `key` unless it is absent or one of `allowed`.
    pub(super) fn only(&mut self, key: &str, allowed: &[Value], why: &str) {
        if let Some(value) = self.get(key).filter(|value| !allowed.contains(value)).cloned() {
            self.problem(key, &value, why);
        }
    }

    pub(super) fn model(&mut self) -> ModelConfig {
        let architecture = self.architecture();
        let absent = Defaults::new(architecture);
        self.refuse_unsupported(architecture);
        let hidden_size = self.size("hidden_size", None);
        let num_attention_heads = self.size("num_attention_heads", None);
        let even_split =
            hidden_size.checked_div(num_attention_heads).filter(|d| d * num_attention_heads == hidden_size);
        if even_split.is_none() && absent.head_dim.is_none() && self.get("head_dim").is_none() {
            self.problems.push("hidden_size is no multiple of num_attention_heads and head_dim is missing".to_owned());
        }
        // Null is as many as query heads, whatever an absent key is.
        let is_absent = !self.object.contains_key("num_key_value_heads");
        let key_value_heads = absent.num_key_value_heads.filter(|_| is_absent).unwrap_or(num_attention_heads);
        let num_hidden_layers = self.size("num_hidden_layers", None);
        let max_position_embeddings = self.size("max_position_embeddings", Some(absent.max_position_embeddings));
        let (sliding_window, max_window_layers) = self.window(architecture, &absent);
        let model = ModelConfig {
            architecture,
            hidden_size,
            intermediate_size: self.size("intermediate_size", None),
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: self.size("num_key_value_heads", Some(key_value_heads)),
            // 2 only stands in until the problem noted above is reported.
            head_dim: self.size("head_dim", Some(absent.head_dim.or(even_split).unwrap_or(2))),
            vocab_size: self.size("vocab_size", None),
            max_position_embeddings,
            rms_norm_eps: self.number("rms_norm_eps", 1e-6),
            rope_theta: self.rope_theta(absent.rope_theta),
            rope_scaling: self.rope_scaling(max_position_embeddings),
            no_rope_layers: self.no_rope_layers(architecture, num_hidden_layers),
            sliding_window,
            max_window_layers,
            attention_bias: self.flag("attention_bias", false),
            mlp_bias: self.flag("mlp_bias", false),
            tie_word_embeddings: self.flag("tie_word_embeddings", absent.tie_word_embeddings),
            initializer_range: self.number("initializer_range", 0.02),
            residual_scaling: self.flag("residual_scaling", false),
        };
        self.check_shape(&model);
        self.check_layer_types(&model);
        model
    }

    /// The architecture that `model_type` and `architectures` name; Llama where they name none that is supported.
    fn architecture(&mut self) -> Architecture {
        if self.get("model_type").is_none() && self.get("architectures").is_none() {
            self.problems.push(format!("model_type is missing (one of {} is needed)", Architecture::NAMES.join(", ")));
        }
        let types: Vec<Value> = Architecture::NAMES.iter().map(|name| json!(name)).collect();
        self.only("model_type", &types, &format!("only {} are", Architecture::NAMES.join(", ")));
        let by_type = self.get("model_type").and_then(Value::as_str).and_then(Architecture::from_name);
        let by_class = |value: &Value| Architecture::ALL.into_iter().find(|a| *value == json!([a.class_name()]));
        let Some(classes) = self.get("architectures").cloned() else { return by_type.unwrap_or_default() };
        match (by_type, by_class(&classes)) {
            (Some(by_type), by_class) => {
                if by_class != Some(by_type) {
                    let why = format!("model_type {:?} is [{:?}]", by_type.name(), by_type.class_name());
                    self.problem("architectures", &classes, &why);
                }
                by_type
            }
            (None, Some(by_class)) => by_class,
            (None, None) => {
                self.problem("architectures", &classes, "no model of this class is");
                Architecture::default()
            }
        }
    }

    fn refuse_unsupported(&mut self, architecture: Architecture) {
        self.only("hidden_act", &[json!("silu"), json!("swish")], "only \"silu\" is");
        // An architecture without the key would ignore it; that its author meant nothing by it is not for us to guess.
        if !architecture.takes_attention_bias() {
            self.only("attention_bias", &[json!(false)], "this architecture has no such key");
        }
        if !architecture.takes_mlp_bias() {
            self.only("mlp_bias", &[json!(false)], "this architecture has no such key");
        }
        if architecture == Architecture::Llama {
            self.only("sliding_window", &[], "windowed attention is not, for this architecture");
        }
        if !architecture.takes_max_window_layers() {
            self.only("use_sliding_window", &[json!(false)], "windowed attention is not, for this architecture");
        }
        self.only("quantization_config", &[], "quantised weights are not");
        self.only("compression_config", &[], "compressed weights are not");
        self.only("partial_rotary_factor", &[json!(1.0), json!(1)], "only full rotation is");
    }

    /// `sliding_window` where it is in use, and `max_window_layers` with it.
    fn window(&mut self, architecture: Architecture, absent: &Defaults) -> (Option<usize>, usize) {
        let is_in_use = match architecture {
            Architecture::Mistral => true,
            Architecture::Qwen2 | Architecture::Qwen3 => self.flag("use_sliding_window", false),
            Architecture::Llama | Architecture::SmolLm3 => false,
        };
        let is_null = self.object.get("sliding_window").is_some_and(Value::is_null);
        if !is_in_use || is_null {
            return (None, 0);
        }
        let window = self.size("sliding_window", absent.sliding_window);
        let from = absent.max_window_layers;
        let layers = match self.get("max_window_layers") {
            // Zero is allowed here: a window in every layer.
            Some(value) if architecture.takes_max_window_layers() && value.as_u64() != Some(0) => {
                self.size("max_window_layers", Some(from))
            }
            Some(_) => 0,
            None => from,
        };
        (Some(window), layers)
    }

    /// SmolLM3's list, or that of its interval; transformers takes a list that is longer than the layers.
    fn no_rope_layers(&mut self, architecture: Architecture, layers: usize) -> Option<Vec<usize>> {
        if architecture != Architecture::SmolLm3 {
            return None;
        }
        // Until the problem of so many layers is reported.
        let layers = layers.min(MOST_LAYERS);
        let Some(value) = self.get("no_rope_layers").cloned() else {
            let interval = self.size("no_rope_layer_interval", Some(4));
            return Some(ModelConfig::every_nth_without_rope(layers, interval));
        };
        let list: Option<Vec<usize>> =
            value.as_array().and_then(|list| list.iter().take(layers).map(zero_or_one).collect());
        match list {
            Some(list) if list.len() == layers => Some(list),
            _ => {
                self.problem("no_rope_layers", &value, &format!("a 1 or a 0 for each of {layers} layers is needed"));
                None
            }
        }
    }

    fn check_shape(&mut self, model: &ModelConfig) {
        if !model.num_attention_heads.is_multiple_of(model.num_key_value_heads.max(1)) {
            let value = json!(model.num_key_value_heads);
            self.problem("num_key_value_heads", &value, "it must divide num_attention_heads");
        }
        if !model.head_dim.is_multiple_of(2) {
            self.problem("head_dim", &json!(model.head_dim), "RoPE needs an even one");
        }
        match model.rope_scaling {
            Some(RopeScaling::Dynamic { .. }) if model.head_dim == 2 => {
                self.problem("head_dim", &json!(2), "dynamic RoPE needs more than one frequency");
            }
            // Its ramp divides by the logarithm.
            Some(RopeScaling::Yarn(_)) if model.rope_theta <= 1.0 => {
                self.problem("rope_theta", &json!(model.rope_theta), "yarn needs one above 1");
            }
            _ => {}
        }
        if model.num_hidden_layers > MOST_LAYERS {
            self.problem("num_hidden_layers", &json!(model.num_hidden_layers), "more than 10,000");
        }
    }

    /// Refuses `layer_types` that say something else than the keys of the window.
    fn check_layer_types(&mut self, model: &ModelConfig) {
        let Some(value) = self.get("layer_types").cloned() else { return };
        let own = (0..model.num_hidden_layers.min(MOST_LAYERS)).map(|i| match model.layer_window(i) {
            Some(_) => "sliding_attention",
            None => "full_attention",
        });
        let is_same = value.as_array().is_some_and(|list| list.iter().map(Value::as_str).eq(own.map(Some)));
        if !is_same {
            self.problem("layer_types", &value, "only what sliding_window and max_window_layers say is");
        }
    }

    /// A positive integer; bounded so that products of two cannot overflow.
    pub(super) fn size(&mut self, key: &str, default: Option<usize>) -> usize {
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

    pub(super) fn number(&mut self, key: &str, default: f64) -> f64 {
        let Some(value) = self.get(key).cloned() else { return default };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => x,
            _ => {
                self.problem(key, &value, "a positive number is needed");
                default
            }
        }
    }

    fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(value) = self.get(key).cloned() else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.problem(key, &value, "true or false is needed");
            default
        })
    }

    pub(super) fn token_ids(&mut self, key: &str) -> Vec<u32> {
        let Some(value) = self.get(key).cloned() else { return Vec::new() };
        let ids = eos_ids(&json!({ "eos_token_id": value }));
        let expected = value.as_array().map_or(1, Vec::len);
        if ids.len() != expected {
            self.problem(key, &value, "a token id or a list of them is needed");
        }
        ids
    }
}

const MOST_LAYERS: usize = 10_000;

/// transformers takes truth values and numbers alike.
fn zero_or_one(value: &Value) -> Option<usize> {
    match (value.as_u64(), value.as_bool()) {
        (Some(n @ (0 | 1)), _) => Some(n as usize),
        (_, Some(truth)) => Some(truth.into()),
        _ => None,
    }
}
