//! The life of a run, and what must be left of it if it ends at any moment.
//!
//! What the run computes is made up, so that every value follows from its step. What it writes is written by the code
//! of the program in the order of the program (`new_run.rs`, `resume.rs`, `trainer.rs`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::checkpoint::tests::{Toy, listing};
use crate::checkpoint::{Opened, Valid, checkpoints_dir, names, newest_valid, step_name, supersede, verify};
use crate::config::LogConfig;
use crate::metrics::{Events, Logged, Record, SampleRecord, Sequences, Times, Train, Val, read, read_log};
use crate::runtime::files::fault::Op;
use crate::runtime::files::tests::fault_injection::{count, step};
use crate::runtime::files::{Syncer, create_dirs, write_atomic};
use crate::train::logs::RunLogs;

const KEEP: usize = 2;

/// Steps from one checkpoint to the next.
const EVERY: u64 = 5;

/// The place of a checkpoint in the story, from which all that belongs to it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    step: u64,
    /// The branch, and the last step that it shares with the first.
    branch: (u64, u64),
    /// Of what was saved at this step.
    version: u64,
}

impl Point {
    fn toy(self) -> Toy {
        Toy::small(self.step, self.step + 1000 * self.branch_at(self.step) + 10_000 * self.version)
    }

    fn branch_at(self, step: u64) -> u64 {
        if step > self.branch.1 { self.branch.0 } else { 0 }
    }

    /// What the run logs at `step`; a step before the first has only its validation.
    fn records_at(self, step: u64) -> Vec<Record> {
        let loss = 2.0 + step as f64 / 7.0 + self.branch_at(step) as f64;
        let tokens = step * 512;
        let (grad_norm, lr, tokens_per_second, mfu, data_seconds) = (0.1, 6e-4, 1e4, 0.5, 1e-5);
        let chain = format!("{step:016x}");
        let train = Train {
            step,
            loss,
            grad_norm,
            lr,
            tokens,
            trained_tokens: None,
            tokens_per_second,
            mfu,
            data_seconds,
            chain,
            skipped: false,
            hardware: Vec::new(),
            reset: vec![],
        };
        let val = Val { step, loss, bits_per_byte: loss / 3.0, tokens: 1000, floor_bits_per_byte: None };
        let (train, val) =
            ((step > 0).then_some(Record::Train(train)), step.is_multiple_of(EVERY).then_some(Record::Val(val)));
        train.into_iter().chain(val).collect()
    }

    fn times_at(self, step: u64) -> Option<Times> {
        let seconds = [("update".to_owned(), step as f64 / 8.0)].into();
        (step > 0).then_some(Times { step, seconds })
    }

    fn sequences_at(self, step: u64) -> Option<Sequences> {
        let losses = vec![step as f64, self.branch_at(step) as f64];
        (step > 0).then_some(Sequences { step, first: 2 * step, losses })
    }

    fn sample_at(self, step: u64) -> Option<SampleRecord> {
        let text = format!("text {step} of {}\n", self.branch_at(step));
        step.is_multiple_of(EVERY).then(|| SampleRecord { step, prompt: "Once".into(), text, seed: 7 })
    }
}

/// What holds from one operation of the story to the next claim.
#[derive(Clone, Debug, Default)]
pub(super) struct Claim {
    /// How many operations were complete when it was made.
    from: usize,
    /// What the newest good checkpoint may be; none stands for no checkpoint.
    newest: Vec<Option<Point>>,
    /// There are at least so many good checkpoints.
    good: usize,
    /// The run has its configuration.
    begun: bool,
    /// At least so many events are in the history.
    events: usize,
    /// The step whose checkpoint the disk has damaged.
    damaged: Option<u64>,
}

pub(super) struct Story {
    pub(super) run: PathBuf,
    pub(super) claims: Vec<Claim>,
    /// The kinds of all events, in order.
    pub(super) kinds: Vec<&'static str>,
    now: Claim,
    at: Point,
    attempt: u64,
}

/// With all logs that a run can have.
const LOGS: LogConfig = LogConfig { every: 1, layers_every: 0, sequences: true, desync_every: 0, tensorboard: false };

fn config(attempt: u64) -> String {
    format!("# attempt {attempt}\n[train]\nsteps = 100\n")
}

impl Story {
    /// A story that will play in a directory two levels below `base`, none of which exists.
    pub(super) fn new(base: &Path) -> Story {
        let now = Claim { newest: vec![None], ..Claim::default() };
        let at = Point { step: 0, branch: (0, 0), version: 0 };
        let (run, claims) = (base.join("runs/story"), vec![now.clone()]);
        Story { run, claims, kinds: Vec::new(), now, at, attempt: 1 }
    }

    /// Four checkpoints, a kill and its resume, a resume from an older one that leaves newer ones behind, a checkpoint
    /// saved again, and one damaged by the disk.
    pub(super) fn play(&mut self) -> Result<()> {
        let mut logs = self.begin()?;
        self.train(&mut logs, 22)?;
        let mut logs = self.resume()?;
        self.train(&mut logs, 30)?;
        let mut logs = self.resume_from(25)?;
        self.train(&mut logs, 35)?;
        self.save(&mut logs, true)?;
        self.damage()?;
        let mut logs = self.resume()?;
        self.train(&mut logs, 37)
    }

    /// The same without damage and with fewer steps.
    pub(super) fn play_short(&mut self) -> Result<()> {
        let mut logs = self.begin()?;
        self.train(&mut logs, 16)?;
        let mut logs = self.resume()?;
        self.train(&mut logs, 20)?;
        let mut logs = self.resume_from(15)?;
        self.train(&mut logs, 20)?;
        self.save(&mut logs, true)
    }

    fn claim(&mut self, change: impl FnOnce(&mut Claim)) {
        change(&mut self.now);
        self.now.from = count();
        self.claims.push(self.now.clone());
    }

    fn event(&mut self, events: &mut Events, kind: &'static str) -> Result<()> {
        self.kinds.push(kind);
        events.append(kind, json!({"attempt": self.attempt, "step": self.at.step}))?;
        self.claim(|now| now.events += 1);
        Ok(())
    }

    fn begin(&mut self) -> Result<RunLogs> {
        create_dirs(&self.run)?;
        let mut events = Events::open(&self.run)?;
        self.event(&mut events, "start")?;
        write_atomic(&self.run.join("config.toml"), config(self.attempt).as_bytes())?;
        self.claim(|now| now.begun = true);
        let mut logs = self.logs(None, events)?;
        self.log(&mut logs)?;
        Ok(logs)
    }

    fn logs(&self, resume_step: Option<u64>, events: Events) -> Result<RunLogs> {
        RunLogs::open(&self.run, &LOGS, events, resume_step)
    }

    /// Logs the present step.
    fn log(&self, logs: &mut RunLogs) -> Result<()> {
        let (at, step) = (self.at, self.at.step);
        at.records_at(step).iter().try_for_each(|record| logs.metrics.append(record))?;
        at.times_at(step).iter().try_for_each(|times| logs.times.append(times))?;
        let sequences = logs.sequences.as_mut().context("sequences are logged")?;
        at.sequences_at(step).iter().try_for_each(|losses| sequences.append(losses))?;
        at.sample_at(step).iter().try_for_each(|sample| logs.samples.append(sample))
    }

    /// Goes on to the step `last`, saving where it is due; the end is that of a kill.
    fn train(&mut self, logs: &mut RunLogs, last: u64) -> Result<()> {
        while self.at.step < last {
            self.at.step += 1;
            self.log(logs)?;
            if self.at.step.is_multiple_of(EVERY) {
                self.save(logs, false)?;
            }
        }
        Ok(())
    }

    /// Saves the present step; `again` if there is a checkpoint of it, which is to be replaced.
    fn save(&mut self, logs: &mut RunLogs, again: bool) -> Result<()> {
        logs.syncers()?.iter().try_for_each(Syncer::sync)?;
        self.at.version += u64::from(again);
        let at = self.at;
        self.claim(|now| now.newest.push(Some(at)));
        at.toy().save_keeping(&self.run, KEEP)?;
        self.claim(|now| {
            now.newest = vec![Some(at)];
            now.good = KEEP.min(now.good + usize::from(!again));
        });
        self.event(&mut logs.events, "save")
    }

    /// What `resume RUN` does.
    fn resume(&mut self) -> Result<RunLogs> {
        let found = newest_valid(&self.run)?;
        let step = found.newest.context("nothing to resume")?.manifest.step;
        let mut events = Events::open(&self.run)?;
        for _ in &found.quarantined {
            self.event(&mut events, "quarantine")?;
        }
        self.go_on(step)
    }

    /// What `resume RUN/checkpoints/step-..` does, where a newer checkpoint exists; what is trained then differs.
    fn resume_from(&mut self, step: u64) -> Result<RunLogs> {
        let older = Point { step, ..self.at };
        self.claim(|now| {
            now.newest.push(Some(older));
            now.good = 1;
        });
        supersede(&self.run, step, self.attempt + 1)?;
        self.claim(|now| now.newest = vec![Some(older)]);
        self.at.branch = (1, step);
        self.go_on(step)
    }

    fn go_on(&mut self, step: u64) -> Result<RunLogs> {
        self.attempt += 1;
        self.at.step = step;
        write_atomic(&self.run.join("config.toml"), config(self.attempt).as_bytes())?;
        let mut events = Events::open(&self.run)?;
        self.event(&mut events, "resume")?;
        self.logs(Some(step), events)
    }

    /// The disk loses a byte of the newest checkpoint, as if it had been written so.
    fn damage(&mut self) -> Result<()> {
        let (step_now, older) = (self.at.step, Point { step: self.at.step - EVERY, version: 0, ..self.at });
        let path = checkpoints_dir(&self.run).join(step_name(step_now)).join(names::WEIGHTS);
        let mut bytes = std::fs::read(&path)?;
        let at = bytes.len() - 1;
        bytes[at] ^= 1;
        self.claim(|now| {
            now.newest.push(Some(older));
            (now.good, now.damaged) = (KEEP - 1, Some(step_now));
        });
        step(Op::WriteAt(&path, at as u64, &bytes[at..]))?;
        step(Op::Fsync(&path))?;
        std::fs::write(&path, bytes)?;
        self.claim(|now| now.newest = vec![Some(older)]);
        self.at.version += 1;
        Ok(())
    }

    /// The claim that holds once `done` operations are complete, and its number.
    pub(super) fn claim_at(&self, done: usize) -> (usize, &Claim) {
        let n = self.claims.partition_point(|claim| claim.from <= done) - 1;
        (n, &self.claims[n])
    }
}

/// Whether a resume of `run` finds what `claim` says and can go on from it; `kinds` are those of all events there were.
pub(super) fn check(run: &Path, claim: &Claim, kinds: &[&str]) -> Result<()> {
    let good = good_checkpoints(run)?;
    let found = newest_valid(run).context("no good checkpoint is found")?;
    for (path, what) in &found.quarantined {
        let expected = claim.damaged.is_some_and(|step| path.ends_with(format!(".bad-{step}-hash")));
        ensure!(expected, "a checkpoint became visible that was not whole: {what}");
    }
    let newest = found.newest.map(|valid| identify(valid, claim)).transpose()?;
    ensure!(claim.newest.contains(&newest), "a resume finds {newest:?} instead of one of {:?}", claim.newest);
    ensure!(good >= claim.good, "{good} good checkpoints instead of {}", claim.good);
    match std::fs::read_to_string(run.join("config.toml")) {
        Ok(text) => ensure!((1..10).any(|attempt| text == config(attempt)), "a torn configuration: {text:?}"),
        Err(error) => {
            ensure!(!claim.begun, "the configuration is lost: {error}");
            // It never was a run.
            return Ok(());
        }
    }
    check_logs(run, newest)?;
    check_events(run, claim, kinds)?;
    check_next_save(run, newest.map_or(0, |point| point.step) + 1)
}

fn good_checkpoints(run: &Path) -> Result<usize> {
    let root = checkpoints_dir(run);
    let names = if root.exists() { listing(&root) } else { Vec::new() };
    Ok(names.iter().filter(|name| name.starts_with("step-") && verify(&root.join(name)).is_ok()).count())
}

/// The one of the claim's checkpoints that `valid` is, to the bit.
fn identify(valid: Valid, claim: &Claim) -> Result<Point> {
    let step = valid.manifest.step;
    let opened = Opened::open_valid(valid, None)?;
    for point in claim.newest.iter().flatten().filter(|point| point.step == step) {
        if point.toy().is_held_by(&opened)? && opened.trainer_state()?["step"] == step {
            return Ok(*point);
        }
    }
    anyhow::bail!("a resume finds a checkpoint of step {step} that is none of {:?}", claim.newest)
}

/// The logs, opened as a resume opens them, hold every step up to the checkpoint's once, and nothing else.
fn check_logs(run: &Path, newest: Option<Point>) -> Result<()> {
    let resume_step = newest.map(|point| point.step);
    drop(RunLogs::open(run, &LOGS, Events::open(run)?, resume_step)?);
    let points = || newest.into_iter().flat_map(|point| (0..=point.step).map(move |step| (point, step)));
    let records: Vec<Record> = points().flat_map(|(point, step)| point.records_at(step)).collect();
    let logged = read(&run.join("metrics.jsonl"))?;
    ensure!(logged == records, "the metrics at {newest:?} have {} records instead of {}", logged.len(), records.len());
    check_log(run, points().filter_map(|(point, step)| point.sample_at(step)).collect::<Vec<SampleRecord>>())?;
    check_log(run, points().filter_map(|(point, step)| point.times_at(step)).collect::<Vec<Times>>())?;
    check_log(run, points().filter_map(|(point, step)| point.sequences_at(step)).collect::<Vec<Sequences>>())
}

fn check_log<T: Logged + PartialEq + std::fmt::Debug>(run: &Path, want: Vec<T>) -> Result<()> {
    let lines = std::fs::read_to_string(run.join(T::FILE))?.lines().count();
    let logged: Vec<T> = read_log(run)?;
    ensure!(lines == logged.len() && logged == want, "{}: {logged:?} instead of {want:?}", T::FILE);
    Ok(())
}

/// The history holds all that was noted in it for good, in order, and at most what was being noted besides.
fn check_events(run: &Path, claim: &Claim, kinds: &[&str]) -> Result<()> {
    drop(Events::open(run)?);
    let text = std::fs::read_to_string(run.join("events.jsonl"))?;
    let events: Vec<serde_json::Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(events.len() >= claim.events, "{} events instead of {}", events.len(), claim.events);
    let in_order =
        events.len() <= claim.events + 1 && events.iter().zip(kinds).all(|(event, kind)| event["kind"] == *kind);
    ensure!(in_order, "the events are {events:?}");
    Ok(())
}

/// The run can go on: another checkpoint is saved, found, and rid of what was left of unfinished ones.
fn check_next_save(run: &Path, step: u64) -> Result<()> {
    Toy::small(step, 0).save_keeping(run, KEEP).context("the next save")?;
    let found = newest_valid(run)?.newest.context("the next save is not found")?;
    ensure!(found.manifest.step == step, "after the next save, step {} is found", found.manifest.step);
    let left = listing(&checkpoints_dir(run));
    ensure!(!left.iter().any(|name| name.starts_with(".tmp-")), "the next save leaves {left:?}");
    Ok(())
}
