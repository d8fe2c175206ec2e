//! `sample --chat`: where an answer ends, what is too long, what Ctrl-C ends, and lines that come faster than they are read.

use crate::generation::Terminal;
use crate::support::{arg, ok, pretrain};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const ROLES: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

/// A model with the template `template` and a tokenizer of bytes, a special token `<|eot|>` with id 0 and an end of text with id 1.
/// All its weights are 0, so the likeliest token is always the first one.
fn model(dir: &Path, template: &str, context: usize) -> PathBuf {
    let (run, out) = (pretrain(dir, "run", &[&format!("model.max_position_embeddings={context}")]), dir.join("model"));
    ok(&["export", "--ckpt", arg(&run), "--out", arg(&out)]);
    let weights = out.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].fill(0);
    std::fs::write(&weights, bytes).unwrap();
    std::fs::write(out.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let settings = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"});
    std::fs::write(out.join("tokenizer_config.json"), settings.to_string()).unwrap();
    std::fs::write(out.join("chat_template.jinja"), template).unwrap();
    out
}

fn tokenizer() -> Value {
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    // Printable ASCII stands for itself, a space is written as U+0120 and a line break as U+010A.
    let letters = (33..127u8).map(|byte| char::from(byte).to_string()).chain(["\u{120}".into(), "\u{10a}".into()]);
    let tokens = ["<|eot|>", "<|end|>"].map(String::from).into_iter().chain(letters);
    let vocab: serde_json::Map<String, Value> = tokens.zip(0u32..).map(|(token, id)| (token, id.into())).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(0, "<|eot|>"), special(1, "<|end|>")], "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []}})
}

fn chat(model: &Path) -> Terminal {
    let mut chat = Terminal::start(&["sample", "--ckpt", arg(model), "--chat", "--greedy", "--max-tokens", "100000"]);
    chat.wait_for("/reset forgets");
    chat.wait_for_prompt();
    chat
}

fn interrupt(chat: &Terminal) {
    assert!(Command::new("kill").arg("-INT").arg(chat.child.id().to_string()).status().unwrap().success());
}

/// What was said up to now.
fn saved(chat: &mut Terminal, dir: &Path) -> Vec<String> {
    let path = dir.join("talk.json");
    chat.type_line(&format!("/save {}", arg(&path)));
    chat.wait_for("saved");
    chat.wait_for_prompt();
    let talk: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    talk["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| format!("{}: {}", m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
        .collect()
}

/// The end of text is `<|end|>`, which never comes; the template ends its turns with the token that does.
#[test]
fn an_answer_ends_where_the_template_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let ended = ROLES.replace("{{ m.content }}", "{{ m.content }}<|eot|>");
    let model = model(dir.path(), &ended, 96);
    let mut ending = chat(&model);
    ending.type_line("Hello");
    let shown = ending.wait_for_prompt();
    assert!(!shown.contains("cut off"), "{shown}");
    assert_eq!(saved(&mut ending, dir.path()), ["user: Hello", "assistant: "]);
    ending.type_line("/quit");
    assert!(ending.child.wait().unwrap().success());
    // The same model with a template that ends no turn: it goes on until nothing more fits, and that is said.
    std::fs::write(model.join("chat_template.jinja"), ROLES).unwrap();
    let mut endless = chat(&model);
    endless.type_line("Hello");
    endless.wait_for("cut off after");
}

/// A template without special tokens: the text that begins the next turn ends an answer.
#[test]
fn the_text_of_the_next_turn_ends_an_answer_too() {
    let dir = tempfile::tempdir().unwrap();
    // The likeliest token, the first one, is the only letter that this template writes behind an answer.
    let source = model(dir.path(), "{% for m in messages %}{{ m.content }}!{% endfor %}", 96);
    let mut root = tokenizer();
    let vocab = root["model"]["vocab"].as_object_mut().unwrap();
    vocab["<|eot|>"] = 2.into();
    vocab["!"] = 0.into();
    root["added_tokens"][0]["id"] = 2.into();
    std::fs::write(source.join("tokenizer.json"), root.to_string()).unwrap();
    let mut ending = chat(&source);
    ending.type_line("Hello");
    ending.wait_for_prompt();
    assert_eq!(saved(&mut ending, dir.path()), ["user: Hello", "assistant: "]);
}

/// Special tokens are not shown: an answer of nothing else must end at Ctrl-C as any other does.
#[test]
fn an_answer_without_text_is_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let mut chat = chat(&model(dir.path(), ROLES, 60_000));
    chat.type_line("Hello");
    std::thread::sleep(Duration::from_millis(700));
    let begun = Instant::now();
    interrupt(&chat);
    chat.wait_for("dropped");
    chat.wait_for_prompt();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(saved(&mut chat, dir.path()).is_empty());
}

#[test]
fn lines_that_come_together_are_all_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut chat = chat(&model(dir.path(), &ROLES.replace("{{ m.content }}", "{{ m.content }}<|eot|>"), 96));
    chat.type_line("One\rTwo\rThree");
    for _ in 0..3 {
        chat.wait_for_prompt();
    }
    let said = saved(&mut chat, dir.path());
    assert_eq!(
        said.iter().filter(|line| line.starts_with("user")).collect::<Vec<_>>(),
        ["user: One", "user: Two", "user: Three"]
    );
}

#[test]
fn a_message_longer_than_the_context_is_refused_with_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let mut chat = chat(&model(dir.path(), &ROLES.replace("{{ m.content }}", "{{ m.content }}<|eot|>"), 64));
    chat.type_line("Hi");
    chat.wait_for_prompt();
    chat.type_line(&"a".repeat(100));
    // "user: ", the end of the turn, the line break, "assistant:".
    chat.wait_for("the message takes 118 tokens, but the model's context holds 64");
    chat.wait_for_prompt();
    chat.type_line("/system Be kind");
    chat.wait_for_prompt();
    chat.type_line(&"a".repeat(40));
    chat.wait_for("the message and the instructions take");
    chat.wait_for_prompt();
    assert_eq!(saved(&mut chat, dir.path()), ["system: Be kind", "user: Hi", "assistant: "]);
}
