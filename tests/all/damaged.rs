//! Every file that the program reads, damaged a few hundred times: accepted or refused with a reason, never a panic, never memory out
//! of proportion to the file. LLAMA_LITE_TORTURE=full repeats it 20 times as often. damaged_data.rs has the files of corpora.
//!
//! The damage comes from src/runtime/tests/damage.rs. What is accepted must hold what its reader promises.

use crate::allocation::peak;
use crate::damage::{Damage, rounds};
use crate::support::{TINY, checkpoint, memory_dir, pretrain, root};
use anyhow::{Error, Result};
use llama_lite::checkpoint::manifest::{Manifest, valid_name};
use llama_lite::checkpoint::tensors::TensorFile;
use llama_lite::checkpoint::{Opened, names};
use llama_lite::config::{Config, print_config};
use llama_lite::metrics::{self, Events, MetricsLog, SampleLog};
use llama_lite::runtime::error::{Exit, Failure, fail};
use llama_lite::tokenizer::Tokenizer;
use llama_lite::train::trainer_state::TrainerStateFile;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Bytes that may be held for each byte of a file: JSON becomes trees, weights become f32.
const PER_BYTE: usize = 64;

/// Memory that a reader may take whatever the file.
pub(crate) const SMALL: usize = 1 << 20;

/// Whose fault a refusal says it is: the file's, the system's or the configuration's, never the program's.
pub(crate) fn assert_refusal(what: &str, error: &Error) {
    let failure = error.chain().find_map(|e| e.downcast_ref::<Failure>());
    let exit = failure.unwrap_or_else(|| panic!("{what}: no class: {error:#}")).exit;
    assert!([Exit::Data, Exit::Io, Exit::Config].contains(&exit), "{what}: {exit:?}: {error:#}");
}

/// Gives `read` the file `whole`, which it must accept, and then `quick` damaged forms of it. Of those some must be refused; how many
/// were accepted is returned. `room` bounds the memory of a call beyond [`PER_BYTE`].
pub(crate) fn endures(
    what: &str,
    whole: &[u8],
    quick: usize,
    room: usize,
    mut read: impl FnMut(&[u8]) -> Result<()>,
) -> usize {
    read(whole).unwrap_or_else(|e| panic!("{what}: the sound file is refused: {e:#}"));
    let mut damage = Damage::new(whole.len() as u64);
    let mut accepted = 0;
    let tries = rounds(quick);
    for n in 0..tries {
        let bytes = damage.of(whole);
        let (result, most) = peak(|| catch_unwind(AssertUnwindSafe(|| read(&bytes))));
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned();
        let limit = room + PER_BYTE * bytes.len().max(whole.len());
        assert!(most <= limit, "{what}, form {n}: {most} bytes of memory, {limit} would do: {shown}");
        match result {
            Err(_) => panic!("{what}, form {n}: a panic: {shown}"),
            Ok(Err(error)) => assert_refusal(&format!("{what}, form {n}"), &error),
            Ok(Ok(())) => accepted += 1,
        }
    }
    assert!(accepted < tries, "{what}: nothing was noticed");
    accepted
}

/// A reader of files from one of bytes.
pub(crate) fn at(path: &Path, read: impl Fn(&Path) -> Result<()>) -> impl Fn(&[u8]) -> Result<()> {
    move |bytes| {
        fs::write(path, bytes).unwrap();
        read(path)
    }
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

fn read_tensors(path: &Path) -> Result<()> {
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let tensors = TensorFile::open(file, size, path)?;
    for name in tensors.names() {
        let (shape, values) = tensors.read(&name)?;
        assert_eq!(shape.iter().product::<usize>(), values.len());
    }
    Ok(())
}

/// A safetensors file of this header and so many bytes of data.
fn safetensors(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

#[test]
fn weight_files() {
    let dir = memory_dir();
    let path = dir.path().join("t.safetensors");
    let read = at(&path, read_tensors);
    let whole = fs::read(fixture("llama/untied-bf16/model.safetensors")).unwrap();
    let (header, data) = whole[8..].split_at(u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize);
    endures("safetensors", &whole, 300, SMALL, &read);
    // Of a small file much of the damage is in the length of the header.
    let small = safetensors(br#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]);
    endures("a small safetensors", &small, 500, SMALL, &read);
    // The length right, so that all the damage is in what it announces.
    endures("a safetensors header", header, 1000, SMALL, |header| read(&safetensors(header, data)));
}

#[test]
fn a_weight_header_is_bounded_by_16_mib_and_by_its_file() {
    let dir = memory_dir();
    let path = dir.path().join("t.safetensors");
    let read = at(&path, read_tensors);
    let padded = |length: usize| {
        let mut header = br#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_vec();
        header.resize(length, b' ');
        safetensors(&header, &[0; 4])
    };
    read(&padded(16 << 20)).unwrap();
    let too_long = padded((16 << 20) + 1);
    let (result, most) = peak(|| read(&too_long));
    assert!(result.is_err_and(|e| e.to_string().contains("claims 16777217 bytes")) && most < SMALL, "{most}");
    // A file of which nothing is on the disk has room for any claim.
    for (claim, elements) in [(Some(1u64 << 39), 2u64), (None, 1 << 50), (None, 1 << 38)] {
        let header = json!({"t": {"dtype": "F32", "shape": [elements], "data_offsets": [0, elements * 4]}}).to_string();
        let claim = claim.unwrap_or(header.len() as u64);
        fs::write(&path, [&claim.to_le_bytes(), header.as_bytes()].concat()).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        let (result, most) = peak(|| read_tensors(&path));
        assert!(result.is_err() && most < SMALL, "{claim} {elements}: {most} bytes");
    }
}

#[test]
fn hugging_face_directories() {
    let dir = memory_dir();
    for entry in fs::read_dir(fixture("llama/gqa")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let read = |_: &Path| Opened::open(dir.path())?.read_weights(&mut |_, _, _| Ok(()));
    // The names of as many layers as a configuration may ask for take the room.
    for (name, quick, room) in
        [(names::INDEX, 500, 2 * SMALL), (names::CONFIG, 700, 64 * SMALL), (names::GENERATION, 200, 2 * SMALL)]
    {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        let accepted = endures(name, &whole, quick, room, at(&path, read));
        assert!(accepted > 0, "{name}: numbers of no effect are harmless");
        fs::write(&path, whole).unwrap();
    }
}

/// `body` as a checkpoint's manifest, its checksum right.
fn sealed(body: &[u8]) -> Vec<u8> {
    [body, format!("  \"checksum\": \"{}\"\n}}\n", blake3::hash(body).to_hex()).as_bytes()].concat()
}

fn read_manifest(text: &[u8]) -> Result<()> {
    let manifest = Manifest::parse(text).map_err(|fault| fault.into_error(Path::new("x")))?;
    assert!(manifest.files.iter().all(|entry| valid_name(&entry.name)));
    let again = Manifest::parse(manifest.render()?.as_bytes()).map_err(|fault| fault.into_error(Path::new("x")))?;
    assert_eq!(again, manifest);
    Ok(())
}

fn read_state(bytes: &[u8]) -> Result<()> {
    let malformed = |e: serde_json::Error| fail(Exit::Data, e.to_string());
    // As a resume does: JSON, then its meaning.
    let value: Value = serde_json::from_slice(bytes).map_err(malformed)?;
    let chain = value["chain"].as_str().map(str::to_lowercase);
    let saved: TrainerStateFile = serde_json::from_value(value).map_err(malformed)?;
    assert_eq!(Some(saved.state.data_hash.to_string()), chain);
    for it in [0, 1, saved.state.step, u64::MAX] {
        saved.state.schedule.lr(it);
    }
    Config::from_toml_str(&saved.config, "the checkpoint's config")?;
    Ok(())
}

fn read_config(path: &Path) -> Result<()> {
    let config = Config::load(path, &[])?;
    assert_eq!(Config::from_toml_str(&config.to_toml(), "again").unwrap(), config);
    assert!(print_config(&config).contains("# parameters: "));
    Ok(())
}

/// Opens a log as a resume at step 8 does; no line is lost, and what stays are objects of steps to 8.
fn read_log(path: &Path, open: impl Fn(&Path) -> Result<metrics::Cut>) -> Result<()> {
    let run = path.parent().unwrap();
    let before = fs::read(path).unwrap();
    let cut = open(run)?;
    let kept = fs::read(path).unwrap();
    let tail = cut.kept_in.as_ref().map_or(Vec::new(), |tail| fs::read(tail).unwrap());
    let lines = |parts: [&[u8]; 2]| {
        let mut lines: Vec<_> = parts.iter().flat_map(|part| part.split_inclusive(|&b| b == b'\n')).collect();
        lines.sort();
        lines.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    assert!(lines([&kept, &tail]) == lines([&before, &[]]), "a line is lost or new");
    for line in kept.split_inclusive(|&b| b == b'\n') {
        let value: Value = serde_json::from_slice(line).expect("a line that is no JSON stayed");
        assert!(value.is_object() && value["step"].as_u64().is_none_or(|step| step <= 8), "{value}");
    }
    assert_eq!(open(run)?, metrics::Cut::default(), "a second cut");
    cut.kept_in.map(fs::remove_file).transpose().unwrap();
    if cut.lines + cut.unreadable == 0 { Ok(()) } else { Err(fail(Exit::Data, "lines were cut").into()) }
}

/// A history goes on behind whatever it held; a torn last line is gone.
fn read_events(path: &Path) -> Result<()> {
    let before = fs::read(path).unwrap();
    Events::open(path.parent().unwrap())?.append("test", json!({"n": 1}))?;
    let after = fs::read(path).unwrap();
    let whole = before.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
    let added = after.strip_prefix(&before[..whole]).expect("the history has changed");
    let event: Value = serde_json::from_slice(added).unwrap();
    assert_eq!((&event["kind"], &event["n"]), (&json!("test"), &json!(1)));
    if whole == before.len() { Ok(()) } else { Err(fail(Exit::Data, "a torn line").into()) }
}

fn read_tokenizer(dir: &Path) -> Result<()> {
    let tokenizer = Tokenizer::from_dir(dir)?;
    for text in ["One day, a dog ran 12 miles.\n\u{1f600}", "<|endoftext|><s>\t "] {
        // What the library cannot encode is an error with a class, but not what this test is about.
        let encoded = [tokenizer.encode(text), tokenizer.encode_ordinary(text)];
        for ids in encoded.into_iter().flatten() {
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "{ids:?}");
            let _ = tokenizer.decode(&ids, true);
        }
    }
    let ends = tokenizer.stop_ids().iter().copied().chain(tokenizer.bos_id());
    assert!(ends.into_iter().all(|id| (id as usize) < tokenizer.vocab_size()));
    Ok(())
}

/// A file for the library of Hugging Face, with a part of every kind, from one of ours.
fn elaborate(ours: &[u8]) -> Vec<u8> {
    let mut root: Value = serde_json::from_slice(ours).unwrap();
    let byte_level = root["pre_tokenizer"].clone();
    let eos = root["added_tokens"][0]["id"].clone();
    root["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"Regex": "\\s+x"}, "content": " y"}, {"type": "Prepend", "prepend": "a"}]});
    root["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|\\p{L}+|\\p{N}{1,3}|\\s+"}, "behavior": "Isolated", "invert": false},
        {"type": "Digits", "individual_digits": true}, byte_level]});
    root["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [eos], "tokens": ["<|endoftext|>"]}}});
    root["truncation"] = json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    root["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "!"});
    root.to_string().into_bytes()
}

#[test]
fn files_of_a_run() {
    let dir = memory_dir();
    let run = pretrain(dir.path(), "run", &[]);
    let step = checkpoint(&run, 8);
    let bytes = |path: PathBuf| fs::read(path).unwrap();
    let sealed_manifest = bytes(step.join(names::MANIFEST));
    let body = sealed_manifest.windows(13).rposition(|w| w == b"  \"checksum\":").unwrap();
    assert_eq!(endures("manifest.json", &sealed_manifest, 300, SMALL, read_manifest), 0, "a checksum that matches");
    endures("a sealed manifest.json", &sealed_manifest[..body], 1000, SMALL, |body| read_manifest(&sealed(body)));
    // It holds a configuration: of inline tables nested by the ten thousand, TOML's parser keeps 76 bytes for each byte.
    endures("trainer_state.json", &bytes(step.join(names::TRAINER)), 1000, 2 * SMALL, read_state);

    let scratch = dir.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let open_metrics = |dir: &Path| Ok(MetricsLog::open(dir, Some(8))?.cut);
    let open_samples = |dir: &Path| Ok(SampleLog::open(dir, Some(8))?.cut);
    let first = |name: &str| -> Vec<u8> {
        let all = fs::read(run.join(name)).unwrap();
        let lines: Vec<&[u8]> = all.split_inclusive(|&b| b == b'\n').collect();
        let early = |line: &&&[u8]| serde_json::from_slice::<Value>(line).unwrap()["step"].as_u64().unwrap() <= 8;
        lines.iter().filter(early).copied().collect::<Vec<_>>().concat()
    };
    let log = scratch.join("metrics.jsonl");
    endures("metrics.jsonl", &first("metrics.jsonl"), 400, SMALL, at(&log, |p| read_log(p, open_metrics)));
    let whole = first("metrics.jsonl");
    let lines = whole.iter().filter(|&&b| b == b'\n').count();
    let all_read = |path: &Path| {
        let records = metrics::read(path)?.len();
        if records == lines { Ok(()) } else { Err(fail(Exit::Data, "lines were passed over").into()) }
    };
    endures("reading metrics.jsonl", &whole, 400, SMALL, at(&log, all_read));
    let log = scratch.join("samples.jsonl");
    endures("samples.jsonl", &first("samples.jsonl"), 300, SMALL, at(&log, |p| read_log(p, open_samples)));
    let history = bytes(run.join("events.jsonl"));
    endures("events.jsonl", &history, 300, SMALL, at(&scratch.join("events.jsonl"), read_events));

    let ours = bytes(step.join("tokenizer.json"));
    let settings = bytes(step.join("tokenizer_config.json"));
    fs::write(scratch.join("tokenizer_config.json"), &settings).unwrap();
    let tokenizer = scratch.join("tokenizer.json");
    let read = |_: &Path| read_tokenizer(&scratch);
    // The encoder keeps the words met lately in 4 MiB for each thread, the library its own.
    for (what, whole) in [("tokenizer.json", &ours), ("an elaborate tokenizer.json", &elaborate(&ours))] {
        endures(what, whole, 300, 32 * SMALL, at(&tokenizer, read));
    }
    fs::write(&tokenizer, &ours).unwrap();
    for name in ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"] {
        endures(name, &settings, 100, 32 * SMALL, at(&scratch.join(name), read));
        fs::write(scratch.join(name), &settings).unwrap();
    }
}

#[test]
fn configurations() {
    let dir = memory_dir();
    let toml = dir.path().join("x.toml");
    endures("TOML", TINY.as_bytes(), 1000, SMALL, at(&toml, read_config));
    let resolved = Config::from_toml_str(TINY, "tiny").unwrap().to_toml();
    endures("resolved TOML", resolved.as_bytes(), 1000, SMALL, at(&toml, read_config));
    let json = serde_json::to_vec_pretty(&toml::from_str::<toml::Table>(TINY).unwrap()).unwrap();
    endures("JSON", &json, 1000, SMALL, at(&dir.path().join("x.json"), read_config));
}
