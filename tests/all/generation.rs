//! `sample` as its users meet it: several texts, prompts from files, conversations at a terminal.

use crate::support::{arg, fails, ok, pretrain, program, stdout};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn json_lines(args: &[&str]) -> Vec<Value> {
    stdout(&ok(args)).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn several_texts_and_prompts_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &[]);
    let base = ["sample", "--ckpt", arg(&run), "--seed", "3", "--max-tokens", "10", "--json"];
    let with = |more: &[&str]| json_lines(&[&base, more].concat());
    let nine = with(&["--prompt", "One", "--num-samples", "9"]);
    assert_eq!(nine.len(), 9);
    assert_eq!(with(&["--prompt", "One"])[0], nine[0], "the first of nine is the only one of one");
    let prompts = dir.path().join("prompts.jsonl");
    std::fs::write(&prompts, "\"One\"\n\n{\"prompt\": \"Two\\nlines\"}\n").unwrap();
    let lines = with(&["--prompt-file", arg(&prompts)]);
    assert_eq!((lines.len(), &lines[0], &lines[1]["prompt"]), (2, &nine[0], &"Two\nlines".into()));
    std::fs::write(&prompts, "\"One\"\n{\"text\": 1}\n").unwrap();
    assert!(fails(&["sample", "--ckpt", arg(&run), "--prompt-file", arg(&prompts)], 65).contains("prompts.jsonl:2"));
    let logprobs = &with(&["--prompt", "One", "--logprobs", "2"])[0]["logprobs"];
    assert_eq!(logprobs.as_array().unwrap().len(), nine[0]["token_ids"].as_array().unwrap().len());
    assert_eq!(logprobs[0]["top"].as_array().unwrap().len(), 2);
    let plain =
        stdout(&ok(&["sample", "--ckpt", arg(&run), "--prompt", "One", "--num-samples", "3", "--max-tokens", "3"]));
    assert_eq!(plain.matches("One").count(), 3, "{plain}");
}

/// Weights in bf16 change what is written only by their rounding, and a file of bf16 weights has nothing left to round.
#[test]
fn weights_in_bf16() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &[]);
    let file = dir.path().join("file");
    ok(&["export", "--ckpt", arg(&run), "--dtype", "bf16", "--out", arg(&file)]);
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "One day a bird met a cat, and they went home. ".repeat(20)).unwrap();
    let first = |ckpt: &Path, precision: &[&str]| -> Vec<f64> {
        let all = ["sample", "--ckpt", arg(ckpt), "--prompt", "One day", "--max-tokens", "4", "--greedy", "--json"];
        let line = json_lines(&[&all[..], &["--logprobs", "5"], precision].concat()).remove(0);
        line["logprobs"][0]["top"].as_array().unwrap().iter().map(|top| top["logprob"].as_f64().unwrap()).collect()
    };
    let loss = |ckpt: &Path, precision: &[&str]| -> f64 {
        let out = stdout(&ok(&[&["eval", "--ckpt", arg(ckpt), "--data", arg(&text)][..], precision].concat()));
        out.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let bf16 = ["--precision", "bf16"];
    for ckpt in [&run, &file] {
        assert_eq!(first(ckpt, &[]), first(ckpt, &["--precision", "f32"]), "f32 is the default on a CPU");
        let (exact, rounded) = (first(ckpt, &[]), first(ckpt, &bf16));
        let farthest = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(farthest > 0.0 && farthest < 0.05, "{exact:?} {rounded:?}");
        let (exact, rounded) = (loss(ckpt, &[]), loss(ckpt, &bf16));
        assert!((exact - rounded).abs() < 0.01, "loss {exact}, in bf16 {rounded}");
    }
    let refused = crate::support::run(&["sample", "--ckpt", arg(&run), "--precision", "fp8"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(crate::support::stderr(&refused).contains("auto, f32, bf16"));
}

/// A program at a pseudo-terminal.
pub(crate) struct Terminal {
    pub(crate) child: std::process::Child,
    keyboard: File,
    screen: std::sync::mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    pub(crate) fn start(args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let child = program(args)
            .stdin(Stdio::from(slave.try_clone().unwrap()))
            .stdout(Stdio::from(slave.try_clone().unwrap()))
            .stderr(Stdio::from(slave))
            .env("TERM", "xterm")
            .spawn()
            .unwrap();
        let keyboard = File::from(master);
        let mut output = keyboard.try_clone().unwrap();
        let (send, screen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = output.read(&mut buffer) {
                if n == 0 || send.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keyboard, screen, seen: String::new() }
    }

    /// Waits until a line can be typed: the mark is written once for each, unlike the prompt, which every key redraws.
    pub(crate) fn wait_for_prompt(&mut self) -> String {
        self.wait_for("\u{1b}[?2004h") + &self.wait_for("> ")
    }

    pub(crate) fn type_line(&mut self, line: &str) {
        self.keyboard.write_all(format!("{line}\r").as_bytes()).unwrap();
    }

    /// Waits until the screen has shown `text` since the last call, and returns everything up to its end.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.seen.find(text) {
                return self.seen.drain(..at + text.len()).collect();
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{text:?} did not come: {:?}", self.seen);
            if let Ok(bytes) = self.screen.recv_timeout(Duration::from_millis(50)) {
                self.seen.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
    }
}

impl Drop for Terminal {
    /// A test that fails must not leave its program behind, which would go on writing an answer.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tuned(dir: &Path, sets: &[&str]) -> std::path::PathBuf {
    let (run, out) = (pretrain(dir, "run", sets), dir.join("tuned"));
    ok(&["export", "--ckpt", arg(&run), "--out", arg(&out)]);
    out
}

#[test]
fn a_conversation_at_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let model = tuned(dir.path(), &["model.max_position_embeddings=4096"]);
    assert!(fails(&["sample", "--ckpt", arg(&model), "--chat"], 78).contains("no chat template"));
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    std::fs::write(model.join("chat_template.jinja"), template).unwrap();
    let saved = dir.path().join("talk.json");
    let mut chat = Terminal::start(&["sample", "--ckpt", arg(&model), "--chat", "--max-tokens", "3000", "--seed", "1"]);
    chat.wait_for("/reset forgets");
    chat.wait_for_prompt();
    chat.type_line("/system Be kind");
    chat.wait_for_prompt();
    // An answer of three thousand tokens is interrupted; the program goes on.
    chat.type_line("Hello there");
    std::thread::sleep(Duration::from_millis(400));
    assert!(
        std::process::Command::new("kill").arg("-INT").arg(chat.child.id().to_string()).status().unwrap().success()
    );
    chat.wait_for_prompt();
    chat.type_line(&format!("/save {}", saved.display()));
    chat.wait_for("saved");
    chat.wait_for_prompt();
    let talk: Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    let roles: Vec<&str> = talk["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert_eq!(talk["messages"][1]["content"], "Hello there");
    chat.type_line("/reset");
    chat.wait_for_prompt();
    chat.type_line(&format!("/save {}", saved.display()));
    chat.wait_for("saved");
    chat.wait_for_prompt();
    let talk: Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    assert_eq!(talk["messages"].as_array().unwrap().len(), 1, "the instructions stay");
    chat.type_line("/quit");
    assert!(chat.child.wait().unwrap().success());
}
