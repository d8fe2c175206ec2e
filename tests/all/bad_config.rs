//! Sixty configurations that cannot be run: each is refused with exit code 78, says which key is wrong, and leaves nothing on the disk.
//! What is said of each rule in detail: src/config/tests/refused.rs.

use crate::support::{TINY, arg, checkpoint, fails, ok, pretrain, stderr, stdout};
use std::fs;
use std::path::Path;

/// Names in a directory.
fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Demands that the configuration `text` in a file called `name`, with `sets`, is refused for `key` and nothing is made.
fn refused(dir: &Path, name: &str, text: &str, sets: &[&str], more: &[&str], key: &str) {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    let before = listing(dir);
    let out = dir.join("made/run");
    let mut args = vec!["pretrain", "--config", arg(&path), "--out", arg(&out)];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    args.extend(more);
    let message = fails(&args, 78);
    assert!(message.contains(key), "{sets:?}: {key} is not named: {message}");
    assert_eq!(listing(dir), before, "{sets:?}: something was made");
}

/// A value of TINY that is replaced on the command line, and the key that is blamed.
const SETS: [(&str, &str); 38] = [
    ("model.hidden_size=\"wide\"", "model.hidden_size"),
    ("model.hidden_size=33", "model.head_dim"),
    ("model.intermediate_size=0", "model.intermediate_size"),
    ("model.num_hidden_layers=1025", "model.num_hidden_layers"),
    ("model.num_attention_heads=-4", "model.num_attention_heads"),
    ("model.num_key_value_heads=3", "model.num_key_value_heads"),
    ("model.head_dim=7", "model.head_dim"),
    ("model.vocab_size=256", "model.vocab_size"),
    ("model.max_position_embeddings=31", "model.max_position_embeddings"),
    ("model.rms_norm_eps=1", "model.rms_norm_eps"),
    ("model.rope_theta=0.5", "model.rope_theta"),
    ("model.tie_word_embeddings=yes", "model.tie_word_embeddings"),
    ("model.initializer_range=nan", "model.initializer_range"),
    ("model.preset=7b", "model.preset"),
    ("data.source=tales", "data.source"),
    ("data.train=[\"a.txt\"]", "data.train"),
    ("data.weights=[1, -1]", "data.weights"),
    ("data.tokenizer=gtp2", "data.tokenizer"),
    ("data.val_fraction=1.5", "data.val_fraction"),
    ("data.seed=-1", "data.seed"),
    ("data.stories=0", "data.stories"),
    ("data.text_separator=", "data.text_separator"),
    ("train.sequence_length=1e2", "train.sequence_length"),
    ("train.micro_batch_size=3", "train.tokens_per_step"),
    ("train.tokens_per_step=9223372036854775808", "train.tokens_per_step"),
    ("train.steps=0", "train.steps"),
    ("train.precision=f16", "train.precision"),
    ("train.batch_size=8", "train.micro_batch_size"),
    ("optimizer.lr=inf", "optimizer.lr"),
    ("optimizer.betas=[0.9, 1]", "optimizer.betas"),
    ("optimizer.weight_decay=[0.1]", "optimizer.weight_decay"),
    ("schedule.kind=step", "schedule.kind"),
    ("schedule.warmup_steps=12", "schedule.warmup_steps"),
    ("schedule.min_lr=1", "schedule.min_lr"),
    ("checkpoint.keep=0", "checkpoint.keep"),
    ("checkpoint.keep_every=5", "checkpoint.keep_every"),
    ("sample.top_p=0", "sample.top_p"),
    ("log.every=0", "log.every"),
];

/// A part of TINY, what it becomes, and what the message names: the key, or the place in the file.
const TEXTS: [(&str, &str, &str); 10] = [
    ("hidden_size = 32", "hiden_size = 32", "tiny.toml:3:1: model.hiden_size"),
    ("hidden_size = 32\n", "", "model.hidden_size: missing"),
    ("[optimizer]", "[optimiser]", "tiny.toml:21:1: optimiser"),
    ("steps = 12", "steps = ", "tiny.toml:19"),
    ("steps = 12", "steps = 12\nsteps = 13", "tiny.toml:20:1"),
    ("steps = 12", "steps = 12 steps = 13", "tiny.toml:19"),
    ("lr = 1e-2", "lr = 1e-2\nlr.peak = 1", "tiny.toml:22"),
    ("prompts = [\"One day\"]", "prompts = [\"One day\"", "tiny.toml:"),
    ("[checkpoint]\nevery = 4", "checkpoint = 4\nevery = 4", "schedule.checkpoint"),
    ("source = \"stories\"", "source = \"stor\u{0}ies\"", "tiny.toml:11"),
];

const JSON: [(&str, &str); 4] = [
    ("{\"model\": {\"hidden_size\": 32, \"hidden_size\": 33}}", "tiny.json:1:"),
    ("{\"model\": {\"hidden_size\": null}}", "model.hidden_size"),
    ("{\"train\": {\"steps\": 1.5}, \"train\": {}}", "tiny.json:1:"),
    ("[1, 2]", "tiny.json"),
];

#[test]
fn what_is_wrong_by_itself_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    for (set, key) in SETS {
        refused(dir.path(), "tiny.toml", TINY, &[set], &[], key);
    }
    for (from, to, key) in TEXTS {
        assert!(TINY.contains(from), "{from}");
        refused(dir.path(), "tiny.toml", &TINY.replacen(from, to, 1), &[], &[], key);
    }
    for (text, key) in JSON {
        refused(dir.path(), "tiny.json", text, &[], &[], key);
    }
    refused(dir.path(), "tiny.yaml", TINY, &[], &[], "tiny.yaml");
}

/// What only the data, the weights or the machine tell.
#[test]
fn what_does_not_fit_its_files_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let (text, shards) = (dir.path().join("a.txt"), dir.path().join("shards"));
    fs::write(&text, "One day a dog ran out. ".repeat(300)).unwrap();
    let args = ["data", "prepare", "--input", arg(&text), "--tokenizer", "gpt2", "--out", arg(&shards)];
    ok(&[&args[..], &["--val-fraction", "0"]].concat());
    let first = pretrain(dir.path(), "first", &["train.steps=2", "schedule.warmup_steps=0", "sample.every=0"]);
    let tokenizer = checkpoint(&first, 2).join("tokenizer.json");
    let on = |train: &[&str]| {
        TINY.replace("source = \"stories\"", &format!("train = {train:?}"))
            .replace("stories = 60\nval_stories = 8\n", "")
    };
    let words = dir.path().join("words.json");
    fs::write(&words, r#"{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}"#).unwrap();
    let endless = format!("data.tokenizer={}", arg(&words));
    let own = format!("data.tokenizer={}", arg(&tokenizer));
    let (text, shards) = (arg(&text), arg(&shards));
    let cases: [(String, &[&str], &[&str], &str); 7] = [
        (on(&[text, shards]), &[], &[], "data"),
        (on(&[shards]), &[], &[], "data.tokenizer"),
        (on(&[shards]), &["data.tokenizer=gpt2"], &[], "model.vocab_size"),
        (on(&[text]), &[&endless], &[], "end-of-text"),
        (on(&[shards]), &[&own], &[], "tokenizer"),
        (on(&[text]), &[&own, "model.vocab_size=64"], &[], "model.vocab_size"),
        (TINY.into(), &["model.intermediate_size=64"], &["--init-from", arg(&first)], "model.intermediate_size"),
    ];
    for (text, sets, more, key) in &cases {
        refused(dir.path(), "tiny.toml", text, sets, more, key);
    }
    assert_eq!(SETS.len() + TEXTS.len() + JSON.len() + 1 + cases.len(), 60);
}

/// The key that was renamed is read under its old name; the note says so once, and what is saved has the new name.
#[test]
fn an_old_name_of_a_key_is_read_with_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.toml");
    fs::write(&path, TINY.replace("source =", "accept_change = true\nsource =")).unwrap();
    for sets in [&[][..], &["--set", "data.accept_change=true"]] {
        let output = ok(&[&["pretrain", "--config", arg(&path), "--print-config"], sets].concat());
        let notes = stderr(&output);
        assert_eq!(notes.matches("note: data.accept_change is now data.allow_change\n").count(), 1, "{notes}");
        let printed = stdout(&output);
        assert!(printed.contains("\nallow_change = true\n") && !printed.contains("accept_change"), "{printed}");
        let output = ok(&[&["pretrain", "--config", arg(&path), "--print-config", "--quiet"], sets].concat());
        assert_eq!(stderr(&output), "");
    }
}
