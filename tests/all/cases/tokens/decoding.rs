//! SentencePiece writes a space before a text and takes it away again. A fragment of a text is no text of its own: its first space is
//! part of it, wherever a fragment is shown, compared or stored.

use super::train_on;
use super::vocabulary::{Form, IDS, fragment, tokenizer_json};
use crate::support::{arg, ok, records, stdout};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Text of the vocabulary's own letters, with an emoji here and there.
fn write_text(dir: &Path) -> PathBuf {
    let line = |i: usize| format!("the cat {} sat on a mat \u{1f600} and was happy", ["ab", "ac", "ad"][i % 3]);
    let path = dir.join("text.txt");
    std::fs::write(&path, (0..400).map(line).collect::<Vec<_>>().join(" ")).unwrap();
    path
}

/// A run on that text with a tokenizer of this form.
fn run(dir: &Path, form: Form) -> PathBuf {
    let (text, tokenizer) = (write_text(dir), dir.join("tokenizer.json"));
    std::fs::write(&tokenizer, tokenizer_json(form).to_string()).unwrap();
    let data = format!("train = [{:?}]\nval_fraction = 0.1\ntokenizer = {:?}", arg(&text), arg(&tokenizer));
    let prompts = r#"sample.prompts=["the cat", "a", "b", "c", "d", "e", "f", "g"]"#;
    train_on(
        dir,
        "run",
        &data,
        &["--set", prompts, "--set", "sample.temperature=50", "--set", "model.max_position_embeddings=128"],
    )
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

fn json_lines(args: &[&str]) -> Vec<Value> {
    stdout(&ok(args)).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn check_samples(run: &Path) {
    let base = ["sample", "--ckpt", arg(run), "--seed", "3", "--temperature", "50", "--max-tokens", "6", "--json"];
    let with = |more: &[&str]| json_lines(&[&base, more].concat());
    let samples = with(&["--prompt", "the cat", "--num-samples", "12", "--logprobs", "3"]);
    for sample in &samples {
        assert_eq!(sample["text"], fragment(&ids(&sample["token_ids"]), false), "{sample}");
        for entry in sample["logprobs"].as_array().unwrap() {
            for token in entry["top"].as_array().unwrap().iter().chain([entry]) {
                assert_eq!(token["token"], fragment(&ids(&json!([token["token_id"]])), true), "{token}");
            }
        }
    }
    let spaced = samples.iter().find(|sample| sample["text"].as_str().unwrap().starts_with(' ')).unwrap();
    // Behind nothing but a beginning of text stands no space.
    let alone = with(&["--prompt", "", "--num-samples", "12"]);
    assert!(alone.iter().all(|sample| {
        let text = fragment(&ids(&sample["token_ids"]), false);
        sample["text"] == text.strip_prefix(' ').unwrap_or(&text)
    }));
    let stop: String = spaced["text"].as_str().unwrap().chars().take(2).collect();
    for stopped in with(&["--prompt", "the cat", "--num-samples", "12", "--stop", &stop]) {
        let whole = fragment(&ids(&stopped["token_ids"]), false);
        assert_eq!(stopped["text"], whole.split(&stop).next().unwrap(), "{stopped}");
    }
    let streamed = stdout(&ok(&[
        "sample",
        "--ckpt",
        arg(run),
        "--seed",
        "3",
        "--temperature",
        "50",
        "--max-tokens",
        "6",
        "--prompt",
        "the cat",
    ]));
    assert_eq!(streamed, format!("the cat{}\n", samples[0]["text"].as_str().unwrap()));
}

#[test]
fn samples_begin_with_their_first_space() {
    for form in [Form::Llama2, Form::Metaspace] {
        let dir = tempfile::tempdir().unwrap();
        let run = run(dir.path(), form);
        check_samples(&run);
        let logged = records(&run.join("samples.jsonl"));
        assert!(logged.iter().any(|sample| sample["text"].as_str().unwrap().starts_with(' ')), "{form:?}: {logged:?}");
    }
}

/// `data inspect` and `why` show windows that begin anywhere; what they show is the text from there on.
#[test]
fn windows_of_a_text_show_their_first_space() {
    for form in [Form::Llama2, Form::Metaspace] {
        let dir = tempfile::tempdir().unwrap();
        let run = run(dir.path(), form);
        let (text, shards) = (dir.path().join("text.txt"), dir.path().join("shards"));
        let tokenizer = dir.path().join("tokenizer.json");
        ok(&["data", "prepare", "--input", arg(&text), "--tokenizer", arg(&tokenizer), "--out", arg(&shards)]);
        for at in 0..30 {
            let args =
                ["data", "inspect", arg(&shards), "--token", &at.to_string(), "--max-tokens", "3", "--split", "train"];
            let said = stdout(&ok(&args));
            let (shown, listed) = said.rsplit_once(" tokens: ").unwrap();
            let whole = fragment(&ids(&serde_json::from_str(listed.trim()).unwrap()), true);
            assert!(shown.contains(&format!("\n\n{whole}\n\n")), "{form:?}: {said}");
        }
        let said = stdout(&ok(&["why", arg(&run), "--step", "3", "--quiet"]));
        let parts: Vec<&str> = said.lines().filter(|line| line.starts_with("    ")).collect();
        assert!(parts.iter().any(|line| line.starts_with("     ")), "{form:?}: {said}");
    }
}

/// The text between the marks of `--show-data`, trained and not, is the text that was written, space by space.
#[test]
fn the_mask_is_shown_as_it_is_trained() {
    let config = "[train]\nsequence_length = 96\nmicro_batch_size = 2\ntokens_per_step = 384\nsteps = 2\n\
                  [sft]\ntemplate = \"TEMPLATE\"\nmax_truncated = 0.5\n";
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}";
    for form in [Form::Llama2, Form::Metaspace] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let run = run(dir.path(), form);
        std::fs::write(at("t.jinja"), template).unwrap();
        std::fs::write(at("sft.toml"), config.replace("TEMPLATE", &at("t.jinja"))).unwrap();
        let record = |i: usize| json!({"messages": [{"role": "user", "content": format!("say {}", ["ab", "cd"][i % 2])}, {"role": "assistant", "content": "be happy"}]});
        let lines: Vec<String> = (0..20).map(|i| record(i).to_string()).collect();
        std::fs::write(at("records.jsonl"), lines.join("\n")).unwrap();
        let shown = stdout(&ok(&[
            "sft",
            "--config",
            &at("sft.toml"),
            "--ckpt",
            arg(&run),
            "--data",
            &at("records.jsonl"),
            "--show-data",
            "3",
        ]));
        // The tokens of "user say ab assistant be happy</s>", however they are marked.
        let bare: String = shown.chars().filter(|c| !"⟦⟧".contains(*c)).collect();
        assert!(
            bare.contains(" user say ab assistant be happy") || bare.contains(" user say cd assistant be happy"),
            "{form:?}: {shown}"
        );
    }
    const { assert!(IDS < 320) };
}
