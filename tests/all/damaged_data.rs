//! Files of corpora, damaged: shards with all that lies beside them, token files of others, sources of text. See damaged.rs.

use crate::damaged::{SMALL, assert_refusal, at, endures, fixture};
use crate::support::{arg, checkpoint, memory_dir, ok, pretrain};
use anyhow::Result;
use llama_lite::corpus::npy::TokenFile;
use llama_lite::corpus::shards::manifest::Split;
use llama_lite::corpus::shards::verify::{tokenizer_beside, verify};
use llama_lite::corpus::shards::{ShardSet, split_files};
use llama_lite::corpus::source::{Content, Position, ReadOptions, Reader};
use llama_lite::data::excerpt::{ExcerptStart, excerpt};
use llama_lite::data::inspect::inspect;
use llama_lite::runtime::error::{Exit, fail};
use serde_json::json;
use std::fs;
use std::path::Path;

/// All that reads a prepared directory.
fn read_shards(dir: &Path) -> Result<()> {
    let places = [
        ExcerptStart::Token(0),
        ExcerptStart::Token(700),
        ExcerptStart::Document(0),
        ExcerptStart::Document(3),
        ExcerptStart::Document(39),
    ];
    let sequence = ExcerptStart::Sequence { index: 5, length: 64, seed: Some(1) };
    let mut first = Ok(());
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            assert_refusal("a prepared directory", &error);
            first = Err(error);
        }
    };
    note(inspect(dir).map(drop));
    note(tokenizer_beside(dir).map(drop));
    for place in places.into_iter().chain([sequence]) {
        note(excerpt(dir, Split::Train, place, 1000).map(drop));
    }
    let all = || -> Result<()> {
        let set = ShardSet::open(&split_files(dir, Split::Train)?)?;
        set.read(0, &mut vec![0; set.total_tokens() as usize], 320)?;
        set.fingerprint().map(drop)
    };
    note(all());
    note(verify(dir).map(drop));
    first
}

#[test]
fn prepared_directories() {
    let dir = memory_dir();
    let run = pretrain(dir.path(), "run", &["train.steps=2", "schedule.warmup_steps=0", "sample.every=0"]);
    let (text, out) = (dir.path().join("a.jsonl"), dir.path().join("out"));
    let line = |i: usize| json!({"text": format!("One day number {i} {}", "a dog ran. ".repeat(i))}).to_string() + "\n";
    fs::write(&text, (0..40).map(line).collect::<String>()).unwrap();
    let tokenizer = checkpoint(&run, 2).join("tokenizer.json");
    let args = ["data", "prepare", "--input", arg(&text), "--tokenizer", arg(&tokenizer), "--out", arg(&out)];
    ok(&[&args[..], &["--val-fraction", "0", "--shard-tokens", "1000"]].concat());
    for (name, quick) in [("shards.json", 300), ("train-00000.docs", 300), ("train-00000.npy", 200)] {
        let path = out.join(name);
        let whole = fs::read(&path).unwrap();
        endures(name, &whole, quick, 32 * SMALL, at(&path, |_| read_shards(&out)));
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn token_files() {
    let dir = memory_dir();
    let path = dir.path().join("x.npy");
    for name in ["ok_u2.npy", "ok_u4.npy", "ok_u2_v2.npy", "ok_u2.bin"] {
        let whole = fs::read(fixture("npy").join(name)).unwrap();
        let (head, tokens) = whole.split_at(if name.ends_with(".bin") { 1024 } else { 128 });
        let read = at(&path, |path| {
            let file = TokenFile::open(path)?;
            file.read(0, &mut vec![0; file.len()])?;
            assert_eq!(file.size(), fs::metadata(path).unwrap().len());
            file.blake3().map(drop)
        });
        // A MiB and some: the buffer of the hash.
        endures(name, head, 500, 2 * SMALL, |head| read(&[head, tokens].concat()));
    }
}

#[test]
fn sources() {
    let dir = memory_dir();
    let lines: String = (0..30).map(|i| json!({"id": i, "text": format!("line {i} é")}).to_string() + "\n").collect();
    let array = format!("[{}]", lines.trim_end().replace('\n', ",\n"));
    let stored = |name: &str| fs::read(fixture("sources").join(name)).unwrap();
    let cases = [
        ("x.jsonl", lines.clone().into_bytes()),
        ("x.json", array.into_bytes()),
        ("x.txt", lines.into_bytes()),
        ("x.jsonl.gz", stored("ok.jsonl.gz")),
        ("x.jsonl.zst", stored("ok.jsonl.zst")),
        ("x.parquet", stored("ok_snappy.parquet")),
        ("x.parquet", stored("ok_zstd_dictionary.parquet")),
        ("x.parquet", stored("ok_delta.parquet")),
        ("x.parquet", stored("ok_required.parquet")),
    ];
    for (name, whole) in cases {
        let path = dir.path().join(name);
        let read = at(&path, |path| {
            let mut bad = 0;
            for raw in Reader::open(path, &ReadOptions::default(), Position::default())? {
                bad += usize::from(matches!(raw?.parse("text").content, Content::Bad { .. }));
            }
            if bad == 0 { Ok(()) } else { Err(fail(Exit::Data, "bad records").into()) }
        });
        endures(name, &whole, 300, 4 * SMALL, read);
    }
}
