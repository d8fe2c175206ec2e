//! Where generation ends, and what evaluation counts.

use crate::support::{arg, ok, pretrain, stdout};
use serde_json::{Value, json};
use std::path::Path;

/// The only text that `sample` writes after "One day" with these further arguments.
fn greedy_sample(model: &Path, more: &[&str]) -> Value {
    let args =
        ["sample", "--ckpt", arg(model), "--prompt", "One day", "--temperature", "0", "--max-tokens", "12", "--json"];
    serde_json::from_str(&stdout(&ok(&[&args[..], more].concat()))).unwrap()
}

#[test]
fn generation_ends_at_each_of_several_end_ids() {
    let dir = tempfile::tempdir().unwrap();
    let (run, model) = (pretrain(dir.path(), "run", &[]), dir.path().join("model"));
    ok(&["export", "--ckpt", arg(&run), "--out", arg(&model)]);
    let whole = greedy_sample(&model, &[])["token_ids"].as_array().unwrap().clone();
    let unused = (0..300).map(Value::from).find(|id| !whole.contains(id)).unwrap();
    for ends in [json!([unused, whole[4]]), json!([whole[4], unused]), json!([319, unused, whole[4]])] {
        let settings = json!({"eos_token_id": ends});
        std::fs::write(model.join("generation_config.json"), settings.to_string()).unwrap();
        let made = greedy_sample(&model, &[]);
        let end = whole.iter().position(|id| *id == whole[4]).unwrap();
        assert_eq!(made["token_ids"], Value::from(&whole[..end]), "{ends}");
        assert_eq!(made["finish_reason"], "stop");
    }
}

/// The ends of text are targets, and no bytes, of text and of shards alike.
#[test]
fn evaluation_counts_the_bytes_of_the_text_alone() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &[]);
    let texts = ["One day the cat sat.", "D\u{e9}j\u{e0} vu, 12 times", "The end"];
    let (text, shards, tokenizer) =
        (dir.path().join("text.jsonl"), dir.path().join("shards"), run.join("checkpoints/step-00000012"));
    let lines: Vec<String> = texts.iter().map(|text| json!({"text": text}).to_string()).collect();
    std::fs::write(&text, lines.join("\n")).unwrap();
    ok(&[
        "data",
        "prepare",
        "--input",
        arg(&text),
        "--tokenizer",
        arg(&tokenizer),
        "--out",
        arg(&shards),
        "--val-fraction",
        "0",
    ]);
    let bytes: usize = texts.iter().map(|text| text.len()).sum();
    for data in [&text, &shards] {
        let out = dir.path().join("result.json");
        ok(&["eval", "--ckpt", arg(&run), "--data", arg(data), "--output", arg(&out)]);
        let result: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
        let found = &result["results"]["data"];
        assert_eq!(found["bytes"], bytes, "{}", data.display());
        let bits = found["loss"].as_f64().unwrap() * found["tokens"].as_f64().unwrap() / std::f64::consts::LN_2;
        assert!((found["bits_per_byte"].as_f64().unwrap() * bytes as f64 / bits - 1.0).abs() < 1e-9);
    }
}
