//! Benchmark tasks against the lm-evaluation-harness: multiple choice, shared ends, last words, rolling texts, several truths.
//!
//! `tests/fixtures/eval` holds a small model, documents in each task's schema, and `expected.json`, the harness's own numbers for them
//! (written by `scripts/compare_lm_eval.py --save`).

use crate::support::{TINY, arg, config, fails, ok, records, root, run, stderr, stdout};
use serde_json::Value;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/eval").join(name)
}

fn read(path: &std::path::Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_kind_of_task_gives_the_harnesss_numbers() {
    let expected = read(&fixture("expected.json"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.json");
    let mut compared = 0;
    for shots in [0, 2] {
        let of = |e: &&Value| e["shots"] == shots;
        let tasks: Vec<&str> =
            expected.as_array().unwrap().iter().filter(of).map(|e| e["task"].as_str().unwrap()).collect();
        assert!(tasks.len() >= 5);
        let (tasks_arg, shots_arg) = (tasks.join(","), shots.to_string());
        ok(&[
            "eval",
            "--ckpt",
            arg(&fixture("model")),
            "--tasks",
            &tasks_arg,
            "--data-dir",
            arg(&fixture("data")),
            "--num-fewshot",
            &shots_arg,
            "--output",
            arg(&out),
            "--log-samples",
        ]);
        let ours = read(&out);
        for want in expected.as_array().unwrap().iter().filter(of) {
            let task = want["task"].as_str().unwrap();
            let samples = ours["samples"][task].as_array().unwrap();
            let lls = want["ll"].as_array().unwrap();
            assert_eq!(samples.len(), lls.len(), "{task}");
            for (sample, lls) in samples.iter().zip(lls) {
                for (a, b) in sample["ll"].as_array().unwrap().iter().zip(lls.as_array().unwrap()) {
                    assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 2e-3, "{task} {shots}: {sample} {lls}");
                    compared += 1;
                }
            }
            for (metric, value) in want["metrics"].as_object().unwrap() {
                let got = &ours["results"][task][metric];
                match (got.as_f64(), value.as_f64()) {
                    (Some(a), Some(b)) => {
                        // The last one's accuracy is a share of probability, no count.
                        let continuous = ["perplexity", "bits"].iter().any(|word| metric.contains(word));
                        let loose = continuous || task == "truthfulqa_mc2";
                        let most = if loose { 2e-4 * b.abs() } else { 1e-9 };
                        assert!((a - b).abs() <= most, "{task} {shots} {metric}: {a} {b}");
                    }
                    _ => assert_eq!(got, value, "{task} {metric}"),
                }
            }
            assert_eq!(ours["n-shot"][task], shots);
        }
    }
    assert!(compared > 100);
}

#[test]
fn limits_groups_and_missing_data_are_told() {
    let (model, data) = (fixture("model"), fixture("data"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.json");
    let base = ["eval", "--ckpt", arg(&model), "--data-dir", arg(&data), "--output", arg(&out)];
    let output = ok(&[&base[..], &["--tasks", "piqa", "--limit", "3"]].concat());
    assert!(stdout(&output).contains("acc_norm") && stderr(&output).contains("documents/s"));
    let found = read(&out);
    let n = std::fs::read_to_string(data.join("piqa/validation.jsonl")).unwrap().lines().count();
    assert_eq!(found["n-samples"]["piqa"], serde_json::json!({"original": n, "effective": 3}));
    ok(&[&base[..], &["--tasks", "piqa", "--limit", "0.5"]].concat());
    assert_eq!(read(&out)["n-samples"]["piqa"]["effective"], n.div_ceil(2));
    let missing = fails(&[&base[..], &["--tasks", "arc_easy"]].concat(), 74);
    assert!(missing.contains("arc_easy/test.jsonl") && missing.contains("--download"), "{missing}");
    assert!(fails(&[&base[..], &["--tasks", "hellaswga"]].concat(), 78).contains("hellaswga"));
    assert_eq!(run(&["eval", "--ckpt", arg(&model)]).status.code(), Some(2));
    // A split without labels is refused, not scored as wrong.
    let unlabelled = dir.path().join("data/piqa");
    std::fs::create_dir_all(&unlabelled).unwrap();
    std::fs::write(
        unlabelled.join("validation.jsonl"),
        "{\"goal\":\"g\",\"sol1\":\"a\",\"sol2\":\"b\",\"label\":-1}\n",
    )
    .unwrap();
    let args = ["eval", "--ckpt", arg(&model), "--data-dir", arg(unlabelled.parent().unwrap()), "--tasks", "piqa"];
    assert!(fails(&args, 65).contains("unlabelled"));
}

#[test]
fn tasks_along_the_way_and_over_a_whole_run() {
    let dir = tempfile::tempdir().unwrap();
    let text = TINY.replace("vocab_size = 320", "vocab_size = 320\nmax_position_embeddings = 256");
    let (path, out, data) = (config(dir.path(), &text), dir.path().join("run"), fixture("data"));
    let data_dir = format!("eval.data_dir={}", data.display());
    let sets =
        ["--set", "eval.tasks=[\"piqa\"]", "--set", "eval.limit=4", "--set", "eval.tasks_every=8", "--set", &data_dir];
    let pretrain = ["pretrain", "--config", arg(&path), "--out", arg(&out)];
    ok(&[&pretrain[..], &sets].concat());
    let log = records(&out.join("metrics.jsonl"));
    let steps: Vec<u64> = log
        .iter()
        .filter(|r| r["kind"] == "eval" && r["metric"] == "acc")
        .map(|r| r["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [0, 8, 12]);
    assert!(log.iter().any(|r| r["kind"] == "eval" && r["task"] == "piqa" && r["stderr"].is_f64()));
    // What was evaluated along the way is what `eval` finds in the checkpoint.
    let file = dir.path().join("series.json");
    let output = ok(&[
        "eval",
        "--run",
        arg(&out),
        "--tasks",
        "piqa",
        "--limit",
        "4",
        "--data-dir",
        arg(&data),
        "--output",
        arg(&file),
    ]);
    assert_eq!(stdout(&output).matches("step ").count(), 3);
    let series = read(&file)["series"]["piqa/acc,none"].clone();
    for point in series.as_array().unwrap() {
        let logged = log.iter().find(|r| r["kind"] == "eval" && r["metric"] == "acc" && r["step"] == point[0]);
        assert!(logged.is_none_or(|r| r["value"] == point[1]), "{point}");
    }
    let steps = series.as_array().unwrap().iter().map(|point| point[0].as_u64().unwrap());
    assert_eq!(steps.collect::<Vec<_>>(), [4, 8, 12], "a curve goes from the first checkpoint to the last");
    let bad = ["--set", "eval.tasks=[\"pika\"]", "--set", &data_dir];
    let other = dir.path().join("other");
    let pretrain = ["pretrain", "--config", arg(&path), "--out", arg(&other)];
    assert!(fails(&[&pretrain[..], &bad].concat(), 78).contains("pika") && !other.exists());
}
