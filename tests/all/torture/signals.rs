//! Requests to stop and to save, at moments of their own choosing.

use super::subject::{Ended, Running, Subject, announced, begins, metrics, reached, saved, signal};
use super::{count, draws, figures};
use rand::Rng;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A step, a save and a second: what a request to stop may take here.
const PROMPT: Duration = Duration::from_secs(2);

/// A run of a second or a few, most of it steps and saves.
fn subject() -> Subject {
    Subject::new(count(1500, 3000) as u64, 100, &["eval.every=250", "sample.every=400"])
}

/// Whether the request ended the run as promised: exit 75 with the way to go on. False if the run had ended before.
fn stopped(ended: &Ended) -> bool {
    if ended.status.success() {
        return false;
    }
    assert_eq!(ended.code(), 75, "{}", ended.stderr);
    assert!(ended.stderr.contains("resume --ckpt"), "{}", ended.stderr);
    true
}

/// Demands that the attempt that began last went on exactly where the log of the one before ended.
fn assert_nothing_lost(out: &Path, had: u64) {
    assert_eq!(begins(out).last(), Some(&had), "steps of {} were lost", out.display());
}

#[derive(Default)]
struct Tally {
    signals: usize,
    stops: usize,
    /// Before training had begun.
    early: usize,
    slowest: Duration,
}

/// Starts or resumes the run and sends `name` after `after`. False if the run had ended by then.
fn interrupt(subject: &Subject, out: &Path, name: &str, after: Duration, tally: &mut Tally) -> bool {
    let (had, begun) = (reached(out), begins(out).len());
    let mut running = Running::start(&mut subject.go_on(out));
    if !tally.signals.is_multiple_of(3) {
        // In training, however long this machine takes to get there.
        running.wait_until(|| begins(out).get(begun).is_some_and(|&from| reached(out) > from));
    }
    std::thread::sleep(after);
    if running.has_ended() {
        running.ends_well();
        return false;
    }
    let resumable = out.join("config.toml").exists();
    let sent = Instant::now();
    running.signal(name);
    let ended = running.end();
    let took = sent.elapsed();
    tally.signals += 1;
    tally.slowest = tally.slowest.max(took);
    assert!(took < PROMPT, "{name}: {took:?} to stop");
    if begins(out).len() > begun {
        assert_eq!(begins(out)[begun], had, "steps of {} were lost", out.display());
    }
    if ended.status.success() {
        return false;
    }
    if !resumable && [128 + 1, 128 + 2, 128 + 15].contains(&ended.code()) {
        tally.early += 1;
        return true;
    }
    if ended.code() == 75 && begins(out).len() == begun {
        tally.early += 1; // a resume that had not begun: there was nothing new to save, and nothing to say
        return true;
    }
    assert_eq!(ended.code(), 75, "{name} after {after:?}, with a run that can be resumed: {}", ended.stderr);
    tally.stops += usize::from(stopped(&ended));
    true
}

#[test]
fn random_signals() {
    const SEED: u64 = 8;
    let subject = subject();
    let (wanted, mut draw, mut tally, mut runs) = (count(8, 50), draws(SEED), Tally::default(), 0);
    let out = subject.path("stopped");
    while tally.signals < wanted {
        let _ = std::fs::remove_dir_all(&out);
        runs += 1;
        let mut on = true;
        while on && tally.signals < wanted {
            let name = ["TERM", "INT", "HUP"][tally.signals % 3];
            let after = subject.length.mul_f64(draw.random_range(0.0..1.0));
            on = interrupt(&subject, &out, name, after, &mut tally);
        }
        let had = reached(&out);
        let ended = had == subject.steps;
        subject.finish(&out);
        if !ended {
            assert_nothing_lost(&out, had);
        }
    }
    let Tally { signals, stops, early, slowest } = tally;
    figures(
        "signals",
        "random_signals",
        &format!(
            "{signals} signals in {runs} runs: {stops} exits 75 without a step lost, {early} before training began, the others at its \
             end; slowest {:.2} s; all equal; seed {SEED}",
            slowest.as_secs_f64()
        ),
    );
    assert!(stops * 2 > signals, "{stops} of {signals} signals stopped a run");
}

/// A run that has announced a checkpoint and is at a random moment after it.
fn under_way(subject: &Subject, out: &Path, share: f64) -> Running {
    let mut running = Running::start(&mut subject.pretrain(out));
    assert!(running.wait_until(|| !announced(out).is_empty()), "it ended too soon");
    std::thread::sleep(subject.length.mul_f64(share));
    running
}

#[test]
fn a_second_interrupt() {
    const SEED: u64 = 9;
    let subject = subject();
    let (mut trials, mut draw, mut at_once) = (0, draws(SEED), 0);
    while trials < count(4, 30) || at_once == 0 {
        assert!(trials < 100, "the second signal never came in time");
        let trial = trials;
        trials += 1;
        let out = subject.path(&format!("interrupted-{trial}"));
        let mut running = under_way(&subject, &out, draw.random_range(0.0..0.5));
        running.signal("INT");
        std::thread::sleep(Duration::from_micros(draw.random_range(0..3000)));
        running.signal("INT");
        let ended = running.end();
        if ended.code() == 130 {
            at_once += 1;
        } else {
            stopped(&ended);
        }
        subject.finish(&out);
    }
    figures(
        "signals",
        "second_interrupt",
        &format!(
            "{trials} times SIGINT twice: {at_once} exits 130 at once, the others 75; all equal after resuming; seed {SEED}"
        ),
    );
}

#[test]
fn a_storm_of_requests_to_save() {
    let subject = Subject::new(3000, 500, &["eval.every=0", "sample.every=0", "checkpoint.keep=2"]);
    let out = subject.path("storm");
    let mut running = Running::start(&mut subject.pretrain(&out));
    assert!(running.wait_until(|| reached(&out) > 0), "it ended too soon");
    let (begun, mut sent) = (Instant::now(), 0);
    while sent < 100 && !running.has_ended() {
        running.signal("USR1");
        sent += 1;
        std::thread::sleep((Duration::from_millis(10) * sent).saturating_sub(begun.elapsed()));
    }
    let took = begun.elapsed();
    running.ends_well();
    assert_eq!(sent, 100, "it ended too soon");
    subject.assert_same(&out);
    let extra = announced(&out).iter().filter(|step| !step.is_multiple_of(subject.every)).count();
    figures(
        "signals",
        "storm_of_usr1",
        &format!(
            "{sent} SIGUSR1 in {:.2} s: {extra} checkpoints beside those due, the run went on to the same end",
            took.as_secs_f64()
        ),
    );
    assert!(extra > 0, "no request was honoured");
}

#[test]
fn the_file_stop() {
    const SEED: u64 = 10;
    let subject = subject();
    let (trials, mut draw, mut stops) = (count(2, 20), draws(SEED), 0);
    for trial in 0..trials {
        let out = subject.path(&format!("stop-{trial}"));
        let running = under_way(&subject, &out, draw.random_range(0.0..0.5));
        std::fs::write(out.join("STOP"), "").unwrap();
        let sent = Instant::now();
        let ended = running.end();
        assert!(sent.elapsed() < PROMPT, "{:?} to stop", sent.elapsed());
        let had = reached(&out);
        if stopped(&ended) {
            stops += 1;
            assert!(!out.join("STOP").exists(), "it would stop the resume as well");
            subject.finish(&out);
            assert_nothing_lost(&out, had);
        }
    }
    figures(
        "signals",
        "file_stop",
        &format!("{stops} of {trials} runs stopped with 75, no step lost, all equal; seed {SEED}"),
    );
    assert!(stops > 0, "it was never seen in time");
}

/// `command` as the first process of its own process namespace, which the kernel protects from signals that it does not handle.
fn as_first(command: &Command) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["-p", "--mount-proc", "--kill-child"]).arg(command.get_program()).args(command.get_args());
    unshare.current_dir(crate::support::root());
    unshare
}

#[test]
fn as_the_first_process() {
    let probe = as_first(&Command::new("true")).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        return figures("signals", "first_process", "not run: process namespaces are not allowed here");
    }
    let subject = subject();
    let names = ["TERM", "INT", "HUP"];
    for name in names {
        let out = subject.path(name);
        let mut running = Running::start(&mut as_first(&subject.pretrain(&out)));
        assert!(running.wait_until(|| !announced(&out).is_empty()), "it ended too soon");
        let children = format!("/proc/{0}/task/{0}/children", running.id());
        let child = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
        signal(child, name);
        let ended = running.end();
        assert!(stopped(&ended), "{name} was not seen: {}", ended.stderr);
        let had = reached(&out);
        subject.finish(&out);
        assert_nothing_lost(&out, had);
    }
    figures(
        "signals",
        "first_process",
        "SIGTERM, SIGINT and SIGHUP to process 1 of a namespace: exit 75, no step lost, all equal",
    );
}

/// A run whose validation takes more than `least`, and how long that is: training and saving are nothing beside it.
fn slow_to_validate(least: Duration) -> (Subject, Duration) {
    let mut stories = 500;
    loop {
        let (text, tokens) = (format!("data.val_stories={stories}"), "eval.val_tokens=1000000000");
        let sets = [&text, tokens, "eval.every=4", "sample.every=0"];
        let subject = Subject::new(8, 4, &sets);
        // At steps 0, 4 and 8; text and tokenizer have their share.
        let each = subject.length / 4;
        if each > least {
            return (subject, each);
        }
        assert!(stories < 1 << 20, "validation is too fast to be interrupted");
        stories *= 2;
    }
}

#[test]
fn a_signal_during_validation() {
    let (subject, each) = slow_to_validate(Duration::from_millis(1200));
    let validated = |out: &Path, step: u64| metrics(out).iter().any(|r| r["kind"] == "val" && r["step"] == step);
    let mut slowest = Duration::ZERO;
    let steps: &[u64] = if super::is_full() { &[0, 4, 8] } else { &[4] };
    for &step in steps {
        let out = subject.path(&format!("at-{step}"));
        let mut running = Running::start(&mut subject.pretrain(&out));
        // The file of the log is opened just before the first validation.
        let begins_to_validate = || reached(&out) == step && out.join("metrics.jsonl").exists();
        assert!(running.wait_until(begins_to_validate), "it ended too soon");
        std::thread::sleep(Duration::from_millis(100));
        assert!(!validated(&out, step), "validation is over already");
        let sent = Instant::now();
        running.signal("TERM");
        let ended = running.end();
        slowest = slowest.max(sent.elapsed());
        assert!(stopped(&ended), "step {step}: {}", ended.stderr);
        assert!(sent.elapsed() < Duration::from_secs(1), "step {step}: {:?} to stop", sent.elapsed());
        assert!(saved(&out).last().is_none_or(|&last| last == step), "steps were lost");
        subject.finish(&out);
        assert_nothing_lost(&out, step);
    }
    figures(
        "signals",
        "signal_in_validation",
        &format!(
            "SIGTERM in validations of {:.1} s at steps {steps:?}: exit 75 within {:.2} s, metrics equal after resuming",
            each.as_secs_f64(),
            slowest.as_secs_f64()
        ),
    );
}
