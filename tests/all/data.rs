//! `data prepare` and training on what it made, as a user runs them: kills, planted faults, shards that change.

use crate::support::{TINY, arg, checkpoint, config, fails, ok, pretrain, program, records, run, stderr, stdout};
use llama_lite::corpus::npy::TokenFile;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every file of a directory but locks.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let named = files.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path));
    named
        .filter(|(name, _)| !name.ends_with(".lock"))
        .map(|(name, path)| (name, std::fs::read(path).unwrap()))
        .collect()
}

fn words(seed: u64, count: usize) -> String {
    const WORDS: [&str; 9] = ["the", "river", "ran", "over", "stones", "and", "it's", "42", "söng"];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        WORDS[(state % WORDS.len() as u64) as usize]
    };
    (0..count).map(|_| next()).collect::<Vec<_>>().join(" ")
}

/// JSON lines of documents of many lengths; every tenth repeats its predecessor.
fn corpus(path: &Path, documents: u64) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    for i in 0..documents {
        let of = if i % 10 == 9 { i - 1 } else { i };
        let text = words(of, 5 + (of % 10 * 40) as usize);
        writeln!(file, "{}", serde_json::json!({"id": i, "text": text})).unwrap();
    }
    file.flush().unwrap();
}

fn prepare<'a>(input: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["data", "prepare", "--input", arg(input), "--tokenizer", "gpt2", "--out", arg(out)];
    args.extend(more);
    args
}

/// Many more kills: scripts/torture_prepare.py.
#[test]
fn a_killed_preparation_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (text, straight, killed) = (dir.path().join("c.jsonl"), dir.path().join("straight"), dir.path().join("killed"));
    corpus(&text, 40_000);
    let options = ["--shard-tokens", "700000", "--dedup", "--min-chars", "40", "--val-fraction", "0.02"];
    ok(&prepare(&text, &straight, &options));
    let mut went_on = 0;
    for delay in [150, 300, 450, 600, 900, 1500] {
        let mut child = program(&prepare(&text, &killed, &options)).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        went_on += usize::from(killed.join("prepare.state").exists());
        if killed.join("shards.json").exists() {
            break;
        }
    }
    if !killed.join("shards.json").exists() {
        let output = ok(&prepare(&text, &killed, &options));
        assert!(went_on == 0 || stderr(&output).contains("resumed an interrupted run"), "{}", stderr(&output));
    }
    assert!(contents(&killed) == contents(&straight));
    ok(&["data", "verify", arg(&killed)]);
    let manifest: Value = serde_json::from_slice(&contents(&straight)["shards.json"]).unwrap();
    assert_eq!((&manifest["lines"]["read"], &manifest["lines"]["duplicate"]), (&40_000.into(), &4_000.into()));
    let message = fails(&prepare(&text, &killed, &options), 78);
    assert!(message.contains("finished"), "{message}");
}

#[test]
fn compressed_and_columnar_sources_give_the_same_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("c.jsonl");
    corpus(&plain, 300);
    let bytes = std::fs::read(&plain).unwrap();
    let array = dir.path().join("c.json");
    let lines = String::from_utf8(bytes.clone()).unwrap();
    std::fs::write(&array, format!("[{}]", lines.trim_end().replace('\n', ",\n"))).unwrap();
    let (gz, zst) = (dir.path().join("c.jsonl.gz"), dir.path().join("c.jsonl.zst"));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&bytes).unwrap();
    let packed = encoder.finish().unwrap();
    std::fs::write(&gz, &packed).unwrap();
    std::fs::write(&zst, zstd::encode_all(bytes.as_slice(), 3).unwrap()).unwrap();
    let shard = |input: &Path, name: &str| {
        let out = dir.path().join(name);
        ok(&prepare(input, &out, &["--eot", "after"]));
        ok(&["data", "verify", arg(&out)]);
        std::fs::read(out.join("train-00000.npy")).unwrap()
    };
    let want = shard(&plain, "plain");
    for (input, name) in [(&array, "array"), (&gz, "gz"), (&zst, "zst")] {
        assert!(shard(input, name) == want, "{name}");
    }
    // Cut off: stopped at once, unless the loss is accepted.
    std::fs::write(&gz, &packed[..packed.len() / 2]).unwrap();
    let out = dir.path().join("cut");
    let message = fails(&prepare(&gz, &out, &[]), 65);
    assert!(message.contains("c.jsonl.gz"), "{message}");
    ok(&prepare(&gz, &out, &["--allow-bad"]));
    let manifest: Value = serde_json::from_slice(&std::fs::read(out.join("shards.json")).unwrap()).unwrap();
    assert_eq!(manifest["lines"]["quarantined"]["cut_off"], 1);
}

#[test]
fn columns_written_by_pyarrow_are_prepared() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = crate::support::root().join("tests/fixtures/sources/ok_snappy.parquet");
    let out = dir.path().join("out");
    ok(&prepare(&fixture, &out, &["--val-fraction", "0", "--allow-bad"]));
    assert!(stdout(&ok(&["data", "inspect", arg(&out), "--document", "0"])).contains("document 0"));
    let message = fails(&prepare(&fixture, &dir.path().join("other"), &["--text-field", "body"]), 65);
    assert!(message.contains("body") && message.contains("text"), "{message}");
}

#[test]
fn inspect_shows_the_same_text_from_every_side() {
    let dir = tempfile::tempdir().unwrap();
    let (text, out) = (dir.path().join("c.jsonl"), dir.path().join("out"));
    corpus(&text, 50);
    ok(&prepare(&text, &out, &["--val-fraction", "0", "--shard-tokens", "1000"]));
    let shown = |args: &[&str]| stdout(&ok(&[&["data", "inspect", arg(&out)], args].concat()));
    assert!(shown(&[]).contains("documents by length in tokens"));
    let document = shown(&["--document", "7", "--max-tokens", "100000"]);
    assert!(document.contains("the beginning of document 7") && document.contains(&words(7, 285)), "{document}");
    let start: u64 = document.split_whitespace().nth(2).unwrap().trim_end_matches(':').parse().unwrap();
    assert!(shown(&["--token", &(start + 3).to_string()]).contains("token 3 of document 7"));
    let sequence = shown(&["--sequence", "2", "--sequence-length", "64", "--no-shuffle"]);
    assert!(sequence.contains("train token 128:") && sequence.contains("65 tokens"), "{sequence}");
    fails(&["data", "inspect", arg(&out), "--document", "50"], 78);
    fails(&["data", "inspect", arg(&out), "--split", "val", "--token", "0"], 65);
}

/// Shards of two corpora for the tiny model, by a tokenizer that it has trained.
fn shards(dir: &Path) -> (PathBuf, [PathBuf; 2]) {
    let tokenizer = checkpoint(&pretrain(dir, "tokenizer", &["train.steps=2", "schedule.warmup_steps=0"]), 2)
        .join("tokenizer.json");
    let made = ["a", "b"].map(|name| {
        let (text, out) = (dir.join(name).with_extension("jsonl"), dir.join(name));
        corpus(&text, 120);
        let args = ["data", "prepare", "--input", arg(&text), "--tokenizer", arg(&tokenizer), "--out", arg(&out)];
        ok(&[&args[..], &["--val-fraction", "0.05", "--shard-tokens", "20000"]].concat());
        out
    });
    (tokenizer, made)
}

fn on_shards(tokenizer: &Path, train: &[&Path], more: &str) -> String {
    let train: Vec<&str> = train.iter().map(|p| arg(p)).collect();
    TINY.replace("source = \"stories\"", &format!("train = {train:?}\n{more}"))
        .replace("tokenizer = \"train\"", &format!("tokenizer = {:?}", arg(tokenizer)))
        .replace("stories = 60\nval_stories = 8\n", "")
}

#[test]
fn training_on_shards_mixes_masks_and_notices_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (tokenizer, [a, b]) = shards(dir.path());
    let train = |name: &str, text: &str| {
        let out = dir.path().join(name);
        (run(&["pretrain", "--config", arg(&config(dir.path(), text)), "--out", arg(&out)]), out)
    };
    let (output, plain) = train("plain", &on_shards(&tokenizer, &[&a], ""));
    assert!(output.status.success(), "{}", stderr(&output));
    let (output, mixed) = train("mixed", &on_shards(&tokenizer, &[&a, &b], "weights = [3, 1]\ndocument_mask = true"));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("a mixture"), "{}", stderr(&output));
    let finish = records(&mixed.join("events.jsonl")).into_iter().find(|e| e["kind"] == "finish").unwrap();
    let drawn: Vec<u64> = (0..2).map(|i| finish["sources"][i]["sequences"].as_u64().unwrap()).collect();
    assert_eq!(drawn.iter().sum::<u64>(), 12 * 4);
    assert!(drawn[0] > drawn[1] && drawn[1] > 0, "{drawn:?}");
    let chain = |run: &Path| records(&run.join("metrics.jsonl")).pop().unwrap();
    assert_ne!(chain(&plain), chain(&mixed));

    // One token changed, the size kept, the manifest as it was: found when it is read, also by a resume.
    let shard = a.join("train-00000.npy");
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2 / 2 * 2;
    bytes[middle] ^= 1;
    std::fs::write(&shard, &bytes).unwrap();
    let message = fails(&["resume", "--ckpt", arg(&plain), "--set", "train.steps=16"], 65);
    assert!(message.contains("train-00000.npy"), "{message}");
    let message = fails(&["data", "verify", arg(&a)], 65);
    assert!(message.contains("train-00000.npy"), "{message}");
}

/// Different batch sizes read the same sequences in the same order: the chain at equal token counts is the same.
#[test]
fn the_chain_depends_on_the_tokens_alone() {
    let dir = tempfile::tempdir().unwrap();
    let chain = |name: &str, sets: &[&str]| {
        let run = pretrain(dir.path(), name, sets);
        let all = records(&run.join("metrics.jsonl"));
        let at = all.iter().find(|r| r["kind"] == "train" && r["tokens"] == 768).unwrap();
        at["chain"].as_str().unwrap().to_string()
    };
    let base = chain("base", &[]);
    for (name, sets) in [
        ("micro", &["train.micro_batch_size=4"][..]),
        ("small", &["train.tokens_per_step=64", "train.micro_batch_size=1"]),
        ("large", &["train.tokens_per_step=256", "train.micro_batch_size=8"]),
    ] {
        assert_eq!(chain(name, sets), base, "{name}");
    }
    // Resumed with another batch: no gap.
    let run = pretrain(dir.path(), "resumed an interrupted run", &["train.steps=4"]);
    ok(&["resume", "--ckpt", arg(&run), "--set", "train.steps=8", "--set", "train.tokens_per_step=64"]);
    let all = records(&run.join("metrics.jsonl"));
    assert_eq!(all.iter().find(|r| r["kind"] == "train" && r["tokens"] == 768).unwrap()["chain"], base);
    let resume = records(&run.join("events.jsonl")).into_iter().find(|e| e["kind"] == "resume").unwrap();
    assert!(resume["changes"].to_string().contains("train.tokens_per_step"));
}

#[test]
fn a_shard_cut_while_it_is_in_use_is_an_error_not_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    let ids: Vec<u32> = (0..200_000u32).map(|i| i % 300).collect();
    let bytes = llama_lite::corpus::npy::npy_bytes(&ids, llama_lite::corpus::npy::TokenDtype::U16).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let file = TokenFile::open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
    let error = file.read(100_000, &mut [0; 64]).unwrap_err().to_string();
    assert!(error.contains("x.npy") && error.contains("shorter"), "{error}");
}
