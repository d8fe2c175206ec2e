//! Several processes as the ranks of one run, on one machine. `src/distributed/mpi/tests.rs` tests what moves their messages.

use crate::support::{TINY, arg, memory_dir, ok, program, program_on_ranks, records, root, stderr, stdout};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The files that must have the same bits in both run directories after step `step`.
fn assert_same_run(one: &Path, other: &Path, step: u64) {
    for name in ["model.safetensors", "optimizer.safetensors", "config.json"] {
        let path = format!("checkpoints/step-{step:08}/{name}");
        assert!(std::fs::read(one.join(&path)).unwrap() == std::fs::read(other.join(&path)).unwrap(), "{path}");
    }
    for log in ["metrics.jsonl", "samples.jsonl", "sequences.jsonl"] {
        assert_eq!(records(&one.join(log)), records(&other.join(log)), "{log}");
    }
}

/// A configuration with four lanes, in `dir`.
fn four_lanes(dir: &Path, steps: u64) -> PathBuf {
    let path = dir.join("ranks.toml");
    let text = TINY
        .replace("tokens_per_step = 128\nsteps = 12", &format!("tokens_per_step = 256\nsteps = {steps}\nlanes = 4"))
        .replace("prompts = [\"One day\"]", "prompts = [\"One day\", \"The\", \"A\"]");
    let text = format!("{text}[log]\nsequences = true\nlayers_every = 4\ndesync_every = 3\n");
    std::fs::write(&path, text).unwrap();
    path
}

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The processes of the last start of the run in `dir`, by rank, once it has taken `step`.
fn processes_after(dir: &Path, step: usize) -> Vec<u64> {
    let started = Instant::now();
    loop {
        let taken = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap_or_default();
        if taken.lines().filter(|line| line.contains("\"train\"")).count() >= step {
            let events = std::fs::read_to_string(dir.join("events.jsonl")).unwrap();
            let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let mut events = events.rev();
            let ranks = events.find(|event| event["kind"] == "ranks").unwrap();
            return ranks["members"].as_array().unwrap().iter().map(|m| m["pid"].as_u64().unwrap()).collect();
        }
        assert!(started.elapsed() < Duration::from_secs(60), "no step {step} in {}", dir.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(name: &str, process: u64) {
    assert!(Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap().success());
}

fn is_alive(process: u64) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // A process that has ended and that nobody has asked for is a zombie.
    state.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}

fn fails_with(output: &Output, code: i32) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains("hint:") && !text.contains("panicked"), "{text}");
    text
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn any_number_of_ranks_writes_the_same_run() {
    let dir = memory_dir();
    let config = four_lanes(dir.path(), 16);
    let run = |name: &str| dir.path().join(name);
    let args = |out: &Path| ["pretrain", "--config", arg(&config), "--out", arg(out), "-q"].map(str::to_owned);
    let one = run("one");
    ok(&args(&one).iter().map(String::as_str).collect::<Vec<_>>());
    for (name, ranks) in [("two", 2), ("four", 4)] {
        let out = run(name);
        let args = args(&out);
        let output = program_on_ranks(ranks, &args.each_ref().map(String::as_str)).output().unwrap();
        assert!(output.status.success() && stderr(&output).is_empty(), "{ranks} ranks: {}", stderr(&output));
        assert_same_run(&one, &out, 16);
    }
}

/// The results of tasks and of a text, and what one of the ranks prints of them.
#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn any_number_of_ranks_evaluates_alike() {
    let dir = memory_dir();
    let fixtures = root().join("tests/fixtures/eval");
    let (model, data, text) = (fixtures.join("model"), fixtures.join("data"), dir.path().join("text.txt"));
    // More windows than are scored at a time: several batches.
    std::fs::write(&text, "The river ran over 12 stones, and nobody saw it. ".repeat(400)).unwrap();
    let evaluate = |ranks: usize| {
        let out = dir.path().join(format!("{ranks}.json"));
        let tasks = ["eval", "--ckpt", arg(&model), "--tasks", "piqa,wikitext", "--data-dir", arg(&data), "-q"];
        let more = ["--data", arg(&text), "--output", arg(&out), "--log-samples"];
        let args = [&tasks[..], &more].concat();
        let output = if ranks == 1 { ok(&args) } else { program_on_ranks(ranks, &args).output().unwrap() };
        assert!(output.status.success() && stderr(&output).is_empty(), "{ranks} ranks: {}", stderr(&output));
        (stdout(&output), std::fs::read_to_string(&out).unwrap())
    };
    let one = evaluate(1);
    assert!(one.0.contains("bits per byte") && one.1.contains("word_perplexity"), "{}", one.0);
    for ranks in [2, 4] {
        assert!(evaluate(ranks) == one, "{ranks} ranks");
    }
    let absent = dir.path().join("absent");
    let args = ["eval", "--ckpt", arg(&absent), "--data", arg(&text)];
    let alone = program(&args).output().unwrap();
    let said = fails_with(&program_on_ranks(2, &args).output().unwrap(), alone.status.code().unwrap());
    assert_eq!(said, stderr(&alone));
}

/// What a user sees of ranks: at the start, in the events, in the times of steps and in the report; and that fewer of them later are a
/// change of speed alone.
#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn ranks_are_shown_in_summary_events_and_report() {
    let dir = memory_dir();
    let config = four_lanes(dir.path(), 16);
    let run = dir.path().join("run");
    let output = program_on_ranks(4, &["pretrain", "--config", arg(&config), "--out", arg(&run)]).output().unwrap();
    assert_eq!(stderr(&output).matches("\n4 ranks, 4 lanes\n").count(), 1, "{}", stderr(&output));
    let events = crate::support::records(&run.join("events.jsonl"));
    let of_kind = |kind: &str| events.iter().find(|event| event["kind"] == kind).unwrap();
    let ranks = of_kind("ranks");
    assert_eq!((ranks["ranks"].as_u64(), ranks["members"].as_array().unwrap().len()), (Some(4), 4));
    // All gradients of 16 steps at least: so small a model belongs to one rank, and another half is that rank's to send.
    let least = 16 * ranks["bytes_per_step"].as_u64().unwrap() * 2 / 3;
    let sent = of_kind("finish")["bytes_sent"].as_u64().unwrap();
    assert!((least..3 * least).contains(&sent), "{sent} {least}");
    let times = crate::support::records(&run.join("times.jsonl"));
    assert_eq!(times.iter().filter(|times| times["seconds"].get("exchange").is_some()).count(), 16);
    let resume = ["resume", "--ckpt", arg(&run), "--set", "train.steps=20"];
    let said = stderr(&program_on_ranks(2, &resume).output().unwrap());
    assert!(said.contains("note: the number of ranks was 4, is 2: that changes the speed alone"), "{said}");
    assert!(!said.contains("bit-exactness") && said.contains("\n2 ranks, 4 lanes\n"), "{said}");
    let report = stdout(&ok(&["report", arg(&run), "--text"]));
    for part in ["exchange ", "ranks 4, lanes 4", "(4 x cpu)", "ranks 4 → 2", "affects the speed alone, no bits"] {
        assert!(report.contains(part), "{part}: {report}");
    }
}

/// A request to stop that reaches one rank stops all of them after the same step.
#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_signal_to_one_rank_stops_all_and_others_go_on() {
    let dir = memory_dir();
    let config = four_lanes(dir.path(), 80);
    let whole = dir.path().join("whole");
    let parts = dir.path().join("parts");
    ok(&["pretrain", "--config", arg(&config), "--out", arg(&whole), "-q"]);
    let stopped = start(program_on_ranks(2, &["pretrain", "--config", arg(&config), "--out", arg(&parts)]));
    signal("TERM", processes_after(&parts, 5)[1]);
    let output = stopped.wait_with_output().unwrap();
    let said = fails_with(&output, 75);
    assert_eq!(said.matches("all saved").count(), 1, "one rank speaks: {said}");
    let resumed = program_on_ranks(4, &["resume", "--ckpt", arg(&parts), "-q"]).output().unwrap();
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    assert_same_run(&whole, &parts, 80);
}

/// A rank that is killed ends the others at once, and what was saved goes on with any number of them.
#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_killed_rank_ends_all() {
    let dir = memory_dir();
    let config = four_lanes(dir.path(), 80);
    let whole = dir.path().join("whole");
    let parts = dir.path().join("parts");
    ok(&["pretrain", "--config", arg(&config), "--out", arg(&whole), "-q"]);
    let mut command = program_on_ranks(4, &["pretrain", "--config", arg(&config), "--out", arg(&parts), "-q"]);
    for (ranks, victim) in [(4, 3), (2, 0), (4, 1)] {
        let taken =
            std::fs::read_to_string(parts.join("metrics.jsonl")).map_or(0, |text| text.matches("\"train\"").count());
        let child = start(command);
        let processes = processes_after(&parts, taken.min(40) + 9);
        signal("KILL", processes[victim]);
        let killed = Instant::now();
        assert!(!child.wait_with_output().unwrap().status.success());
        assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
        assert!(!processes.iter().any(|&process| is_alive(process)), "a rank is left behind");
        command = program_on_ranks(if ranks == 4 { 2 } else { 4 }, &["resume", "--ckpt", arg(&parts), "-q"]);
    }
    ok(&["resume", "--ckpt", arg(&parts), "-q"]);
    assert_same_run(&whole, &parts, 80);
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn ranks_that_do_not_fit_are_refused_before_anything_is_made() {
    let dir = memory_dir();
    let config = four_lanes(dir.path(), 8);
    let out = dir.path().join("run");
    let args = ["pretrain", "--config", arg(&config), "--out", arg(&out)];
    let said = fails_with(&program_on_ranks(8, &args).output().unwrap(), 78);
    assert!(
        said.contains("8 ranks cannot share out train.lanes = 4") && said.contains("--set train.lanes=8"),
        "{said}"
    );
    assert!(!out.exists());
    // Two programs in one launch, of which one has another learning rate.
    let mut command = program_on_ranks(1, &args);
    command.args([":", "-n", "1", env!("CARGO_BIN_EXE_llama-lite")]).args(args).args(["--set", "optimizer.lr=0.5"]);
    let said = fails_with(&command.output().unwrap(), 78);
    assert!(said.contains("rank 1 (host ") && said.contains("the configuration"), "{said}");
    assert!(!out.exists());
    let mut alone = program(&args);
    assert!(alone.output().unwrap().status.success());
    let said = fails_with(
        &program_on_ranks(8, &["resume", "--ckpt", arg(&out), "--set", "train.steps=9"]).output().unwrap(),
        78,
    );
    assert!(said.contains("use 1, 2 or 4 of them"), "{said}");
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_launcher_of_mpi_starts_the_program() {
    let output = program_on_ranks(2, &["--version"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).matches(llama_lite::VERSION).count(), 2, "{}", stdout(&output));
}

#[test]
fn without_a_package_index_the_script_for_mpi_says_so_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = Command::new(root().join("scripts/mpi.sh"));
    // A port at which nobody listens; whatever the machine's settings name as further indices is left out.
    script.arg(dir.path().join("mpi")).env("PIP_CONFIG_FILE", "/dev/null").env("PIP_INDEX_URL", "http://127.0.0.1:9/");
    let output = script.env_remove("PIP_EXTRA_INDEX_URL").env_remove("PIP_FIND_LINKS").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.starts_with("error: ") && said.contains("hint: ") && said.lines().count() == 1, "{said}");
    assert!(!dir.path().join("mpi/package").exists() && !dir.path().join("mpi/bin").exists());
}
