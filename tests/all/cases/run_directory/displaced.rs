//! Run directories that are removed, renamed or taken over while a run writes to them.

use crate::support::{TINY, arg, assert_same_checkpoint, checkpoint, config, fails, ok, program};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A run that is disturbed, and the length that it needs to be caught in the middle.
struct Disturbed {
    dir: tempfile::TempDir,
    steps: u64,
}

impl Disturbed {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), steps: 60 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, run: &Path) -> Command {
        let config = config(self.dir.path(), TINY);
        let mut command = program(&["pretrain", "--config", arg(&config), "--out", arg(run)]);
        command.args(["--set", &format!("train.steps={}", self.steps), "--set", "checkpoint.every=10"]);
        command.args(["--set", "log.sequences=true", "--set", "eval.every=0", "--set", "sample.every=0"]);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// A run that has saved its first checkpoint and stands still.
    fn under_way(&mut self, run: &Path) -> Child {
        loop {
            let mut child = self.command(run).spawn().unwrap();
            while !std::fs::read_to_string(run.join("events.jsonl")).is_ok_and(|text| text.contains("\"save\"")) {
                std::thread::sleep(Duration::from_millis(1));
            }
            signal(&child, "STOP");
            if !std::fs::read_to_string(run.join("events.jsonl")).unwrap().contains("\"finish\"") {
                return child;
            }
            // It was too fast.
            let _ = child.kill();
            child.wait().unwrap();
            std::fs::remove_dir_all(run).unwrap();
            self.steps *= 4;
        }
    }

    /// Lets the run go on, and demands that it notices: exit 74, and where it has saved what it had.
    fn rescued(&self, child: Child, run: &Path) -> PathBuf {
        signal(&child, "CONT");
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(74), "{text}");
        let elsewhere = PathBuf::from(format!("{}-rescued", run.display()));
        let hint = format!("llama-lite resume --ckpt {}", elsewhere.display());
        assert!(text.contains("while the run was writing to it") && text.contains(&hint), "{text}");
        elsewhere
    }

    /// The rescued run goes on to the end of one that was never disturbed.
    fn goes_on(&self, elsewhere: &Path) {
        ok(&["resume", "--ckpt", arg(elsewhere)]);
        let whole = self.path(&format!("whole-{}", self.steps));
        if !whole.exists() {
            assert!(self.command(&whole).stderr(Stdio::null()).status().unwrap().success());
        }
        assert_same_checkpoint(&checkpoint(elsewhere, self.steps), &checkpoint(&whole, self.steps));
        let trained = |run: &Path| {
            let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
            text.lines().filter(|line| line.contains("\"kind\":\"train\"")).count() as u64
        };
        assert_eq!((trained(elsewhere), trained(&whole)), (self.steps, self.steps));
        let events = std::fs::read_to_string(elsewhere.join("events.jsonl")).unwrap();
        assert!(events.contains("\"rescue\"") && !events.contains("log_altered"), "{events}");
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap().success());
}

/// As editors and `sed -i` do it.
fn edit(log: &Path) {
    std::fs::copy(log, log.with_extension("new")).unwrap();
    std::fs::rename(log.with_extension("new"), log).unwrap();
}

#[test]
fn a_run_whose_directory_is_removed_renamed_or_edited_is_saved_beside_it() {
    let mut lab = Disturbed::new();
    let disturbances: [fn(&Path); 4] = [
        |run| std::fs::remove_dir_all(run).unwrap(),
        |run| std::fs::rename(run, run.with_file_name("renamed")).unwrap(),
        |run| std::fs::remove_file(run.join("run.lock")).unwrap(),
        |run| edit(&run.join("times.jsonl")),
    ];
    for (n, disturb) in disturbances.into_iter().enumerate() {
        let run = lab.path(&format!("run-{n}"));
        let child = lab.under_way(&run);
        disturb(&run);
        let elsewhere = lab.rescued(child, &run);
        lab.goes_on(&elsewhere);
    }
}

#[test]
fn a_second_run_after_the_lock_was_deleted_is_not_disturbed() {
    let mut lab = Disturbed::new();
    let run = lab.path("run");
    let child = lab.under_way(&run);
    let busy = fails(&["resume", "--ckpt", arg(&run)], 73);
    assert!(busy.contains("frees itself when its process ends") && busy.contains("do not delete"), "{busy}");
    std::fs::remove_file(run.join("run.lock")).unwrap();
    ok(&["resume", "--ckpt", arg(&run)]);
    let elsewhere = lab.rescued(child, &run);
    lab.goes_on(&elsewhere);
    assert_same_checkpoint(&checkpoint(&run, lab.steps), &checkpoint(&elsewhere, lab.steps));
}
