//! `config.json` as transformers 4 and 5 write it, and as others must not.

use super::super::tests::toy_model;
use super::*;
use crate::config::RopeScaling;
use crate::runtime::error::Failure;

/// The keys of Llama 2 era files, written by transformers 4.
fn version_4() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 176, "max_position_embeddings": 4096,
        "model_type": "llama", "num_attention_heads": 8, "num_hidden_layers": 2, "num_key_value_heads": 4,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 500000.0,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.44.0", "use_cache": true,
        "vocab_size": 320
    })
}

/// The same model as transformers 5 writes it.
fn version_5() -> Value {
    let mut config = version_4();
    let object = config.as_object_mut().unwrap();
    for key in ["rope_theta", "rope_scaling", "torch_dtype"] {
        object.remove(key);
    }
    object.insert("rope_parameters".into(), json!({ "rope_theta": 500000.0, "rope_type": "default" }));
    object.insert("dtype".into(), "bfloat16".into());
    object.insert("head_dim".into(), 8.into());
    object.insert("transformers_version".into(), "5.0.0".into());
    config
}

fn parse(config: &Value) -> HfConfig {
    parse_config(config, "config.json").unwrap()
}

#[test]
fn both_generations_read_the_same() {
    let four = parse(&version_4());
    assert_eq!(four, parse(&version_5()));
    assert_eq!((four.model.rope_theta, four.model.head_dim, four.bos, four.eos), (500_000.0, 8, Some(1), vec![2]));
}

#[test]
fn absent_keys_mean_what_transformers_takes_them_for() {
    let mut config = version_4();
    let object = config.as_object_mut().unwrap();
    for key in [
        "rope_theta",
        "rope_scaling",
        "num_key_value_heads",
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
        "hidden_act",
        "initializer_range",
        "architectures",
        "bos_token_id",
    ] {
        object.remove(key);
    }
    object.insert("head_dim".into(), Value::Null);
    object.insert("eos_token_id".into(), json!([5, 7]));
    let HfConfig { model, bos, eos } = parse(&config);
    assert_eq!((model.rope_theta, model.num_key_value_heads, model.head_dim), (10_000.0, 8, 8));
    assert_eq!((model.rms_norm_eps, model.max_position_embeddings, model.tie_word_embeddings), (1e-6, 2048, false));
    assert_eq!((bos, eos), (None, vec![5, 7]));
    // Integers where a float is meant, an explicit head width that is not hidden / heads.
    config["rope_theta"] = json!(10000);
    config["head_dim"] = json!(16);
    assert_eq!(parse(&config).model.head_dim, 16);
    config["rope_parameters"] = json!({ "rope_type": "default" });
    assert_eq!(parse(&config).model.rope_theta, 10_000.0);
}

#[test]
fn unsupported_keys_are_refused_by_name_and_value() {
    let cases = [
        ("model_type", json!("gemma2"), "gemma2"),
        ("model_type", json!("mistral"), "MistralForCausalLM"),
        ("architectures", json!(["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
        ("architectures", json!(["LlamaModel"]), "LlamaModel"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("attention_bias", json!("yes"), "yes"),
        ("mlp_bias", json!(1), "1"),
        ("use_sliding_window", json!(true), "true"),
        ("layer_types", json!(["full_attention", "sliding_attention"]), "sliding_attention"),
        ("quantization_config", json!({ "quant_method": "gptq" }), "gptq"),
        ("rope_scaling", json!({ "rope_type": "llama3", "factor": 8.0 }), "llama3"),
        ("rope_scaling", json!({ "type": "linear", "factor": 0.5 }), "linear"),
        (
            "rope_scaling",
            json!({ "type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 9 }),
            "original",
        ),
        ("rope_scaling", json!({ "rope_type": "longrope", "factor": 2.0 }), "longrope"),
        ("rope_scaling", json!({ "rope_type": "default", "factor": 2.0 }), "factor"),
        ("rope_scaling", json!("yarn"), "yarn"),
        ("rope_parameters", json!({ "rope_type": "yarn", "factor": 4.0, "beta_fats": 3.0 }), "beta_fats"),
        ("rope_parameters", json!({ "rope_type": "default", "rope_theta": 10000.0 }), "contradicts"),
        ("rope_parameters", json!({ "rope_type": "default", "rope_theta": -1 }), "positive"),
        ("rope_parameters", json!({ "rope_type": "default", "partial_rotary_factor": 0.5 }), "0.5"),
        ("partial_rotary_factor", json!(0.25), "0.25"),
        ("sliding_window", json!(4096), "4096"),
        ("rope_theta", json!("big"), "big"),
        ("rms_norm_eps", json!(0), "0"),
        ("hidden_size", json!(-64), "-64"),
        ("hidden_size", json!(64.5), "64.5"),
        ("vocab_size", json!(1_u64 << 62), "4611686018427387904"),
        ("num_hidden_layers", json!(1_000_000), "1000000"),
        ("num_attention_heads", json!(0), "0"),
        ("num_key_value_heads", json!(3), "3"),
        ("head_dim", json!(7), "7"),
        ("tie_word_embeddings", json!("yes"), "yes"),
        ("eos_token_id", json!("</s>"), "</s>"),
        ("bos_token_id", json!(-1), "-1"),
    ];
    for (key, value, shown) in cases {
        let mut config = version_4();
        config[key] = value;
        let error = parse_config(&config, "DIR/config.json").expect_err(key);
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(failure.exit, Exit::Config);
        assert!(failure.hint.is_some());
        for part in ["DIR/config.json", key, shown] {
            assert!(failure.message.contains(part), "{part} is not in: {failure}");
        }
    }
    // Several at once are all reported.
    let mut config = version_4();
    config["mlp_bias"] = json!("no");
    config.as_object_mut().unwrap().remove("vocab_size");
    let message = parse_config(&config, "c").unwrap_err().to_string();
    assert!(message.contains("mlp_bias = \"no\"") && message.contains("vocab_size is missing"), "{message}");
    assert!(parse_config(&json!([]), "c").is_err());
    assert!(parse_config(&json!({}), "c").unwrap_err().to_string().contains("model_type"));
}

/// Both spellings of scaled RoPE, with what transformers puts in for absent settings.
#[test]
fn scaled_rope_is_read_from_either_place() {
    let scaling = |key: &str, value: Value| {
        let mut config = version_4();
        config[key] = value;
        parse(&config).model.rope_scaling
    };
    let linear = Some(RopeScaling::Linear { factor: 2.0 });
    assert_eq!(scaling("rope_scaling", json!({ "type": "linear", "factor": 2.0 })), linear);
    assert_eq!(scaling("rope_parameters", json!({ "rope_type": "linear", "factor": 2 })), linear);
    let same = json!({ "type": "dynamic", "factor": 3.0, "original_max_position_embeddings": 4096 });
    assert_eq!(scaling("rope_scaling", same), Some(RopeScaling::Dynamic { factor: 3.0 }));
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0 });
    let Some(RopeScaling::Llama3(llama3)) = scaling("rope_scaling", llama3) else { panic!("no llama3") };
    assert_eq!(llama3.original_max_position_embeddings, 4096);
    let yarn = json!({ "rope_type": "yarn", "factor": null, "original_max_position_embeddings": 1024 });
    let Some(RopeScaling::Yarn(yarn)) = scaling("rope_scaling", yarn) else { panic!("no yarn") };
    assert_eq!((yarn.factor, yarn.beta_fast, yarn.truncate), (4.0, 32.0, true));
    let mut flat = version_4();
    flat["rope_scaling"] = json!({ "rope_type": "yarn", "factor": 4.0 });
    flat["rope_theta"] = json!(1.0);
    assert!(parse_config(&flat, "c").unwrap_err().to_string().contains("above 1"));
    let mut narrow = version_4();
    narrow["rope_scaling"] = json!({ "type": "dynamic", "factor": 4.0 });
    narrow["head_dim"] = json!(2);
    assert!(parse_config(&narrow, "c").unwrap_err().to_string().contains("more than one frequency"));
    let mut both = version_4();
    both["rope_scaling"] = json!({ "type": "linear", "factor": 2.0 });
    both["rope_parameters"] = json!({ "rope_type": "linear", "factor": 4.0 });
    assert!(parse_config(&both, "c").unwrap_err().to_string().contains("contradicts"));
}

/// The smallest file of an architecture: every other key is absent.
fn bare(architecture: Architecture) -> Value {
    json!({
        "architectures": [architecture.class_name()], "model_type": architecture.name(), "hidden_size": 4096,
        "intermediate_size": 64, "num_hidden_layers": 30, "num_attention_heads": 32, "vocab_size": 320,
        "hidden_act": "silu"
    })
}

#[test]
fn absent_keys_are_those_of_the_architecture() {
    let read = |architecture| parse(&bare(architecture)).model;
    let mistral = read(Architecture::Mistral);
    assert_eq!((mistral.num_key_value_heads, mistral.sliding_window, mistral.head_dim), (8, Some(4096), 128));
    let mut no_window = bare(Architecture::Mistral);
    no_window["sliding_window"] = Value::Null;
    assert_eq!(parse(&no_window).model.sliding_window, None);
    let qwen3 = read(Architecture::Qwen3);
    assert_eq!((qwen3.head_dim, qwen3.sliding_window, qwen3.tie_word_embeddings), (128, None, false));
    let mut window = bare(Architecture::Qwen2);
    window["use_sliding_window"] = true.into();
    let qwen2 = parse(&window).model;
    assert_eq!((qwen2.sliding_window, qwen2.max_window_layers), (Some(4096), 28));
    assert_eq!((qwen2.layer_window(27), qwen2.layer_window(28)), (None, Some(4096)));
    window["max_window_layers"] = 0.into();
    window["sliding_window"] = 7.into();
    assert_eq!(parse(&window).model.layer_window(0), Some(7));
    let smollm3 = read(Architecture::SmolLm3);
    assert_eq!((smollm3.rope_theta, smollm3.tie_word_embeddings, smollm3.num_key_value_heads), (2e6, true, 4));
    assert_eq!(smollm3.no_rope_layers.unwrap()[..5], [1, 1, 1, 0, 1]);
    let mut list = bare(Architecture::SmolLm3);
    // One more than layers, as transformers takes it.
    list["no_rope_layers"] = vec![0; 31].into();
    assert_eq!(parse(&list).model.no_rope_layers, Some(vec![0; 30]));
    list["no_rope_layers"] = vec![1; 29].into();
    assert!(parse_config(&list, "c").unwrap_err().to_string().contains("no_rope_layers"));
    let mut class_alone = bare(Architecture::Qwen3);
    class_alone.as_object_mut().unwrap().remove("model_type");
    assert_eq!(parse(&class_alone).model.architecture, Architecture::Qwen3);
    class_alone["architectures"] = json!(["Qwen3Model"]);
    let error = parse_config(&class_alone, "c").unwrap_err();
    assert!(error.downcast_ref::<Failure>().unwrap().hint.as_ref().unwrap().contains("Qwen3ForCausalLM"));
}

#[test]
fn every_architecture_is_written_and_read_back() {
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.5 });
    let yarn = parse(&{
        let mut config = version_4();
        config["rope_scaling"] = yarn;
        config
    });
    let base = ModelConfig { num_hidden_layers: 3, rope_scaling: yarn.model.rope_scaling, ..toy_model(true) };
    let models = [
        ModelConfig { attention_bias: true, mlp_bias: true, ..base.clone() },
        ModelConfig { architecture: Architecture::Mistral, sliding_window: Some(5), ..base.clone() },
        ModelConfig { architecture: Architecture::Mistral, ..base.clone() },
        ModelConfig { architecture: Architecture::Qwen2, ..base.clone() },
        ModelConfig {
            architecture: Architecture::Qwen3,
            sliding_window: Some(5),
            max_window_layers: 1,
            attention_bias: true,
            ..base.clone()
        },
        ModelConfig {
            architecture: Architecture::SmolLm3,
            no_rope_layers: Some(vec![1, 0, 1]),
            mlp_bias: true,
            ..base
        },
    ];
    for model in models {
        let written = config_json(&model, None, &[], Dtype::F32);
        assert_eq!(parse(&written).model, model, "{written}");
        // As transformers 4 reads it.
        assert_eq!(written["rope_scaling"]["factor"], 4.0);
    }
}

#[test]
fn what_is_written_is_read_back() {
    for (residual_scaling, bos, eos) in [(false, None, vec![]), (true, Some(3), vec![4]), (false, Some(0), vec![1, 2])]
    {
        let model = ModelConfig { residual_scaling, rope_theta: 123_456.789, rms_norm_eps: 1e-6, ..toy_model(true) };
        let written = config_json(&model, bos, &eos, Dtype::F32);
        // Through text, as on the disk.
        let read = parse(&serde_json::from_str(&written.to_string()).unwrap());
        assert_eq!(read, HfConfig { model, bos, eos: eos.clone() });
        // An absent id would mean transformers' own 1 and 2.
        assert!(written.as_object().unwrap().contains_key("eos_token_id"));
        assert_eq!(eos_ids(&generation_json(bos, &eos)), eos);
    }
    let written = config_json(&toy_model(false), None, &[], Dtype::F16);
    assert_eq!((&written["bos_token_id"], &written["eos_token_id"]), (&Value::Null, &Value::Null));
    assert_eq!(written["rope_theta"], written["rope_parameters"]["rope_theta"]);
    assert_eq!((&written["torch_dtype"], &written["dtype"]), (&json!("float16"), &json!("float16")));
}

#[test]
fn tensors_are_in_the_canonical_order() {
    let mut model = toy_model(false);
    model.num_hidden_layers = 1;
    let expected: [(&str, &[usize]); 12] = [
        ("model.embed_tokens.weight", &[20, 8]),
        ("model.layers.0.input_layernorm.weight", &[8]),
        ("model.layers.0.self_attn.q_proj.weight", &[12, 8]),
        ("model.layers.0.self_attn.k_proj.weight", &[6, 8]),
        ("model.layers.0.self_attn.v_proj.weight", &[6, 8]),
        ("model.layers.0.self_attn.o_proj.weight", &[8, 12]),
        ("model.layers.0.post_attention_layernorm.weight", &[8]),
        ("model.layers.0.mlp.gate_proj.weight", &[12, 8]),
        ("model.layers.0.mlp.up_proj.weight", &[12, 8]),
        ("model.layers.0.mlp.down_proj.weight", &[8, 12]),
        ("model.norm.weight", &[8]),
        ("lm_head.weight", &[20, 8]),
    ];
    let specs = model.tensor_shapes();
    assert_eq!(specs.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect::<Vec<_>>(), expected);
    model.tie_word_embeddings = true;
    assert_eq!(model.tensor_shapes().len(), 11);
}
