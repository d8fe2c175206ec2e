//! Training with faults planted in it: this test program is run again as a child, as the program itself would be.

mod arguments;
mod ladder;
mod saving;
mod stuck;

use super::*;
use crate::cli;
use crate::distributed::environment::VARIABLES;
use crate::ops::cuda::emulated;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A configuration of a model that trains in a moment.
const TINY: &str = r#"
[model]
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 2
num_attention_heads = 2
vocab_size = 288
[data]
source = "stories"
tokenizer = "train"
stories = 60
val_stories = 6
[train]
sequence_length = 16
micro_batch_size = 2
tokens_per_step = 64
steps = 12
[optimizer]
lr = 1e-2
[checkpoint]
every = 4
keep = 10
[eval]
every = 4
"#;

/// The variable that has a child compute on the emulated GPU.
const EMULATED: &str = "LLAMA_LITE_EMULATED_GPU";

/// Does something only as the child of [`Lab::run`].
#[test]
fn child_process() {
    let Ok(args) = std::env::var("LLAMA_LITE_CHILD") else { return };
    let args = ["llama-lite", "--threads", "1"].into_iter().chain(args.split('\n'));
    let run = || cli::run(clap::Parser::parse_from(args));
    let on_gpu = std::env::var_os(EMULATED).is_some();
    let result = std::panic::catch_unwind(|| if on_gpu { emulated(run) } else { run() });
    let result = result.unwrap_or_else(|_| Err(fail(Exit::Internal, "a panic").into()));
    std::process::exit(result.map_or_else(
        |error| {
            report(&error);
            exit_of(&error).map_or(0, |exit| exit as i32)
        },
        |()| 0,
    ));
}

/// A directory with a configuration and runs of it.
struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tiny.toml"), TINY).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(faults: &str, args: &[&str]) -> Command {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "commands::tests::child_process", "--nocapture", "--test-threads=1"]);
        for name in VARIABLES {
            child.env_remove(name);
        }
        child.env("LLAMA_LITE_CHILD", args.join("\n")).env("LLAMA_LITE_FAULTS", faults);
        child
    }

    /// Runs the program with `faults` planted.
    fn run(&self, faults: &str, args: &[&str]) -> Output {
        Self::command(faults, args).output().unwrap()
    }

    /// Trains into `name` with `sets`, demanding exit code `code`; returns what stderr said.
    fn pretrain(&self, name: &str, faults: &str, sets: &[&str], code: i32) -> String {
        let (config, out) = (self.path("tiny.toml"), self.path(name));
        let mut args = vec!["pretrain", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap()];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        demand(&self.run(faults, &args), code)
    }

    fn resume(&self, ckpt: &str, faults: &str, sets: &[&str], code: i32) -> String {
        let ckpt = self.path(ckpt);
        let mut args = vec!["resume", "--ckpt", ckpt.to_str().unwrap()];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        demand(&self.run(faults, &args), code)
    }

    fn lines(&self, file: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The events of a run that are of one kind.
    fn events(&self, run: &str, kind: &str) -> Vec<Value> {
        self.lines(&format!("{run}/events.jsonl")).into_iter().filter(|event| event["kind"] == kind).collect()
    }

    /// The training records of a run: each step once and in order.
    fn train(&self, run: &str) -> Vec<Value> {
        let all = self.lines(&format!("{run}/metrics.jsonl"));
        let train: Vec<Value> = all.into_iter().filter(|record| record["kind"] == "train").collect();
        assert!(train.iter().zip(1u64..).all(|(record, step)| record["step"] == step), "{train:?}");
        train
    }

    /// Weights, moments and state of the checkpoint after `step`, without what names the process that wrote it.
    fn state(&self, run: &str, step: u64) -> (Vec<u8>, Vec<u8>, Value) {
        let dir = self.path(run).join(format!("checkpoints/step-{step:08}"));
        crate::checkpoint::verify(&dir).unwrap();
        let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
        let mut state: Value = serde_json::from_slice(&read("trainer_state.json")).unwrap();
        ["attempt", "config", "build", "logs"]
            .iter()
            .for_each(|key| drop(state.as_object_mut().unwrap().shift_remove(*key)));
        (read("model.safetensors"), read("optimizer.safetensors"), state)
    }

    /// A copy of a run under another name.
    fn copy(&self, from: &str, to: &str) {
        let status = Command::new("cp").arg("-r").args([self.path(from), self.path(to)]).status().unwrap();
        assert!(status.success());
    }
}

fn demand(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}{}", String::from_utf8_lossy(&output.stdout));
    text
}
