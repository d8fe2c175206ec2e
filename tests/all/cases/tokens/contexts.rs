//! Texts longer than the model's context: what is left out is counted, in the table, in the results file and at the start of a run.

use crate::support::{arg, ok, pretrain, stderr, stdout};
use serde_json::{Value, json};
use std::path::Path;

fn write_rows(dir: &Path, goals: &[String]) {
    std::fs::create_dir_all(dir.join("piqa")).unwrap();
    let row = |goal: &String| json!({"goal": goal, "sol1": "ok", "sol2": "no", "label": 0}).to_string();
    let rows: Vec<String> = goals.iter().map(row).collect();
    std::fs::write(dir.join("piqa/validation.jsonl"), rows.join("\n")).unwrap();
}

#[test]
fn contexts_that_are_cut_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["model.max_position_embeddings=64"]);
    let out = dir.path().join("results.json");
    let eval = || {
        let output = ok(&[
            "eval",
            "--ckpt",
            arg(&run),
            "--tasks",
            "piqa",
            "--data-dir",
            arg(dir.path()),
            "--output",
            arg(&out),
            "--log-samples",
        ]);
        let report: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
        (stdout(&output), stderr(&output), report)
    };
    let long = "qzxj ".repeat(40);
    write_rows(dir.path(), &["Hi".into(), long.clone(), "Ho".into(), long.clone()]);
    let (table, said, report) = eval();
    let count = &report["n-truncated"]["piqa"];
    assert_eq!(count["documents"], 2, "{report}");
    let samples: Vec<u64> = report["samples"]["piqa"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["truncated_tokens"].as_u64().unwrap_or(0))
        .collect();
    assert!(samples[1] > 100 && (samples[0], samples[2]) == (0, 0), "{samples:?}");
    assert_eq!(count["tokens"], samples.iter().sum::<u64>());
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(rows.next().unwrap().last(), Some(&"truncated"), "{table}");
    assert_eq!(rows.next().unwrap().last(), Some(&"2"), "{table}");
    assert!(said.contains("piqa: the contexts of 2 of 4 documents are longer than the model's"), "{said}");
    write_rows(dir.path(), &["Hi".into(), "Ho".into()]);
    let (table, said, report) = eval();
    assert_eq!(report["n-truncated"]["piqa"], json!({"documents": 0, "tokens": 0}));
    assert!(!table.contains("truncated") && !said.contains("warning"), "{table}{said}");
    // A run says it once, for its tasks and for its prompts.
    write_rows(dir.path(), &["Hi".into(), long.clone()]);
    let config = dir.path().join("tiny.toml");
    let output = ok(&[
        "pretrain",
        "--config",
        arg(&config),
        "--out",
        arg(&dir.path().join("second")),
        "--set",
        "model.max_position_embeddings=64",
        "--set",
        "eval.tasks=[\"piqa\"]",
        "--set",
        &format!("eval.data_dir={}", arg(dir.path())),
        "--set",
        &format!("sample.prompts=[\"Hi\", {long:?}]"),
    ]);
    let said = stderr(&output);
    assert!(said.contains("piqa: the contexts of 1 of 2 documents"), "{said}");
    assert!(said.contains("prompt 2 of sample.prompts has"), "{said}");
}
