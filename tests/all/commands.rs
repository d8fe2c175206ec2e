//! The commands as a user meets them.

use crate::support::{TINY, arg, checkpoint, config, fails, ok, pretrain, program, records, run, stderr, stdout};
use serde_json::Value;
use std::io::Write;

#[test]
fn the_configuration_is_checked_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path =
        config(dir.path(), &TINY.replace("hidden_size = 32", "hiden_size = 32").replace("lr = 1e-2", "lr = -1.0"));
    let out = dir.path().join("run");
    let message = fails(&["pretrain", "--config", arg(&path), "--out", arg(&out)], 78);
    for part in ["model.hiden_size", "model.hidden_size", "optimizer.lr"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!out.exists());
    assert_eq!(run(&["pretrain"]).status.code(), Some(2));
}

#[test]
fn print_config_says_what_would_run() {
    let output = ok(&["pretrain", "--config", "configs/llama-1.7b.toml", "--print-config"]);
    let text = stdout(&output);
    assert!(text.contains("# parameters: 1,716,144,128"), "{text}");
    assert!(text.contains("flops_per_token"));
}

#[test]
fn an_existing_run_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let out = pretrain(dir.path(), "run", &[]);
    let before = std::fs::read(out.join("metrics.jsonl")).unwrap();
    let message = fails(&["pretrain", "--config", arg(&dir.path().join("tiny.toml")), "--out", arg(&out)], 78);
    assert!(message.contains("resume --ckpt"), "{message}");
    assert_eq!(before, std::fs::read(out.join("metrics.jsonl")).unwrap());
    // Held by another process: busy.
    let held = llama_lite::runtime::files::lock(&out.join("run.lock")).unwrap();
    fails(&["resume", "--ckpt", arg(&out)], 73);
    fails(&["pretrain", "--config", arg(&dir.path().join("tiny.toml")), "--out", arg(&out)], 73);
    drop(held);
}

#[test]
fn sampling_is_reproducible_and_json_has_its_shape() {
    let dir = tempfile::tempdir().unwrap();
    let out = pretrain(dir.path(), "run", &[]);
    let args = [
        "sample",
        "--ckpt",
        arg(&out),
        "--prompt",
        "One day",
        "--seed",
        "5",
        "--num-samples",
        "2",
        "--max-tokens",
        "20",
    ];
    let first = stdout(&ok(&args));
    assert_eq!(first, stdout(&ok(&args)));
    assert_eq!(first.matches("One day").count(), 2);
    let json_args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let lines: Vec<Value> = stdout(&ok(&json_args)).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for line in &lines {
        assert_eq!(line["prompt"], "One day");
        assert_eq!(line["seed"], 5);
        assert_eq!(line["token_ids"].as_array().unwrap().len(), 20);
        assert_eq!(line["finish_reason"], "length");
        assert!(first.contains(&format!("One day{}", line["text"].as_str().unwrap())));
    }
    assert_ne!(lines[0]["text"], lines[1]["text"]);
    let greedy = |extra: &[&str]| {
        let args: Vec<&str> =
            ["sample", "--ckpt", arg(&out), "--prompt", "One"].into_iter().chain(extra.iter().copied()).collect();
        stdout(&ok(&args))
    };
    assert_eq!(greedy(&["--greedy"]), greedy(&["--temperature", "0", "--seed", "77"]));
}

#[test]
fn generation_stops_where_the_context_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let out = pretrain(dir.path(), "run", &[]);
    let prompt = "The dog ran and ran. ".repeat(30);
    let output = ok(&["sample", "--ckpt", arg(&out), "--prompt", &prompt, "--json", "--seed", "1"]);
    let line: Value = serde_json::from_str(stdout(&output).trim()).unwrap();
    assert!(line["token_ids"].as_array().unwrap().len() <= 1);
    assert!(stderr(&output).contains("only its end is used"));
}

#[test]
fn eval_scores_text_jsonl_and_shards_alike() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &[]);
    let text = "One day a boy went out. He saw a big dog. ".repeat(20);
    let (txt, jsonl) = (dir.path().join("a.txt"), dir.path().join("a.jsonl"));
    std::fs::write(&txt, &text).unwrap();
    std::fs::write(&jsonl, serde_json::json!({ "text": text }).to_string() + "\n").unwrap();
    let shards = dir.path().join("shards");
    let tokenizer = checkpoint(&run, 12).join("tokenizer.json");
    ok(&[
        "data",
        "prepare",
        "--input",
        arg(&txt),
        "--tokenizer",
        arg(&tokenizer),
        "--out",
        arg(&shards),
        "--val-fraction",
        "0",
    ]);
    ok(&["data", "verify", arg(&shards)]);
    assert!(stdout(&ok(&["data", "inspect", arg(&shards)])).contains("train"));
    let score = |data: &str, name: &str| -> Value {
        let file = dir.path().join(name);
        let output = ok(&["eval", "--ckpt", arg(&run), "--data", data, "--output", arg(&file)]);
        assert!(stdout(&output).contains("bits per byte"));
        serde_json::from_slice::<Value>(&std::fs::read(file).unwrap()).unwrap()["results"]["data"].clone()
    };
    let a = score(arg(&txt), "a.json");
    assert_eq!(a, score(arg(&jsonl), "b.json"));
    assert_eq!(a["bytes"], text.len());
    let (loss, tokens) = (a["loss"].as_f64().unwrap(), a["tokens"].as_f64().unwrap());
    assert!((a["perplexity"].as_f64().unwrap() / loss.exp() - 1.0).abs() < 1e-9);
    let bits = loss * tokens / std::f64::consts::LN_2 / text.len() as f64;
    assert!((a["bits_per_byte"].as_f64().unwrap() / bits - 1.0).abs() < 1e-9);
    // The shards lack the end of text after the last document.
    let s = score(arg(&shards.join("train-00000.npy")), "c.json");
    assert_eq!(s["tokens"].as_f64().unwrap(), tokens - 1.0);
    assert!((s["loss"].as_f64().unwrap() / loss - 1.0).abs() < 0.05);
}

#[test]
fn training_reads_shards_of_other_tools() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..4000u32).map(|i| i * i % 300).collect();
    let shard = dir.path().join("tokens.npy");
    let bytes = llama_lite::corpus::npy::npy_bytes(&ids, llama_lite::corpus::npy::TokenDtype::U16).unwrap();
    std::fs::write(&shard, bytes).unwrap();
    let first = pretrain(dir.path(), "tokenizer", &[]);
    let tokenizer = checkpoint(&first, 12).join("tokenizer.json");
    let text = TINY
        .replace("source = \"stories\"", &format!("train = [{:?}]\nval = [{:?}]", arg(&shard), arg(&shard)))
        .replace("tokenizer = \"train\"", &format!("tokenizer = {:?}\nshuffle = false", arg(&tokenizer)))
        .replace("stories = 60\nval_stories = 8\n", "");
    let (path, out) = (config(dir.path(), &text), dir.path().join("run"));
    ok(&["pretrain", "--config", arg(&path), "--out", arg(&out)]);
    let log = records(&out.join("metrics.jsonl"));
    let val = log.iter().find(|r| r["kind"] == "val").unwrap();
    assert_eq!(val["tokens"], 3999);
    let chain = log.iter().find(|r| r["step"] == 1 && r["kind"] == "train").unwrap()["chain"].clone();
    let mut want = llama_lite::data::order::DataHash::default();
    (0..4).for_each(|i| want.extend(&ids[i * 32..i * 32 + 33]));
    assert_eq!(chain, want.to_string());
    // A shard with ids that the model does not have is an error that names it.
    let foreign = llama_lite::corpus::npy::npy_bytes(&[900; 4000], llama_lite::corpus::npy::TokenDtype::U16).unwrap();
    std::fs::write(&shard, foreign).unwrap();
    let message = fails(&["pretrain", "--config", arg(&path), "--out", arg(&dir.path().join("bad"))], 65);
    assert!(message.contains("tokens.npy") && message.contains("900"), "{message}");
}

#[test]
fn raw_text_trains_with_gpt2s_tokenizer_and_an_export_trims_the_padding() {
    let dir = tempfile::tempdir().unwrap();
    let book = dir.path().join("book.txt");
    std::fs::write(&book, "It was a bright day, and the sea was calm. \"Where to?\" he asked.\n".repeat(60)).unwrap();
    let text = TINY
        .replace("source = \"stories\"", &format!("train = [{:?}]", arg(&book)))
        .replace("tokenizer = \"train\"", "tokenizer = \"gpt2\"")
        .replace("vocab_size = 320", "vocab_size = 50304")
        .replace("stories = 60\nval_stories = 8\n", "val_fraction = 0.2\n")
        .replace("steps = 12", "steps = 4")
        .replace("prompts = [\"One day\"]", "prompts = [\"It was\"]");
    let (path, out) = (config(dir.path(), &text), dir.path().join("run"));
    ok(&["pretrain", "--config", arg(&path), "--out", arg(&out)]);
    let exported = dir.path().join("exported");
    let told = ok(&["export", "--ckpt", arg(&out), "--out", arg(&exported), "--dtype", "bf16", "--trim-vocab"]);
    assert!(stderr(&told).contains("have the logits of the model in bfloat16 bit for bit"), "{}", stderr(&told));
    let json = |path: &std::path::Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let shape = json(&exported.join("config.json"));
    assert_eq!(shape["vocab_size"], 50257);
    assert_eq!((&shape["eos_token_id"], &shape["bos_token_id"]), (&50256.into(), &50256.into()));
    assert_eq!(json(&exported.join("generation_config.json"))["eos_token_id"], 50256);
    let loss = |ckpt: &std::path::Path, name: &str| {
        let file = dir.path().join(name);
        ok(&["eval", "--ckpt", arg(ckpt), "--data", arg(&book), "--output", arg(&file)]);
        json(&file)["results"]["data"]["loss"].as_f64().unwrap()
    };
    let (ours, theirs) = (loss(&out, "a.json"), loss(&exported, "b.json"));
    assert!((ours - theirs).abs() < 0.01, "{ours} {theirs}");
    assert_ne!(ours, theirs);
    fails(&["export", "--ckpt", arg(&out), "--out", arg(&exported)], 78);
}

#[test]
fn prompts_come_from_a_file_or_stdin() {
    let dir = tempfile::tempdir().unwrap();
    let out = pretrain(dir.path(), "run", &[]);
    let file = dir.path().join("prompt.txt");
    std::fs::write(&file, "One day\n").unwrap();
    let base = ["sample", "--quiet", "--ckpt", arg(&out), "--greedy", "--max-tokens", "4"];
    let from_file = stdout(&ok(&[&base[..], &["--prompt-file", arg(&file)]].concat()));
    let mut child =
        program(&base).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"One day\n").unwrap();
    let from_stdin = stdout(&child.wait_with_output().unwrap());
    assert!(from_file.starts_with("One day"));
    assert_eq!(from_file, from_stdin);
}

#[test]
fn doctor_checks_every_op_and_version_names_the_commit() {
    let text = stdout(&ok(&["doctor"]));
    for op in llama_lite::ops::selftest::names() {
        assert!(text.lines().any(|l| l.contains(op) && l.ends_with("ok")), "{op}: {text}");
    }
    let on_cpu = stdout(&ok(&["doctor", "--device", "cpu"]));
    let products = on_cpu.lines().find_map(|line| line.strip_prefix("products   f32 ")).unwrap();
    assert!(products.contains(" GFLOP/s, bf16 ") && products.contains("; bf16: "), "{products}");
    assert!(stdout(&ok(&["--version"])).starts_with(&format!("llama-lite {}", env!("CARGO_PKG_VERSION"))));
    fails(&["doctor", "--device", "cuda"], 78);
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let short = dir.path().join("short.txt");
    std::fs::write(&short, "Too short.").unwrap();
    let text = TINY
        .replace("source = \"stories\"", &format!("train = [{:?}]", arg(&short)))
        .replace("stories = 60\nval_stories = 8\n", "")
        .replace("tokenizer = \"train\"", "tokenizer = \"gpt2\"")
        .replace("vocab_size = 320", "vocab_size = 50257");
    let (path, out) = (config(dir.path(), &text), dir.path().join("run"));
    fails(&["pretrain", "--config", arg(&path), "--out", arg(&out)], 65);
    assert!(!out.exists());
    let huge = ["--set", "model.hidden_size=1048576", "--set", "model.head_dim=64"];
    let path = config(dir.path(), TINY);
    let args = [&["pretrain", "--config", arg(&path), "--out", arg(&out)][..], &huge].concat();
    assert!(fails(&args, 71).contains("GB"));
    assert!(!out.exists());
}

#[test]
fn shards_of_another_tokenizer_are_refused_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &[]);
    let text = dir.path().join("a.txt");
    std::fs::write(&text, "One day a boy went out. ".repeat(200)).unwrap();
    let shards = dir.path().join("shards");
    ok(&[
        "data",
        "prepare",
        "--input",
        arg(&text),
        "--tokenizer",
        "gpt2",
        "--out",
        arg(&shards),
        "--val-fraction",
        "0.2",
    ]);
    fails(&["eval", "--ckpt", arg(&run), "--data", arg(&shards)], 78);
    let toml = TINY
        .replace("source = \"stories\"", &format!("train = [{:?}]\nval = [{:?}]", arg(&text), arg(&shards)))
        .replace("stories = 60\nval_stories = 8\n", "");
    let path = config(dir.path(), &toml);
    fails(&["pretrain", "--config", arg(&path), "--out", arg(&dir.path().join("other"))], 78);
}

#[test]
fn preparing_again_touches_no_file_of_the_user() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("a.txt"), dir.path().join("train-notes.jsonl"));
    std::fs::write(&good, "Some text.").unwrap();
    std::fs::write(&bad, "{\"text\": \"fine\"}\n{broken\n").unwrap();
    let args = ["data", "prepare", "--input", arg(&good), arg(&bad), "--tokenizer", "gpt2", "--out", arg(dir.path())];
    fails(&args, 65);
    std::fs::write(&bad, "{\"text\": \"fine\"}\n").unwrap();
    ok(&args);
    assert_eq!(std::fs::read_to_string(&bad).unwrap(), "{\"text\": \"fine\"}\n");
    fails(&args, 78);
}

#[test]
fn a_short_text_costs_little_however_long_the_context() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["model.max_position_embeddings=1048576", "sample.every=0"]);
    let text = dir.path().join("a.txt");
    std::fs::write(&text, "One day.").unwrap();
    assert!(stdout(&ok(&["eval", "--ckpt", arg(&run), "--data", arg(&text)])).contains("bits per byte"));
}

#[test]
fn a_run_does_not_die_of_a_closed_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (config(dir.path(), TINY), dir.path().join("run"));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = program(&["pretrain", "--config", arg(&path), "--out", arg(&out)]).stderr(full).status().unwrap();
    assert!(status.success(), "{status}");
    assert!(checkpoint(&out, 12).exists());
}
