//! Saves beside training: slow ones, refused ones, and repeated steps that must come out the same.

use super::{EMULATED, Lab};
use serde_json::Value;
use std::time::{Duration, Instant};

#[test]
fn training_goes_on_while_a_checkpoint_is_written() {
    let lab = Lab::new();
    lab.pretrain("run", "", &["train.steps=400", "checkpoint.every=200"], 0);
    lab.pretrain("slow", "slow-save@200=1", &["train.steps=400", "checkpoint.every=200"], 0);
    let saves = lab.events("slow", "save");
    let seconds = |i: usize, key: &str| saves[i][key].as_f64().unwrap();
    assert_eq!((saves[0]["step"].as_u64(), saves[1]["step"].as_u64()), (Some(200), Some(400)));
    assert!(seconds(0, "seconds") >= 1.0 && seconds(0, "stall_seconds") < 0.5 * seconds(0, "seconds"), "{saves:?}");
    assert!(lab.state("run", 400) == lab.state("slow", 400));
    assert!(lab.state("run", 200) == lab.state("slow", 200), "the state of step 200, though training had gone on");
    lab.pretrain("at-once", "", &["train.steps=400", "checkpoint.every=200", "checkpoint.background=false"], 0);
    assert!(lab.state("run", 200) == lab.state("at-once", 200));
}

/// What a run is worth whose disk refuses one save in a while: nothing less.
#[test]
fn a_refused_save_is_told_and_tried_again() {
    let lab = Lab::new();
    let said = lab.pretrain("run", "failed-save@4-8=1", &[], 0);
    assert!(said.contains("not saved (try 2)"), "{said}");
    let failed: Vec<_> = lab.events("run", "save_failed").iter().map(|e| e["step"].as_u64()).collect();
    assert_eq!(failed, [Some(4), Some(8)]);
    let saved: Vec<_> = lab.events("run", "save").iter().map(|e| e["step"].as_u64()).collect();
    assert_eq!(saved, [Some(12)], "a save is told when it is durable, not before");
    lab.pretrain("well", "", &[], 0);
    assert!(lab.state("run", 12) == lab.state("well", 12));
}

#[test]
fn three_refused_saves_end_the_run_or_pause_it() {
    let lab = Lab::new();
    let sets = ["checkpoint.every=2"];
    lab.pretrain("run", "failed-save=1", &sets, 74);
    assert_eq!(lab.events("run", "save_failed").len(), 3);
    lab.resume("run", "", &[], 0);
    // Paused, it saves what stands when the disk takes it (which a planted fault of the thread does not touch).
    let said = lab.pretrain("paused", "failed-save@0-6=1", &[&sets[..], &["checkpoint.on_full=pause"]].concat(), 0);
    assert!(said.contains("paused at step"), "{said}");
    assert!(lab.state("run", 12) == lab.state("paused", 12));
}

/// SIGUSR1 that comes while the loop is busy with something else is honoured after it, once.
#[test]
fn a_request_to_save_is_not_lost_between_steps() {
    let lab = Lab::new();
    let sets = ["eval.every=3", "sample.every=3", "sample.prompts=[\"One\"]", "sample.max_tokens=4"];
    lab.pretrain("well", "", &sets, 0);
    for place in ["save-asked-in-validation", "save-asked-in-sample"] {
        lab.pretrain(place, &format!("{place}@6=1"), &sets, 0);
        let saved: Vec<_> = lab.events(place, "save").iter().map(|event| event["step"].as_u64()).collect();
        assert_eq!(saved, [Some(4), Some(6), Some(8), Some(12)], "{place}");
        assert!(lab.state(place, 12) == lab.state("well", 12));
    }
}

/// The steps after the last checkpoint of an attempt that ended at step 8.
fn broken_off(lab: &Lab) {
    lab.pretrain("run", "hang@8=60", &["guard.hang_seconds=1", "eval.every=2"], 70);
    assert_eq!(lab.train("run").len(), 7);
}

#[test]
fn repeated_steps_are_compared_with_what_was_logged_the_first_time() {
    let lab = Lab::new();
    broken_off(&lab);
    lab.copy("run", "forged");
    lab.copy("run", "changed");
    lab.resume("run", "", &[], 0);
    assert!(lab.events("run", "replay_mismatch").is_empty());
    assert_eq!(lab.lines("run/replaced/attempt-1.jsonl").len(), 4, "steps 5 to 7 and a validation");
    // One digit of one logged loss.
    let path = lab.path("forged/metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let forge = |line: &str| {
        let loss = serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].to_string();
        let other = format!("{}{}", &loss[..loss.len() - 1], if loss.ends_with('1') { 2 } else { 1 });
        if line.contains("\"train\",\"step\":6") { line.replace(&loss, &other) } else { line.to_owned() }
    };
    let forged: Vec<String> = text.lines().map(forge).collect();
    assert_ne!(text, forged.join("\n") + "\n");
    std::fs::write(&path, forged.join("\n") + "\n").unwrap();
    let said = lab.resume("forged", "", &[], 0);
    assert!(said.contains("step 6: loss was"), "{said}");
    let found = lab.events("forged", "replay_mismatch");
    assert_eq!((found.len(), &found[0]["step"], &found[0]["quantity"]), (1, &6.into(), &"loss".into()));
    // With another configuration other numbers are no surprise.
    lab.resume("changed", "", &["optimizer.lr=1e-3"], 0);
    assert!(lab.events("changed", "replay_mismatch").is_empty());
}

#[test]
fn a_validation_that_was_not_logged_is_made_up_for() {
    let lab = Lab::new();
    lab.pretrain("well", "", &[], 0);
    // Validation at step 4 takes long enough to be interrupted in.
    let mut child = Lab::command(
        "slow-validation@4=0.2",
        &["pretrain", "--config", lab.path("tiny.toml").to_str().unwrap(), "--out", lab.path("run").to_str().unwrap()],
    )
    .spawn()
    .unwrap();
    let begun = std::time::Instant::now();
    let four = || std::fs::read_to_string(lab.path("run/metrics.jsonl")).is_ok_and(|t| t.contains("\"step\":4"));
    while !four() {
        assert!(begun.elapsed().as_secs() < 60);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let asked = std::time::Instant::now();
    std::process::Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert!(asked.elapsed().as_secs_f64() < 2.0, "{:?}", asked.elapsed());
    assert_eq!(lab.train("run").len(), 4);
    lab.resume("run", "", &[], 0);
    let losses = |run: &str| -> Vec<String> {
        lab.lines(&format!("{run}/metrics.jsonl"))
            .iter()
            .map(|r| format!("{} {} {}", r["kind"], r["step"], r["loss"]))
            .collect()
    };
    assert_eq!(losses("well"), losses("run"));
}

/// Whoever measures a large model may not wait for its last checkpoint.
#[test]
fn times_of_launches_are_written_before_the_last_checkpoint() {
    let lab = Lab::new();
    let (config, out, times) = (lab.path("tiny.toml"), lab.path("timed"), lab.path("times.json"));
    let sets =
        ["--set", "train.steps=2", "--set", "checkpoint.every=1", "--set", "eval.every=0", "--set", "model.head_dim=8"];
    let args = ["pretrain", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap()];
    // The last checkpoint waits for the one before.
    let mut command = Lab::command("slow-save@1=60", &[&args[..], &sets].concat());
    let mut child = command.env(EMULATED, "1").env("LLAMA_LITE_OP_TIMES", &times).spawn().unwrap();
    let started = Instant::now();
    while !times.exists() && child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(50) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let is_saving = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        is_saving && !out.join("checkpoints/step-00000002").exists(),
        "the run has ended: times were written too late"
    );
    let rows: Value = serde_json::from_slice(&std::fs::read(&times).unwrap()).unwrap();
    let adamw = rows.as_array().unwrap().iter().find(|row| row["name"] == "adamw_f32").unwrap();
    assert_eq!(adamw["launches"], 2, "{rows}");
}
