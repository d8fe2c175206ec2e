//! The log of repeated steps as a witness, and what must never be in any file of a run.

use super::subject::{Running, Subject, announced, contents, events, reached};
use super::{count, draws, figures};
use rand::Rng;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A run that was killed with at least three steps in its log that its last checkpoint does not have; that checkpoint's step.
fn killed_with_a_tail(subject: &Subject, name: &str) -> (PathBuf, u64) {
    for trial in 0..50 {
        let out = subject.path(&format!("{name}-{trial}"));
        let mut running = Running::start(&mut subject.pretrain(&out));
        let tail = || announced(&out).last().is_some_and(|saved| reached(&out) >= saved + 5);
        if running.wait_until(tail) && running.kill() {
            let saved = announced(&out).pop().unwrap();
            // A checkpoint may have been saved this instant, and not yet announced.
            let newest = super::subject::saved(&out).pop().unwrap();
            if saved == newest && reached(&out) >= saved + 3 {
                return (out, saved);
            }
        }
    }
    panic!("no kill left a tail");
}

/// Changes one field of the record of `kind` and `step` in the log.
fn alter(run: &Path, kind: &str, step: u64, field: &str, value: &Value) {
    let path = run.join("metrics.jsonl");
    let (mut text, mut altered) = (String::new(), 0);
    for line in std::fs::read_to_string(&path).unwrap().lines() {
        let mut record: Value = serde_json::from_str(line).unwrap();
        if record["kind"] == kind && record["step"] == step {
            assert_ne!(&record[field], value);
            record[field] = value.clone();
            altered += 1;
        }
        text += &format!("{record}\n");
    }
    assert_eq!(altered, 1);
    std::fs::write(path, text).unwrap();
}

fn mismatches(run: &Path) -> Vec<u64> {
    let found = events(run).into_iter().filter(|e| e["kind"] == "replay_mismatch");
    found.map(|e| e["step"].as_u64().unwrap()).collect()
}

#[test]
fn altered_lines_are_noticed() {
    const SEED: u64 = 12;
    let subject = Subject::new(120, 20, &["eval.every=0", "sample.every=0"]);
    let (trials, mut draw) = (count(3, 20), draws(SEED));
    for trial in 0..trials {
        let (out, saved) = killed_with_a_tail(&subject, &format!("altered-{trial}"));
        let step = draw.random_range(saved + 1..=saved + 3);
        let (field, value) =
            [("loss", json!(1.25)), ("grad_norm", json!(0.75)), ("chain", json!("00"))][trial % 3].clone();
        alter(&out, "train", step, field, &value);
        Running::start(&mut subject.go_on(&out)).ends_well();
        assert_eq!(mismatches(&out), [step], "{field} of step {step}, after a resume at {saved}");
    }
    // The fields of the clock come out differently every time.
    let (out, saved) = killed_with_a_tail(&subject, "clock");
    alter(&out, "train", saved + 1, "tokens_per_second", &json!(1.5));
    subject.finish(&out);
    figures(
        "logs",
        "altered_lines",
        &format!(
            "{trials} altered lines of repeated steps: {trials} events name the step; none for a changed clock; seed {SEED}"
        ),
    );
}

#[test]
fn secrets_of_the_environment_stay_there() {
    const CANARY: &str = "xyzzy-plugh-5309";
    let subject = Subject::new(12, 4, &[]);
    let out = subject.path("run");
    let mut told = String::new();
    // A run, a resume, and one that fails: all that the program writes about itself.
    for command in [subject.pretrain(&out), subject.go_on(&subject.whole), subject.pretrain(&out)] {
        let mut command = command;
        command.env("SECRET_CANARY", CANARY).env("HF_TOKEN", CANARY);
        told += &Running::start(&mut command).end().stderr;
    }
    let files: Vec<_> = contents(&out).into_iter().chain(contents(&subject.whole)).collect();
    let holds = |bytes: &[u8]| bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
    assert!(files.len() > 20 && told.contains("already holds a run"), "{} files, {told}", files.len());
    let found: Vec<_> = files.iter().filter(|(_, bytes)| holds(bytes)).map(|(path, _)| path).collect();
    assert!(found.is_empty() && !holds(told.as_bytes()), "{found:?}");
    figures(
        "logs",
        "secrets",
        &format!("a secret of the environment is in none of {} files, nor in what is said", files.len()),
    );
}
