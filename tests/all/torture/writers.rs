//! Many processes that want one run directory, and readers beside the one that has it.

use super::subject::{Ended, Running, Subject, begins, contents, copy_tree, reached, resume, trained};
use super::{count, draws, figures};
use crate::support::{arg, program, root};
use rand::Rng;
use std::path::Path;
use std::time::Duration;

const RACERS: usize = 8;

/// What a loser may take to give up.
const PROMPT: Duration = Duration::from_secs(1);

/// `resume` of a run that does not end by itself.
fn endless(out: &Path) -> Running {
    Running::start(resume(out).args(["--set", "train.steps=1000000", "--quiet"]))
}

/// Lets all but one end; that one, and how the others ended and how long they took.
fn race(out: &Path) -> (Running, Vec<(Ended, Duration)>) {
    let mut racers: Vec<Running> = (0..RACERS).map(|_| endless(out)).collect();
    let mut losers = Vec::new();
    while racers.len() > 1 {
        assert!(racers[0].age() < Duration::from_secs(20), "{} processes hold one run", racers.len());
        for at in (0..racers.len()).rev() {
            if racers[at].has_ended() {
                let age = racers[at].age();
                losers.push((racers.swap_remove(at).end(), age));
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (racers.pop().unwrap(), losers)
}

#[test]
fn one_of_eight_writers() {
    const SEED: u64 = 11;
    let subject = Subject::new(8, 4, &["eval.every=0", "sample.every=0", "checkpoint.keep=2"]);
    let out = subject.path("raced");
    copy_tree(&subject.whole, &out);
    let (rounds, mut draw, mut slowest) = (count(3, 20), draws(SEED), Duration::ZERO);
    for round in 0..rounds {
        let begun = begins(&out).len();
        let (mut winner, losers) = race(&out);
        for (loser, age) in losers {
            assert_eq!(loser.code(), 73, "{}", loser.stderr);
            assert!(loser.stderr.contains("run.lock") && loser.stderr.contains("hint:"), "{}", loser.stderr);
            assert!(age < PROMPT, "a loser took {age:?}");
            slowest = slowest.max(age);
        }
        let from = reached(&out);
        assert!(winner.wait_until(|| begins(&out).len() > begun && reached(&out) != from), "the winner ended");
        std::thread::sleep(Duration::from_micros(draw.random_range(0..200_000)));
        let holder: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("run.lock")).unwrap()).unwrap();
        assert_eq!(holder["pid"], winner.id(), "a loser wrote to the lock");
        writes_nothing(&mut winner, &out);
        assert!(winner.kill(), "the winner ended");
        assert_eq!(begins(&out).len(), begun + 1, "round {round}: more than one went on");
        let steps = trained(&out);
        assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>(), "two wrote the log");
    }
    figures(
        "writers",
        "one_of_eight_writers",
        &format!(
            "{rounds} rounds of {RACERS}: one winner each, {} losers exit 73 within {:.2} s, every winner killed and followed; seed {SEED}",
            rounds * (RACERS - 1),
            slowest.as_secs_f64()
        ),
    );
}

#[test]
fn readers_beside_a_writer() {
    let subject = Subject::new(8, 50, &["eval.every=0", "sample.every=0", "checkpoint.keep=2"]);
    let out = subject.path("read");
    copy_tree(&subject.whole, &out);
    let mut writer = endless(&out);
    assert!(writer.wait_until(|| reached(&out) > 50), "the writer ended");
    let (text, reads) = (subject.path("text.txt"), count(4, 40));
    std::fs::copy(root().join("LICENSE"), &text).unwrap();
    let before = reached(&out);
    for _ in 0..reads {
        Running::start(&mut program(&["eval", "--ckpt", arg(&out), "--data", arg(&text)])).ends_well();
        let sample = ["sample", "--ckpt", arg(&out), "--prompt", "One day", "--max-tokens", "8", "--greedy"];
        Running::start(&mut program(&sample)).ends_well();
    }
    let steps = reached(&out) - before;
    assert!(writer.kill(), "the writer ended");
    figures(
        "writers",
        "readers_beside_a_writer",
        &format!(
            "{reads} times eval and sample beside a writer that took {steps} steps and replaced its checkpoints: all read"
        ),
    );
    assert!(steps > 0, "the writer did not go on");
}

/// While the holder stands still, whatever changes in its directory was changed by the one that may not.
fn writes_nothing(holder: &mut Running, out: &Path) {
    holder.signal("STOP");
    std::thread::sleep(Duration::from_millis(50));
    let before = contents(out);
    let loser = endless(out).end();
    assert_eq!(loser.code(), 73, "{}", loser.stderr);
    assert!(contents(out) == before, "a loser wrote to {}", out.display());
}
