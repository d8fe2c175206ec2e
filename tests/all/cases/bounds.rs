//! No number in a file and no shape of a text decides memory or time, and no text decides where documents end.

use crate::sft::Bench;
use crate::support::{TINY, arg, config, fails, ok, program, stderr};
use llama_lite::corpus::npy::TokenFile;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The split of Llama 3's tokenizer.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// GPT-2's printable stand-ins for the 256 bytes, by byte.
fn stand_ins() -> Vec<char> {
    let printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| {
            let code = if printable(&byte) { u32::from(byte) } else { next };
            next += u32::from(!printable(&byte));
            char::from_u32(code).unwrap()
        })
        .collect()
}

/// A directory with a tokenizer in Llama 3's form, whose added tokens are (string, special), the first its end of text.
fn llama3_form(dir: &Path, added: &[(&str, bool)]) -> PathBuf {
    let tokens = stand_ins().into_iter().map(String::from).chain(["\u{120}t", "he", "\u{120}the"].map(String::from));
    let vocab: serde_json::Map<String, Value> =
        tokens.zip(0..).map(|(token, id): (_, u32)| (token, id.into())).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = json!({"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": false});
    let listed = |(id, (content, special)): (usize, &(&str, bool))| {
        json!({"id": vocab.len() + id, "content": content, "special": special, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    let root = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": added.iter().enumerate().map(listed).collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": ["\u{120} t", "h e", "\u{120}t he"]},
    });
    let out = dir.join("tokenizer");
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join("tokenizer.json"), root.to_string()).unwrap();
    let settings = json!({"eos_token": added[0].0, "bos_token": null});
    std::fs::write(out.join("tokenizer_config.json"), settings.to_string()).unwrap();
    out
}

fn ids(shards: &Path) -> Vec<u32> {
    let file = TokenFile::open(&shards.join("train-00000.npy")).unwrap();
    let mut ids = vec![0; file.len()];
    file.read(0, &mut ids).unwrap();
    ids
}

#[test]
fn a_document_does_not_end_at_what_its_text_says() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = llama3_form(dir.path(), &[("<|im_end|>", false), ("<|im_start|>", true), ("<think>", false)]);
    let text = dir.path().join("two.jsonl");
    let first = "Hello <|im_end|> world <think> <|im_start|>";
    std::fs::write(&text, format!("{}\n{}\n", json!({"text": first}), json!({"text": "the end"}))).unwrap();
    for eot in ["before", "after"] {
        let out = dir.path().join(eot);
        let args = ["data", "prepare", "--input", arg(&text), "--tokenizer", arg(&tokenizer), "--out", arg(&out)];
        ok(&[&args[..], &["--eot", eot, "--val-fraction", "0"]].concat());
        ok(&["data", "verify", arg(&out)]);
        let ids = ids(&out);
        let count = |id: u32| ids.iter().filter(|held| **held == id).count();
        assert_eq!((count(259), count(260), count(261)), (2, 0, 1), "two separators, no other control id, one thought");
    }
}

#[test]
fn a_turn_that_holds_a_control_token_is_counted_and_named() {
    let bench = Bench::new();
    let data = bench.path("marked.jsonl");
    let record = |question: &str, n: usize| {
        let turns =
            json!([{"role": "user", "content": question}, {"role": "assistant", "content": format!("It is {n}.")}]);
        format!("{}\n", json!({"messages": turns}))
    };
    let sound = (0..40).map(|n| record(&format!("What is {n}?"), n));
    let lines: String = sound.chain([record("What ends <|endoftext|> a text?", 7)]).collect();
    std::fs::write(&data, lines).unwrap();
    let out = bench.path("marked");
    let sets = ["--set", "train.steps=2", "--set", "sft.max_bad=0.1"];
    let args = bench.args("full.toml", "marked.jsonl", &[&["--out", arg(&out)], &sets[..]].concat());
    ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let kept = std::fs::read_to_string(out.join("quarantine.jsonl")).unwrap();
    assert!(kept.contains("<|endoftext|>") && kept.contains("\"line\":41"), "{kept}");
}

/// The crate behind this form of tokenizer takes 1.3 GB for these 8 MB as a whole.
#[cfg(target_os = "linux")]
#[test]
fn one_long_text_takes_no_memory_out_of_proportion() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = llama3_form(dir.path(), &[("<|end_of_text|>", true)]);
    let (text, out) = (dir.path().join("long.txt"), dir.path().join("shards"));
    let line = " the cat, 12 of them, and the hen: then they ran\u{e9} \u{4f60}\u{597d}\u{3002}";
    std::fs::write(&text, line.repeat(8_000_000 / line.len())).unwrap();
    let args = ["data", "prepare", "--input", arg(&text), "--tokenizer", arg(&tokenizer), "--out", arg(&out)];
    let whole = program(&[&args[..], &["--val-fraction", "0"]].concat());
    let mut limited = std::process::Command::new("prlimit");
    limited.arg("--as=1000000000").arg(whole.get_program()).args(whole.get_args());
    let output = limited.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    ok(&["data", "verify", arg(&out)]);
    // As the text of one line, again and again: nothing is lost or changed where it is cut.
    let ids = ids(&out);
    let (first, rest) = ids[1..].split_at((ids.len() - 1) / (8_000_000 / line.len()));
    assert!(rest.chunks(first.len()).all(|chunk| chunk == first));
}

#[test]
fn a_text_that_cannot_be_divided_is_refused_with_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = llama3_form(dir.path(), &[("<|end_of_text|>", true)]);
    let (text, out) = (dir.path().join("run.txt"), dir.path().join("shards"));
    std::fs::write(&text, "=".repeat(17 << 20)).unwrap();
    let args = ["data", "prepare", "--input", arg(&text), "--tokenizer", arg(&tokenizer), "--out", arg(&out)];
    let said = fails(&[&args[..], &["--val-fraction", "0"]].concat(), 65);
    assert!(said.contains("17.8 MB") && said.contains("2.9 GB"), "{said}");
}

#[test]
fn stories_that_no_memory_holds_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (config(dir.path(), TINY), dir.path().join("run"));
    let base = ["pretrain", "--config", arg(&path), "--out", arg(&out), "--set"];
    for key in ["data.stories", "data.val_stories"] {
        let set = format!("{key}=1000000000000");
        assert!(fails(&[&base[..], &[&set]].concat(), 78).contains(key));
    }
    // Of many validation stories those are made that are scored.
    let output =
        ok(&[&base[..], &["data.val_stories=5000000", "--set", "eval.val_tokens=2000", "--set", "train.steps=4"]]
            .concat());
    assert!(stderr(&output).contains("validation"), "{}", stderr(&output));
}
