//! The run that is tortured and the uninterrupted run that it must equal, processes that are watched, and what a run directory tells.

use crate::support::{TINY, arg, assert_same_checkpoint, checkpoint, config, program, records};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// No run of a torture is as long: what lasts longer hangs.
const HANGS: Duration = Duration::from_secs(120);

/// A configuration, and the run of it that nobody disturbed.
pub(super) struct Subject {
    dir: TempDir,
    sets: Vec<String>,
    init_from: Option<PathBuf>,
    /// Its last step.
    pub(super) steps: u64,
    /// Steps between checkpoints.
    pub(super) every: u64,
    /// The uninterrupted run.
    pub(super) whole: PathBuf,
    /// How long that took.
    pub(super) length: Duration,
}

impl Subject {
    /// TINY with other numbers of steps and further settings, run once without disturbance.
    pub(super) fn new(steps: u64, every: u64, more: &[&str]) -> Self {
        Self::with_weights(steps, every, more, None)
    }

    /// The same, begun with the weights of `init_from`.
    pub(super) fn with_weights(steps: u64, every: u64, more: &[&str], init_from: Option<&Path>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        config(dir.path(), TINY);
        let mut sets = vec![format!("train.steps={steps}"), format!("checkpoint.every={every}")];
        sets.extend(more.iter().map(|s| (*s).to_owned()));
        let whole = dir.path().join("whole");
        let init_from = init_from.map(Path::to_owned);
        let mut subject = Self { dir, sets, init_from, steps, every, whole, length: Duration::ZERO };
        let begun = Instant::now();
        Running::start(&mut subject.pretrain(&subject.whole)).ends_well();
        subject.length = begun.elapsed();
        subject
    }

    /// A path in the directory of the torture.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `pretrain` into `out`.
    pub(super) fn pretrain(&self, out: &Path) -> Command {
        let config = self.path("tiny.toml");
        let mut command = program(&["pretrain", "--config", arg(&config), "--out", arg(out)]);
        for set in &self.sets {
            command.args(["--set", set.as_str()]);
        }
        if let Some(weights) = &self.init_from {
            command.arg("--init-from").arg(weights);
        }
        command
    }

    /// What a user types next: `resume` once there is a run, the same `pretrain` before.
    pub(super) fn go_on(&self, out: &Path) -> Command {
        if out.join("config.toml").exists() { resume(out) } else { self.pretrain(out) }
    }

    /// Goes on undisturbed to the end, and demands the result of the uninterrupted run.
    pub(super) fn finish(&self, out: &Path) {
        Running::start(&mut self.go_on(out)).ends_well();
        self.assert_same(out);
    }

    /// Demands that a finished run is the uninterrupted one: state, logs, every step once.
    pub(super) fn assert_same(&self, out: &Path) {
        assert_same_checkpoint(&checkpoint(&self.whole, self.steps), &checkpoint(out, self.steps));
        for log in ["metrics.jsonl", "samples.jsonl"] {
            assert!(records(&self.whole.join(log)) == records(&out.join(log)), "{log} of {} differs", out.display());
        }
        assert_eq!(trained(out), (1..=self.steps).collect::<Vec<_>>());
        let mismatch = events(out).into_iter().find(|e| e["kind"] == "replay_mismatch" || e["kind"] == "log_altered");
        assert_eq!(mismatch, None, "repeated steps or logs came out differently in {}", out.display());
    }

    /// Demands that every checkpoint under its name is that of the uninterrupted run, and that all announced are there.
    /// Both runs have to keep all their checkpoints.
    pub(super) fn assert_checkpoints_intact(&self, out: &Path) {
        let steps = saved(out);
        steps.iter().for_each(|&step| assert_same_checkpoint(&checkpoint(&self.whole, step), &checkpoint(out, step)));
        let announced = announced(out);
        let all = announced.iter().all(|step| steps.contains(step));
        assert!(all, "{announced:?} were announced, {steps:?} are in {}", out.display());
    }
}

impl Drop for Subject {
    /// What failed in a long torture is worth a look.
    fn drop(&mut self) {
        if std::thread::panicking() && super::is_full() {
            self.dir.disable_cleanup(true);
            eprintln!("torture: the runs are kept in {}", self.dir.path().display());
        }
    }
}

/// `resume` of a run or a checkpoint.
pub(super) fn resume(of: &Path) -> Command {
    program(&["resume", "--ckpt", arg(of)])
}

/// A process that is watched. It does not outlive its test.
pub(super) struct Running {
    child: Child,
    stderr: File,
    begun: Instant,
}

/// How a process ended.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stderr: String,
}

impl Ended {
    /// The exit code, or as shells say it 128 and the signal.
    pub(super) fn code(&self) -> i32 {
        self.status.code().or_else(|| self.status.signal().map(|signal| 128 + signal)).unwrap()
    }
}

impl Running {
    pub(super) fn start(command: &mut Command) -> Self {
        let stderr = tempfile::tempfile().unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone().unwrap());
        Self { child: command.spawn().unwrap(), stderr, begun: Instant::now() }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// SIGKILL; false if it had ended by itself, which is then demanded to be a success.
    pub(super) fn kill(mut self) -> bool {
        self.child.kill().unwrap();
        let ended = self.end();
        let killed = ended.status.signal() == Some(9);
        assert!(killed || ended.status.success(), "{}\n{}", ended.status, ended.stderr);
        killed
    }

    /// Sends it a signal, named as `kill` names it; to one that has ended nothing is sent.
    pub(super) fn signal(&mut self, name: &str) {
        if !self.has_ended() {
            signal(self.id(), name);
        }
    }

    /// Waits until `what` holds; false if the process ended before.
    pub(super) fn wait_until(&mut self, mut what: impl FnMut() -> bool) -> bool {
        while !what() {
            if self.has_ended() {
                return false;
            }
            assert!(self.age() < HANGS, "it hangs: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Waits for its end.
    pub(super) fn end(mut self) -> Ended {
        self.wait_until(|| false);
        let (status, stderr) = (self.child.wait().unwrap(), self.stderr());
        assert!(!stderr.contains("panicked"), "{stderr}");
        Ended { status, stderr }
    }

    /// Waits for its end and demands exit code 0.
    pub(super) fn ends_well(self) {
        let ended = self.end();
        assert!(ended.status.success(), "{}\n{}", ended.status, ended.stderr);
    }

    /// What it has written to stderr so far.
    fn stderr(&mut self) -> String {
        let mut bytes = Vec::new();
        self.stderr.rewind().unwrap();
        self.stderr.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process, named as `kill` names it.
pub(super) fn signal(process: u32, name: &str) {
    // It may have ended this instant: then there is nothing to send.
    let _ = Command::new("kill").args(["-s", name, &process.to_string()]).stderr(Stdio::null()).status().unwrap();
}

/// The lines of a log that is perhaps not there and perhaps being written.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read(path).unwrap_or_default();
    text.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

pub(super) fn metrics(run: &Path) -> Vec<Value> {
    lines(&run.join("metrics.jsonl"))
}

pub(super) fn events(run: &Path) -> Vec<Value> {
    lines(&run.join("events.jsonl"))
}

fn steps_of(records: &[Value], kinds: &[&str]) -> Vec<u64> {
    records.iter().filter(|r| kinds.iter().any(|k| r["kind"] == *k)).map(|r| r["step"].as_u64().unwrap()).collect()
}

/// The steps that the log has, in its order.
pub(super) fn trained(run: &Path) -> Vec<u64> {
    steps_of(&metrics(run), &["train"])
}

/// The last step that the log has; 0 if none.
pub(super) fn reached(run: &Path) -> u64 {
    trained(run).last().copied().unwrap_or(0)
}

/// The steps at which the attempts of a run began.
pub(super) fn begins(run: &Path) -> Vec<u64> {
    steps_of(&events(run), &["start", "resume"])
}

/// The steps whose checkpoints were announced as durable.
pub(super) fn announced(run: &Path) -> Vec<u64> {
    steps_of(&events(run), &["save"])
}

/// The steps of the checkpoints that a run has now, in order.
pub(super) fn saved(run: &Path) -> Vec<u64> {
    let Ok(entries) = run.join("checkpoints").read_dir() else { return Vec::new() };
    let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let mut steps: Vec<u64> = names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

/// Names in the checkpoint directory that begin with `prefix`.
pub(super) fn set_aside(run: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = run.join("checkpoints").read_dir() else { return Vec::new() };
    let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// A copy of a run, as it is on the disk.
pub(super) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file below a directory and what it holds; none for a directory that is not there.
pub(super) fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in dir.read_dir().into_iter().flatten().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(contents(&entry.path()));
        } else {
            found.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// A run as a kill leaves it just before its last checkpoint was saved: with a tail of the log that is to be repeated.
pub(super) fn cut_off(subject: &Subject, name: &str) -> PathBuf {
    let out = subject.path(name);
    copy_tree(&subject.whole, &out);
    std::fs::remove_dir_all(checkpoint(&out, subject.steps)).unwrap();
    let kept: String = std::fs::read_to_string(out.join("events.jsonl"))
        .unwrap()
        .split_inclusive('\n')
        .filter(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["kind"] != "finish" && !(event["kind"] == "save" && event["step"] == subject.steps)
        })
        .collect();
    std::fs::write(out.join("events.jsonl"), kept).unwrap();
    out
}
