//! A run that was interrupted and resumed is the run that was not.

use crate::support::{arg, assert_same_checkpoint, checkpoint, fails, ok, pretrain, program, records, stderr};
use serde_json::json;
use std::time::{Duration, Instant};

fn same_run(a: &std::path::Path, b: &std::path::Path) {
    assert_same_checkpoint(&checkpoint(a, 12), &checkpoint(b, 12));
    for log in ["metrics.jsonl", "samples.jsonl"] {
        assert_eq!(records(&a.join(log)), records(&b.join(log)), "{log}");
    }
}

#[test]
fn resuming_any_checkpoint_gives_the_same_bits_and_logs() {
    let dir = tempfile::tempdir().unwrap();
    let whole = pretrain(dir.path(), "whole", &[]);
    let steps: Vec<u64> = records(&whole.join("metrics.jsonl"))
        .iter()
        .filter(|r| r["kind"] == "train")
        .map(|r| r["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
    for from in [4, 8] {
        let again = pretrain(dir.path(), &format!("from-{from}"), &[]);
        ok(&["resume", "--ckpt", arg(&checkpoint(&again, from))]);
        same_run(&whole, &again);
        // What was left behind is kept beside the run, not lost.
        assert!(again.join("replaced").read_dir().unwrap().count() > 0);
        assert!(again.join("checkpoints/.superseded-12-2").exists());
        let events = records(&again.join("events.jsonl"));
        assert!(events.iter().any(|e| e["kind"] == "resume" && e["step"] == json!(from)));
    }
}

#[test]
fn training_in_two_parts_equals_training_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let whole = pretrain(dir.path(), "whole", &[]);
    // The horizon of the schedule is the whole run's; only the number of steps is extended later.
    let parts = pretrain(dir.path(), "parts", &["train.steps=7", "schedule.decay_steps=12"]);
    ok(&["resume", "--ckpt", arg(&parts), "--set", "train.steps=12"]);
    let train = |run: &std::path::Path| -> Vec<_> {
        records(&run.join("metrics.jsonl")).into_iter().filter(|r| r["kind"] == "train").collect()
    };
    assert_eq!(train(&whole), train(&parts));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let read = |run| std::fs::read(checkpoint(run, 12).join(file)).unwrap();
        assert!(read(&whole) == read(&parts), "{file}");
    }
}

#[test]
fn extending_a_run_does_not_move_the_learning_rate() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &[]);
    ok(&["resume", "--ckpt", arg(&run), "--set", "train.steps=15"]);
    let rates: Vec<f64> = records(&run.join("metrics.jsonl"))
        .iter()
        .filter(|r| r["kind"] == "train")
        .map(|r| r["lr"].as_f64().unwrap())
        .collect();
    assert_eq!(rates.len(), 15);
    assert_eq!(rates[13..], [1e-3, 1e-3]);
    assert!(rates[2..].windows(2).all(|w| w[1] <= w[0]), "{rates:?}");
}

#[test]
fn kill_nine_loses_nothing_that_was_saved() {
    let dir = tempfile::tempdir().unwrap();
    let whole = pretrain(dir.path(), "whole", &["train.steps=40", "checkpoint.every=5"]);
    let config = dir.path().join("tiny.toml");
    let out = dir.path().join("killed");
    let sets = ["--set", "train.steps=40", "--set", "checkpoint.every=5"];
    let mut child =
        program(&["pretrain", "--config", arg(&config), "--out", arg(&out)]).args(sets).arg("--quiet").spawn().unwrap();
    let begun = Instant::now();
    while !checkpoint(&out, 5).exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint appeared");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    ok(&["resume", "--ckpt", arg(&out)]);
    assert_same_checkpoint(&checkpoint(&whole, 40), &checkpoint(&out, 40));
    assert_eq!(records(&whole.join("metrics.jsonl")), records(&out.join("metrics.jsonl")));
}

#[test]
fn a_signal_saves_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let whole = pretrain(dir.path(), "whole", &["train.steps=400", "eval.every=0", "sample.every=0"]);
    let config = dir.path().join("tiny.toml");
    let out = dir.path().join("stopped");
    let sets = ["--set", "train.steps=400", "--set", "eval.every=0", "--set", "sample.every=0"];
    let child = program(&["pretrain", "--config", arg(&config), "--out", arg(&out)])
        .args(sets)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !checkpoint(&out, 4).exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint appeared");
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    assert!(stderr(&output).contains("resume --ckpt"), "{}", stderr(&output));
    ok(&["resume", "--ckpt", arg(&out)]);
    assert_same_checkpoint(&checkpoint(&whole, 400), &checkpoint(&out, 400));
}

#[test]
fn a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used() {
    let dir = tempfile::tempdir().unwrap();
    let whole = pretrain(dir.path(), "whole", &[]);
    let run = pretrain(dir.path(), "run", &[]);
    let weights = checkpoint(&run, 12).join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let message = fails(&["resume", "--ckpt", arg(&checkpoint(&run, 12))], 65);
    assert!(message.contains("model.safetensors"), "{message}");
    let output = ok(&["resume", "--ckpt", arg(&run)]);
    assert!(stderr(&output).contains("resuming at step 8"), "{}", stderr(&output));
    same_run(&whole, &run);
    assert!(
        run.join("checkpoints")
            .read_dir()
            .unwrap()
            .any(|e| { e.unwrap().file_name().to_string_lossy().starts_with(".bad-12") })
    );
}

#[test]
fn a_run_that_never_saved_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let whole = pretrain(dir.path(), "whole", &[]);
    let run = pretrain(dir.path(), "run", &[]);
    std::fs::remove_dir_all(run.join("checkpoints")).unwrap();
    let output = ok(&["resume", "--ckpt", arg(&run)]);
    assert!(stderr(&output).contains("starting again at step 0"));
    same_run(&whole, &run);
}

#[test]
fn resume_refuses_what_it_cannot_continue() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &[]);
    assert!(fails(&["resume", "--ckpt", arg(&run), "--set", "model.hidden_size=64"], 78).contains("model.hidden_size"));
    assert!(fails(&["resume", "--ckpt", arg(&run), "--set", "train.step=20"], 78).contains("train.steps"));
    assert!(fails(&["resume", "--ckpt", arg(&run), "--set", "data.seed=9"], 78).contains("data.seed"));
    assert!(fails(&["resume", "--ckpt", arg(&run), "--set", "data.val_stories=5"], 65).contains("validation data"));
    assert!(
        fails(&["resume", "--ckpt", arg(&run), "--set", "train.sequence_length=16"], 78).contains("sequence_length")
    );
    assert!(fails(&["resume", "--ckpt", arg(&run), "--set", "train.steps=5"], 78).contains("step 12"));
    assert!(fails(&["resume", "--ckpt", arg(&dir.path().join("nowhere"))], 74).contains("nowhere"));
    fails(&["resume", "--ckpt", arg(dir.path())], 78);
}

#[test]
fn stopping_before_the_first_step_logs_step_zero_once() {
    let dir = tempfile::tempdir().unwrap();
    let whole = pretrain(dir.path(), "whole", &[]);
    let run = dir.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("STOP"), "").unwrap();
    let config = dir.path().join("tiny.toml");
    let output = crate::support::run(&["pretrain", "--config", arg(&config), "--out", arg(&run)]);
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    assert!(!run.join("STOP").exists());
    ok(&["resume", "--ckpt", arg(&run)]);
    same_run(&whole, &run);
}

#[test]
fn a_restart_begins_with_the_weights_the_run_began_with() {
    let dir = tempfile::tempdir().unwrap();
    let first = pretrain(dir.path(), "first", &[]);
    let (config, run) = (dir.path().join("tiny.toml"), dir.path().join("run"));
    ok(&["pretrain", "--config", arg(&config), "--out", arg(&run), "--init-from", arg(&first)]);
    let before = records(&run.join("metrics.jsonl"));
    std::fs::remove_dir_all(run.join("checkpoints")).unwrap();
    ok(&["resume", "--ckpt", arg(&run)]);
    assert_eq!(before, records(&run.join("metrics.jsonl")));
    std::fs::remove_dir_all(run.join("checkpoints")).unwrap();
    std::fs::remove_dir_all(&first).unwrap();
    fails(&["resume", "--ckpt", arg(&run)], 74);
}
