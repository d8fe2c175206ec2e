//! Special tokens that a tokenizer does not have: `config.json` carries transformers' defaults (1 and 2) whatever the vocabulary.

use crate::support::{arg, ok, pretrain, stdout};
use serde_json::{Value, json};

/// Prompts and completions of a tokenizer without a beginning of text begin with the prompt, not with whatever token 1 is.
#[test]
fn a_text_begins_with_no_token_that_the_tokenizer_does_not_have() {
    let dir = tempfile::tempdir().unwrap();
    let (run, model) = (pretrain(dir.path(), "run", &["model.max_position_embeddings=96"]), dir.path().join("model"));
    ok(&["export", "--ckpt", arg(&run), "--out", arg(&model)]);
    let mut config: Value = serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    (config["bos_token_id"], config["eos_token_id"]) = (1.into(), 2.into());
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    let _ = std::fs::remove_file(model.join("generation_config.json"));
    let records: Vec<String> =
        (0..20).map(|i| json!({"prompt": format!("Say {i}:"), "completion": " yes"}).to_string()).collect();
    let data = dir.path().join("records.jsonl");
    std::fs::write(&data, records.join("\n")).unwrap();
    let sft = dir.path().join("sft.toml");
    std::fs::write(&sft, "[train]\nsequence_length = 96\nmicro_batch_size = 2\ntokens_per_step = 384\nsteps = 2\n")
        .unwrap();
    for settings in [
        json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": null, "eos_token": "<|endoftext|>"}),
        json!({"tokenizer_class": "TokenizersBackend", "eos_token": "<|endoftext|>"}),
    ] {
        std::fs::write(model.join("tokenizer_config.json"), settings.to_string()).unwrap();
        let shown = stdout(&ok(&[
            "sft",
            "--config",
            arg(&sft),
            "--ckpt",
            arg(&model),
            "--data",
            arg(&data),
            "--show-data",
            "1",
        ]));
        let record = shown.lines().nth(1).unwrap();
        assert!(record.starts_with("Say ") && record.contains("yes<|endoftext|>"), "{settings}: {shown}");
        // An empty prompt begins with the end of text, as evaluation does; token 1 would be an ordinary byte.
        let said = stdout(&ok(&["sample", "--ckpt", arg(&model), "--prompt", "", "--max-tokens", "4", "--json"]));
        let line: Value = serde_json::from_str(said.trim()).unwrap();
        assert!(line["token_ids"].as_array().unwrap().len() <= 4, "{line}");
    }
}
