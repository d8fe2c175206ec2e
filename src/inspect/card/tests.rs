//! Cards of models with a run, without one, and with names that are meant to break them.

use super::*;
use crate::checkpoint::tests::{Toy, toy_model};
use crate::checkpoint::{Dtype, Opened, export_with};
use crate::metrics::{Eval, Record, SampleRecord, Train, Val};
use std::path::PathBuf;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A run whose newest checkpoint is that of step 3, with logs up to step 5.
fn run(dir: &Path, task: &str, sample: &str) -> PathBuf {
    let run = dir.join("run");
    Toy::of(toy_model(true), 3).save_keeping(&run, 1).unwrap();
    let mut records = Vec::new();
    for step in 1..=5 {
        records.push(Record::Train(Train {
            step,
            loss: 4.0 - step as f64 / 10.0,
            ..crate::metrics::tests::train(step)
        }));
        if step % 2 == 1 {
            records.push(Record::Val(Val {
                step,
                loss: 3.0 + 1.0 / step as f64,
                bits_per_byte: 1.25,
                tokens: 9,
                floor_bits_per_byte: None,
            }));
            for (metric, value) in [("acc", 0.25), ("acc_norm", 0.5)] {
                let value = value + step as f64 / 1000.0;
                records.push(Record::Eval(Eval {
                    step,
                    task: task.into(),
                    metric: metric.into(),
                    value,
                    stderr: 0.01,
                }));
            }
        }
    }
    write_lines(&run.join("metrics.jsonl"), &records);
    let sample = SampleRecord { step: 3, prompt: "Once".into(), text: sample.into(), seed: 1 };
    write_lines(&run.join("samples.jsonl"), &[sample]);
    let base = format!("/cache/models--owner--base/snapshots/{COMMIT}");
    let build = serde_json::json!({"host": "secret-host", "cpu": "A CPU", "threads": 2, "ranks": 1, "gpu": null, "dtype": "f32"});
    write_lines(
        &run.join("events.jsonl"),
        &[serde_json::json!({"time": "t", "kind": "start", "step": 0, "init_from": base, "build": build})],
    );
    let data = format!("/cache/datasets--owner--corpus/snapshots/{COMMIT}/a.jsonl");
    let config = format!(
        "[data]\ntrain = [{data:?}, \"/home/secret/b.jsonl\"]\n[train]\nsteps = 5\nsequence_length = 16\n[optimizer]\nlr = 0.01\nkind = \"adamw\"\n"
    );
    std::fs::write(run.join("config.toml"), config).unwrap();
    run
}

fn write_lines<T: serde::Serialize>(path: &Path, lines: &[T]) {
    let text: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    std::fs::write(path, text).unwrap();
}

/// The directory of `ckpt` exported with its card, and the card.
fn exported(ckpt: &Path, out: &Path) -> String {
    let source = Opened::open(ckpt).unwrap();
    let facts = Facts::gather(&source, source.model.clone(), out).unwrap();
    export_with(&source, out, Dtype::Bf16, None, |certificate| card(&facts, certificate)).unwrap();
    std::fs::read_to_string(out.join("README.md")).unwrap()
}

/// The head of a card, without its marks.
fn head(card: &str) -> &str {
    card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap().0
}

#[test]
fn a_card_tells_what_the_run_knows_up_to_its_step() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("my-model");
    let text = exported(&run(dir.path(), "piqa", " upon a time"), &out);
    let expected = "library_name: transformers\npipeline_tag: text-generation\n\
        license: unknown # fill in the licence of the model, such as apache-2.0\ntags:\n- \"llama-lite\"\n\
        datasets:\n- \"owner/corpus\"\nbase_model: \"owner/base\"\nmodel-index:\n- name: \"my-model\"\n  results:\n  - task:\n      \
        type: text-generation\n    dataset:\n      type: \"piqa\"\n      name: \"piqa\"\n    metrics:\n    - type: \"acc\"\n      \
        value: 0.253\n    - type: \"acc_norm\"\n      value: 0.503";
    assert_eq!(head(&text), expected);
    for part in [
        "\n# my-model\n",
        "trained further from owner/base with [llama-lite](",
        "| architecture | LlamaForCausalLM |",
        "| steps | 3 |",
        "| tokens | 1,536 |",
        "| data | owner/corpus |",
        "| learning rate | 0.01 |",
        "| optimizer | adamw |",
        "| hardware | A CPU, 2 threads |",
        "| weights | bfloat16 |",
        "![Loss curves](loss.svg)",
        "| validation data | loss, nats per token | 3.3333 |",
        "| piqa | acc\\_norm | 0.5030 ± 0.0100 |",
        "```text\nOnce upon a time\n```",
        "path = \"./my-model\"",
        "llama-lite sample --ckpt ./my-model",
        "Read back: 32 tokens have the logits",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("secret") && !text.contains("/cache/"), "{text}");
    let picture = std::fs::read_to_string(out.join("loss.svg")).unwrap();
    assert!(picture.starts_with("<svg ") && picture.contains("validation loss"), "{picture}");
    // It is a directory of a model like any other.
    Opened::open(&out).unwrap();
}

#[test]
fn a_model_without_a_run_has_a_shorter_card() {
    let dir = tempfile::tempdir().unwrap();
    let (first, again) = (dir.path().join("first"), dir.path().join("again"));
    exported(&run(dir.path(), "piqa", "x"), &first);
    let text = exported(&first, &again);
    for part in ["## Model", "## How to use it", "## Weights", "library_name: transformers"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for part in ["## Training", "## Evaluation", "## Samples", "base_model", "datasets", "model-index", "loss.svg"] {
        assert!(!text.contains(part), "{part}: {text}");
    }
    assert!(!again.join("loss.svg").exists());
    // A checkpoint whose run has lost its logs is no more than its weights.
    let run = dir.path().join("run");
    std::fs::remove_file(run.join("metrics.jsonl")).unwrap();
    assert!(!exported(&run, &dir.path().join("bare")).contains("## Training"));
}

#[test]
fn names_and_texts_of_strangers_do_not_leave_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x\" y: #`|<b>\n---");
    let text = exported(&run(dir.path(), "a\nlicense: mit", "\n```\n# Out\n---\n<script>"), &out);
    let head = head(&text);
    assert_eq!(head.matches("\nlicense:").count(), 1, "{head}");
    assert!(head.contains(r#"- name: "x\" y: #`|<b>\u000a---""#), "{head}");
    assert!(head.contains(r#"type: "a\u000alicense: mit""#), "{head}");
    assert!(text.contains("\n# x\" y: \\#\\`\\|\\<b\\> ---\n"), "{text}");
    assert!(text.contains("\n````text\nOnce\n```\n# Out\n---\n<script>\n````\n"), "{text}");
    assert!(text.contains("path = \"./x\\\" y: #`|<b>\\n---\""), "{text}");
    assert!(text.contains("| a license: mit | acc |"), "{text}");
}
