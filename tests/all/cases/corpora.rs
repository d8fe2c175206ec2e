//! Corpora as people have them: names, suffixes, damaged and foreign files.

use crate::support::{TINY, arg, checkpoint, config, fails, ok, pretrain, program, root, stderr};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

const TWO: &str = "{\"text\": \"one\"}\n{\"text\": \"two\"}\n";

fn lay(dir: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// A zstd frame of one raw block that asks for a window of 2 GiB.
fn wide_window(bytes: &[u8]) -> Vec<u8> {
    let block = ((bytes.len() as u32) << 3 | 1).to_le_bytes();
    [&[0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3], &block[..3], bytes].concat()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// A shard of llm.c with `n` ids below 300.
fn llm_c(n: u32, wide: bool) -> Vec<u8> {
    let mut bytes = vec![0u8; 1024];
    let (magic, version) = if wide { (20_240_801i32, 7) } else { (20_240_520, 1) };
    for (at, field) in [magic, version, n as i32].into_iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&field.to_le_bytes());
    }
    for id in (0..n).map(|i| i * 31 % 300) {
        let id = id.to_le_bytes();
        bytes.extend_from_slice(if wide { &id[..] } else { &id[..2] });
    }
    bytes
}

const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n";
const PAGE: &[u8] = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n";

/// Arguments that prepare `input` into `out`.
fn prepare<'a>(input: &'a str, out: &'a Path) -> Vec<&'a str> {
    vec!["data", "prepare", "--input", input, "--tokenizer", "gpt2", "--val-fraction", "0", "--out", arg(out)]
}

fn manifest(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("shards.json")).unwrap()).unwrap()
}

/// One step of a small model with GPT-2's tokenizer on `train`, a TOML value; what is said on the way.
fn train(dir: &Path, name: &str, train: &str, more: &[&str]) -> String {
    let text = TINY
        .replace(
            "source = \"stories\"\ntokenizer = \"train\"\nstories = 60\nval_stories = 8",
            &format!("train = {train}"),
        )
        .replace("vocab_size = 320", "vocab_size = 50304")
        .replace("hidden_size = 32", "hidden_size = 16")
        .replace("[eval]\nevery = 4", "[eval]\nevery = 1");
    let (config, out) = (config(dir, &text), dir.join(name));
    let mut args = vec!["pretrain", "--config", arg(&config), "--out", arg(&out), "--set", "train.steps=1"];
    args.extend(["--set", "schedule.warmup_steps=0", "--set", "sample.every=0"]);
    more.iter().for_each(|set| args.extend(["--set", set]));
    stderr(&ok(&args))
}

/// The small model without its stories: the data are still to be named.
fn plain_config(dir: &Path) -> PathBuf {
    config(dir, &TINY.replace("source = \"stories\"", "").replace("stories = 60\nval_stories = 8", ""))
}

#[test]
fn whole_words_of_names_divide_shards() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().display();
    let (a, b) = (llm_c(700, false), llm_c(300, false));
    lay(dir.path(), &[("one/pretrain_train_000001.bin", &a), ("one/pretrain_val_000000.bin", &b)]);
    lay(dir.path(), &[("two/TRAIN_0.bin", &a), ("two/Valid_0.BIN", &b), ("two/test_0.bin", &b), ("two/x.bin", &b)]);
    lay(dir.path(), &[("three/train/0.bin", &a), ("three/val/0.bin", &b)]);
    lay(dir.path(), &[("bad/train_val_0.bin", &a), ("bad/other.bin", &a), ("half/val_0.bin", &a), ("half/y.bin", &a)]);
    for (from, held_out, ignored) in [
        ("one", Some("pretrain_val_000000.bin"), None),
        ("one/*.bin", Some("pretrain_val_000000.bin"), None),
        ("one/*", Some("pretrain_val_000000.bin"), None),
        ("two", Some("Valid_0.BIN"), Some("test_0.bin, x.bin")),
        ("three/*/*.bin", Some("1 file (0.bin)"), None),
    ] {
        let said =
            train(dir.path(), &format!("run-{}", from.replace(['/', '*'], "-")), &format!("[\"{root}/{from}\"]"), &[]);
        assert!(said.contains("over 700 training tokens"), "{from}: {said}");
        for (names, verb) in [(held_out, "held out"), (ignored, "ignored")] {
            let line = said.lines().find(|line| line.contains("by the names of its files")).unwrap_or_default();
            assert_eq!(line.contains(verb), names.is_some(), "{from}: {said}");
            assert!(names.is_none_or(|names| line.contains(names)), "{from}: {said}");
        }
        // A glob is no directory with a split for validation of its own.
        assert_eq!(said.contains("299 validation tokens"), !from.contains('*'), "{from}: {said}");
    }
    let config = dir.path().join("tiny.toml");
    for from in ["bad", "bad/*.bin", "half"] {
        let set = format!("data.train=[\"{root}/{from}\"]");
        let out = dir.path().join("refused");
        let told = fails(&["pretrain", "--config", arg(&config), "--out", arg(&out), "--set", &set], 78);
        assert!(told.contains("held out") && told.contains("data.train"), "{told}");
    }
}

#[test]
fn what_is_not_read_is_told_and_kept_in_the_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    let long = "{\"text\": \"".to_owned() + &"so many words ".repeat(60) + "\"}\n{\"text\": \"two\"}\n";
    let line = long.as_bytes();
    let zstd = zstd::encode_all(line, 1).unwrap();
    lay(
        &input,
        &[("a.jsonl.zstd", &zstd), ("b.jsonlines", line), ("c.JSONL.GZ", &gzip(line)), ("d", line), ("e.text", b"x")],
    );
    lay(&input, &[("f.ndjson.gz.zst", &zstd::encode_all(&gzip(line)[..], 1).unwrap()), ("g.jsonl", &gzip(line))]);
    lay(
        &input,
        &[("x.csv", b"a,b"), ("y.CSV", b"a,b"), ("z.jsonl.part", line), ("LICENSE", b"MIT"), ("w.jsonl.bz2", b"BZh9")],
    );
    lay(
        &input,
        &[("._b.jsonl", b"x"), ("__MACOSX/._b.jsonl", b"x"), (".ipynb_checkpoints/b.jsonl", line), (".h.jsonl", line)],
    );
    let said = stderr(&ok(&prepare(arg(&input), &out)));
    assert!(said.contains("13 read = 13 used"), "{said}");
    for told in [
        "files ending in .csv: 2 (x.csv, y.CSV)",
        ".part: 1",
        ".bz2: 1",
        "without a suffix: 1 (LICENSE)",
        "macOS",
        "notebook",
    ] {
        assert!(said.contains(told), "{told}: {said}");
    }
    let kinds = manifest(&out)["left_out"].as_array().unwrap().clone();
    assert_eq!(kinds.iter().map(|kind| kind["files"].as_u64().unwrap()).sum::<u64>(), 9, "{kinds:?}");
    let csv = kinds.iter().find(|kind| kind["what"] == "files ending in .csv").unwrap();
    assert!(csv["names"][1].as_str().unwrap().ends_with("/in/y.CSV"), "{csv}");
    // Text that is read as the program starts is held to the same.
    let said = train(dir.path(), "run", &format!("[\"{}\"]", input.display()), &["data.val_fraction=0.3"]);
    assert!(said.contains("files ending in .csv: 2"), "{said}");
    // What the user names one by one is refused at once, and nothing is made.
    let told = fails(&prepare(arg(&input.join("x.csv")), &dir.path().join("csv")), 78);
    assert!(told.contains("x.csv") && !dir.path().join("csv").exists(), "{told}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_name_that_is_not_utf8_is_a_name() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir(&input).unwrap();
    std::fs::write(input.join(std::ffi::OsStr::from_bytes(b"caf\xe9.jsonl")), TWO).unwrap();
    ok(&prepare(arg(&input), &out));
    assert!(manifest(&out)["sources"][0]["path"].as_str().unwrap().ends_with("caf\\xe9.jsonl"));
}

#[test]
fn a_dot_at_the_start_of_a_name_must_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let line = TWO.as_bytes();
    lay(dir.path(), &[("in/a.jsonl", line), ("in/.b.jsonl", line), ("in/._a.jsonl", b"\0"), ("in/.d/c.jsonl", line)]);
    lay(dir.path(), &[("in/__MACOSX/d.jsonl", line), ("in/s/e.jsonl", line)]);
    for (glob, read) in [("in/*.jsonl", 2), ("in/**/*.jsonl", 4), ("in/*/*.jsonl", 2), ("in/.*/*.jsonl", 2)] {
        let (pattern, out) =
            (format!("{}/{glob}", dir.path().display()), dir.path().join(glob.replace(['/', '*'], "_")));
        let said = stderr(&ok(&prepare(&pattern, &out)));
        assert!(said.contains(&format!("{read} read = {read} used")), "{glob}: {said}");
        assert_eq!(said.contains("macOS"), glob.starts_with("in/*") && glob != "in/*/*.jsonl", "{glob}: {said}");
    }
}

#[test]
fn streams_that_other_programs_read_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let line = TWO.as_bytes();
    lay(
        dir.path(),
        &[
            ("padded.jsonl.gz", &[gzip(line), vec![0; 700_000]].concat()),
            (
                "members.jsonl.gz",
                &[gzip(b"{\"text\": \"one\"}\n"), vec![0; 512], gzip(b"{\"text\": \"two\"}\n")].concat(),
            ),
            ("called.jsonl.gz", line),
            ("nan.jsonl", b"{\"text\": \"one NaN\", \"a\": NaN}\n{\"a\": [Infinity, -Infinity], \"text\": \"two\"}\n"),
            ("array.jsonl", b"[{\"text\": \"one\"},\n {\"text\": \"two\"}]"),
            ("wide.jsonl.zst", &wide_window(line)),
        ],
    );
    // Half of the memory that is free may be a window.
    let enough = llama_lite::runtime::memory::available().is_none_or(|bytes| bytes > 5 << 30);
    for name in ["padded.jsonl.gz", "members.jsonl.gz", "called.jsonl.gz", "nan.jsonl", "array.jsonl", "wide.jsonl.zst"]
    {
        let (input, out) = (dir.path().join(name), dir.path().join(format!("{name}-out")));
        if name == "wide.jsonl.zst" && !enough {
            assert!(fails(&prepare(arg(&input), &out), 65).contains("not supported"));
            continue;
        }
        let said = stderr(&ok(&prepare(arg(&input), &out)));
        assert!(said.contains("2 read = 2 used"), "{name}: {said}");
    }
    lay(dir.path(), &[("junk.jsonl.gz", &[&gzip(line)[..], b"\0\0neither zeros nor a member"].concat())]);
    assert!(fails(&prepare(arg(&dir.path().join("junk.jsonl.gz")), &dir.path().join("junk")), 65).contains("damaged"));
}

#[test]
fn a_file_of_rows_that_is_not_supported_counts_as_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let parquet = root().join("tests/fixtures/sources/unsupported_brotli.parquet");
    let told = fails(&prepare(arg(&parquet), &dir.path().join("alone")), 65);
    assert!(told.contains("not supported") && told.contains("brotli") && told.contains("compression='zstd'"), "{told}");
    lay(dir.path(), &[("in/a.jsonl", TWO.as_bytes())]);
    std::fs::copy(&parquet, dir.path().join("in/b.parquet")).unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    let said = stderr(&ok(&[&prepare(arg(&input), &out)[..], &["--allow-bad"]].concat()));
    assert!(said.contains("62 read = 2 used") && said.contains("unsupported 60"), "{said}");
    assert!(said.contains("b.parquet: could not be read to its end"), "{said}");
    assert!(manifest(&out)["sources"][1]["unread"].as_str().unwrap().contains("brotli"));
}

#[test]
fn a_wrong_text_field_is_named_with_those_that_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("a.jsonl"), dir.path().join("out"));
    let lines: String =
        (0..20_000).map(|i| format!("{{\"content\": \"{}\", \"id\": {i}}}\n", "x".repeat(200))).collect();
    std::fs::write(&input, lines).unwrap();
    let told = fails(&prepare(arg(&input), &out), 65);
    for part in ["a.jsonl:1:", "\"text\"", "content, id", "--text-field NAME"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(std::fs::metadata(out.join("quarantine.jsonl")).unwrap().len() < 2_000_000);
    // A share of bad records is refused with the first of them.
    std::fs::write(&input, format!("{TWO}{{\"text\": 1}}\nnonsense\n")).unwrap();
    let told = fails(&prepare(arg(&input), &dir.path().join("share")), 65);
    assert!(told.contains("2 of 4 records") && told.contains("a.jsonl:3:"), "{told}");
    // Where the field is a key of the configuration, the hint names that.
    let (config, run) = (plain_config(dir.path()), dir.path().join("run"));
    let set = format!("data.train=[\"{}\"]", arg(&input));
    let told = fails(&["pretrain", "--config", arg(&config), "--out", arg(&run), "--set", &set], 65);
    assert!(told.contains("a.jsonl:3:") && told.contains("--set data.text_field=NAME"), "{told}");
}

#[test]
fn files_are_refused_by_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let model = pretrain(dir.path(), "model", &["train.steps=1", "schedule.warmup_steps=0"]);
    let tune = ["sft", "--config", "configs/sft-alpaca.toml", "--ckpt", arg(&model)];
    let wide = utf16("{\"text\": \"x\"}\n");
    let (page, pointer) = ("an HTML page", "a Git LFS pointer");
    for (name, bytes, what) in [
        ("page.jsonl", PAGE, page),
        ("page.json.gz", PAGE, page),
        ("page.parquet", PAGE, page),
        ("pointer.txt", POINTER, pointer),
        ("pointer.jsonl.zst", POINTER, pointer),
        ("pointer.parquet", POINTER, pointer),
        ("wide.jsonl", &wide, "UTF-16"),
        ("archive.jsonl", b"PK\x03\x04....", "a zip archive"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let (input, run) = (arg(&path), dir.path().join("run"));
        let told = fails(&prepare(input, &dir.path().join(format!("{name}-out"))), 65);
        assert!(told.contains(what) && told.contains(name), "{name}: {told}");
        // The other commands read by the same code: one file of each kind is enough.
        if !["page.jsonl", "pointer.parquet", "wide.jsonl"].contains(&name) {
            continue;
        }
        let told = fails(&["eval", "--ckpt", arg(&model), "--data", input], 65);
        assert!(told.contains(what), "eval {name}: {told}");
        let told = fails(&[&tune[..], &["--data", input, "--out", arg(&run)]].concat(), 65);
        assert!(told.contains(what), "sft {name}: {told}");
        let (set, config) = (format!("data.train=[\"{input}\"]"), plain_config(dir.path()));
        let told = fails(&["pretrain", "--config", arg(&config), "--out", arg(&run), "--set", &set], 65);
        assert!(told.contains(what), "pretrain {name}: {told}");
    }
    for (name, bytes) in [("page.bin", PAGE), ("pointer.npy", POINTER)] {
        lay(&dir.path().join("shards"), &[(name, bytes)]);
    }
    let told = fails(&["data", "verify", arg(&dir.path().join("shards"))], 65);
    assert!(told.contains(page), "{told}");
    // A model cloned without Git LFS, and a tokenizer that was answered by a log-in page.
    let clone = dir.path().join("clone");
    let made = checkpoint(&model, 1);
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        lay(&clone, &[(name, &std::fs::read(made.join(name)).unwrap())]);
    }
    lay(&clone, &[("model.safetensors", POINTER)]);
    let told = fails(&["sample", "--ckpt", arg(&clone), "--prompt", "x"], 65);
    assert!(told.contains("model.safetensors") && told.contains(pointer), "{told}");
    lay(&clone, &[("tokenizer.json", PAGE)]);
    let tokenizer = clone.join("tokenizer.json");
    lay(dir.path(), &[("a.txt", b"text")]);
    let (input, out) = (dir.path().join("a.txt"), dir.path().join("a-out"));
    let args = ["data", "prepare", "--input", arg(&input), "--tokenizer", arg(&tokenizer), "--out", arg(&out)];
    assert!(fails(&args, 65).contains(page));
}

#[test]
fn shards_of_llm_c_for_llama_3_are_verified_and_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    lay(dir.path(), &[("shards/a_train_0.bin", &llm_c(700, true)), ("shards/a_val_0.bin", &llm_c(300, true))]);
    let shards = dir.path().join("shards");
    let output = ok(&["data", "verify", arg(&shards)]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("1000 tokens, largest id 299"));
    assert!(train(dir.path(), "run", &format!("[\"{}\"]", arg(&shards)), &[]).contains("over 700 training tokens"));
}

#[test]
fn a_tilde_is_the_home_directory_in_paths_and_globs() {
    let dir = tempfile::tempdir().unwrap();
    lay(dir.path(), &[("texts/a.jsonl", TWO.as_bytes()), ("shards/train_0.bin", &llm_c(700, false))]);
    let in_home = |args: &[&str]| program(args).env("HOME", dir.path()).current_dir(dir.path()).output().unwrap();
    let output = in_home(&prepare("~/texts/*.jsonl", Path::new("~/out")));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(dir.path().join("out/shards.json").exists() && !dir.path().join("~").exists());
    assert!(in_home(&["data", "verify", "~/out"]).status.success());
    train(dir.path(), "made", &format!("[\"{}/shards\"]", dir.path().display()), &[]);
    let run = dir.path().join("run");
    let set = "data.train=[\"~/shards/*.bin\"]";
    let args = ["pretrain", "--config", "tiny.toml", "--out", arg(&run), "--set", set, "--set", "train.steps=1"];
    let output = in_home(&[&args[..], &["--set", "schedule.warmup_steps=0", "--set", "sample.every=0"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    // Shells leave the ~ of `--out=~/x` as it is.
    let args = ["pretrain", "--config=~/tiny.toml", "--out=~/behind-equals", "--set", set, "--set", "train.steps=1"];
    let output = in_home(&[&args[..], &["--set", "schedule.warmup_steps=0", "--set", "sample.every=0"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(dir.path().join("behind-equals/config.toml").exists() && !dir.path().join("~").exists());
}
