//! Lines of logs that were deleted or altered at or below the checkpoint that a run is resumed from.

use crate::support::{arg, assert_same_checkpoint, checkpoint, fails, ok, pretrain, restate, stderr, stdout};
use serde_json::Value;
use std::path::{Path, PathBuf};

const ALL_LOGS: [&str; 2] = ["log.sequences=true", "log.layers_every=3"];

/// A run that was killed after step 9, in effect: its newest checkpoint is that of step 8.
fn cut_short(dir: &Path, name: &str) -> PathBuf {
    let run = pretrain(dir, name, &ALL_LOGS);
    std::fs::remove_dir_all(checkpoint(&run, 12)).unwrap();
    run
}

fn events(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|event| event["kind"] == "log_altered").collect()
}

/// Changes the line of `step` in a log.
fn alter(log: &Path, step: u64, change: impl Fn(&str) -> String) {
    let text = std::fs::read_to_string(log).unwrap();
    let wanted = format!("\"step\":{step},");
    let line = text.split_inclusive('\n').find(|line| line.contains(&wanted)).unwrap();
    let altered = text.replacen(line, &change(line), 1);
    assert_ne!(altered, text);
    std::fs::write(log, altered).unwrap();
}

#[test]
fn is_said_once_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let whole = pretrain(dir.path(), "whole", &ALL_LOGS);
    let run = cut_short(dir.path(), "run");
    alter(&run.join("metrics.jsonl"), 3, |_| String::new());
    alter(&run.join("samples.jsonl"), 6, |line| line.replace("\"seed\":", "\"seed\":1"));
    alter(&run.join("sequences.jsonl"), 8, |line| line.replacen("\"first\":", "\"first\":1", 1));
    std::fs::remove_file(run.join("times.jsonl")).unwrap();
    let copy = dir.path().join("copy");
    assert!(std::process::Command::new("cp").arg("-r").args([&run, &copy]).status().unwrap().success());

    let said = stderr(&ok(&["resume", "--ckpt", arg(&run)]));
    for log in ["metrics.jsonl", "samples.jsonl", "sequences.jsonl", "times.jsonl"] {
        assert_eq!(said.matches(&format!("{log}: ")).count(), 1, "{log}: {said}");
    }
    assert_eq!(events(&run).len(), 4);
    assert!(events(&run).iter().all(|event| event["step"] == 8), "{:?}", events(&run));
    assert_same_checkpoint(&checkpoint(&run, 12), &checkpoint(&whole, 12));
    // The checkpoint of step 12 was saved with the logs as they are now.
    let said = stderr(&ok(&["resume", "--ckpt", arg(&run), "--set", "train.steps=14"]));
    assert!(!said.contains("altered") && events(&run).len() == 4, "{said}");

    // The same finding from the same checkpoint is known, too.
    for _ in 0..2 {
        ok(&["resume", "--ckpt", arg(&copy), "--quiet"]);
        std::fs::remove_dir_all(checkpoint(&copy, 12)).unwrap();
    }
    let (files, events) = (events(&copy), events(&copy).len());
    assert!(events >= 4 && files.iter().filter(|event| event["file"] == "samples.jsonl").count() == 1, "{files:?}");
}

#[test]
fn is_no_pass_of_a_verification() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &ALL_LOGS);
    let from = checkpoint(&run, 8);
    let passed = stdout(&ok(&["resume", "--ckpt", arg(&from), "--verify", "3"]));
    assert!(passed.starts_with("PASS"), "{passed}");
    alter(&run.join("metrics.jsonl"), 2, |line| line.replacen("\"loss\":", "\"loss\":1", 1));
    let said = fails(&["resume", "--ckpt", arg(&from), "--verify", "3"], 65);
    assert!(said.contains("metrics.jsonl") && said.contains("some were deleted or altered"), "{said}");
    // A line above the checkpoint that the steps are taken from, which a newer one has recorded.
    alter(&run.join("metrics.jsonl"), 2, |line| line.replacen("\"loss\":1", "\"loss\":", 1));
    ok(&["resume", "--ckpt", arg(&from), "--verify", "3"]);
    alter(&run.join("metrics.jsonl"), 12, |_| String::new());
    fails(&["resume", "--ckpt", arg(&from), "--verify", "3"], 65);
}

#[test]
fn cannot_be_seen_by_checkpoints_that_recorded_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run = cut_short(dir.path(), "run");
    alter(&run.join("metrics.jsonl"), 3, |_| String::new());
    restate(&checkpoint(&run, 8), |text| {
        let mut state: Value = serde_json::from_str(&text).unwrap();
        assert!(state.as_object_mut().unwrap().shift_remove("logs").is_some());
        state.to_string()
    });
    let said = stderr(&ok(&["resume", "--ckpt", arg(&run)]));
    assert!(!said.contains("altered") && events(&run).is_empty(), "{said}");
}

/// A branch has all logs of its run, and no alarm is false.
#[test]
fn is_not_said_of_branches_and_unaltered_runs() {
    let dir = tempfile::tempdir().unwrap();
    let run = cut_short(dir.path(), "run");
    let out = dir.path().join("branches");
    ok(&["fork", arg(&checkpoint(&run, 4)), "--branch", "exact", "--steps", "4", "--out", arg(&out)]);
    assert!(events(&out.join("exact")).is_empty());
    for log in ["times.jsonl", "sequences.jsonl"] {
        let text = std::fs::read_to_string(out.join("exact").join(log)).unwrap();
        assert!((1..=8).all(|step| text.contains(&format!("\"step\":{step},"))), "{log}: {text}");
    }
    ok(&["resume", "--ckpt", arg(&checkpoint(&run, 4))]);
    assert!(events(&run).is_empty());
}
