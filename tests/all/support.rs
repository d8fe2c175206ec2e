//! Running the program, and reading what it wrote.

use llama_lite::distributed::environment::VARIABLES;
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program, to be run on two threads: tests run beside each other.
pub(crate) fn program(args: &[&str]) -> Command {
    let path = env!("CARGO_BIN_EXE_llama-lite");
    let mut env = Vec::new();
    // Tests that run in the background or under nohup ignore signals, and the program would too.
    if [SIGINT, SIGHUP].into_iter().any(llama_lite::runtime::machine::ignores) {
        env.push("--default-signal=INT,HUP".to_owned());
    }
    // The tests may themselves be a step of Slurm or run under mpiexec.
    env.extend(launcher_variables().map(|name| format!("--unset={name}")));
    let mut command = if env.is_empty() { Command::new(path) } else { Command::new("env") };
    if !env.is_empty() {
        command.args(&env).arg(path);
    }
    command.args(args).env_remove("NO_COLOR").current_dir(root());
    command.args(["--threads", "2"]);
    command
}

/// The variables of a launcher that has started these tests.
fn launcher_variables() -> impl Iterator<Item = &'static str> {
    VARIABLES.into_iter().filter(|name| std::env::var_os(name).is_some())
}

/// `command` as if no launcher had started these tests.
pub(crate) fn without_launcher(mut command: Command) -> Command {
    for name in launcher_variables() {
        command.env_remove(name);
    }
    command
}

/// The program as `ranks` processes that the `mpiexec` of the build starts, each on one thread.
pub(crate) fn program_on_ranks(ranks: usize, args: &[&str]) -> Command {
    let mut command = without_launcher(Command::new(env!("LLAMA_LITE_MPIEXEC")));
    command.args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_llama-lite")]).args(args);
    // Hydra would wait for the end of the input.
    command.args(["--threads", "1"]).env_remove("NO_COLOR").current_dir(root()).stdin(std::process::Stdio::null());
    command
}

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    program(args).output().unwrap()
}

/// Runs it and demands exit code 0.
pub(crate) fn ok(args: &[&str]) -> Output {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}\n{}", output.status, stderr(&output));
    output
}

/// Runs it, demands exit code `code`, and returns stderr.
pub(crate) fn fails(args: &[&str], code: i32) -> String {
    let output = run(args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(text.contains("hint:"), "no hint: {text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The words of a command line, split as a shell splits them: blanks separate, quotes hold together.
pub(crate) fn shell_words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// A temporary directory, in memory where there is such a place: for thousands of small files.
pub(crate) fn memory_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A configuration of a model that trains in a moment on the built-in stories.
pub(crate) const TINY: &str = r#"
[model]
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
vocab_size = 320
tie_word_embeddings = true
[data]
source = "stories"
tokenizer = "train"
stories = 60
val_stories = 8
[train]
sequence_length = 32
micro_batch_size = 2
tokens_per_step = 128
steps = 12
[optimizer]
lr = 1e-2
[schedule]
warmup_steps = 2
min_lr = 1e-3
[checkpoint]
every = 4
keep = 10
[eval]
every = 4
[sample]
every = 6
prompts = ["One day"]
max_tokens = 8
"#;

/// Changes the trainer state of a checkpoint as whoever made it would have written it: with a manifest that holds.
pub(crate) fn restate(checkpoint: &Path, change: impl Fn(String) -> String) {
    let (path, manifest) = (checkpoint.join("trainer_state.json"), checkpoint.join("manifest.json"));
    let text = change(std::fs::read_to_string(&path).unwrap());
    std::fs::write(&path, &text).unwrap();
    let parsed = llama_lite::checkpoint::Manifest::parse(&std::fs::read(&manifest).unwrap());
    let mut parsed = parsed.unwrap_or_else(|_| panic!("sound"));
    for entry in parsed.files.iter_mut().filter(|entry| entry.name == "trainer_state.json") {
        entry.size = text.len() as u64;
        entry.blake3 = blake3::hash(text.as_bytes()).to_hex().to_string();
    }
    std::fs::write(&manifest, parsed.render().unwrap()).unwrap();
}

/// Writes `text` as DIR/tiny.toml.
pub(crate) fn config(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("tiny.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Trains TINY with `sets` into DIR/NAME.
pub(crate) fn pretrain(dir: &Path, name: &str, sets: &[&str]) -> PathBuf {
    let (config, out) = (config(dir, TINY), dir.join(name));
    let mut args = vec!["pretrain", "--config", arg(&config), "--out", arg(&out)];
    sets.iter().for_each(|s| args.extend(["--set", s]));
    ok(&args);
    out
}

/// The records of a `.jsonl` file, without the fields that depend on the clock.
pub(crate) fn records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let parse = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let fields = value.as_object_mut().unwrap();
        ["tokens_per_second", "data_seconds", "time", "mfu"].iter().for_each(|f| drop(fields.shift_remove(*f)));
        value
    };
    text.lines().map(parse).collect()
}

/// The checkpoint directory of a step.
pub(crate) fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

/// Demands that two checkpoints hold the same bits.
pub(crate) fn assert_same_checkpoint(a: &Path, b: &Path) {
    for file in ["model.safetensors", "optimizer.safetensors", "tokenizer.json", "config.json"] {
        let read = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
        assert!(read(a) == read(b), "{file} of {} and {} differ", a.display(), b.display());
    }
    let state = |dir: &Path| -> Value {
        let mut s: Value = serde_json::from_slice(&std::fs::read(dir.join("trainer_state.json")).unwrap()).unwrap();
        let fields = s.as_object_mut().unwrap();
        // Which attempt wrote it, what that knew of its machine, and the configuration's step count may differ, and the hashes of logs,
        // which have clock readings in them; the state may not.
        ["attempt", "build", "config", "logs"].iter().for_each(|f| drop(fields.shift_remove(*f)));
        s
    };
    assert_eq!(state(a), state(b));
}
