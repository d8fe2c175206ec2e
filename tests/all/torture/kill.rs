//! SIGKILL at random moments: of training, resumed until it ends, and of the commands that read a run or prepare data.

use super::subject::{Running, Subject, announced, begins, contents, copy_tree, reached, resume, saved, trained};
use super::{count, draws, figures};
use crate::sft::{Bench, logged};
use crate::support::{arg, checkpoint, program, root};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Tally {
    runs: usize,
    kills: usize,
    /// Kills after the attempt had logged a step of its own.
    in_training: usize,
    /// Most steps that a kill has cost.
    most_lost: u64,
    /// Kills that have cost more than the steps between two checkpoints.
    beyond: usize,
}

/// A moment within `length`, every one as likely.
fn moment(draw: &mut ChaCha8Rng, length: Duration) -> Duration {
    length.mul_f64(draw.random_range(0.0..1.0))
}

/// Starts or resumes the run, kills it after `after`, and judges what the kill cost. False if the run had ended by then. Of five kills,
/// four are in training, however long this machine takes to get there.
fn attempt(subject: &Subject, out: &Path, after: Duration, tally: &mut Tally) -> bool {
    let (had, begun, acknowledged) = (reached(out), begins(out).len(), announced(out).into_iter().max());
    let mut running = Running::start(&mut subject.go_on(out));
    if !tally.kills.is_multiple_of(5) {
        running.wait_until(|| begins(out).get(begun).is_some_and(|&from| reached(out) > from));
    }
    std::thread::sleep(after);
    let killed = running.kill();
    let steps = trained(out);
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>(), "the log of {}", out.display());
    let begins = begins(out);
    if begins.len() > begun {
        let from = begins[begun];
        let lost = had.saturating_sub(from);
        // A save in the background may be a whole interval behind the steps.
        assert!(lost <= 2 * subject.every, "{}: {had} steps were logged, it went on from {from}", out.display());
        assert!(
            acknowledged <= Some(from),
            "{}: {acknowledged:?} was announced, it went on from {from}",
            out.display()
        );
        tally.most_lost = tally.most_lost.max(lost);
        tally.beyond += usize::from(lost > subject.every);
        tally.in_training += usize::from(killed && steps.last() > Some(&from));
    }
    tally.kills += usize::from(killed);
    killed
}

#[test]
fn random_kills() {
    const SEED: u64 = 1;
    let settings = ["eval.every=30", "sample.every=50", "checkpoint.keep=3"];
    let subject = Subject::new(count(200, 300) as u64, 10, &settings);
    let (wanted, mut draw, mut tally) = (count(15, 200), draws(SEED), Tally::default());
    let out = subject.path("killed");
    while tally.kills < wanted {
        // Of a run that was there: this one begins from nothing again.
        let _ = std::fs::remove_dir_all(&out);
        tally.runs += 1;
        while tally.kills < wanted && attempt(&subject, &out, moment(&mut draw, subject.length), &mut tally) {}
        subject.finish(&out);
    }
    let share = 100.0 * tally.in_training as f64 / wanted as f64;
    let retained = resume_each(&subject, &out);
    let Tally { runs, kills, most_lost, beyond, .. } = tally;
    figures(
        "resume",
        "random_kills",
        &format!(
            "{kills} kills in {runs} runs of {:.2} s, all equal; {share:.0} % after a step, at most {most_lost} steps lost (checkpoints \
             every {}; more than that in {beyond}); {retained} retained checkpoints resumed, all equal; seed {SEED}",
            subject.length.as_secs_f64(),
            subject.every
        ),
    );
    assert!(share >= 80.0, "only {share} % of the kills came after a step");
}

/// Each checkpoint that is left, resumed on purpose, leads to the same end. How many there are.
fn resume_each(subject: &Subject, out: &Path) -> usize {
    let steps = saved(out);
    assert_eq!(steps.len(), 3, "{steps:?}");
    for step in &steps {
        let copy = subject.path(&format!("from-{step}"));
        copy_tree(out, &copy);
        Running::start(&mut resume(&checkpoint(&copy, *step))).ends_well();
        subject.assert_same(&copy);
    }
    steps.len()
}

/// Runs `command` with `output` as its result, again and again, killed at a random moment; whatever is there under the name of the
/// result is then the whole of it. Returns how many kills found it unfinished.
fn kill_reader(seed: u64, command: &dyn Fn() -> Command, output: &Path, others: &Path) -> usize {
    let result =
        || -> Vec<Vec<u8>> { if output.is_file() { vec![std::fs::read(output).unwrap()] } else { files_of(output) } };
    let begun = Instant::now();
    Running::start(&mut command()).ends_well();
    let (length, want, untouched) = (begun.elapsed(), result(), contents(others));
    assert!(!want.is_empty());
    let (mut draw, mut unfinished) = (draws(seed), 0);
    for n in 0..count(4, 20) {
        remove(output);
        let running = Running::start(&mut command());
        // The first one at once: however busy the machine, there is no result yet.
        std::thread::sleep(if n == 0 { Duration::ZERO } else { moment(&mut draw, length) });
        running.kill();
        unfinished += usize::from(!output.exists());
        assert!(!output.exists() || result() == want, "half of {}", output.display());
        assert!(contents(others) == untouched, "the run that was read has changed");
    }
    remove(output);
    Running::start(&mut command()).ends_well();
    assert!(result() == want, "{} differs after kills", output.display());
    unfinished
}

fn files_of(dir: &Path) -> Vec<Vec<u8>> {
    contents(dir).into_values().collect()
}

fn remove(path: &Path) {
    if path.is_dir() {
        std::fs::remove_dir_all(path).unwrap();
    } else if path.exists() {
        std::fs::remove_file(path).unwrap();
    }
}

/// Some 60 kB of English: enough text that a kill comes while it is read.
fn prose() -> String {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    readme.repeat(60_000 / readme.len() + 1)
}

#[test]
fn kills_of_commands_that_read_a_run() {
    let subject = Subject::new(8, 4, &[]);
    let (report, model, text) = (subject.path("report.json"), subject.path("model"), subject.path("text.txt"));
    std::fs::write(&text, prose().repeat(8)).unwrap();
    let eval = || program(&["eval", "--ckpt", arg(&subject.whole), "--data", arg(&text), "--output", arg(&report)]);
    let export = || program(&["export", "--ckpt", arg(&subject.whole), "--out", arg(&model)]);
    let in_eval = kill_reader(2, &eval, &report, &subject.whole);
    let in_export = kill_reader(3, &export, &model, &subject.whole);
    let kills = count(4, 20);
    figures(
        "resume",
        "kills_of_readers",
        &format!(
            "{kills} kills of eval ({in_eval} before its end), {kills} of export ({in_export}): results whole or absent; seeds 2, 3"
        ),
    );
    assert!(in_eval > 0 && in_export > 0, "no kill came in time");
}

/// Until it has finished, a prepared directory is none; once it has, it holds the bytes of an undisturbed one.
#[test]
fn kills_of_preparation() {
    const SEED: u64 = 4;
    let dir = tempfile::tempdir().unwrap();
    let (text, straight, out) = (dir.path().join("text"), dir.path().join("straight"), dir.path().join("killed"));
    std::fs::create_dir(&text).unwrap();
    let prose = prose();
    (0..count(300, 900)).for_each(|i| std::fs::write(text.join(format!("{i}.txt")), format!("{i} {prose}")).unwrap());
    let prepare = |out: &Path| {
        let mut command = program(&["data", "prepare", "--input", arg(&text), "--tokenizer", "gpt2"]);
        command.args(["--shard-tokens", "100000", "--quiet", "--out"]).arg(out);
        command
    };
    let begun = Instant::now();
    Running::start(&mut prepare(&straight)).ends_well();
    let (length, mut draw, mut kills, mut unfinished) = (begun.elapsed(), draws(SEED), 0, 0);
    let bytes = |dir: &Path| -> Vec<_> {
        let found = contents(dir).into_iter().map(|(path, bytes)| (path.strip_prefix(dir).unwrap().to_owned(), bytes));
        found.filter(|(name, _)| name.extension().is_none_or(|e| e != "lock")).collect()
    };
    while kills < count(4, 20) || unfinished == 0 {
        assert!(kills < 100, "no kill came in time");
        remove(&out);
        while (kills < count(4, 20) || unfinished == 0) && !out.join("shards.json").exists() {
            let mut running = Running::start(&mut prepare(&out));
            if kills.is_multiple_of(2) {
                running.wait_until(|| out.exists());
            }
            std::thread::sleep(moment(&mut draw, length));
            kills += usize::from(running.kill());
            if out.exists() && !out.join("shards.json").exists() {
                unfinished += 1;
                let verdict = Running::start(&mut program(&["data", "verify", arg(&out)])).end();
                assert!(!verdict.status.success(), "an unfinished directory passes as a finished one");
            }
        }
        if !out.join("shards.json").exists() {
            Running::start(&mut prepare(&out)).ends_well();
        }
        assert!(bytes(&out) == bytes(&straight), "{} differs", out.display());
    }
    figures(
        "resume",
        "kills_of_preparation",
        &format!("{kills} kills, {unfinished} left a directory that is refused; finished ones equal; seed {SEED}"),
    );
}

/// Fine-tuning of both kinds, killed until it ends: the same logs and tensors.
#[test]
fn kills_of_fine_tuning() {
    const SEED: u64 = 4;
    let bench = Bench::new();
    let more = ["--set", "train.steps=40", "--set", "sft.epochs=1"];
    let (mut draw, wanted, mut kills, mut runs) = (draws(SEED), count(4, 20), 0, 0);
    for (config, tensors) in [("lora.toml", "adapter_model.safetensors"), ("full.toml", "model.safetensors")] {
        let start = |out: &Path| {
            let args = bench.args(config, "records.json", &[&more[..], &["--out", arg(out)]].concat());
            program(&args.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let whole = bench.path(&format!("whole-{config}"));
        let begun = Instant::now();
        Running::start(&mut start(&whole)).ends_well();
        let (length, out) = (begun.elapsed(), bench.path(&format!("killed-{config}")));
        let mine = kills + wanted.div_ceil(2);
        loop {
            let is_run = out.join("config.toml").exists();
            let mut command = if is_run { program(&["resume", "--ckpt", arg(&out)]) } else { start(&out) };
            let running = Running::start(&mut command);
            if kills >= mine {
                running.ends_well();
                break;
            }
            std::thread::sleep(moment(&mut draw, length));
            if running.kill() {
                kills += 1;
            } else {
                runs += 1;
                remove(&out); // it had ended: once more
            }
        }
        assert_eq!(logged(&whole), logged(&out), "{config}");
        for file in [tensors, "optimizer.safetensors"] {
            let read = |run: &Path| std::fs::read(run.join("checkpoints/step-00000040").join(file)).unwrap();
            assert!(read(&whole) == read(&out), "{config}: {file}");
        }
    }
    figures(
        "resume",
        "kills_of_fine_tuning",
        &format!(
            "{kills} kills of sft and its resumes ({runs} ended before), adapters and whole models: all equal; seed {SEED}"
        ),
    );
}
