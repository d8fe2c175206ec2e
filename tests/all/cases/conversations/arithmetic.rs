//! What a fine-tuning step computes, and what is kept of it.

use super::{sets, shared, write};
use crate::sft::logged;
use crate::support::{arg, ok, stderr};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The gradient of a step is that of the mean over its trained tokens, whatever padding there is: a step along it that is clipped to
/// be small lowers the loss by rate x clip x norm.
#[test]
fn gradients_are_of_the_mean_over_trained_tokens() {
    let bench = shared();
    let records: Vec<Value> =
        (0..8).map(|i| json!({"instruction": format!("Say {i} again"), "output": format!("{i} and {i}")})).collect();
    write(&bench, "mean.jsonl", &records);
    // With an epsilon far above the gradient's elements AdamW's first step is along the gradient itself.
    let (rate, clip) = (0.2, 0.05);
    let step = |name: &str, packing: bool, rows: usize| {
        let out = bench.path(name);
        let set = [
            format!("sft.packing={packing}"),
            format!("train.tokens_per_step={}", rows * 96),
            "train.micro_batch_size=1".into(),
            "train.steps=2".into(),
            "data.val_fraction=0".into(),
            "sft.judged_prompts=0".into(),
            "sft.neftune_alpha=0".into(),
            format!("optimizer.lr={rate}"),
            "optimizer.eps=1.0".into(),
            "optimizer.weight_decay=0.0".into(),
            format!("optimizer.grad_clip={clip}"),
            "schedule.kind=constant".into(),
            "schedule.warmup_steps=0".into(),
        ];
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let done = bench.sft("full.toml", "mean.jsonl", &[&["--out", arg(&out)], &sets(&set)[..]].concat());
        assert!(done.status.success(), "{}", stderr(&done));
        assert!(stderr(&done).contains(&format!("{rows} rows of 96 tokens")), "{}", stderr(&done));
        let all = logged(&out);
        let of = |step: u64, key: &str| {
            all.iter().find(|r| r["kind"] == "train" && r["step"] == step).unwrap()[key].as_f64().unwrap()
        };
        (of(1, "loss"), of(1, "grad_norm"), (of(1, "loss") - of(2, "loss")) / rate)
    };
    let (packed, padded) = (step("mean-packed", true, 4), step("mean-padded", false, 8));
    assert!(
        (padded.0 / packed.0 - 1.0).abs() < 1e-5 && (padded.1 / packed.1 - 1.0).abs() < 1e-4,
        "{packed:?} {padded:?}"
    );
    for (_, norm, slope) in [packed, padded] {
        assert!(norm > 2.0 * clip && (slope / (clip * norm) - 1.0).abs() < 0.1, "slope {slope}, norm {norm}");
    }
}

/// Noise belongs to a place in the data, not to a micro-batch.
#[test]
fn dropout_does_not_depend_on_the_micro_batch() {
    let bench = shared();
    let trained = |name: &str, micro: usize, neftune: &str| {
        let out = bench.path(name);
        let set = [
            &format!("train.micro_batch_size={micro}"),
            "lora.dropout=0.5",
            neftune,
            "sft.judged_prompts=0",
            "eval.every=0",
            "optimizer.lr=0.05",
            "schedule.warmup_steps=0",
            "train.steps=4",
        ];
        let done =
            bench.sft("lora.toml", "records.json", &[&["--out", arg(&out), "--quiet"], &sets(&set)[..]].concat());
        assert!(done.status.success(), "{}", stderr(&done));
        let numbers = |r: &Value| [r["loss"].as_f64().unwrap(), r["grad_norm"].as_f64().unwrap()];
        logged(&out).iter().filter(|r| r["kind"] == "train").map(numbers).collect::<Vec<_>>()
    };
    for (kind, neftune) in [("dropout", "sft.neftune_alpha=0"), ("neftune", "sft.neftune_alpha=20")] {
        let (one, four) = (trained(&format!("{kind}-1"), 1, neftune), trained(&format!("{kind}-4"), 4, neftune));
        for (a, b) in one.iter().flatten().zip(four.iter().flatten()) {
            assert!((a / b - 1.0).abs() < 1e-4, "{kind}: {one:?} {four:?}");
        }
    }
}

/// Base + factor x B A, computed here from the run's configuration, is what a merged export holds.
#[test]
fn adapters_are_merged_and_written_with_their_own_factor() {
    let bench = shared();
    for (name, rslora, alpha) in [("plain", false, 2.5), ("rs", true, 12.0)] {
        let (out, merged) = (bench.path(name), bench.path(&format!("{name}-merged")));
        let set = [&format!("lora.rslora={rslora}"), &format!("lora.alpha={alpha:?}"), "lora.rank=4", "train.steps=3"];
        let quiet = [&["--out", arg(&out), "--quiet", "--set", "sft.judged_prompts=0"], &sets(&set)[..]].concat();
        let done = bench.sft("lora.toml", "records.json", &quiet);
        assert!(done.status.success(), "{}", stderr(&done));
        let told = stderr(&ok(&["export", "--ckpt", arg(&out), "--merge-lora", "--out", arg(&merged)]));
        assert!(told.contains("from the model beside its adapters a logit differs by at most"), "{told}");
        let adapter = out.join("checkpoints/step-00000003");
        let config: Value =
            serde_json::from_slice(&std::fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!((config["r"].as_f64(), config["lora_alpha"].as_f64()), (Some(4.0), Some(alpha)), "{config}");
        assert_eq!(config["use_rslora"], rslora);
        let load = |path: &Path| -> BTreeMap<String, candle_core::Tensor> {
            candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap().into_iter().collect()
        };
        let base = load(&bench.path("base/checkpoints/step-00000002/model.safetensors"));
        let (adapters, merged) =
            (load(&adapter.join("adapter_model.safetensors")), load(&merged.join("model.safetensors")));
        let factor = alpha / if rslora { 2.0 } else { 4.0 };
        let mut changed = 0;
        for (name, weight) in &base {
            let stem = format!("base_model.model.{}", name.trim_end_matches(".weight"));
            let matrix = |which: &str| adapters.get(&format!("{stem}.lora_{which}.weight"));
            let expected = match (matrix("A"), matrix("B")) {
                (Some(a), Some(b)) => (weight + (b.matmul(a).unwrap() * factor).unwrap()).unwrap(),
                _ => weight.clone(),
            };
            let far = |a: &candle_core::Tensor, b: &candle_core::Tensor| {
                (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
            };
            assert!(far(&merged[name], &expected) < 1e-5, "{name}: {}", far(&merged[name], &expected));
            changed += usize::from(far(&expected, weight) > 1e-3);
        }
        assert!(changed > 4, "{changed}");
    }
}
