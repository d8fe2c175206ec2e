//! Plans before, pages during and after: `plan`, `report`, TensorBoard's files.

use crate::support::{TINY, arg, config, fails, ok, pretrain, stdout};
use std::path::Path;

/// A number of MB before `word`.
fn megabytes(text: &str, word: &str) -> f64 {
    let before = text.split(word).next().unwrap().trim_end();
    let before = before.strip_suffix(" MB").unwrap_or_else(|| panic!("no MB before {word}: {text}"));
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn predicted_memory_is_near_the_measured() {
    let dir = tempfile::tempdir().unwrap();
    for (hidden, ffn, layers, vocab, length, micro) in
        [(128, 384, 3, 1024, 256, 8), (256, 704, 6, 2048, 512, 4), (384, 1024, 8, 8192, 256, 8)]
    {
        let text = format!(
            "[model]\nhidden_size = {hidden}\nintermediate_size = {ffn}\nnum_hidden_layers = {layers}\nnum_attention_heads = 8\n\
             num_key_value_heads = 4\nvocab_size = {vocab}\n[data]\nsource = \"stories\"\nstories = 2000\nval_stories = 2\n\
             tokenizer = \"train\"\n[train]\nsequence_length = {length}\nmicro_batch_size = {micro}\nsteps = 100\n"
        );
        let said = stdout(&ok(&["plan", "--config", arg(&config(dir.path(), &text)), "--probe", "--quiet"]));
        let line = said.lines().find(|line| line.starts_with("peak memory")).unwrap();
        let (measured, predicted) = (megabytes(line, " measured"), megabytes(line, " predicted"));
        assert!((predicted / measured - 1.0).abs() < 0.1, "{hidden}: {line}");
    }
}

#[test]
fn a_plan_says_what_a_run_takes() {
    let said = stdout(&ok(&["plan", "--config", "configs/llama-1.7b.toml", "--fit", "200GB"]));
    for part in [
        "1,716,144,128",
        "feed-forward",
        "micro-batch 16",
        "H200",
        "at 50 % MFU",
        "fits into 200.0 GB",
        "learning rate",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(
        fails(&["plan", "--config", "configs/llama-1.7b.toml", "--fit", "1GB"], 71).contains("not even a micro-batch")
    );
    fails(&["plan", "--config", "configs/llama-1.7b.toml", "--set", "train.stepz=1"], 78);
}

/// Records of an event file, as far as their frames tell.
fn frames(run: &Path) -> usize {
    let mut files = std::fs::read_dir(run.join("tensorboard")).unwrap();
    let bytes = std::fs::read(files.next().unwrap().unwrap().path()).unwrap();
    assert!(files.next().is_none());
    let (mut at, mut count) = (0, 0);
    while at < bytes.len() {
        at += 16 + u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        count += 1;
    }
    assert_eq!(at, bytes.len());
    count
}

#[test]
fn reports_and_event_files_show_a_run_and_its_resume() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["train.steps=6", "schedule.decay_steps=12", "log.tensorboard=true"]);
    let lines = |name: &str| std::fs::read_to_string(run.join(name)).unwrap().lines().count();
    let all = || 1 + lines("metrics.jsonl") + lines("samples.jsonl");
    assert_eq!(frames(&run), all());
    ok(&["resume", "--ckpt", arg(&run.join("checkpoints/step-00000004")), "--set", "train.steps=12", "--quiet"]);
    assert_eq!(frames(&run), all());
    ok(&["report", arg(&run), "--watch", "--quiet"]); // ends, because the run has
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("step 12 of 12, finished") && page.contains("train.steps") && page.contains("One day"));
    let other = pretrain(dir.path(), "other", &["train.steps=4", "optimizer.lr=2e-2"]);
    let said = stdout(&ok(&["report", arg(&run), arg(&other), "--text"]));
    for part in [
        "run: step 12 of 12, finished",
        "other: step 4 of 4",
        "validation loss, bits per byte",
        "resume",
        "optimizer.lr: 0.01 | 0.02",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(TINY.contains("lr = 1e-2"));
    assert!(fails(&["report", arg(dir.path())], 74).contains("no metrics.jsonl"));
}
