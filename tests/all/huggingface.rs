//! Directories written by transformers (`scripts/fixtures/llama.py` and `families.py` made them): logits, loss, gradients, greedy text,
//! refusals.

use crate::support::root;
use candle_core::{DType, Device, Tensor, safetensors};
use llama_lite::checkpoint::Opened;
use llama_lite::config::{ModelConfig, PrecisionSetting};
use llama_lite::model::TrainInput;
use llama_lite::ops::selftest::difference;
use llama_lite::train::model_state::load_model;
use std::collections::HashMap;
use std::path::PathBuf;

const LLAMA: [&str; 5] = ["gqa", "untied", "untied-bf16", "untied-f16", "tied"];

/// Models of every architecture and type of RoPE.
const FAMILIES: [&str; 12] = [
    "llama-biases",
    "llama3",
    "linear",
    "dynamic",
    "qwen2",
    "qwen2-yarn",
    "qwen3",
    "qwen3-window",
    "mistral",
    "mistral-window",
    "smollm3",
    "smollm3-list",
];

fn all() -> impl Iterator<Item = &'static str> {
    LLAMA.into_iter().chain(FAMILIES)
}

fn fixture(name: &str) -> PathBuf {
    let folder = if FAMILIES.contains(&name) { "families" } else { "llama" };
    root().join("tests/fixtures").join(folder).join(name)
}

fn expected(name: &str) -> HashMap<String, Tensor> {
    safetensors::load(fixture(name).join("expected.safetensors"), &Device::Cpu).unwrap()
}

fn ids(t: &Tensor) -> Tensor {
    t.to_dtype(DType::U32).unwrap()
}

#[test]
fn logits_and_loss_equal_transformers() {
    for name in all() {
        let model = load_model(&Opened::open(&fixture(name)).unwrap(), &Device::Cpu, PrecisionSetting::Auto).unwrap();
        let want = expected(name);
        let inputs = ids(&want["input_ids"]);
        let logits = model.logits(&inputs).unwrap();
        let largest = (logits - &want["logits"]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest < 1e-4, "{name}: logits differ by {largest}");
        let targets = ids(&want["target_ids"]).flatten_all().unwrap();
        let losses = model.losses(&inputs, &targets, None).unwrap().to_vec1::<f32>().unwrap();
        let loss = losses.iter().map(|&x| x as f64).sum::<f64>() / losses.len() as f64;
        let theirs = want["loss"].flatten_all().unwrap().to_vec1::<f32>().unwrap()[0] as f64;
        assert!((loss / theirs - 1.0).abs() < 1e-5, "{name}: loss {loss}, not {theirs}");
    }
}

#[test]
fn every_gradient_equals_torch() {
    for name in ["gqa", "untied", "tied"].into_iter().chain(FAMILIES) {
        let model = load_model(&Opened::open(&fixture(name)).unwrap(), &Device::Cpu, PrecisionSetting::Auto).unwrap();
        let want = expected(name);
        let (inputs, targets) = (ids(&want["input_ids"]), ids(&want["target_ids"]).flatten_all().unwrap());
        let flat = model.layout.zeros(&Device::Cpu).unwrap();
        let grads = model.grads(&flat).unwrap();
        let scale = 1.0 / targets.elem_count() as f32;
        model.loss_and_backward(&inputs, &targets, TrainInput::default(), scale, &grads).unwrap();
        for spec in &model.layout.specs {
            let theirs = want.get(&format!("grad.{}", spec.name)).unwrap_or_else(|| panic!("{name}: no {}", spec.name));
            let ours = flat.narrow(0, spec.start, spec.len).unwrap().reshape(spec.shape.as_slice()).unwrap();
            let d = difference(&ours, theirs).unwrap();
            if is_without_effect(&model.config, &spec.name) {
                let largest = [&ours, theirs].map(|g| g.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap());
                assert!(largest.iter().all(|g| *g < 1e-7), "{name}: gradients of {} are {largest:?}, not 0", spec.name);
                continue;
            }
            assert!(d < 1e-4, "{name}: gradient of {} differs by {d:.1e}", spec.name);
        }
    }
}

/// Whether it is the bias of keys that are not rotated: it adds the same to all scores of a query, which softmax takes away.
fn is_without_effect(config: &ModelConfig, parameter: &str) -> bool {
    let layer = parameter.strip_prefix("model.layers.").and_then(|rest| rest.strip_suffix(".self_attn.k_proj.bias"));
    layer.is_some_and(|layer| !config.layer_rotates(layer.parse().unwrap()))
}

#[test]
fn greedy_continuations_equal_generate() {
    for name in all() {
        let model = load_model(&Opened::open(&fixture(name)).unwrap(), &Device::Cpu, PrecisionSetting::Auto).unwrap();
        let want = expected(name);
        let theirs = ids(&want["greedy_ids"]).to_vec1::<u32>().unwrap();
        let mut feed = ids(&want["prompt_ids"]).to_vec1::<u32>().unwrap();
        let capacity = feed.len() + theirs.len();
        let mut cache = model.cache(1, capacity).unwrap();
        let mut ours: Vec<u32> = Vec::new();
        while ours.len() < theirs.len() {
            let x = Tensor::from_slice(&feed, (1, feed.len()), &Device::Cpu).unwrap();
            let logits = model.next_logits(&x, &mut cache).unwrap().squeeze(0).unwrap();
            feed = vec![logits.argmax(0).unwrap().to_scalar::<u32>().unwrap()];
            ours.extend(&feed);
        }
        assert_eq!(ours, theirs, "{name}");
    }
}

/// What is stored in bf16 is held as it is; other weights are rounded to the nearest, and those of norms stay exact.
#[test]
fn weights_can_be_held_in_bf16() {
    for name in all() {
        let open = |precision| load_model(&Opened::open(&fixture(name)).unwrap(), &Device::Cpu, precision).unwrap();
        let (exact, held) = (open(PrecisionSetting::F32), open(PrecisionSetting::Bf16));
        assert!(held.is_in_bf16() && !exact.is_in_bf16() && !open(PrecisionSetting::Auto).is_in_bf16());
        let bits = |t: &Tensor| -> Vec<u32> {
            t.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
        };
        assert!(bits(&held.flat) == bits(&exact.flat.to_dtype(DType::BF16).unwrap()), "{name}: rounded otherwise");
        assert_eq!(bits(&held.flat) == bits(&exact.flat), name == "untied-bf16", "{name}");
        let inputs = ids(&expected(name)["input_ids"]);
        let d = difference(&held.logits(&inputs).unwrap(), &exact.logits(&inputs).unwrap()).unwrap();
        let limit = if LLAMA.contains(&name) { 0.08 } else { 0.15 };
        assert!(d > 0.0 && d < limit, "{name}: logits differ by {d:.1e}");
    }
}

#[test]
fn what_the_model_would_compute_differently_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixture("untied")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let good = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    let cases = [
        ("model_type", serde_json::json!("gemma2")),
        ("partial_rotary_factor", serde_json::json!(0.5)),
        ("quantization_config", serde_json::json!({"quant_method": "gptq"})),
        ("use_sliding_window", serde_json::json!(true)),
        ("hidden_act", serde_json::json!("gelu")),
        ("model_type", serde_json::json!("mistral")),
        ("rope_scaling", serde_json::json!({"rope_type": "llama3", "factor": 8.0})),
        ("vocab_size", serde_json::json!(54)),
        ("tie_word_embeddings", serde_json::json!(true)),
    ];
    for (key, value) in cases {
        let mut config: serde_json::Value = serde_json::from_str(&good).unwrap();
        config[key] = value;
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let opened =
            Opened::open(dir.path()).and_then(|o| load_model(&o, &Device::Cpu, PrecisionSetting::Auto).map(drop));
        let message = format!("{:#}", opened.expect_err(key));
        let names_it = message.contains(key) || (key == "vocab_size" && message.contains("embed_tokens"));
        assert!(names_it || (key == "tie_word_embeddings" && message.contains("lm_head")), "{key}: {message}");
    }
    std::fs::write(dir.path().join("config.json"), good).unwrap();
    assert!(Opened::open(dir.path()).is_ok());
}
