//! What training must not depend on, and what it must refuse.

use crate::support::{
    TINY, arg, assert_same_checkpoint, checkpoint, config, ok, pretrain, records, run, stderr, without_launcher,
};
use candle_core::Device;
use llama_lite::config::Config;
use llama_lite::data::batch::Batch;
use llama_lite::distributed::group::ProcessGroup;
use llama_lite::train::model_state::ModelState;
use llama_lite::train::step::take_step;

fn losses(run: &std::path::Path) -> Vec<f64> {
    let train = records(&run.join("metrics.jsonl")).into_iter().filter(|r| r["kind"] == "train");
    train.map(|r| r["loss"].as_f64().unwrap()).collect()
}

#[test]
fn the_micro_batch_changes_rounding_only() {
    let dir = tempfile::tempdir().unwrap();
    let one = pretrain(dir.path(), "one", &["train.micro_batch_size=1"]);
    let four = pretrain(dir.path(), "four", &["train.micro_batch_size=4"]);
    for (a, b) in losses(&one).iter().zip(losses(&four)) {
        assert!((a / b - 1.0).abs() < 1e-5, "{a} {b}");
    }
    let field = |run: &std::path::Path, kind: &str, field: &str| -> Vec<_> {
        let all = records(&run.join("metrics.jsonl")).into_iter();
        all.filter(|r| r["kind"] == kind).map(|r| r[field].clone()).collect()
    };
    assert_eq!(field(&one, "train", "chain"), field(&four, "train", "chain"));
    assert_eq!(field(&one, "val", "tokens"), field(&four, "val", "tokens"));
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), TINY);
    let mut files = Vec::new();
    for threads in ["1", "2", "4"] {
        let out = dir.path().join(threads);
        let mut command = without_launcher(std::process::Command::new(env!("CARGO_BIN_EXE_llama-lite")));
        command.args(["pretrain", "--quiet", "--threads", threads, "--config", arg(&path), "--out", arg(&out)]);
        assert!(command.status().unwrap().success());
        files.push(std::fs::read(checkpoint(&out, 12).join("model.safetensors")).unwrap());
    }
    assert!(files[0] == files[1] && files[0] == files[2]);
}

#[test]
fn the_loss_falls_and_validation_names_the_floor() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["train.steps=150", "data.stories=400"]);
    let losses = losses(&run);
    assert!(losses[149] < losses[0] * 0.75, "{} -> {}", losses[0], losses[149]);
    assert!((losses[0] - (320f64).ln()).abs() < 0.3, "a fresh model guesses evenly: {}", losses[0]);
    let val: Vec<_> = records(&run.join("metrics.jsonl")).into_iter().filter(|r| r["kind"] == "val").collect();
    assert_eq!(val[0]["step"], 0);
    let floor = val[0]["floor_bits_per_byte"].as_f64().unwrap();
    assert!(floor > 0.2 && val.iter().all(|v| v["bits_per_byte"].as_f64().unwrap() > floor));
}

#[test]
fn an_update_that_is_not_finite_changes_nothing() {
    let config = Config::from_toml_str(TINY, "tiny.toml").unwrap();
    let mut state = ModelState::initial(&config, None, &Device::Cpu, &ProcessGroup::one()).unwrap();
    let sequences: Vec<u32> = (0..4 * 33).map(|i| i * 7 % 320).collect();
    let batch = Batch::windows(&sequences, 32, None);
    take_step(&mut state, &config, &batch).unwrap();
    let mut poisoned = state.model.flat.to_vec1::<f32>().unwrap();
    let healthy = poisoned.clone();
    poisoned[5000] = f32::NAN;
    let set = |state: &ModelState, values: Vec<f32>| {
        let n = values.len();
        state.model.flat.slice_set(&candle_core::Tensor::from_vec(values, n, &Device::Cpu).unwrap(), 0, 0).unwrap();
    };
    set(&state, poisoned);
    let before = state.optimizer.state[0].flat.to_vec1::<f32>().unwrap();
    let report = take_step(&mut state, &config, &batch).unwrap();
    assert!(report.refused());
    assert_eq!((state.run.step, state.run.updates, state.run.tokens), (2, 1, 256));
    assert_eq!(state.optimizer.state[0].flat.to_vec1::<f32>().unwrap(), before);
    set(&state, healthy);
    assert!(!take_step(&mut state, &config, &batch).unwrap().refused());
    assert_eq!((state.run.step, state.run.updates), (3, 2));
}

#[test]
fn a_hopeless_run_ends_with_its_own_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), TINY);
    let out = dir.path().join("run");
    // A rate at which the weights overflow within a few steps.
    let sets = [
        "optimizer.lr=99",
        "optimizer.weight_decay=10",
        "optimizer.grad_clip=0",
        "train.steps=2000",
        "schedule.kind=constant",
        "schedule.min_lr=0",
        "schedule.warmup_steps=0",
        "eval.every=0",
        "sample.every=0",
        "checkpoint.every=0",
    ];
    let mut args = vec!["pretrain", "--config", arg(&path), "--out", arg(&out)];
    sets.iter().for_each(|s| args.extend(["--set", s]));
    let output = run(&args);
    assert_eq!(output.status.code(), Some(76), "{}", crate::support::stderr(&output));
    let log = records(&out.join("metrics.jsonl"));
    let skipped = log.iter().filter(|r| r["skipped"] == true).collect::<Vec<_>>();
    assert!(skipped.len() == 3 && skipped.iter().all(|r| r["loss"].is_null()));
}

#[test]
fn init_from_continues_a_model_and_starts_a_new_run() {
    let dir = tempfile::tempdir().unwrap();
    let first = pretrain(dir.path(), "first", &[]);
    let (path, out) = (config(dir.path(), TINY), dir.path().join("second"));
    ok(&["pretrain", "--config", arg(&path), "--out", arg(&out), "--init-from", arg(&first)]);
    let val = |run: &std::path::Path, step: u64| {
        let all = records(&run.join("metrics.jsonl"));
        all.into_iter().find(|r| r["kind"] == "val" && r["step"] == step).unwrap()["loss"].clone()
    };
    assert_eq!(val(&out, 0), val(&first, 12));
}

/// Which precision is faster is measured for long runs alone: a thousand short ones on one machine would measure each other.
#[test]
fn a_short_run_measures_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), TINY);
    let said = stderr(&ok(&["pretrain", "--config", arg(&path), "--out", arg(&dir.path().join("run"))]));
    assert!(said.contains("starting") && !said.contains("products"), "{said}");
}

/// Rounded products train nearly as exact ones do, and resume to the same bits, with whichever instructions they are computed.
#[test]
fn bf16_products_train_and_resume() {
    let dir = tempfile::tempdir().unwrap();
    let bf16 = "train.precision=bf16";
    let exact = losses(&pretrain(dir.path(), "exact", &[]));
    let whole = pretrain(dir.path(), "whole", &[bf16]);
    let rounded = losses(&whole);
    assert_ne!(exact, rounded);
    for (a, b) in exact.iter().zip(&rounded) {
        assert!((a / b - 1.0).abs() < 5e-3, "{a} {b}");
    }
    let again = pretrain(dir.path(), "again", &[bf16]);
    ok(&["resume", "--ckpt", arg(&checkpoint(&again, 8))]);
    assert_same_checkpoint(&checkpoint(&whole, 12), &checkpoint(&again, 12));
}
