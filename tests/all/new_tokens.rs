//! `sft.new_tokens` as a user meets it: the tokenizer and the vocabulary grow, and the run is a run like any other.

use crate::sft::{Bench, logged};
use crate::support::{TINY, arg, ok, stderr, stdout};
use candle_core::{Device, Tensor, safetensors};
use serde_json::{Value, json};
use std::path::Path;

const CHATML: [&str; 4] =
    ["--set", "sft.template=chatml", "--set", r#"sft.new_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"]"#];

/// A model of 321 rows with a head of its own, for a tokenizer of 320 ids: one row to spare for two new tokens.
fn with_a_spare_row(bench: &Bench) {
    let tokenizer = bench.path("base/checkpoints/step-00000002/tokenizer.json");
    bench.write("padded.toml", &TINY.replace("warmup_steps = 2", "warmup_steps = 0"));
    let sets = [
        format!("data.tokenizer={}", tokenizer.display()),
        "train.steps=2".into(),
        "model.vocab_size=321".into(),
        "model.tie_word_embeddings=false".into(),
        "model.max_position_embeddings=256".into(),
    ];
    std::fs::rename(bench.path("base"), bench.path("tied")).unwrap();
    let sets = sets.map(|set| set.replace("/base/", "/tied/"));
    let (config, out) = (bench.path("padded.toml"), bench.path("base"));
    let mut args = vec!["pretrain", "--config", arg(&config), "--out", arg(&out), "--quiet"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    ok(&args);
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn weight(checkpoint: &Path, name: &str) -> Tensor {
    safetensors::load(checkpoint.join("model.safetensors"), &Device::Cpu).unwrap().remove(name).unwrap()
}

/// Rows of `new` from the 320th on are the mean of the first 320 of `old`, and those are as they were: but for one step that moves
/// weights by less than 1e-8.
fn assert_new_rows_are_the_mean(old: &Tensor, new: &Tensor) {
    let rows = |tensor: &Tensor| tensor.to_vec2::<f32>().unwrap();
    let (old, new) = (rows(old), rows(new));
    assert_eq!(new.len(), 322);
    for column in 0..old[0].len() {
        let mean = old[..320].iter().map(|row| f64::from(row[column])).sum::<f64>() / 320.0;
        for row in &new[320..] {
            assert!((f64::from(row[column]) - mean).abs() < 1e-7, "{} {mean}", row[column]);
        }
        assert!((0..320).all(|row| (new[row][column] - old[row][column]).abs() < 1e-7));
    }
}

#[test]
fn new_tokens_take_spare_rows_and_then_rows_of_their_own() {
    let bench = Bench::new();
    for (base, names) in
        [("tied", &["model.embed_tokens.weight"][..]), ("untied", &["model.embed_tokens.weight", "lm_head.weight"])]
    {
        if base == "untied" {
            with_a_spare_row(&bench);
        }
        let out = bench.path(&format!("one-step-{base}"));
        let still = [
            "--out",
            arg(&out),
            "--set",
            "train.steps=1",
            "--set",
            "optimizer.lr=1e-9",
            "--set",
            "sft.judged_prompts=0",
        ];
        let done = bench.sft("full.toml", "records.json", &[&CHATML[..], &still].concat());
        let text = stderr(&done);
        assert!(done.status.success(), "{text}");
        assert!(
            text.contains("<|im_start|> is new (id 320), <|im_end|> is new (id 321), <|endoftext|> is there already"),
            "{text}"
        );
        assert!(text.contains("⟦It is 0, 0.<|im_end|>⟧") && !text.contains("turns end with its end of text"), "{text}");
        let (old, new) = (bench.path("base/checkpoints/step-00000002"), out.join("checkpoints/step-00000001"));
        for name in names {
            assert_new_rows_are_the_mean(&weight(&old, name), &weight(&new, name));
        }
        let config = read_json(&new.join("config.json"));
        assert_eq!(config["vocab_size"], 322);
        assert!(config["eos_token_id"].as_array().unwrap().contains(&json!(321)), "{config}");
        let added = read_json(&new.join("tokenizer.json"))["added_tokens"].clone();
        let last = added.as_array().unwrap().last().unwrap().clone();
        assert_eq!(
            (&last["id"], &last["content"], &last["special"]),
            (&json!(321), &json!("<|im_end|>"), &json!(true))
        );
    }
}

#[test]
fn a_run_with_new_tokens_resumes_to_the_bit_and_is_exported() {
    let bench = Bench::new();
    let (whole, parts) = (bench.path("whole"), bench.path("parts"));
    let done = bench.sft("full.toml", "records.json", &[&CHATML[..], &["--out", arg(&whole)]].concat());
    assert!(done.status.success(), "{}", stderr(&done));
    let half = ["--out", arg(&parts), "--set", "train.steps=3", "--set", "schedule.decay_steps=6"];
    let stopped = bench.sft("full.toml", "records.json", &[&CHATML[..], &half].concat());
    assert!(stopped.status.success(), "{}", stderr(&stopped));
    ok(&["resume", "--ckpt", arg(&parts), "--set", "train.steps=6", "--quiet"]);
    assert_eq!(logged(&whole), logged(&parts));
    // What the base model forgets is followed as without new tokens.
    assert!(logged(&whole).iter().any(|record| record["task"] == "base_validation"));
    let last = "checkpoints/step-00000006";
    for file in ["model.safetensors", "optimizer.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let read = |run: &Path| std::fs::read(run.join(last).join(file)).unwrap();
        assert!(read(&whole) == read(&parts), "{file}");
    }
    let verified = ok(&["resume", "--ckpt", arg(&whole.join("checkpoints/step-00000002")), "--verify", "4"]);
    assert!(stdout(&verified).starts_with("PASS"), "{}", stdout(&verified));
    // A run that was stopped before its first checkpoint starts from the base model again.
    std::fs::remove_dir_all(parts.join("checkpoints")).unwrap();
    ok(&["resume", "--ckpt", arg(&parts), "--quiet"]);
    assert!(
        weight(&whole.join(last), "model.embed_tokens.weight").to_vec2::<f32>().unwrap()
            == weight(&parts.join(last), "model.embed_tokens.weight").to_vec2::<f32>().unwrap()
    );
    let exported = bench.path("exported");
    ok(&["export", "--ckpt", arg(&whole), "--out", arg(&exported), "--quiet"]);
    let settings = read_json(&exported.join("tokenizer_config.json"));
    assert_eq!(settings["added_tokens_decoder"]["321"]["content"], "<|im_end|>");
    assert_eq!(settings["additional_special_tokens"], json!(["<|im_start|>", "<|im_end|>"]));
    assert!(settings["chat_template"].as_str().unwrap().contains("<|im_end|>"));
    assert_eq!(read_json(&exported.join("config.json"))["vocab_size"], 322);
    let sample = |ckpt: &Path| {
        let args = ["sample", "--ckpt", arg(ckpt), "--prompt", "<|im_start|>user\nSay 3<|im_end|>\n", "--greedy"];
        let made = ok(&[&args[..], &["--json", "--quiet", "--max-tokens", "8"]].concat());
        serde_json::from_str::<Value>(&stdout(&made)).unwrap()["token_ids"].clone()
    };
    assert_eq!(sample(&whole), sample(&exported));
}

#[test]
fn new_tokens_that_cannot_be_trained_are_refused() {
    let bench = Bench::new();
    let lora = bench.refused("lora.toml", "records.json", &CHATML, 78);
    assert!(lora.contains("not supported with LoRA") && lora.contains("lora.rank to 0"), "{lora}");
    let twice = bench.refused("full.toml", "records.json", &["--set", r#"sft.new_tokens=["<a>", "<a>"]"#], 78);
    assert!(twice.contains("a token twice"), "{twice}");
    let empty = bench.refused("full.toml", "records.json", &["--set", r#"sft.new_tokens=[" "]"#], 78);
    assert!(empty.contains("a token without text"), "{empty}");
}
