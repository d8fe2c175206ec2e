//! Model directories as people have them: recognised by content, adapters by an allow-list, weights under other names told apart.

use crate::sft::Bench;
use crate::support::{
    arg, assert_same_checkpoint, checkpoint, fails, ok, program, run, stderr, stdout, without_launcher,
};
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// What transformers' Trainer writes beside a model: with NaN, which is no JSON.
const TRAINER_STATE: &str = r#"{"best_metric": null, "epoch": 1.0, "global_step": 500, "log_history": [{"loss": NaN, "step": 10}], "max_steps": 1000}"#;

/// A plain Hugging Face directory of the bench's model.
fn plain(bench: &Bench) -> PathBuf {
    let out = bench.path("plain");
    ok(&["export", "--ckpt", arg(&bench.path("base")), "--out", arg(&out), "--quiet"]);
    out
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() { copy(&path, &to) } else { _ = std::fs::copy(path, to).unwrap() }
    }
}

/// A run that trains adapters beside the bench's model.
fn lora_run(bench: &Bench, model: &Path) -> PathBuf {
    let out = bench.path("tuned");
    let (config, data) = (bench.path("lora.toml"), bench.path("records.json"));
    ok(&["sft", "--config", arg(&config), "--ckpt", arg(model), "--data", arg(&data), "--out", arg(&out), "--quiet"]);
    out
}

fn text(bench: &Bench) -> PathBuf {
    let path = bench.path("text.txt");
    std::fs::write(&path, "One day, a dog had a ball. ".repeat(20)).unwrap();
    path
}

fn edit(path: &Path, change: impl Fn(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

fn greedy(ckpt: &Path, more: &[&str]) -> String {
    let mut args =
        vec!["sample", "--ckpt", arg(ckpt), "--prompt", "One day", "--greedy", "--max-tokens", "8", "--quiet"];
    args.extend(more);
    stdout(&ok(&args))
}

#[test]
fn files_of_other_programs_do_not_make_a_model_a_checkpoint() {
    let bench = Bench::new();
    let model = plain(&bench);
    let expected = greedy(&model, &[]);
    let tuned = lora_run(&bench, &model);
    let adapted = greedy(&tuned, &[]);
    std::fs::write(model.join("trainer_state.json"), TRAINER_STATE).unwrap();
    std::fs::write(model.join("manifest.json"), r#"{"files": ["model.safetensors"], "version": 3}"#).unwrap();
    assert_eq!(greedy(&model, &[]), expected);
    assert_eq!(greedy(&tuned, &[]), adapted, "the base of adapters");
    ok(&["eval", "--ckpt", arg(&model), "--data", arg(&text(&bench)), "--quiet"]);
    ok(&["export", "--ckpt", arg(&model), "--out", arg(&bench.path("again")), "--quiet"]);
    let (config, data) = (bench.path("lora.toml"), bench.path("records.json"));
    ok(&["sft", "--config", arg(&config), "--ckpt", arg(&model), "--data", arg(&data), "--show-data", "1"]);
    let out = bench.path("from");
    let from = ["--init-from", arg(&model), "--out", arg(&out), "--set", "train.steps=1", "--quiet"];
    let config = bench.path("base.toml");
    let mut args = vec!["pretrain", "--config", arg(&config), "--set", "model.max_position_embeddings=256"];
    args.extend(from);
    ok(&args);
    // Ours stays ours, whatever of it is damaged, and is verified.
    let last = checkpoint(&bench.path("base"), 2);
    for (file, text) in [("manifest.json", "{}"), ("manifest.json", ""), ("trainer_state.json", TRAINER_STATE)] {
        let damaged = bench.path("damaged");
        let _ = std::fs::remove_dir_all(&damaged);
        copy(&last, &damaged);
        std::fs::write(damaged.join(file), text).unwrap();
        let message = fails(&["sample", "--ckpt", arg(&damaged), "--prompt", "a"], 65);
        assert!(message.contains("is damaged"), "{file}: {message}");
    }
}

#[test]
fn a_path_that_holds_no_model_says_what_it_is_and_what_works() {
    let bench = Bench::new();
    let model = plain(&bench);
    let refused = |path: &Path| fails(&["sample", "--ckpt", arg(path), "--prompt", "a"], 74);
    // The last word of the hint is the path that works.
    let suggested = |message: &str| PathBuf::from(message.trim().rsplit(' ').next().unwrap());
    let file = refused(&model.join("model.safetensors"));
    assert!(file.contains("is a file") && suggested(&file) == model, "{file}");
    let output = bench.path("trainer");
    for step in ["checkpoint-500", "checkpoint-1000", "checkpoint-90"] {
        copy(&model, &output.join(step));
    }
    std::fs::write(output.join("trainer_state.json"), TRAINER_STATE).unwrap();
    let newest = refused(&output);
    assert!(suggested(&newest) == output.join("checkpoint-1000"), "{newest}");
    greedy(&suggested(&newest), &[]);
    let cache = bench.path("hub/models--me--tiny");
    copy(&model, &cache.join("snapshots/zzz"));
    copy(&model, &cache.join("snapshots/abc"));
    std::fs::create_dir(cache.join("refs")).unwrap();
    std::fs::write(cache.join("refs/main"), "abc").unwrap();
    for folder in [&cache, cache.parent().unwrap()] {
        let message = refused(folder);
        assert!(message.contains("cache") && suggested(&message) == cache.join("snapshots/abc"), "{message}");
    }
    let weights = bench.path("weights");
    std::fs::create_dir(&weights).unwrap();
    std::fs::copy(model.join("model.safetensors"), weights.join("model.safetensors")).unwrap();
    assert!(refused(&weights).contains("no config.json"));
    // A shell leaves `--ckpt=~/x` as it is.
    for args in [
        ["sample", "--ckpt=~/plain", "--prompt=a", "--quiet"],
        ["resume", "--ckpt=~/base", "--set=train.steps=3", "--quiet"],
    ] {
        let output = program(&args).env("HOME", model.parent().unwrap()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let output = program(&["pretrain", "--config", "~/no.toml"]).env("HOME", "/home/of-nobody").output().unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert!(stderr(&output).contains("/home/of-nobody/no.toml"), "{}", stderr(&output));
}

/// Moves the weights of a copy of `model` to `file` and returns the message.
fn without_weights(bench: &Bench, model: &Path, file: &str, code: i32) -> (PathBuf, String) {
    let dir = bench.path(&format!("as-{file}"));
    copy(model, &dir);
    std::fs::rename(dir.join("model.safetensors"), dir.join(file)).unwrap();
    let message = fails(&["sample", "--ckpt", arg(&dir), "--prompt", "a"], code);
    assert!(message.contains(file), "{file}: {message}");
    (dir, message)
}

#[test]
fn weights_under_another_name_are_named_and_the_hint_works() {
    let bench = Bench::new();
    let model = plain(&bench);
    let expected = greedy(&model, &[]);
    for file in ["model.fp16.safetensors", "consolidated.safetensors"] {
        let (dir, message) = without_weights(&bench, &model, file, 65);
        let command = message.split("rename it: ").nth(1).unwrap();
        assert!(std::process::Command::new("sh").args(["-c", command]).status().unwrap().success());
        assert_eq!(greedy(&dir, &[]), expected);
    }
    let (_, shard) = without_weights(&bench, &model, "model-00001-of-00002.safetensors", 65);
    assert!(shard.contains("model.safetensors.index.json"), "{shard}");
    assert!(without_weights(&bench, &model, "tiny.Q4_K_M.gguf", 78).1.contains("llama.cpp"));
    let (dir, pickle) = without_weights(&bench, &model, "pytorch_model.bin", 78);
    assert!(pickle.contains("pickle") && pickle.contains("save_pretrained"), "{pickle}");
    // Trainer's other pickles hold no weights.
    std::fs::rename(dir.join("pytorch_model.bin"), dir.join("training_args.bin")).unwrap();
    assert!(fails(&["sample", "--ckpt", arg(&dir), "--prompt", "a"], 65).contains("model.safetensors"));
    // Bytes that are no safetensors are told by what they are.
    for (bytes, what) in [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
        ("<!doctype html><html></html>", "HTML page"),
        ("GGUF\u{3}\0\0\0\0\0\0\0\0\0", "GGUF model"),
        ("PK\u{3}\u{4}\0\0\u{8}\u{8}\0\0\0\0archive/data.pkl", "pickle"),
    ] {
        std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
        let message = fails(&["sample", "--ckpt", arg(&dir), "--prompt", "a"], 65);
        assert!(message.contains(what), "{message}");
    }
    // Of a cache's damaged file the one behind the link has to go.
    let blob = bench.path("blob");
    std::fs::write(&blob, &std::fs::read(model.join("model.safetensors")).unwrap()[..5000]).unwrap();
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    symlink(&blob, dir.join("model.safetensors")).unwrap();
    let message = fails(&["sample", "--ckpt", arg(&dir), "--prompt", "a"], 65);
    assert!(message.contains(&format!("rm {}", blob.canonicalize().unwrap().display())), "{message}");
}

/// Renames the tensors of a safetensors file; the data stay where they are.
fn rename_tensors(path: &Path, rename: impl Fn(&str) -> String) {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let entry = |(name, info): (&String, &Value)| {
        let name = if name.starts_with("__") { name.clone() } else { rename(name) };
        (name, info.clone())
    };
    let header: serde_json::Map<String, Value> = header.as_object().unwrap().iter().map(entry).collect();
    let text = Value::Object(header).to_string();
    let parts = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes[8 + length..]];
    std::fs::write(path, parts.concat()).unwrap();
}

#[test]
fn names_that_wrappers_have_changed_are_told_from_other_models() {
    let bench = Bench::new();
    let model = plain(&bench);
    let message = |name: &str, rename: &dyn Fn(&str) -> String| {
        let dir = bench.path(name);
        copy(&model, &dir);
        rename_tensors(&dir.join("model.safetensors"), rename);
        fails(&["sample", "--ckpt", arg(&dir), "--prompt", "a"], 65)
    };
    for (prefix, origin) in [("module.", "DistributedDataParallel"), ("_orig_mod.", "torch.compile"), ("net.", "net.")]
    {
        let told = message(prefix, &|name| format!("{prefix}{name}"));
        assert!(told.contains(&format!("begins with {prefix:?}")) && told.contains(origin), "{told}");
        assert!(told.contains("removeprefix"), "{told}");
    }
    let body = message("body", &|name| name.trim_start_matches("model.").to_owned());
    assert!(body.contains("body of a model"), "{body}");
    // Tied weights may be stored under the head's name.
    let dir = bench.path("tied-head");
    copy(&model, &dir);
    rename_tensors(&dir.join("model.safetensors"), |name| name.replace("model.embed_tokens.weight", "lm_head.weight"));
    assert_eq!(greedy(&dir, &[]), greedy(&model, &[]));
}

#[test]
fn adapters_of_unknown_kinds_are_refused_by_name() {
    let bench = Bench::new();
    let tuned = lora_run(&bench, &plain(&bench));
    let adapter = bench.path("adapter");
    copy(&checkpoint(&tuned, 6), &adapter);
    for ours in ["manifest.json", "trainer_state.json", "optimizer.safetensors"] {
        std::fs::remove_file(adapter.join(ours)).unwrap();
    }
    let expected = greedy(&tuned, &[]);
    assert_eq!(greedy(&adapter, &[]), expected);
    let config = adapter.join("adapter_config.json");
    let good = std::fs::read(&config).unwrap();
    let try_with = |key: &str, value: Value| {
        std::fs::write(&config, &good).unwrap();
        edit(&config, |json| json[key] = value.clone());
        run(&["sample", "--ckpt", arg(&adapter), "--prompt", "One day", "--greedy", "--max-tokens", "8", "--quiet"])
    };
    for (key, value) in [
        ("init_lora_weights", json!("pissa_niter_4")),
        ("init_lora_weights", json!("olora")),
        ("alora_invocation_tokens", json!([5, 6])),
        ("use_something_new", json!(true)),
        ("something_config", json!({"rank": 3})),
    ] {
        let output = try_with(key, value);
        assert_eq!(output.status.code(), Some(78), "{key}");
        assert!(stderr(&output).contains(key), "{}", stderr(&output));
    }
    for (key, value) in [
        ("init_lora_weights", json!("gaussian")),
        ("use_something_new", json!(false)),
        ("something_config", Value::Null),
        ("peft_version", json!("0.21.2")),
    ] {
        let output = try_with(key, value);
        assert!(output.status.success(), "{key}: {}", stderr(&output));
        assert_eq!(stdout(&output), expected, "{key}");
    }
    // Saved embeddings are no fault of the model's.
    std::fs::write(&config, &good).unwrap();
    rename_tensors(&adapter.join("adapter_model.safetensors"), |name| {
        name.replace("base_model.model.model.layers.0.self_attn.q_proj.lora_A", "base_model.model.model.embed_tokens")
    });
    let message = fails(&["sample", "--ckpt", arg(&adapter), "--prompt", "a"], 78);
    assert!(message.contains("embed_tokens") && !message.contains("trained on"), "{message}");
    // Beside a config.json of the model they are adapters still; beside a whole model nothing is guessed.
    let fresh = checkpoint(&tuned, 6).join("adapter_model.safetensors");
    std::fs::copy(fresh, adapter.join("adapter_model.safetensors")).unwrap();
    std::fs::copy(bench.path("plain/config.json"), adapter.join("config.json")).unwrap();
    assert_eq!(greedy(&adapter, &[]), expected);
    std::fs::copy(bench.path("plain/model.safetensors"), adapter.join("model.safetensors")).unwrap();
    assert!(fails(&["sample", "--ckpt", arg(&adapter), "--prompt", "a"], 78).contains("a whole model and adapters"));
}

#[test]
fn a_model_that_was_moved_is_named_and_checked() {
    let bench = Bench::new();
    let model = plain(&bench);
    let (config, data) = (bench.path("lora.toml"), bench.path("records.json"));
    let (whole, tuned) = (bench.path("whole"), bench.path("tuned"));
    for (out, steps) in [(&whole, "train.steps=6"), (&tuned, "train.steps=4")] {
        ok(&[
            "sft",
            "--config",
            arg(&config),
            "--ckpt",
            arg(&model),
            "--data",
            arg(&data),
            "--out",
            arg(out),
            "--quiet",
            "--set",
            steps,
            "--set",
            "schedule.decay_steps=6",
        ]);
    }
    let (moved, other) = (bench.path("moved"), bench.path("other"));
    std::fs::rename(&model, &moved).unwrap();
    let message = fails(&["sample", "--ckpt", arg(&tuned), "--prompt", "a"], 74);
    assert!(message.contains("--base DIR") && !message.contains("base_model_name_or_path"), "{message}");
    let message = fails(&["resume", "--ckpt", arg(&tuned), "--set", "train.steps=6"], 74);
    assert!(message.contains("--base DIR"), "{message}");
    // Another model of the same shape is not taken for it.
    copy(&moved, &other);
    let weights = other.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    for args in [
        vec!["sample", "--ckpt", arg(&tuned), "--base", arg(&other), "--prompt", "a"],
        vec![
            "export",
            "--ckpt",
            arg(&tuned),
            "--base",
            arg(&other),
            "--merge-lora",
            "--out",
            arg(&bench.path("merged")),
        ],
        vec!["resume", "--ckpt", arg(&tuned), "--base", arg(&other), "--set", "train.steps=6"],
    ] {
        assert!(fails(&args, 65).contains("not those that the adapters were trained with"), "{args:?}");
    }
    let base = ["--base", arg(&moved)];
    greedy(&tuned, &base);
    ok(&["eval", "--run", arg(&tuned), "--base", arg(&moved), "--data", arg(&text(&bench)), "--quiet"]);
    ok(&[
        "export",
        "--ckpt",
        arg(&tuned),
        "--base",
        arg(&moved),
        "--merge-lora",
        "--out",
        arg(&bench.path("merged")),
        "--quiet",
    ]);
    ok(&["why", arg(&tuned), "--step", "1", "--base", arg(&moved)]);
    assert!(fails(&["sample", "--ckpt", arg(&moved), "--base", arg(&moved), "--prompt", "a"], 78).contains("--base"));
    // The run goes on as if nothing had happened, and knows the place from then on.
    ok(&["resume", "--ckpt", arg(&tuned), "--base", arg(&moved), "--set", "train.steps=6", "--quiet"]);
    let same = |file: &str| {
        let read = |run: &Path| std::fs::read(checkpoint(run, 6).join(file)).unwrap();
        assert!(read(&whole) == read(&tuned), "{file}");
    };
    same("adapter_model.safetensors");
    same("optimizer.safetensors");
    greedy(&tuned, &[]);
    ok(&["resume", "--ckpt", arg(&tuned), "--set", "train.steps=7", "--set", "schedule.decay_steps=7", "--quiet"]);
}

#[test]
fn settings_written_by_transformers_5_are_handed_on_for_4_as_well() {
    let bench = Bench::new();
    let model = plain(&bench);
    edit(&model.join("tokenizer_config.json"), |json| {
        json["tokenizer_class"] = json!("TokenizersBackend");
        json["backend"] = json!("tokenizers");
        json["extra_special_tokens"] = json!(["<|endoftext|>"]);
    });
    let exported = bench.path("exported");
    ok(&["export", "--ckpt", arg(&model), "--out", arg(&exported), "--quiet"]);
    let tuned = lora_run(&bench, &model);
    for dir in [exported, checkpoint(&tuned, 6)] {
        let config: Value = serde_json::from_slice(&std::fs::read(dir.join("tokenizer_config.json")).unwrap()).unwrap();
        assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
        assert!(config.get("extra_special_tokens").is_none(), "{config}");
        assert_eq!(config["additional_special_tokens"], json!(["<|endoftext|>"]));
    }
}

/// Runs the program with `args` in 4 GB of address space.
fn in_four_gigabytes(args: &[&str]) {
    let script = r#"ulimit -v 4000000; "$0" "$@" >/dev/null"#;
    let program = env!("CARGO_BIN_EXE_llama-lite");
    let mut shell = without_launcher(std::process::Command::new("sh"));
    let status = shell.args(["-c", script, program]).args(args).status().unwrap();
    assert!(status.success(), "{args:?} takes more than 4 GB");
}

#[test]
fn declared_positions_take_no_memory() {
    let bench = Bench::new();
    let model = plain(&bench);
    edit(&model.join("config.json"), |json| json["max_position_embeddings"] = json!(1_000_000_000));
    // Tables of all positions would take 16 GB.
    in_four_gigabytes(&[
        "sample",
        "--ckpt",
        arg(&model),
        "--prompt",
        "a",
        "--max-tokens",
        "4",
        "--quiet",
        "--threads",
        "1",
    ]);
    let text = text(&bench);
    in_four_gigabytes(&["eval", "--ckpt", arg(&model), "--data", arg(&text), "--quiet", "--threads", "1"]);
    // And such a model can be tuned.
    lora_run(&bench, &model);
}

#[test]
fn a_lost_configuration_is_taken_from_the_checkpoint() {
    let bench = Bench::new();
    let (base, twin) = (bench.path("base"), bench.path("twin"));
    copy(&base, &twin);
    std::fs::remove_file(twin.join("config.toml")).unwrap();
    ok(&["resume", "--ckpt", arg(&base), "--set", "train.steps=4", "--quiet"]);
    let output = ok(&["resume", "--ckpt", arg(&twin), "--set", "train.steps=4"]);
    let text = stderr(&output);
    assert!(text.contains("config.toml is missing") && text.contains("step-00000002"), "{text}");
    assert!(twin.join("config.toml").exists());
    assert_same_checkpoint(&checkpoint(&base, 4), &checkpoint(&twin, 4));
    std::fs::remove_file(twin.join("config.toml")).unwrap();
    ok(&["resume", "--ckpt", arg(&checkpoint(&twin, 4)), "--set", "train.steps=5", "--quiet"]);
    // With nothing that could hold it there is no run to go on with.
    let begun = bench.path("begun");
    std::fs::create_dir(&begun).unwrap();
    std::fs::write(begun.join("run.lock"), "").unwrap();
    let message = fails(&["resume", "--ckpt", arg(&begun)], 78);
    assert!(message.contains("stopped before its first step"), "{message}");
    let config = bench.path("base.toml");
    ok(&["pretrain", "--config", arg(&config), "--out", arg(&begun), "--set", "train.steps=1", "--quiet"]);
}
