//! The logs of a run that stay in step with its checkpoints: `metrics.jsonl`, `samples.jsonl`, `times.jsonl` and `sequences.jsonl`.
//!
//! A killed run leaves lines behind that are newer than its last checkpoint. Resuming repeats those steps, so the
//! lines are cut first, or every repeated step would be logged twice. They are kept in `RUN/replaced/`, because a
//! repeated step must come out the same and the old line is the evidence. The cut is durable before the first new
//! line: the old lines are stored, then the log is replaced by its kept part, both atomically.

use crate::metrics::Record;
use crate::metrics::digest::{LogDigest, RunningDigest};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{
    Appender, AtomicFile, append_log, create_dirs, io_context, io_failure, open_input, read_bounded,
};
use anyhow::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// A log of a million steps is a quarter of this.
const MAX_BYTES: u64 = 1 << 30;

/// What opening a log has cut from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Lines of steps after the checkpoint.
    pub lines: usize,
    /// Lines that are no JSON objects, a torn last line included.
    pub unreadable: usize,
    /// Where they all are now; `None` if nothing was cut.
    pub kept_in: Option<PathBuf>,
}

/// What such a log holds.
pub trait Logged: Serialize + DeserializeOwned {
    /// The file in the run directory.
    const FILE: &'static str;
    /// What tells its cut tails from those of the other logs, in `replaced/`.
    const TAIL: &'static str;
}

impl Logged for Record {
    const FILE: &'static str = "metrics.jsonl";
    const TAIL: &'static str = "";
}

impl Logged for SampleRecord {
    const FILE: &'static str = "samples.jsonl";
    const TAIL: &'static str = ".samples";
}

impl Logged for Times {
    const FILE: &'static str = "times.jsonl";
    const TAIL: &'static str = ".times";
}

impl Logged for Sequences {
    const FILE: &'static str = "sequences.jsonl";
    const TAIL: &'static str = ".sequences";
}

/// All files of this kind.
pub const LOG_FILES: [&str; 4] = [Record::FILE, SampleRecord::FILE, Times::FILE, Sequences::FILE];

/// `RUN/metrics.jsonl`, open for appending.
pub type MetricsLog = StepLog<Record>;

/// `RUN/samples.jsonl`, open for appending.
pub type SampleLog = StepLog<SampleRecord>;

/// A log of a run, open for appending.
#[derive(Debug)]
pub struct StepLog<T> {
    /// None: what is appended goes nowhere.
    log: Option<Appender>,
    digest: RunningDigest,
    /// What was cut when the log was opened.
    pub cut: Cut,
    of: PhantomData<T>,
}

impl<T: Logged> StepLog<T> {
    /// Opens the log of `run_dir`. `resume_step` is the step of the checkpoint the run goes on from: lines of later
    /// steps are cut, those of the step itself stay, because it was validated before it was saved. `None` is a run
    /// that begins at step 0 (again): everything is cut.
    ///
    /// # Errors
    /// [`Exit::Io`] if the files cannot be read or written.
    pub fn open(run_dir: &Path, resume_step: Option<u64>) -> Result<Self> {
        let (digest, cut) = cut_to(run_dir, T::FILE, T::TAIL, resume_step)?;
        Ok(Self { log: Some(append_log(&run_dir.join(T::FILE))?), digest, cut, of: PhantomData })
    }

    /// A log that keeps nothing: of a rank that writes no files.
    pub fn discard() -> Self {
        Self { log: None, digest: RunningDigest::default(), cut: Cut::default(), of: PhantomData }
    }

    /// Appends `record` as one line.
    ///
    /// # Errors
    /// [`Exit::Io`] if the file cannot be written.
    pub fn append(&mut self, record: &T) -> Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        let mut line = serde_json::to_string(record)
            .map_err(|error| fail(Exit::Internal, format!("a log record that is no JSON: {error}")))?;
        // Before the digest: a line that could not be written is not in it.
        log.line(&line)?;
        line.push('\n');
        self.digest.push(line.as_bytes());
        Ok(())
    }

    /// What a checkpoint that is saved now records of the log.
    pub fn digest(&self) -> LogDigest {
        self.digest.digest()
    }

    /// The open file, to check whether it is still in place and to make it durable.
    pub fn file(&self) -> Option<&Appender> {
        self.log.as_ref()
    }
}

/// A text generated during training.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The last step the model has taken.
    pub step: u64,
    pub prompt: String,
    /// What it wrote: the continuation alone.
    pub text: String,
    /// The seed of the sample.
    pub seed: u64,
}

/// Where time went: between the step before and this one there can be several. The clock's readings of a run; `metrics.jsonl` has
/// what must come out the same when a step is repeated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// The last step the model has taken.
    pub step: u64,
    /// Seconds, by what they were spent on: all of a step by its parts, or one thing that was done after it.
    pub seconds: BTreeMap<String, f64>,
}

/// The losses of the sequences of a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sequences {
    /// The number of the step, from 1 on.
    pub step: u64,
    /// The index of the first one over all steps of the run.
    pub first: u64,
    /// Mean over the trained tokens of each, in nats, before the update.
    pub losses: Vec<f64>,
}

/// The records of a metrics log, in its order. Lines of other kinds and a torn last line are skipped.
///
/// # Errors
/// [`Exit::Io`] if the file cannot be read.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    parsed(path, true)
}

/// The lines of the log `path` that are a `T`, in order; a link is followed only when `follow`.
pub(super) fn parsed<T: DeserializeOwned>(path: &Path, follow: bool) -> Result<Vec<T>> {
    let bytes = read_bounded(path, MAX_BYTES, follow)?;
    Ok(bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// All records of a log of the run in `run_dir`, as [`read`]; none if it has no such log.
///
/// # Errors
/// [`Exit::Io`] if the file cannot be read.
pub fn read_log<T: Logged>(run_dir: &Path) -> Result<Vec<T>> {
    let path = run_dir.join(T::FILE);
    if path.symlink_metadata().is_ok() { parsed(&path, true) } else { Ok(Vec::new()) }
}

/// Calls `see` with every line of the log `path`, its newline included where it has one. Logs can be larger than memory.
pub(super) fn each_line(path: &Path, mut see: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let (file, _) = open_input(path, false)?;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).map_err(|e| io_failure("read", path, &e))? > 0 {
        see(&line)?;
        line.clear();
    }
    Ok(())
}

/// Cuts the log `name` of the run to what belongs to `resume_step`; returns the digest of what is left of it.
fn cut_to(run_dir: &Path, name: &str, tail_suffix: &str, resume_step: Option<u64>) -> Result<(RunningDigest, Cut)> {
    let path = run_dir.join(name);
    let mut digest = RunningDigest::default();
    let mut cut = Cut::default();
    if !path.try_exists().unwrap_or(true) {
        return Ok((digest, cut));
    }
    each_line(&path, |line| {
        match LineClass::new(line, resume_step) {
            LineClass::Kept => digest.push(line),
            LineClass::Later => cut.lines += 1,
            LineClass::Unreadable => cut.unreadable += 1,
        }
        Ok(())
    })?;
    if cut != Cut::default() {
        let tail = unused_tail_name(&run_dir.join("replaced"), tail_suffix)?;
        // The tail is safe before the log is cut: if the process dies in between, its lines are there twice, not lost.
        copy_lines(&path, &tail, |line| LineClass::new(line, resume_step) != LineClass::Kept)?;
        copy_lines(&path, &path, |line| LineClass::new(line, resume_step) == LineClass::Kept)?;
        cut.kept_in = Some(tail);
    }
    Ok((digest, cut))
}

/// Writes the lines of `from` that are `wanted` as the file `to`, which may be the same.
fn copy_lines(from: &Path, to: &Path, wanted: impl Fn(&[u8]) -> bool) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 18, AtomicFile::create(to)?);
    each_line(from, |line| if wanted(line) { out.write_all(line).map_err(io_context("write", to)) } else { Ok(()) })?;
    out.into_inner().map_err(|e| io_context("write", to)(e.into_error()))?.commit()
}

/// The part of a log line that decides whether it is kept. Lines without a step belong to the run as a whole and stay.
#[derive(Deserialize)]
struct Stamp {
    step: Option<u64>,
    /// Read so that a line is an object and damage anywhere in it shows: what serde passes over it does not check.
    #[serde(flatten)]
    _rest: Map<String, Value>,
}

/// What a line is to a run that is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineClass {
    Kept,
    /// It is of a step after the checkpoint.
    Later,
    Unreadable,
}

impl LineClass {
    fn new(line: &[u8], resume_step: Option<u64>) -> Self {
        // A number that is torn off in the middle reads as another one, so a line without its newline does not count.
        let stamp = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<Stamp>(line).ok());
        match (stamp, resume_step) {
            (None, _) => Self::Unreadable,
            (Some(stamp), Some(resume)) if stamp.step.is_none_or(|step| step <= resume) => Self::Kept,
            (Some(_), _) => Self::Later,
        }
    }
}

/// The first free name of `replaced/attempt-K.jsonl`, so that no tail ever overwrites another.
fn unused_tail_name(dir: &Path, suffix: &str) -> Result<PathBuf> {
    create_dirs(dir)?;
    let names = (1u64..).map(|attempt| dir.join(format!("attempt-{attempt}{suffix}.jsonl")));
    let free = names.into_iter().find(|name| name.symlink_metadata().is_err());
    Ok(free.ok_or_else(|| fail(Exit::Internal, format!("no free name in {}", dir.display())))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::{train, val};
    use std::fs;

    /// A run to step `last`, validated every second step, from the one given.
    fn log_steps(log: &mut MetricsLog, steps: std::ops::RangeInclusive<u64>) {
        for step in steps {
            if step > 0 {
                log.append(&Record::Train(train(step))).unwrap();
            }
            if step % 2 == 0 {
                log.append(&Record::Val(val(step))).unwrap();
            }
        }
        log.file().unwrap().syncer().unwrap().sync().unwrap();
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_resumed_log_equals_one_that_was_never_interrupted() {
        let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        log_steps(&mut MetricsLog::open(whole.path(), None).unwrap(), 0..=9);
        log_steps(&mut MetricsLog::open(broken.path(), None).unwrap(), 0..=6);
        let mut resumed = MetricsLog::open(broken.path(), Some(4)).unwrap();
        assert_eq!((resumed.cut.lines, resumed.cut.unreadable), (3, 0), "train 5, train 6 and val 6");
        log_steps(&mut resumed, 5..=9);
        assert_eq!(text(&whole.path().join("metrics.jsonl")), text(&broken.path().join("metrics.jsonl")));
        let tail = read(&broken.path().join("replaced/attempt-1.jsonl")).unwrap();
        assert_eq!(tail, [Record::Train(train(5)), Record::Train(train(6)), Record::Val(val(6))]);
    }

    #[test]
    fn torn_and_damaged_lines_are_moved_away_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let good = "{\"kind\":\"train\",\"step\":1}\n{\"kind\":\"note\"}\n";
        // Serde would read a struct from a list, too.
        let zeros = "\0\0\0\0\n[1]\n{\"step\":1,\"loss\":1e999}\n";
        let torn = "{\"kind\":\"train\",\"step\":2}"; // whole JSON, but its newline never arrived
        fs::write(&path, format!("{good}{zeros}{torn}")).unwrap();
        let log = MetricsLog::open(dir.path(), Some(2)).unwrap();
        assert_eq!((log.cut.lines, log.cut.unreadable), (0, 4));
        assert_eq!(text(&path), good);
        assert_eq!(text(log.cut.kept_in.as_ref().unwrap()), format!("{zeros}{torn}"));
    }

    #[test]
    fn tails_never_overwrite_each_other_and_a_clean_log_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let replaced = dir.path().join("replaced");
        log_steps(&mut MetricsLog::open(dir.path(), None).unwrap(), 0..=2);
        assert!(!replaced.exists());
        assert_eq!(MetricsLog::open(dir.path(), Some(2)).unwrap().cut, Cut::default());
        assert!(!replaced.exists());
        for attempt in 1..=3 {
            let mut log = MetricsLog::open(dir.path(), Some(2)).unwrap();
            log_steps(&mut log, 3..=3);
            let cut = MetricsLog::open(dir.path(), Some(2)).unwrap().cut;
            assert_eq!(cut.kept_in, Some(replaced.join(format!("attempt-{attempt}.jsonl"))));
        }
        let cut = MetricsLog::open(dir.path(), None).unwrap().cut;
        assert_eq!((cut.lines, text(&dir.path().join("metrics.jsonl")).as_str()), (4, ""), "begun again at step 0");
    }

    #[test]
    fn samples_are_cut_with_the_metrics() {
        let dir = tempfile::tempdir().unwrap();
        let sample = |step| SampleRecord { step, prompt: "A \"b\"\n".into(), text: "\u{1b}é".into(), seed: u64::MAX };
        let mut log = SampleLog::open(dir.path(), None).unwrap();
        (0..3).for_each(|step| log.append(&sample(step)).unwrap());
        let mut log = SampleLog::open(dir.path(), Some(1)).unwrap();
        assert_eq!(log.cut.kept_in, Some(dir.path().join("replaced/attempt-1.samples.jsonl")));
        log.append(&sample(7)).unwrap();
        log.file().unwrap().syncer().unwrap().sync().unwrap();
        let text = text(&dir.path().join("samples.jsonl"));
        let read: Vec<SampleRecord> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, [sample(0), sample(1), sample(7)]);
        let first = r#"{"step":0,"prompt":"A \"b\"\n","text":"\u001bé","seed":18446744073709551615}"#;
        assert_eq!(text.lines().next(), Some(first));
    }
}
