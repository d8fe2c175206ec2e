//! Every architecture as a user meets it: trained from scratch, resumed to the bit, exported as what it is, tuned and merged.

use crate::support::{TINY, arg, assert_same_checkpoint, checkpoint, config, ok, pretrain, stderr, stdout};
use candle_core::{Device, Tensor};
use llama_lite::checkpoint::Opened;
use llama_lite::config::PrecisionSetting;
use llama_lite::train::model_state::load_model;
use serde_json::{Value, json};
use std::path::Path;

/// Name, class, and the settings beside those of TINY.
const FAMILIES: [(&str, &str, &[&str]); 6] = [
    ("llama", "LlamaForCausalLM", &["model.attention_bias=true", "model.mlp_bias=true"]),
    ("mistral", "MistralForCausalLM", &["model.sliding_window=9"]),
    ("qwen2", "Qwen2ForCausalLM", &["model.rope_scaling={ rope_type = \"linear\", factor = 2.0 }"]),
    ("qwen3", "Qwen3ForCausalLM", &["model.head_dim=10", "model.sliding_window=7", "model.max_window_layers=1"]),
    (
        "qwen3",
        "Qwen3ForCausalLM",
        &[
            "model.max_position_embeddings=16",
            "model.rope_scaling.rope_type=dynamic",
            "model.rope_scaling.factor=4",
            "data.document_mask=true",
        ],
    ),
    ("smollm3", "SmolLM3ForCausalLM", &["model.no_rope_layers=[1, 0]", "model.attention_bias=true"]),
];

fn logits(model: &Path) -> Vec<u32> {
    let model = load_model(&Opened::open(model).unwrap(), &Device::Cpu, PrecisionSetting::F32).unwrap();
    let ids: Vec<u32> = (0..30).map(|i| i * 37 % 320).collect();
    let logits = model.logits(&Tensor::from_vec(ids, (1, 30), &Device::Cpu).unwrap()).unwrap();
    logits.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
}

fn config_json(dir: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap()
}

#[test]
fn each_is_trained_resumed_and_exported_as_what_it_is() {
    for (i, (architecture, class, settings)) in FAMILIES.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let architecture = format!("model.architecture={architecture}");
        let sets = [&[architecture.as_str()], settings].concat();
        let whole = pretrain(dir.path(), "whole", &sets);
        let again = pretrain(dir.path(), "again", &sets);
        ok(&["resume", "--ckpt", arg(&checkpoint(&again, 4)), "--quiet"]);
        assert_same_checkpoint(&checkpoint(&whole, 12), &checkpoint(&again, 12));

        let exported = dir.path().join("exported");
        let said = stderr(&ok(&["export", "--ckpt", arg(&whole), "--out", arg(&exported)]));
        // transformers 5 would take another tokenizer than the one that is written.
        assert_eq!(said.contains("PreTrainedTokenizerFast"), class == "Qwen2ForCausalLM", "{i}: {said}");
        let written = config_json(&exported);
        assert_eq!(written["architectures"], json!([class]), "{i}");
        assert_eq!(written, config_json(&checkpoint(&whole, 12)), "{i}");
        assert!(logits(&exported) == logits(&checkpoint(&whole, 12)), "{i}");
        let text = ok(&["sample", "--ckpt", arg(&exported), "--prompt", "Once", "--max-tokens", "40", "--greedy"]);
        assert!(!stdout(&text).is_empty(), "{i}");
    }
}

/// Adapters stand beside biases, norms of heads and windows; merged, they are a model of the same architecture.
#[test]
fn each_is_tuned_and_merged() {
    let dir = tempfile::tempdir().unwrap();
    let record = |i: usize| json!({"instruction": format!("Say {i}"), "input": "", "output": format!("It is {i}.")});
    let records: Vec<_> = (0..40).map(record).collect();
    let data = dir.path().join("records.json");
    std::fs::write(&data, serde_json::to_string(&records).unwrap()).unwrap();
    let lora = dir.path().join("lora.toml");
    let text = "[train]\nmicro_batch_size = 2\nsequence_length = 128\nsteps = 3\n[sft]\ntemplate = \"zephyr\"\njudged_prompts = 0\nmax_truncated = 1.0\n\
                [lora]\nrank = 4\n";
    std::fs::write(&lora, text).unwrap();
    for (i, (architecture, class, settings)) in FAMILIES.into_iter().enumerate() {
        let base = dir.path().join(format!("base-{i}"));
        let tiny = config(dir.path(), TINY);
        let architecture = format!("model.architecture={architecture}");
        let mut args =
            vec!["pretrain", "--config", arg(&tiny), "--out", arg(&base), "--quiet", "--set", "train.steps=1"];
        args.extend(["--set", "schedule.warmup_steps=0", "--set", "model.max_position_embeddings=128"]);
        let settings = settings.iter().filter(|set| !set.contains("max_position"));
        settings.copied().chain([architecture.as_str()]).for_each(|set| args.extend(["--set", set]));
        ok(&args);
        let [tuned, merged] = ["tuned", "merged"].map(|name| dir.path().join(format!("{name}-{i}")));
        ok(&[
            "sft",
            "--config",
            arg(&lora),
            "--ckpt",
            arg(&base),
            "--data",
            arg(&data),
            "--out",
            arg(&tuned),
            "--quiet",
        ]);
        ok(&["export", "--ckpt", arg(&tuned), "--merge-lora", "--out", arg(&merged), "--quiet"]);
        assert_eq!(config_json(&merged)["architectures"], json!([class]), "{i}");
        let [before, after] = [logits(&base), logits(&merged)];
        assert!(before != after && after.iter().all(|bits| f32::from_bits(*bits).is_finite()), "{i}");
    }
}
