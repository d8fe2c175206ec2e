//! `export --format gguf` as its users meet it: one file with everything in it. What llama.cpp makes of such files is compared by
//! `scripts/compare_gguf.py`.

use crate::support::{arg, fails, ok, pretrain, stderr};
use candle_core::quantized::gguf_file::Content;
use std::fs::File;
use std::path::Path;

fn read(path: &Path) -> Content {
    Content::read(&mut File::open(path).unwrap()).unwrap()
}

#[test]
fn a_run_becomes_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["train.steps=4"]);
    let file = dir.path().join("models/story.gguf");
    let export = ["export", "--ckpt", arg(&run), "--format", "gguf", "--out", arg(&file)];
    let said = stderr(&ok(&[&export[..], &["--dtype", "bf16"]].concat()));
    assert!(said.contains("exported to"), "{said}");
    let content = read(&file);
    let text = |key: &str| content.metadata[key].to_string().unwrap().as_str();
    assert_eq!((text("general.architecture"), text("general.name")), ("llama", "story"));
    assert_eq!((text("tokenizer.ggml.model"), text("tokenizer.ggml.pre")), ("gpt2", "gpt-2"));
    let rows = content.tensor_infos["token_embd.weight"].shape.dims()[0];
    assert_eq!(content.metadata["tokenizer.ggml.tokens"].to_vec().unwrap().len(), rows);
    assert!(!content.metadata.contains_key("tokenizer.chat_template"), "this model has none");
    // A second export replaces nothing, and the directory holds nothing else.
    fails(&export, 78);
    assert_eq!(std::fs::read_dir(dir.path().join("models")).unwrap().count(), 1);
    let small = dir.path().join("small.gguf");
    ok(&["export", "--ckpt", arg(&run), "--format", "gguf", "--dtype", "q8_0", "--out", arg(&small), "--quiet"]);
    assert!(small.metadata().unwrap().len() < file.metadata().unwrap().len());
}

#[test]
fn a_chat_template_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["train.steps=4"]);
    let plain = dir.path().join("plain");
    ok(&["export", "--ckpt", arg(&run), "--out", arg(&plain)]);
    let template = "{% for message in messages %}{{ message['content'] }}{% endfor %}";
    std::fs::write(plain.join("chat_template.jinja"), template).unwrap();
    let file = dir.path().join("chat.gguf");
    ok(&["export", "--ckpt", arg(&plain), "--format", "gguf", "--out", arg(&file)]);
    assert_eq!(read(&file).metadata["tokenizer.chat_template"].to_string().unwrap(), template);
}
