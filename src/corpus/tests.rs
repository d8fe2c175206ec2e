//! `data prepare` from end to end, with a tokenizer of bytes: what comes out is what went in, counted, checked and the
//! same for any number of threads.

mod choices;
mod planted;
mod resume;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::corpus::npy::TokenDtype;
use crate::corpus::shards::manifest::{MANIFEST_FILE, ShardManifest, Split};
use crate::corpus::shards::verify::verify;
use crate::corpus::shards::{ShardSet, split_files};
use crate::data::inspect::inspect;
use crate::runtime::error::Failure;

/// Id = byte + 1, the separator is 0.
struct Bytes {
    vocab_size: usize,
}

const BYTES: Bytes = Bytes { vocab_size: 257 };

impl Encode for Bytes {
    fn encode_ordinary_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        Ok(texts.iter().map(|text| text.bytes().map(|b| u32::from(b) + 1).collect()).collect())
    }
    fn separator(&self) -> u32 {
        0
    }
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }
    fn fingerprint(&self) -> String {
        blake3::hash(b"bytes").to_hex().to_string()
    }
    fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        Ok(vec![("tokenizer.json", b"{}".to_vec()), ("tokenizer_config.json", b"[]".to_vec())])
    }
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        let path = self.dir.path().join("in").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self
    }

    /// `n` documents of varied length in `name`, and their texts.
    fn corpus(&self, name: &str, n: usize) -> Vec<String> {
        let texts: Vec<String> = (0..n).map(|i| format!("{name} {i} {}", "\u{e9}".repeat(i * i % 90))).collect();
        let lines = texts.iter().map(|text| serde_json::json!({ "id": 1, "text": text }).to_string() + "\n");
        self.write(name, lines.collect::<String>());
        texts
    }

    fn options(&self, out: &str) -> PrepareOptions {
        PrepareOptions { val: ValSplit::Fraction(0.1), shard_tokens: 1000, ..PrepareOptions::new(self.out(out)) }
    }

    fn inputs(&self) -> Inputs {
        Inputs::local(&[self.dir.path().join("in").display().to_string()]).unwrap()
    }

    fn run(&self, opts: &PrepareOptions) -> Result<Summary> {
        prepare(opts, &self.inputs(), &BYTES, &|_| {})
    }

    fn out(&self, out: &str) -> PathBuf {
        self.dir.path().join(out)
    }
}

fn exit_of<T: std::fmt::Debug>(result: Result<T>) -> Exit {
    result.unwrap_err().downcast_ref::<Failure>().unwrap().exit
}

/// The documents of a prepared split, decoded.
fn decode(out: &Path, split: Split) -> Vec<String> {
    let paths = split_files(out, split).unwrap();
    if paths.is_empty() {
        return Vec::new();
    }
    let set = ShardSet::open(&paths).unwrap();
    let mut ids = vec![0; set.total_tokens() as usize];
    set.read(0, &mut ids, BYTES.vocab_size).unwrap();
    assert_eq!(ids[0], 0);
    let documents = ids[1..].split(|&id| id == 0);
    let texts: Vec<String> =
        documents.map(|ids| String::from_utf8(ids.iter().map(|&id| (id - 1) as u8).collect()).unwrap()).collect();
    assert_eq!(set.text_bytes(), Some(texts.iter().map(|text| text.len() as u64).sum()));
    texts
}

/// All files by name but the lock, which says who holds it.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut files: BTreeMap<_, _> =
        entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect();
    files.remove("prepare.lock");
    files
}

#[test]
fn every_document_comes_out_once_in_order() {
    let bench = Bench::new();
    let mut expected = bench.corpus("a.jsonl", 150);
    bench.write("b/one.txt", "a whole file\nis one document\n");
    expected.push("a whole file\nis one document\n".into());
    expected.extend(bench.corpus("c.jsonl", 70));
    let summary = bench.run(&bench.options("out")).unwrap();
    let out = bench.out("out");

    let (train, val) = (decode(&out, Split::Train), decode(&out, Split::Val));
    let in_val: BTreeSet<&String> = val.iter().collect();
    assert!((8..40).contains(&val.len()), "10 % of 221 documents: {}", val.len());
    let (expected_val, expected_train): (Vec<&String>, Vec<&String>) =
        expected.iter().partition(|t| in_val.contains(t));
    assert_eq!(train.iter().collect::<Vec<_>>(), expected_train);
    assert_eq!(val.iter().collect::<Vec<_>>(), expected_val);

    let manifest = &summary.manifest;
    assert_eq!(ShardManifest::load(&out).unwrap().as_ref(), Some(manifest));
    assert_eq!((manifest.lines.read, manifest.lines.used, manifest.lines.bad()), (221, 221, 0));
    let lines: Vec<_> = manifest.sources.iter().map(|source| (source.lines, source.used)).collect();
    assert_eq!(lines, [(150, 150), (1, 1), (70, 70)]);
    let full = |split| manifest.shards.iter().filter(move |e| e.split == split).map(|e| e.tokens).rev().skip(1);
    assert!(full(Split::Train).count() > 5 && full(Split::Train).chain(full(Split::Val)).all(|tokens| tokens == 1000));
    let report = verify(&out).unwrap();
    assert_eq!((report.documents, report.shards), (Some(221), manifest.shards.len()));
    assert!(
        inspect(&out).unwrap().contains("221 read = 221 used + 0 empty + 0 duplicate + 0 filtered + 0 quarantined\n")
    );
    assert_eq!(summary.notes, [manifest.lines.to_string()]);
    for (source, texts) in manifest.sources.iter().zip([&expected[..150], &expected[150..151], &expected[151..]]) {
        assert_eq!(source.tokens, texts.iter().map(|text| 1 + text.len() as u64).sum::<u64>());
    }
    for entry in &manifest.shards {
        let bytes = fs::read(out.join(&entry.name)).unwrap();
        let ids = bytes[128..].chunks_exact(2).map(|id| u32::from(u16::from_le_bytes([id[0], id[1]])));
        assert_eq!(entry.max_id, ids.max().unwrap());
        assert_eq!(entry.blocks, blake3::hash(&bytes).to_hex()[..32]);
    }
    assert_eq!(fs::read(out.join("tokenizer_config.json")).unwrap(), b"[]");
    let names: Vec<String> = contents(&out).into_keys().collect();
    assert!(names.iter().all(|name| !name.starts_with('.') && !name.contains("state")), "{names:?}");
}

#[test]
fn output_does_not_depend_on_the_number_of_threads() {
    let bench = Bench::new();
    // More than one batch, with bad lines within the tolerance.
    bench.corpus("a.jsonl", 8192 + 3000);
    bench.write("b.jsonl", "{\n");
    let outputs = [1, 2, 8].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let opts = PrepareOptions { shard_tokens: 70_001, ..bench.options(&format!("out{threads}")) };
        pool.install(|| bench.run(&opts).unwrap());
        contents(&opts.out)
    });
    assert!(outputs[0].len() > 10 && outputs[0].contains_key(QUARANTINE_FILE));
    assert!(outputs[0] == outputs[1] && outputs[0] == outputs[2]);
}

#[test]
fn a_file_that_ends_within_a_line_stops() {
    let bench = Bench::new();
    bench.corpus("a.jsonl", 3000);
    bench.write("b.jsonl", "{\"text\": \"whole\"}\n{\"text\": \"hal");
    assert_eq!(exit_of(bench.run(&bench.options("strict"))), Exit::Data);
    let summary = bench.run(&PrepareOptions { allow_bad: true, ..bench.options("out") }).unwrap();
    assert_eq!(summary.manifest.lines.quarantined, BTreeMap::from([("cut_off".into(), 1)]));
    assert!(summary.notes[1].starts_with("1 of 3002 records"), "{:?}", summary.notes);
}

#[test]
fn a_single_document_gives_its_end_to_validation() {
    let bench = Bench::new();
    let text: String = (0..100).map(|i| format!("line {i:03}\n")).collect();
    bench.write("only.txt", &text);
    let summary = bench.run(&bench.options("out")).unwrap();
    let (train, val) = (decode(&bench.out("out"), Split::Train), decode(&bench.out("out"), Split::Val));
    assert_eq!([train.concat(), val.concat()].concat(), text);
    assert_eq!(val, [text[900 - 90 + 9..].to_string()], "the cut moves to the start of a line");
    assert!(summary.notes[1].contains("last 81 of 900 bytes"), "{:?}", summary.notes);
    assert_eq!(summary.manifest.lines.used, 1);
    verify(&bench.out("out")).unwrap();
}

#[test]
fn no_validation_split_on_request() {
    let bench = Bench::new();
    let expected = bench.corpus("a.jsonl", 20);
    bench.run(&PrepareOptions { val: ValSplit::None, ..bench.options("out") }).unwrap();
    assert_eq!(decode(&bench.out("out"), Split::Train), expected);
    assert!(decode(&bench.out("out"), Split::Val).is_empty());
}

#[test]
fn large_vocabularies_take_32_bits() {
    let bench = Bench::new();
    let expected = bench.corpus("a.jsonl", 20);
    let opts = PrepareOptions { val: ValSplit::None, ..bench.options("out") };
    prepare(&opts, &bench.inputs(), &Bytes { vocab_size: 65_537 }, &|_| {}).unwrap();
    assert_eq!(decode(&opts.out, Split::Train), expected);
    assert_eq!(ShardManifest::load(&opts.out).unwrap().unwrap().shards[0].dtype, TokenDtype::U32);
    verify(&opts.out).unwrap();
}

#[test]
fn finished_and_foreign_output_is_left_alone_and_unfinished_replaced() {
    let bench = Bench::new();
    bench.corpus("a.jsonl", 100);
    let opts = bench.options("out");
    bench.run(&opts).unwrap();
    let finished = contents(&opts.out);
    assert_eq!(exit_of(bench.run(&opts)), Exit::Config);
    assert!(contents(&opts.out) == finished);

    // As a kill before the first record of progress would leave it, with shards of a larger earlier input.
    fs::remove_file(opts.out.join(MANIFEST_FILE)).unwrap();
    fs::write(opts.out.join("train-00099.npy"), b"stale").unwrap();
    fs::write(opts.out.join(".part-train-00003.npy"), b"stale").unwrap();
    fs::write(opts.out.join(".tmp-train-00003.npy-1-1"), b"stale").unwrap();
    assert_eq!(exit_of(verify(&opts.out)), Exit::Data);
    bench.run(&opts).unwrap();
    assert!(contents(&opts.out) == finished);

    let foreign = bench.out("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("train-00000.npy"), b"precious").unwrap();
    assert_eq!(exit_of(bench.run(&bench.options("foreign"))), Exit::Config);
    assert_eq!(contents(&foreign), BTreeMap::from([("train-00000.npy".into(), b"precious".to_vec())]));
    fs::rename(foreign.join("train-00000.npy"), foreign.join("tokenizer.json")).unwrap();
    assert_eq!(exit_of(bench.run(&bench.options("foreign"))), Exit::Config, "another tokenizer is not overwritten");
}

#[test]
fn impossible_options_and_inputs_without_text() {
    let bench = Bench::new();
    bench.write("a.txt", "  \n").write("b.jsonl", "\n\n");
    for val in [ValSplit::Fraction(1.0), ValSplit::Fraction(0.0), ValSplit::Fraction(f64::NAN), ValSplit::Tokens(0)] {
        assert_eq!(exit_of(bench.run(&PrepareOptions { val, ..bench.options("out") })), Exit::Config);
    }
    assert_eq!(exit_of(bench.run(&PrepareOptions { shard_tokens: 0, ..bench.options("out") })), Exit::Config);
    assert!(!bench.out("out").exists(), "nothing is created for wrong options");
    assert_eq!(exit_of(bench.run(&bench.options("out"))), Exit::Data);
    assert_eq!(
        exit_of(prepare(&bench.options("out"), &bench.inputs(), &Bytes { vocab_size: 100 }, &|_| {})),
        Exit::Data
    );
    bench.write("a.txt", "z");
    let error = prepare(&bench.options("out"), &bench.inputs(), &Bytes { vocab_size: 100 }, &|_| {});
    assert_eq!(exit_of(error), Exit::Internal, "an id beyond the tokenizer's vocabulary");
}

#[test]
fn progress_reaches_the_end() {
    let bench = Bench::new();
    bench.corpus("a.jsonl", 100);
    bench.corpus("b.jsonl", 40);
    let seen = std::cell::RefCell::new(Vec::new());
    let grain = Grain { batch_records: 9, ..Grain::default() };
    let opts = PrepareOptions { grain, ..bench.options("out") };
    let summary = prepare(&opts, &bench.inputs(), &BYTES, &|progress| seen.borrow_mut().push(progress)).unwrap();
    let (train, val) = (summary.manifest.train, summary.manifest.val);
    let bytes = summary.manifest.sources.iter().map(|source| source.bytes).sum();
    let last = PrepareProgress {
        bytes_read: bytes,
        bytes_total: bytes,
        text_bytes: train.bytes + val.bytes,
        documents: train.documents + val.documents,
        tokens: train.tokens + val.tokens,
    };
    assert_eq!((seen.borrow().last(), seen.borrow().len()), (Some(&last), 16));
    assert!(seen.borrow().is_sorted_by_key(|p| (p.bytes_read, p.text_bytes, p.documents, p.tokens)));
}

/// One flipped bit anywhere in a prepared directory, a swap, a loss, a cut: `verify` names the file at fault.
#[test]
fn verify_finds_every_change() {
    let bench = Bench::new();
    bench.corpus("a.jsonl", 60);
    let opts = bench.options("out");
    bench.run(&opts).unwrap();
    let finished = contents(&opts.out);
    let shards: Vec<&String> = finished.keys().filter(|name| name.ends_with("npy") || name.ends_with("docs")).collect();
    let restore = || finished.iter().for_each(|(name, bytes)| fs::write(opts.out.join(name), bytes).unwrap());
    let blamed = |name: &str, what: &str| {
        let message = verify(&opts.out).unwrap_err().to_string();
        assert!(message.contains(name.trim_end_matches(".npy").trim_end_matches(".docs")), "{what} {name}: {message}");
    };
    for name in shards {
        let good = &finished[name];
        for i in 0..40 {
            let mut bytes = good.clone();
            bytes[i * 7919 % good.len()] ^= 1 << (i % 8);
            fs::write(opts.out.join(name), &bytes).unwrap();
            blamed(name, "flip in");
        }
        fs::write(opts.out.join(name), &good[..good.len() - 1]).unwrap();
        blamed(name, "cut of");
        fs::write(opts.out.join(name), [good, &[0][..]].concat()).unwrap();
        blamed(name, "growth of");
        fs::remove_file(opts.out.join(name)).unwrap();
        blamed(name, "loss of");
        restore();
    }
    fs::write(opts.out.join("train-00000.npy"), &finished["train-00001.npy"]).unwrap();
    fs::write(opts.out.join("train-00001.npy"), &finished["train-00000.npy"]).unwrap();
    blamed("train-00000.npy", "swap of");
    restore();
    fs::write(opts.out.join("train-00077.npy"), &finished["train-00000.npy"]).unwrap();
    blamed("train-00077.npy", "addition of");
    fs::remove_file(opts.out.join("train-00077.npy")).unwrap();
    verify(&opts.out).unwrap();

    let mut bad_id = finished["train-00001.npy"].clone();
    bad_id[128 + 2 * 17 + 1] = 0xff;
    fs::write(opts.out.join("train-00001.npy"), bad_id).unwrap();
    let message = verify(&opts.out).unwrap_err().to_string();
    assert!(message.contains("train-00001.npy: token 17 is "), "{message}");
}
