//! Memory that the system refuses: exit 71 with what was wanted, not an abort; and counts that nothing has to be allocated for.

use crate::support::{TINY, arg, config, ok, pretrain, program};
use std::io::Read;
use std::process::{Command, Output, Stdio};

/// More than 2 GB with gradients and moments.
const LARGE: &str = r#"
[model]
preset = "124m"
[data]
source = "stories"
tokenizer = "gpt2"
[train]
sequence_length = 256
tokens_per_step = 256
micro_batch_size = 1
steps = 2
"#;

/// The program under `ulimit -v`, in KiB.
fn limited(kib: u64, args: &[&str]) -> Output {
    let command = program(args);
    let mut shell = Command::new("bash");
    shell.args(["-c", "ulimit -v \"$1\"; shift; exec \"$@\"", "bash", &kib.to_string()]);
    shell.arg(command.get_program()).args(command.get_args()).current_dir(crate::support::root());
    shell.output().unwrap()
}

/// Demands exit code 71, a size and a hint; none of it from a panic or an abort.
fn refused(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(71), "{}: {said}", output.status);
    let sized = said.contains("GB") && said.contains("error: ") && said.contains("hint: ");
    assert!(sized && !said.contains("panicked") && !said.contains("memory allocation of"), "{said}");
    said
}

#[test]
fn a_model_larger_than_the_limit_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), LARGE);
    let out = dir.path().join("run");
    let args = ["pretrain", "--config", arg(&path), "--out", arg(&out)];
    let said = refused(&limited(1_500_000, &args));
    assert!(said.contains("`ulimit -v` allows 1.5 GB"), "{said}");
    assert!(!out.exists());
}

/// Nothing has announced these: the allocation itself fails.
#[test]
fn an_allocation_that_fails_says_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), TINY);
    let out = dir.path().join("run");
    let stories = "data.stories=3000000";
    let args = ["pretrain", "--config", arg(&path), "--out", arg(&out), "--set", stories];
    let said = refused(&limited(600_000, &args));
    assert!(said.contains("out of memory: cannot allocate"), "{said}");
}

#[test]
fn counts_of_samples_and_tokens_take_no_memory_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["train.steps=4"]);
    let most = usize::MAX.to_string();
    let mut sample =
        program(&["sample", "--ckpt", arg(&run), "--prompt", "One", "--max-tokens", "2", "--num-samples", &most]);
    let mut child = sample.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut first = [0; 64];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(first.starts_with(b"One"));
    for flags in [["--max-tokens", &most], ["--logprobs", &most], ["--top-k", &most]] {
        let args = ["sample", "--ckpt", arg(&run), "--prompt", "One", "--json"];
        let tokens = if flags[0] == "--max-tokens" { vec![] } else { vec!["--max-tokens", "3"] };
        ok(&[&args[..], &flags[..], &tokens[..]].concat());
    }
}
