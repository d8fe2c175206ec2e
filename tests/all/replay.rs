//! Steps taken again are the same steps: `resume --verify`, checkpoints of earlier formats, and state given up on purpose.

use crate::support::{
    arg, assert_same_checkpoint, checkpoint, fails, ok, pretrain, records, restate, root, run, stdout,
};
use serde_json::{Value, json};
use std::path::Path;

/// A file with one training record's field set to another value.
fn forge(path: &Path, step: u64, field: &str, value: Value) {
    let text = std::fs::read_to_string(path).unwrap();
    let line = |line: &str| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        if record["kind"] == "train" && record["step"] == step {
            record[field] = value.clone();
        }
        record.to_string() + "\n"
    };
    std::fs::write(path, text.lines().map(line).collect::<String>()).unwrap();
}

fn copy(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
}

fn listing(dir: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            found.extend(listing(&entry.path()));
        }
        found.push((entry.path().display().to_string(), if meta.is_dir() { 0 } else { meta.len() }));
    }
    found.sort();
    found
}

#[test]
fn verify_passes_names_the_first_difference_or_says_that_it_cannot_tell() {
    let dir = tempfile::tempdir().unwrap();
    let whole = pretrain(dir.path(), "run", &[]);
    let before = listing(&whole);
    for (ckpt, steps, said) in [
        (checkpoint(&whole, 4), "8", "PASS steps 5..12"),
        (checkpoint(&whole, 8), "1", "PASS steps 9..9"),
        (whole.clone(), "4", "PASS steps 9..12"),
        (whole.clone(), "5", "PASS steps 5..9"),
    ] {
        let output = ok(&["resume", "--ckpt", arg(&ckpt), "--verify", steps]);
        assert!(stdout(&output).starts_with(said), "{}", stdout(&output));
    }
    assert_eq!(listing(&whole), before, "nothing is written");
    for (ckpt, steps, said) in
        [(checkpoint(&whole, 12), "1", "step 13 was never logged"), (whole.clone(), "9", "followed by 9 logged steps")]
    {
        let output = run(&["resume", "--ckpt", arg(&ckpt), "--verify", steps]);
        assert_eq!(output.status.code(), Some(65));
        assert!(stdout(&output).starts_with("UNVERIFIED") && stdout(&output).contains(said), "{}", stdout(&output));
    }
    for (field, value) in [("loss", json!(5.0)), ("grad_norm", json!(0.25)), ("chain", json!("00")), ("lr", json!(0.5))]
    {
        let forged = dir.path().join(field);
        copy(&whole, &forged);
        forge(&forged.join("metrics.jsonl"), 7, field, value);
        let output = run(&["resume", "--ckpt", arg(&checkpoint(&forged, 4)), "--verify", "8"]);
        assert_eq!(output.status.code(), Some(65), "{field}");
        assert!(stdout(&output).starts_with(&format!("FAIL step 7: {field} was")), "{}", stdout(&output));
        // Steps beside it come out the same; the log is not what the checkpoints have recorded all the same.
        for (step, steps) in [(4, "2"), (8, "4")] {
            let said = fails(&["resume", "--ckpt", arg(&checkpoint(&forged, step)), "--verify", steps], 65);
            assert!(said.contains("metrics.jsonl: ") && said.contains("altered"), "{said}");
        }
    }
    let damaged = dir.path().join("damaged");
    copy(&whole, &damaged);
    let weights = checkpoint(&damaged, 8).join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    fails(&["resume", "--ckpt", arg(&checkpoint(&damaged, 8)), "--verify", "1"], 65);
    assert_eq!(run(&["resume", "--ckpt", arg(&whole), "--verify", "0"]).status.code(), Some(2));
}

#[test]
fn what_a_replay_does_not_repeat_is_never_a_pass() {
    let dir = tempfile::tempdir().unwrap();
    let changed = pretrain(dir.path(), "changed", &[]);
    ok(&["resume", "--ckpt", arg(&checkpoint(&changed, 8)), "--set", "optimizer.lr=1e-3"]);
    let output = run(&["resume", "--ckpt", arg(&checkpoint(&changed, 4)), "--verify", "8"]);
    assert_eq!(output.status.code(), Some(65));
    assert!(stdout(&output).contains("another configuration at step 8"), "{}", stdout(&output));
    ok(&["resume", "--ckpt", arg(&checkpoint(&changed, 4)), "--verify", "4"]);
}

/// A run written by version 0.1.0 before its state had a guard and offsets: it resumes, and to the losses it went on to then.
#[test]
fn a_checkpoint_of_the_first_format_goes_on_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    copy(&root().join("tests/fixtures/run-v1"), &run);
    let output = ok(&["resume", "--ckpt", arg(&run), "--verify", "4"]);
    assert!(stdout(&output).starts_with("PASS steps 5..8"), "{}", stdout(&output));
    ok(&["resume", "--ckpt", arg(&run)]);
    assert!(!records(&run.join("events.jsonl")).iter().any(|e| e["kind"] == "replay_mismatch"));
    let train = |path: &Path| -> Vec<Value> {
        let known = |r: &Value| r["kind"] == "train" || r["kind"] == "val";
        let mut all: Vec<Value> = records(path).into_iter().filter(known).collect();
        // The mark of another processor than the one that made the fixture.
        all.iter_mut().for_each(|r| drop(r.as_object_mut().unwrap().remove("hardware")));
        all
    };
    let golden = train(&root().join("tests/fixtures/run-v1/metrics.jsonl"));
    assert_eq!(golden.len(), 11);
    assert_eq!(train(&run.join("metrics.jsonl")), golden);
    let state: Value =
        serde_json::from_slice(&std::fs::read(checkpoint(&run, 8).join("trainer_state.json")).unwrap()).unwrap();
    assert_eq!(state["version"], 2);
}

#[test]
fn a_checkpoint_of_a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["train.steps=4"]);
    restate(&checkpoint(&run, 4), |text| text.replace("\"version\": 2", "\"version\": 9"));
    let message = fails(&["resume", "--ckpt", arg(&run)], 65);
    assert!(message.contains("version 9") && message.contains("trainer_state.json"), "{message}");
}

fn losses(run: &Path, field: &str) -> Vec<f64> {
    let train = records(&run.join("metrics.jsonl")).into_iter().filter(|r| r["kind"] == "train");
    train.map(|r| r[field].as_f64().unwrap()).collect()
}

#[test]
fn a_piece_of_state_can_be_given_up_on_purpose() {
    let dir = tempfile::tempdir().unwrap();
    let whole = pretrain(dir.path(), "whole", &[]);
    let reset = |pieces: &str| {
        let run = dir.path().join(pieces);
        copy(&whole, &run);
        ok(&["resume", "--ckpt", arg(&checkpoint(&run, 8)), "--reset", pieces]);
        let marked: Vec<Value> =
            records(&run.join("metrics.jsonl")).into_iter().filter(|r| r.get("reset").is_some()).collect();
        assert_eq!(marked.len(), 1);
        assert_eq!(marked[0]["step"], 9);
        let events = records(&run.join("events.jsonl"));
        assert!(events.iter().any(|e| e["kind"] == "resume" && e["reset"] == marked[0]["reset"]), "{events:?}");
        assert!(run.join("checkpoints/.superseded-8-2").exists(), "the checkpoint as it was is kept");
        // A replay of these steps would start from the state as it was: it does not claim to know.
        let verified = self::run(&["resume", "--ckpt", arg(&checkpoint(&run, 4)), "--verify", "8"]);
        assert!(stdout(&verified).starts_with("UNVERIFIED"), "{}", stdout(&verified));
        (run, marked[0]["reset"].clone())
    };
    let (want, lr, norm) = (losses(&whole, "loss"), losses(&whole, "lr"), losses(&whole, "grad_norm"));
    let (moments, named) = reset("moments");
    assert_eq!(named, json!(["moments"]));
    // The weights are the same at first; the update of step 9 is not.
    assert_eq!((losses(&moments, "loss")[8], losses(&moments, "grad_norm")[8]), (want[8], norm[8]));
    assert_ne!(losses(&moments, "loss")[9], want[9]);
    let (optimizer, named) = reset("optimizer");
    assert_eq!(named, json!(["moments", "optimizer_step"]));
    assert_ne!(losses(&optimizer, "loss")[9], losses(&moments, "loss")[9]);
    let (data, _) = reset("data");
    let chain = |run: &Path, step: usize| records(&run.join("metrics.jsonl"))[step]["chain"].clone();
    assert_ne!(chain(&data, 12), chain(&whole, 12));
    let state: Value =
        serde_json::from_slice(&std::fs::read(checkpoint(&data, 12).join("trainer_state.json")).unwrap()).unwrap();
    assert_eq!(state["next_sequence"], 16);
    assert_eq!(state["data_offsets"], json!([{"step": 8, "from": 32, "to": 0}]));
    let (schedule, _) = reset("schedule");
    assert_eq!(losses(&schedule, "lr")[8..12], lr[0..4], "warm-up and all");
    let (rng, _) = reset("rng");
    assert_eq!(losses(&rng, "loss"), want, "training draws nothing after its beginning");
    let refused = dir.path().join("never");
    std::fs::create_dir(&refused).unwrap();
    std::fs::copy(whole.join("config.toml"), refused.join("config.toml")).unwrap();
    fails(&["resume", "--ckpt", arg(&refused), "--reset", "moments"], 78);
    assert_eq!(self::run(&["resume", "--ckpt", arg(&whole), "--reset", "everything"]).status.code(), Some(2));
}

/// What was given up stays given up, however the process ends after it.
#[test]
fn a_reset_survives_a_second_resume() {
    let dir = tempfile::tempdir().unwrap();
    let once = pretrain(dir.path(), "once", &[]);
    let twice = pretrain(dir.path(), "twice", &[]);
    for run in [&once, &twice] {
        ok(&["resume", "--ckpt", arg(&checkpoint(run, 4)), "--reset", "optimizer"]);
    }
    ok(&["resume", "--ckpt", arg(&checkpoint(&twice, 4))]);
    assert_same_checkpoint(&checkpoint(&once, 12), &checkpoint(&twice, 12));
    assert_eq!(records(&once.join("metrics.jsonl")), records(&twice.join("metrics.jsonl")));
}
