//! The schedule that is shown is the schedule that runs, over every continuation; and a run goes on with the configuration that it
//! stores.

use crate::support::{
    TINY, arg, assert_same_checkpoint, checkpoint, config, fails, ok, pretrain, program, records, stderr, stdout,
};
use llama_lite::config::Config;
use llama_lite::train::schedule::Schedule;
use std::path::Path;

/// The rates of a run's steps, as logged.
fn rates(run: &Path) -> Vec<f64> {
    let records = records(&run.join("metrics.jsonl"));
    records.iter().filter(|r| r["kind"] == "train").map(|r| r["lr"].as_f64().unwrap()).collect()
}

/// Demands that config.toml says the rates of all steps after `step`, and that `plan` shows the same.
fn assert_shown(run: &Path, step: usize) {
    let config = Config::load(&run.join("config.toml"), &[]).unwrap();
    let schedule = Schedule::new(&config.schedule, config.optimizer.lr).unwrap();
    let ran = rates(run);
    let shown: Vec<f64> = (0..ran.len() as u64).map(|it| schedule.lr(it)).collect();
    assert_eq!(ran[step..], shown[step..]);
    let planned: Vec<f64> = llama_lite::inspect::plan::rates(&config).unwrap().iter().map(|point| point.1).collect();
    assert_eq!(planned, shown);
}

/// The first argument of `--set` in the hint of a message.
fn setting(message: &str) -> &str {
    let hint = message.split("hint:").nth(1).unwrap();
    hint.split("--set ").nth(1).unwrap().split([' ', ':', ',']).next().unwrap()
}

#[test]
fn a_continuation_that_cannot_learn_is_refused_with_the_line_that_works() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["schedule.kind=cosine", "schedule.kind=linear", "schedule.kind=wsd"] {
        let run = pretrain(dir.path(), &kind[14..], &[kind, "schedule.min_lr=0", "sample.every=0"]);
        let before = std::fs::read_to_string(run.join("config.toml")).unwrap();
        let longer = ["resume", "--ckpt", arg(&run), "--set", "train.steps=16"];
        let message = fails(&longer, 78);
        assert!(message.contains("learning rate is 0 in all of steps 13 to 16"), "{message}");
        assert_eq!(
            std::fs::read_to_string(run.join("config.toml")).unwrap(),
            before,
            "a refused resume writes nothing"
        );
        // A finished run says so, too.
        let said = stderr(&ok(&["resume", "--ckpt", arg(&run)]));
        let key = setting(&message).split('=').next().unwrap();
        assert!(said.contains(&format!("--set train.steps=N --set {key}=N")), "{said}");
        // Branches are refused before the first is made, in their own words.
        let out = dir.path().join(format!("{}-forks", &kind[14..]));
        let fork = ["fork", arg(&run), "--steps", "4", "--out", arg(&out)];
        let hot =
            [&fork[..], &["--branch", "hot: optimizer.lr=2e-2, schedule.min_lr=1e-3", "--branch", "exact"]].concat();
        let message = fails(&hot, 78);
        let branch = message.split("--branch '").nth(1).unwrap().split('\'').next().unwrap();
        assert!(message.contains("branch exact: the learning rate is 0") && !out.exists(), "{message}");
        ok(&[&fork[..], &["--branch", branch]].concat());
        assert!(rates(&out.join("exact"))[12..].iter().all(|rate| *rate > 0.0));
        let message = fails(&longer, 78);
        ok(&[&longer[..], &["--set", setting(&message)]].concat());
        assert!(rates(&run)[12..].iter().all(|rate| *rate > 0.0), "{:?}", rates(&run));
        assert_shown(&run, 12);
    }
}

/// Before its tail begins a wsd run can be made longer without a trace; after that its rates stay what they are.
#[test]
fn the_tail_of_a_longer_run_moves_while_it_has_not_begun() {
    let dir = tempfile::tempdir().unwrap();
    let wsd = ["schedule.kind=wsd", "schedule.decay_steps=3", "sample.every=0"];
    let planned = pretrain(dir.path(), "planned", &[&wsd[..], &["train.steps=20"]].concat());
    let run = pretrain(dir.path(), "run", &wsd);
    let short = rates(&run);
    let said = stderr(&ok(&["resume", "--ckpt", arg(&checkpoint(&run, 8)), "--set", "train.steps=20"]));
    assert!(said.contains("the tail ends after 20 steps, not 12"), "{said}");
    assert_eq!(rates(&run), rates(&planned));
    assert_same_checkpoint(&checkpoint(&run, 20), &checkpoint(&planned, 20));
    assert_shown(&run, 0);
    // Again, through a resume that changes nothing.
    ok(&["resume", "--ckpt", arg(&checkpoint(&run, 16))]);
    assert_same_checkpoint(&checkpoint(&run, 20), &checkpoint(&planned, 20));
    // Past its tail, or within it, the run stays at its least rate, and says so.
    for (name, from) in [("past", 12), ("within", 8)] {
        let decay = if name == "within" { 6 } else { 3 };
        let run = pretrain(dir.path(), name, &[wsd[0], wsd[2], &format!("schedule.decay_steps={decay}")]);
        let before = rates(&run);
        let said = stderr(&ok(&["resume", "--ckpt", arg(&checkpoint(&run, from)), "--set", "train.steps=16"]));
        assert!(said.contains("at its least, 0.001, from step 13 to the end at step 16"), "{said}");
        assert!(said.contains("schedule.total_steps=16"), "{said}");
        assert_eq!(rates(&run), [before, vec![1e-3; 4]].concat());
        assert_shown(&run, 0);
    }
    // A branch that ends earlier is the run itself as far as it goes.
    let (out, again) = (dir.path().join("forks"), pretrain(dir.path(), "again", &wsd));
    ok(&["fork", arg(&checkpoint(&again, 4)), "--steps", "3", "--branch", "exact", "--out", arg(&out)]);
    assert_eq!(rates(&out.join("exact")), short[..7]);
}

#[test]
fn another_learning_rate_neither_stretches_the_schedule_nor_forgets_where_it_started() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["cosine", "wsd"] {
        let kind_set = format!("schedule.kind={kind}");
        let run = pretrain(dir.path(), kind, &[&kind_set, "sample.every=0"]);
        // A longer run, then another rate: the end of the schedule stays.
        ok(&["resume", "--ckpt", arg(&run), "--set", "train.steps=16"]);
        ok(&["resume", "--ckpt", arg(&run), "--set", "train.steps=20", "--set", "optimizer.lr=2e-2"]);
        assert_eq!(rates(&run)[12..], [1e-3; 8]);
        assert_shown(&run, 16);
        // Anew at step 20, then another rate: the warm-up of two steps is over, and nothing jumps.
        ok(&["resume", "--ckpt", arg(&run), "--reset", "schedule", "--set", "train.steps=24"]);
        assert_eq!(rates(&run)[20..22], [1e-2, 2e-2]);
        ok(&["resume", "--ckpt", arg(&run), "--set", "train.steps=28", "--set", "optimizer.lr=4e-2"]);
        assert_shown(&run, 24);
        let rates = rates(&run);
        let steady = if kind == "wsd" { 4e-2 } else { 2e-2 };
        assert!(rates[24] > steady * 0.9, "{rates:?}");
    }
}

/// The lengths of another kind of schedule are not those of this one.
#[test]
fn another_kind_gets_lengths_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["sample.every=0"]);
    ok(&["resume", "--ckpt", arg(&checkpoint(&run, 4)), "--set", "schedule.kind=wsd"]);
    assert!(rates(&run)[4..11].iter().all(|rate| (rate / 1e-2 - 1.0).abs() < 1e-9), "{:?}", rates(&run));
    assert_shown(&run, 4);
    ok(&["resume", "--ckpt", arg(&checkpoint(&run, 8)), "--set", "schedule.kind=cosine"]);
    assert!(rates(&run)[8] < 1e-2);
    assert_shown(&run, 8);
}

#[test]
fn every_start_says_where_its_rates_end() {
    let dir = tempfile::tempdir().unwrap();
    let run = pretrain(dir.path(), "run", &["schedule.min_lr=0", "sample.every=0"]);
    // The stored configuration of a run, given to a longer one.
    let file = run.join("config.toml");
    let (file, out) = (arg(&file), dir.path().join("longer"));
    let longer = ["--config", file, "--set", "train.steps=16"];
    let what = "the learning rate is 0 from step 13 to the end at step 16";
    let said = stderr(&ok(&[&["pretrain", "--out", arg(&out)][..], &longer[..]].concat()));
    assert!(said.contains(&format!("warning: {what}")) && said.contains("schedule.decay_steps=16"), "{said}");
    assert_shown(&out, 0);
    for command in [&["plan"][..], &["pretrain", "--print-config"][..]] {
        let said = stdout(&ok(&[command, &longer[..]].concat()));
        assert!(said.contains(what), "{said}");
    }
    // A warm-up that the run does not live to see.
    for kind in ["constant", "cosine"] {
        let sets =
            [&format!("schedule.kind={kind}"), "schedule.warmup_steps=40", "schedule.decay_steps=60", "train.steps=2"];
        let file = config(dir.path(), TINY);
        let mut args = vec!["pretrain", "--config", arg(&file), "--out", kind, "--print-config"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        assert!(stdout(&ok(&args)).contains("the warm-up of 40 steps is not over"), "{kind}");
    }
    // A schedule that started anew in the middle of a run is no schedule of a new one.
    ok(&["resume", "--ckpt", arg(&checkpoint(&run, 4)), "--reset", "schedule"]);
    let again = dir.path().join("again");
    let args = ["pretrain", "--config", file, "--out", arg(&again)];
    let message = fails(&args, 78);
    assert!(message.contains("schedule.start_step is 4") && !again.exists(), "{message}");
    ok(&[&args[..], &["--set", setting(&message)]].concat());
}

/// Whatever makes a new seed makes one that the next resume reads, and that all of the run goes on with.
#[test]
fn a_run_with_another_seed_goes_on_as_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ["train.seed=5", "optimizer.moments=bf16", "schedule.decay_steps=12", "sample.every=0"];
    let whole = pretrain(dir.path(), "whole", &sets);
    let parts = pretrain(dir.path(), "parts", &sets);
    ok(&["resume", "--ckpt", arg(&checkpoint(&whole, 4)), "--reset", "rng"]);
    ok(&["resume", "--ckpt", arg(&checkpoint(&parts, 4)), "--reset", "rng", "--set", "train.steps=8"]);
    ok(&["resume", "--ckpt", arg(&parts), "--set", "train.steps=12"]);
    assert_same_checkpoint(&checkpoint(&whole, 12), &checkpoint(&parts, 12));
    let said = stdout(&ok(&["resume", "--ckpt", arg(&checkpoint(&whole, 8)), "--verify", "4"]));
    assert!(said.starts_with("PASS"), "{said}");
    let file = whole.join("config.toml");
    ok(&["plan", "--config", arg(&file)]);
    ok(&["why", arg(&whole), "--step", "9"]);
    ok(&[
        "fork",
        arg(&checkpoint(&whole, 8)),
        "--steps",
        "2",
        "--branch",
        "a",
        "--out",
        arg(&dir.path().join("forks")),
    ]);
}

/// A path is made absolute wherever it enters: the next resume may come from another directory.
#[test]
fn relative_paths_of_resumes_and_branches_are_found_from_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let story = "Once there was a small fox who liked to sing to the moon. It sang all night.\n".repeat(60);
    for name in ["a.txt", "b.txt"] {
        std::fs::write(dir.path().join(name), &story).unwrap();
    }
    let text = TINY.replace("source = \"stories\"", "train = [\"a.txt\"]").replace("stories = 60\nval_stories = 8", "");
    std::fs::write(dir.path().join("text.toml"), text).unwrap();
    let here = |args: &[&str]| {
        let output = program(args).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    };
    here(&["pretrain", "--config", "text.toml", "--out", "run", "--set", "sample.every=0", "--set", "train.steps=8"]);
    here(&[
        "resume",
        "--ckpt",
        "run/checkpoints/step-00000004",
        "--set",
        "data.train=[\"b.txt\"]",
        "--set",
        "data.val=[\"a.txt\"]",
        "--set",
        "data.allow_change=true",
    ]);
    here(&["fork", "run", "--steps", "2", "--out", "forks", "--branch", "x: data.val=[\"b.txt\"]"]);
    for run in ["run", "forks/x"] {
        let run = dir.path().join(run);
        let stored = std::fs::read_to_string(run.join("config.toml")).unwrap();
        assert!(!stored.contains("\"a.txt\"") && !stored.contains("\"b.txt\""), "{stored}");
        ok(&["resume", "--ckpt", arg(&run), "--set", "train.steps=12"]);
    }
}

/// Runs that share a past are no seeds of each other.
#[test]
fn a_copy_or_a_branch_of_a_run_is_no_other_seed() {
    let dir = tempfile::tempdir().unwrap();
    let runs = [("one", "train.seed=1"), ("two", "train.seed=2"), ("three", "data.seed=3")]
        .map(|(name, seed)| pretrain(dir.path(), name, &[seed, "sample.every=0", "data.allow_change=true"]));
    let copy = dir.path().join("copy");
    assert!(std::process::Command::new("cp").arg("-r").args([&runs[0], &copy]).status().unwrap().success());
    let out = dir.path().join("forks");
    let branches = ["--branch", "exact", "--branch", "other: data.seed=9"];
    ok(&[&["fork", arg(&checkpoint(&runs[0], 8)), "--steps", "4", "--out", arg(&out)][..], &branches].concat());
    let page = dir.path().join("page.html");
    let replicas = |runs: &[&Path]| {
        let mut args = vec!["report", "--out", arg(&page)];
        args.extend(runs.iter().map(|run| arg(run)));
        ok(&args);
        let text = std::fs::read_to_string(&page).unwrap();
        text.split("\"replicas\":").nth(1).unwrap().split(']').next().unwrap().to_owned()
    };
    let (exact, other) = (out.join("exact"), out.join("other"));
    assert_eq!(replicas(&[&runs[0], &copy, &exact, &other]), "[");
    assert_eq!(replicas(&[&runs[0], &copy, &runs[1], &exact, &other, &runs[2]]), "[[0,2,5");
}

/// What a run cannot do without decides what fits, for the table, the proposal and the run itself.
#[test]
fn the_proposal_is_the_largest_of_the_table_that_fits() {
    for limit in [36.0, 40.0, 60.0, 80.0] {
        let fit = format!("{limit}GB");
        let said = stdout(&ok(&["plan", "--device", "cpu", "--config", "configs/llama-1.7b.toml", "--fit", &fit]));
        let table = said.lines().filter_map(|line| line.trim().strip_prefix("micro-batch ")).map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[0].parse::<u64>().unwrap(), words[1].parse::<f64>().unwrap())
        });
        let largest = table.filter(|(_, gb)| *gb <= limit).map(|(micro, _)| micro).max().unwrap();
        let proposed = said.split("train.micro_batch_size = ").nth(1).unwrap().split(',').next().unwrap();
        let proposed: u64 = proposed.parse().unwrap();
        assert!(proposed == largest || (largest == 64 && proposed > 64), "{limit}: {said}");
    }
}

/// A learning rate that is far too high is reported in the first steps, when the deviation of a loss is not known yet.
#[test]
fn an_exploding_run_is_reported_from_its_first_steps() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), TINY);
    let out = dir.path().join("run");
    let sets = ["--set", "optimizer.lr=50", "--set", "schedule.warmup_steps=0", "--set", "sample.every=0"];
    let said = stderr(&ok(&[&["pretrain", "--config", arg(&file), "--out", arg(&out)][..], &sets].concat()));
    assert!(said.contains("warning: step 2: loss") && said.contains("times the largest so far"), "{said}");
    let events = records(&out.join("events.jsonl"));
    assert!(events.iter().any(|event| event["kind"] == "spike" && event["step"] == 2), "{events:?}");
}
