//! The table of failures: what a user did, and the exit code, message and hint that answer it. Every row is run. A command in a hint
//! must parse as it stands, so that it can be pasted.

use crate::support::{TINY, arg, checkpoint, pretrain, run, shell_words, stderr};
use clap::Parser;
use llama_lite::cli::Cli;
use std::fs;
use std::path::Path;

/// What was done, the words of the command (`{dir}` is the test's directory), and the exit code, message and hint that it must give.
struct Row {
    condition: &'static str,
    command: &'static str,
    exit: i32,
    message: &'static str,
    hint: &'static str,
}

const fn row(
    condition: &'static str,
    command: &'static str,
    exit: i32,
    message: &'static str,
    hint: &'static str,
) -> Row {
    Row { condition, command, exit, message, hint }
}

include!("messages/table.rs");

/// An adapter whose first weights are not LoRA's usual ones.
const ADAPTER: &str = r#"{"peft_type": "LORA", "base_model_name_or_path": "BASE", "r": 2, "lora_alpha": 4,
    "target_modules": ["q_proj"], "init_lora_weights": "pissa"}"#;

/// TINY with data of its own in place of the built-in corpus.
fn trains_on(pattern: &str) -> String {
    let corpus = "source = \"stories\"\ntokenizer = \"train\"\nstories = 60\nval_stories = 8\n";
    assert!(TINY.contains(corpus));
    TINY.replace(corpus, &format!("train = [\"{pattern}\"]\ntokenizer = \"train\"\n"))
}

/// The files that the table's commands name.
fn make_files(dir: &Path) {
    let run = pretrain(dir, "run", &["train.steps=4"]);
    let text = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
    text("broken.toml", "[model\n");
    text("missing.toml", &trains_on("no-such-file.txt"));
    text("hub.toml", &trains_on("hub:owner/name"));
    text("taken.gguf", "GGUF");
    text("text.txt", "Once there was a cat.\n");
    text("prompts.jsonl", "{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n");
    text("sft.toml", "[train]\nsequence_length = 32\nmicro_batch_size = 1\ntokens_per_step = 32\nsteps = 1\n");
    text("conversation.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n");
    text("speaker.jsonl", "{\"conversation\": [{\"speaker\": \"A\", \"text\": \"hi\"}]}\n");
    text("role.jsonl", "{\"messages\": [{\"role\": \"narrator\", \"content\": \"a\"}]}\n");
    text("body.jsonl", "{\"body\": \"a cat\", \"id\": 1}\n");
    text("page.jsonl", "<!DOCTYPE html><html><body>Please log in</body></html>\n");
    text("pointer.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
    fs::write(dir.join("wide.txt"), "a cat".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    // A checkpoint whose weights were cut short, alone in a run of its own.
    let damaged = dir.join("damaged/checkpoints/step-00000004");
    fs::create_dir_all(&damaged).unwrap();
    for file in fs::read_dir(checkpoint(&run, 4)).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, damaged.join(path.file_name().unwrap())).unwrap();
    }
    let weights = fs::OpenOptions::new().write(true).open(damaged.join("model.safetensors")).unwrap();
    weights.set_len(100).unwrap();
    // Models as other programs leave them: without a tokenizer, with weights of another name, as a pickle, below an output directory.
    let weights = [
        ("bare", "model.safetensors"),
        ("variant", "model.fp16.safetensors"),
        ("out/checkpoint-500", "model.safetensors"),
    ];
    for (model, name) in weights {
        fs::create_dir_all(dir.join(model)).unwrap();
        fs::copy(checkpoint(&run, 4).join("config.json"), dir.join(model).join("config.json")).unwrap();
        fs::copy(checkpoint(&run, 4).join("model.safetensors"), dir.join(model).join(name)).unwrap();
    }
    let adapter = dir.join("adapter");
    fs::create_dir(&adapter).unwrap();
    fs::write(adapter.join("adapter_config.json"), ADAPTER.replace("BASE", arg(&checkpoint(&run, 4)))).unwrap();
    fs::copy(checkpoint(&run, 4).join("model.safetensors"), adapter.join("adapter_model.safetensors")).unwrap();
}

/// The commands that a hint offers: in backticks, or from `llama-lite` to the end of the clause.
fn commands_in(hint: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in hint.match_indices("llama-lite ") {
        let rest = &hint[at..];
        let quoted = hint[..at].ends_with('`');
        let end = if quoted { rest.find('`') } else { rest.find("; ").or_else(|| rest.find(", ")) };
        found.push(&rest[..end.unwrap_or(rest.len())]);
    }
    found
}

fn check(row: &Row, dir: &Path) -> Result<(), String> {
    let words: Vec<String> = shell_words(row.command).iter().map(|word| word.replace("{dir}", arg(dir))).collect();
    let output = run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let text = stderr(&output);
    let wrong = |what: &str| Err(format!("{}: {what}\n  {}\n{text}", row.condition, words.join(" ")));
    if output.status.code() != Some(row.exit) {
        return wrong(&format!("{} instead of {}", output.status, row.exit));
    }
    let Some((message, hint)) = text.split_once("hint:") else { return wrong("no hint") };
    if !message.contains(row.message) {
        return wrong(&format!("the message lacks {:?}", row.message));
    }
    if !hint.contains(row.hint) {
        return wrong(&format!("the hint lacks {:?}", row.hint));
    }
    for command in commands_in(hint.trim()) {
        if let Err(error) = Cli::try_parse_from(shell_words(command))
            && error.use_stderr()
        {
            return wrong(&format!("the hint's command {command:?} does not parse: {error}"));
        }
    }
    Ok(())
}

#[test]
fn every_failure_says_what_is_wrong_and_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    make_files(dir.path());
    let wrong: Vec<String> = TABLE.iter().filter_map(|row| check(row, dir.path()).err()).collect();
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), TABLE.len(), wrong.join("\n"));
}

#[test]
fn commands_are_found_in_hints_and_split_as_a_shell_does() {
    let hint = "first: llama-lite data prepare --input 'a b' --out DIR; or `llama-lite resume --ckpt X` again";
    let expected = ["llama-lite data prepare --input 'a b' --out DIR", "llama-lite resume --ckpt X"];
    assert_eq!(commands_in(hint), expected);
    assert_eq!(shell_words("a 'b c' --set 'd=[\"e\"]' ''"), ["a", "b c", "--set", "d=[\"e\"]", ""]);
}
