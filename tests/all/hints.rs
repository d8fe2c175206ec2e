//! What the program, its README and docs/ tell users to type exists: every command parses, every flag and every configuration key is one.
//!
//! Messages are read from the source: all string literals outside tests, with placeholders filled in. `scripts/check_docs.sh` runs the
//! commands of the pages; here they are only parsed.

use crate::docs;
use crate::support::{TINY, arg, config, fails, ok, root, shell_words, stderr, without_launcher};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use llama_lite::cli::Cli;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A text of the program, and where it stands.
struct Literal {
    place: String,
    text: String,
}

/// Flags of other programs that messages may name.
const FOREIGN_FLAGS: [&str; 4] = ["--local-dir", "--version", "--long", "--mpi"];

/// Tensors and fields of other files whose first word is a section's, too, and tables whose keys are the user's.
const NO_KEYS: [&str; 10] = [
    "sft.roles.",
    "sft.fields.",
    "model.layers",
    "model.embed_tokens",
    "model.norm",
    "model.rotary_emb",
    "model.weight",
    "model.dropout",
    "model.module",
    "model._orig_mod",
];

/// What is a file's name and no key.
const EXTENSIONS: [&str; 10] =
    [".gguf", ".npy", ".pkl", ".json", ".jsonl", ".toml", ".safetensors", ".parquet", ".md", ".rs"];

/// String literals of Rust source, each with its line.
fn literals(source: &str) -> Vec<(usize, String)> {
    let (bytes, mut at, mut found) = (source.as_bytes(), 0, Vec::new());
    let line = |at: usize| source[..at].matches('\n').count() + 1;
    while at < bytes.len() {
        let rest = &source[at..];
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            at += rest.find("*/").map_or(rest.len(), |end| end + 2);
        } else if let Some(hashes) = raw_string(rest).filter(|_| !is_word(bytes, at)) {
            let (start, close) = (hashes + 2, format!("\"{}", "#".repeat(hashes)));
            let end = start + rest[start..].find(&close).unwrap();
            found.push((line(at), rest[start..end].to_owned()));
            at += end + close.len();
        } else if rest.starts_with('"') {
            let (text, length) = quoted(rest);
            found.push((line(at), text));
            at += length;
        } else if let Some(behind) = rest.strip_prefix('\'') {
            // A character, or the name of a lifetime.
            let end = behind.strip_prefix('\\').and_then(|escape| escape[1..].find('\'').map(|end| end + 4));
            let plain = behind.chars().next().map_or(1, char::len_utf8) + 1;
            at += end.unwrap_or(if rest[plain..].starts_with('\'') { plain + 1 } else { 1 });
        } else {
            at += rest.chars().next().unwrap().len_utf8();
        }
    }
    found
}

fn is_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

/// The number of `#` of a raw string that begins here.
fn raw_string(rest: &str) -> Option<usize> {
    let hashes = rest.strip_prefix('r')?.bytes().take_while(|&b| b == b'#').count();
    rest[1 + hashes..].starts_with('"').then_some(hashes)
}

/// The text of a literal, and its length in the source.
fn quoted(rest: &str) -> (String, usize) {
    let (mut text, mut chars) = (String::new(), rest.char_indices().skip(1).peekable());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (text, at + 1),
            '\\' => match chars.next().map(|(_, escaped)| escaped) {
                Some('n') => text.push('\n'),
                Some('\n') => while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                Some(other) => text.push(other),
                None => break,
            },
            c => text.push(c),
        }
    }
    panic!("a string without an end: {rest:.40}")
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() && !path.ends_with("tests") {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// All that the program can say.
fn messages() -> Vec<Literal> {
    let mut paths = Vec::new();
    files(&root().join("src"), &mut paths);
    let mut messages = Vec::new();
    for path in paths {
        let source = std::fs::read_to_string(&path).unwrap();
        let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let name = path.strip_prefix(root()).unwrap().display();
        for (line, text) in literals(code) {
            // A command that goes on in the next line is one command.
            messages.push(Literal { place: format!("{name}:{line}"), text: text.replace("\\\n", " ") });
        }
    }
    messages
}

/// The words of a command, with something plausible in place of what the user has to fill in.
fn words(command: &str) -> Vec<String> {
    shell_words(command).into_iter().map(|word| if is_placeholder(&word) { "7".to_owned() } else { word }).collect()
}

fn is_placeholder(word: &str) -> bool {
    word.contains('{') || (word.len() > 1 || word == "N") && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

/// The command that begins at `text`: to the closing backtick, the end of the clause or of the line.
fn command(text: &str) -> &str {
    let end = text.find(['`', '\n', ';', ')', '<', '#']).unwrap_or(text.len());
    text[..end].trim_end().trim_end_matches(['.', ',', ':'])
}

/// What is wrong with `command`, a subcommand and what follows. If it is named only in passing, what it needs besides may be missing.
fn problem(command: &str, in_passing: bool) -> Option<String> {
    let parse = |more: &str| {
        Cli::try_parse_from(std::iter::once("llama-lite".into()).chain(words(&format!("{command}{more}"))))
    };
    let error = parse("").err()?;
    let tolerated = |kind: ErrorKind| match kind {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::MissingRequiredArgument => in_passing,
        _ => false,
    };
    // "`pretrain --init-from` takes a model": the flag is there, its value is not.
    let without_value = in_passing && parse(" 7").err().is_none_or(|error| tolerated(error.kind()));
    (!tolerated(error.kind()) && !without_value).then(|| format!("{command:?}: {error}"))
}

fn subcommands() -> Vec<String> {
    Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect()
}

/// Commands in `text`, each with whether it is only named in passing: without the program's name before it or arguments behind it.
fn commands(text: &str) -> Vec<(&str, bool)> {
    let subcommands = subcommands();
    let mut found = Vec::new();
    for name in &subcommands {
        for (at, _) in text.match_indices(name.as_str()) {
            let rest = &text[at + name.len()..];
            let whole = !is_word(text.as_bytes(), at)
                && !rest.starts_with(|c: char| c.is_alphanumeric() || "_-.=/".contains(c));
            let called = text[..at].ends_with("llama-lite ");
            let flag_follows = rest.starts_with(" --") || rest.starts_with(" prepare --");
            // Keys of hash functions begin with the program's name, too.
            let is_key = text.starts_with("llama-lite ") && text.ends_with(" v1");
            if whole && (called || flag_follows) && !is_key && !text[..at].ends_with("--") {
                let command = command(&text[at..]);
                let bare = command == name || command.strip_prefix("data ").is_some_and(|rest| !rest.contains(' '));
                found.push((command, !called || bare));
            }
        }
    }
    let general =
        text.match_indices("llama-lite --").map(|(at, _)| (command(&text[at + "llama-lite ".len()..]), false));
    found.extend(general);
    found
}

#[test]
fn every_command_in_a_message_parses() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for Literal { place, text } in messages() {
        for (command, in_passing) in commands(&text) {
            seen += 1;
            wrong.extend(problem(command, in_passing).map(|problem| format!("{place}: {problem}")));
        }
    }
    assert!(seen > 40, "{seen}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every long flag of every command.
fn flags() -> BTreeSet<String> {
    fn collect(command: &clap::Command, flags: &mut BTreeSet<String>) {
        flags.extend(command.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))));
        command.get_subcommands().for_each(|command| collect(command, flags));
    }
    let (mut flags, mut cli) = (BTreeSet::new(), Cli::command());
    cli.build();
    collect(&cli, &mut flags);
    flags.extend(["--help".to_owned()]);
    flags
}

/// Flags in `text`.
fn named_flags(text: &str) -> Vec<&str> {
    let begins = text.match_indices("--").map(|(at, _)| at);
    let begins = begins.filter(|&at| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '-'));
    let flag = |at: usize| {
        let name =
            text[at + 2..].find(|c: char| !(c.is_ascii_lowercase() || c == '-')).map_or(text.len(), |n| at + 2 + n);
        text[at..name].trim_end_matches('-')
    };
    begins.map(flag).filter(|flag| flag.len() > 3).collect()
}

/// Every section of the configuration, and every `section.key`.
struct Keys {
    sections: Vec<String>,
    keys: BTreeSet<String>,
}

impl Keys {
    fn of_the_reference() -> Self {
        let (mut keys, mut sections) = (BTreeSet::new(), Vec::new());
        for line in llama_lite::config::reference().lines() {
            if let Some(section) = line.strip_prefix("### `[") {
                sections.push(section.trim_end_matches("]`").to_owned());
            } else if let Some((key, _)) = line.strip_prefix("| `").and_then(|row| row.split_once('`')) {
                keys.insert(format!("{}.{key}", sections.last().unwrap()));
            }
        }
        assert!(sections.len() > 10, "{sections:?}");
        Self { sections, keys }
    }

    /// Words of `text` that look like a key of the configuration, and are none.
    fn unknown_in<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "._".contains(c)));
        words.map(|word| word.trim_matches('.')).filter(|word| self.is_unknown(word)).collect()
    }

    fn is_unknown(&self, word: &str) -> bool {
        let is_key = word
            .split_once('.')
            .is_some_and(|(section, key)| self.sections.iter().any(|known| known == section) && !key.is_empty());
        let known = self.keys.contains(word) || NO_KEYS.iter().any(|tensor| word.starts_with(tensor));
        is_key && !known && !EXTENSIONS.iter().any(|extension| word.ends_with(extension))
    }
}

#[test]
fn every_flag_and_key_in_a_message_exists() {
    let (flags, keys) = (flags(), Keys::of_the_reference());
    let mut wrong = Vec::new();
    // Kernels have no messages. The table of renamed keys holds names that are no longer keys.
    for Literal { place, text } in messages().iter().filter(|message| !message.place.contains("src/ops/cuda")) {
        let unknown =
            named_flags(text).into_iter().filter(|flag| !flags.contains(*flag) && !FOREIGN_FLAGS.contains(flag));
        wrong.extend(unknown.map(|flag| format!("{place}: no flag {flag}")));
        let has_old_names = place.contains("src/config/renamed.rs");
        let unknown = keys.unknown_in(text).into_iter().filter(|_| !has_old_names);
        wrong.extend(unknown.map(|word| format!("{place}: no key {word}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// README.md and the pages of docs/, each with its name.
fn pages() -> Vec<Literal> {
    docs::pages().into_iter().map(|page| Literal { place: page.name, text: page.text }).collect()
}

/// Commands to be pasted parse; those that show what a command takes name flags that it has.
#[test]
fn every_command_in_the_readme_and_docs_parses() {
    let (flags, mut wrong, mut seen) = (flags(), Vec::new(), 0);
    for Literal { place, text } in pages() {
        let (mut language, text) = ("", text.replace("\\\n", " "));
        for line in text.lines() {
            if let Some(fence) = line.strip_prefix("```") {
                language = fence;
            }
            let Some(rest) = line.strip_prefix("target/release/").unwrap_or(line).strip_prefix("llama-lite ") else {
                continue;
            };
            if language == "text" {
                let unknown = named_flags(rest).into_iter().filter(|flag| !flags.contains(*flag));
                wrong.extend(unknown.map(|flag| format!("{place}: {line}: no flag {flag}")));
            } else if language == "sh" {
                seen += 1;
                let command =
                    ["  #", " > ", " | "].iter().fold(rest, |rest, end| rest.split(end).next().unwrap_or(rest));
                wrong.extend(problem(command.trim(), false).map(|problem| format!("{place}: {problem}")));
            }
        }
    }
    assert!(seen > 60, "{seen}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Commands in the middle of a sentence or in a table: `llama-lite plan --fit`.
#[test]
fn every_command_within_a_sentence_of_the_docs_parses() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for Literal { place, text } in pages() {
        // Blocks aside, code marks come in pairs.
        let prose = text.split("```").step_by(2).collect::<String>();
        for command in prose.split('`').skip(1).step_by(2).filter_map(|code| code.strip_prefix("llama-lite ")) {
            seen += 1;
            wrong.extend(problem(command, true).map(|problem| format!("{place}: {problem}")));
        }
    }
    assert!(seen > 15, "{seen}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_key_in_the_readme_and_docs_exists() {
    let keys = Keys::of_the_reference();
    let mut wrong = Vec::new();
    for Literal { place, text } in pages() {
        // What the program printed is not looked at: it may be about a key that is none.
        let written = text.split("```").filter(|part| !part.starts_with("text\n")).collect::<String>();
        wrong.extend(keys.unknown_in(&written).into_iter().map(|word| format!("{place}: no key {word}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a message gives to be pasted is pasted: into a shell, with the program on its path.
fn paste(command: &str) {
    let program = Path::new(env!("CARGO_BIN_EXE_llama-lite"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut shell = without_launcher(std::process::Command::new("sh"));
    let output = shell.args(["-c", command]).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{command}: {}", stderr(&output));
}

#[test]
fn commands_with_paths_of_any_name_can_be_pasted() {
    let dir = tempfile::tempdir().unwrap();
    let (config, out) = (config(dir.path(), TINY), dir.path().join("it's a $run; (1)"));
    let args = ["pretrain", "--config", arg(&config), "--out", arg(&out)];
    let said = stderr(&ok(&args));
    let (_, command) = said.split_once("Try: ").unwrap();
    paste(&format!("{} --prompt One --max-tokens 2", command.trim()));
    let said = fails(&args, 78);
    let (_, hint) = said.split_once("go on with it: ").unwrap();
    paste(hint.strip_suffix("; or choose another --out\n").unwrap());
    // What is said of weights is said where there are weights.
    let said = fails(&["resume", "--ckpt", arg(&dir.path().join("tiny.toml"))], 74);
    assert!(!said.contains("--init-from"), "{said}");
    let plain = dir.path().join("plain model");
    ok(&["export", "--ckpt", arg(&out), "--out", arg(&plain)]);
    let said = fails(&["resume", "--ckpt", arg(&plain)], 78);
    let (_, command) = said.split_once("from these weights: ").unwrap();
    let new = dir.path().join("new");
    paste(&command.trim().replace("FILE", &format!("{} --out {}", arg(&config), arg(&new))));
}

#[test]
fn literals_are_found_in_rust() {
    let source = r##"let a = "x\"y"; // "no"
        let b = ('"', b'\'', '\\', r#"raw "quoted""#); fn f<'a>(x: &'a str) { /* "no" */ "one \
            line" }"##;
    let texts: Vec<String> = literals(source).into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["x\"y", "raw \"quoted\"", "one line"]);
    assert_eq!(literals(source)[2].0, 2);
    assert_eq!(named_flags("use --ckpt DIR (or --top-k=3), not a -- b or x--y"), ["--ckpt", "--top-k"]);
    let found = commands("see `data prepare --allow-bad`, or: llama-lite resume --ckpt {dir}; a resume goes on");
    assert_eq!(found, [("resume --ckpt {dir}", false), ("data prepare --allow-bad", true)]);
    assert!(problem("resume --ckpt {dir}", false).is_none() && problem("resume --cpkt {dir}", true).is_some());
    assert!(problem("export --merge-lora", false).is_some() && problem("export --merge-lora", true).is_none());
}
