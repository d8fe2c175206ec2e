//! Storage that takes no more: a limit on the size of files, and a disk that is full from the start or fills up in mid-run.

use super::subject::{Ended, Running, Subject, announced, copy_tree, cut_off, resume, saved, trained};
use super::{count, draws, figures};
use crate::support::{TINY, arg, checkpoint, config, program};
use llama_lite::config::Config;
use llama_lite::train::footprint::checkpoint_bytes;
use rand::Rng;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `command` under `ulimit -f`, in KiB.
fn limited(kib: u64, command: &Command) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-c", "ulimit -f \"$1\"; shift; exec \"$@\"", "bash", &kib.to_string()]);
    shell.arg(command.get_program()).args(command.get_args()).current_dir(crate::support::root());
    shell
}

/// Demands that a run ended well or as a full disk ends it: exit 74, naming the file and one of the `reasons`.
fn ended_as_full(ended: &Ended, run: &Path, reasons: &[&str]) -> bool {
    if ended.status.success() {
        return false;
    }
    assert_eq!(ended.code(), 74, "{}", ended.stderr);
    let said = reasons.iter().any(|reason| ended.stderr.contains(reason));
    assert!(said && ended.stderr.contains(run.to_str().unwrap()) && ended.stderr.contains("hint:"), "{}", ended.stderr);
    true
}

#[test]
fn limits_on_file_size() {
    let subject = Subject::new(12, 4, &[]);
    let template = cut_off(&subject, "template");
    let limits: Vec<u64> =
        (0..count(5, 24)).map(|i| if super::is_full() { 1 + 12 * i as u64 } else { 1 << (2 * i) }).collect();
    let mut refused = 0;
    for kib in &limits {
        let out = subject.path("limited");
        let _ = std::fs::remove_dir_all(&out);
        copy_tree(&template, &out);
        let ended = Running::start(limited(*kib, &resume(&out)).arg("--quiet")).end();
        refused += usize::from(ended_as_full(&ended, &out, &["os error 27"]));
        subject.assert_checkpoints_intact(&out);
        subject.finish(&out);
    }
    figures(
        "disk",
        "limits_on_file_size",
        &format!(
            "ulimit -f at {} sizes from {} to {} KiB: {refused} exits 74, earlier checkpoints intact, all resumed to the same end",
            limits.len(),
            limits[0],
            limits[limits.len() - 1]
        ),
    );
    assert!(refused > 1, "no limit was felt");
}

/// A file system in memory, gone with the test.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// None where mounting is not allowed.
    fn mount(at: PathBuf, mib: u64) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(&at).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success()).then_some(Self(at))
    }

    fn enlarge(&self, mib: u64) {
        let mut command = Command::new("mount");
        command.args(["-o", &format!("remount,size={mib}m")]).arg(&self.0);
        assert!(command.status().unwrap().success());
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = File::create(self.0.join("filler")).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            let chunk = vec![1; size];
            while file.write_all(&chunk).is_ok() {}
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process that was just killed may still hold it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// What a full disk is called: the system's error, or the check of free space that comes before it.
const FULL: [&str; 2] = ["os error 28", "bytes free"];

#[test]
fn full_disks() {
    const SEED: u64 = 7;
    let subject = Subject::new(120, 5, &["checkpoint.keep=100", "eval.every=40", "sample.every=0"]);
    let Some(disk) = Tmpfs::mount(subject.path("small"), 8) else {
        return figures("disk", "full_disks", "not run: no file system can be mounted here");
    };
    let out = disk.0.join("run");
    let ended = Running::start(&mut subject.pretrain(&out)).end();
    assert!(ended_as_full(&ended, &out, &FULL), "8 MiB were enough: {}", ended.stderr);
    disk.enlarge(128);
    subject.finish(&out);
    drop(disk);

    let (mut draw, mut felt, rounds) = (draws(SEED), 0, count(3, 20));
    for _ in 0..rounds {
        let disk = Tmpfs::mount(subject.path("filling"), 48).unwrap();
        let out = disk.0.join("run");
        let mut running = Running::start(&mut subject.pretrain(&out));
        running.wait_until(|| !announced(&out).is_empty());
        std::thread::sleep(subject.length.mul_f64(draw.random_range(0.0..0.5)));
        disk.fill();
        felt += usize::from(ended_as_full(&running.end(), &out, &FULL));
        subject.assert_checkpoints_intact(&out);
        disk.enlarge(128);
        subject.finish(&out);
    }
    figures(
        "disk",
        "full_disks",
        &format!(
            "8 MiB: exit 74, enlarged, same end; filled in mid-run {rounds} times: {felt} exits 74, earlier checkpoints intact, \
             same end after enlarging; seed {SEED}"
        ),
    );
    assert!(felt > 0, "the disk never filled in time");
}

/// The room that a run asks for before it starts is that of the checkpoints that it will write: none, one, or one more than it keeps.
#[test]
fn room_is_asked_for_what_will_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), TINY);
    let large = "model.intermediate_size=4096".to_owned();
    let one = checkpoint_bytes(&Config::load(&file, std::slice::from_ref(&large)).unwrap()).div_ceil(1 << 20);
    assert!(one > 6, "too small to tell one checkpoint from two");
    let run = |disk: &Tmpfs, sets: &[&str]| {
        let out = disk.0.join("run");
        let mut command = program(&["pretrain", "--config", arg(&file), "--out", arg(&out), "--set", &large]);
        sets.iter().for_each(|set| {
            command.args(["--set", set]);
        });
        (Running::start(&mut command).end(), out)
    };
    // Room for one checkpoint with its small files, but not for two.
    let Some(disk) = Tmpfs::mount(dir.path().join("one"), 16 + one + one / 2) else {
        return figures("disk", "room_is_asked_for", "not run: no file system can be mounted here");
    };
    let (refused, out) = run(&disk, &["checkpoint.every=4"]);
    assert!(ended_as_full(&refused, &out, &["bytes free"]) && !out.exists(), "{}", refused.stderr);
    let (ended, out) = run(&disk, &["checkpoint.every=0"]);
    assert!(ended.status.success() && checkpoint(&out, 12).exists(), "{}", ended.stderr);
    drop(disk);
    // Room for none.
    let disk = Tmpfs::mount(dir.path().join("none"), 4).unwrap();
    let (refused, out) = run(&disk, &["checkpoint.every=0"]);
    assert!(ended_as_full(&refused, &out, &["bytes free"]) && !out.exists(), "{}", refused.stderr);
    let (ended, out) = run(&disk, &["checkpoint.every=0", "checkpoint.last=false"]);
    assert!(ended.status.success() && ended.stderr.contains("Nothing was saved"), "{}", ended.stderr);
    assert!(trained(&out) == (1..=12).collect::<Vec<_>>() && saved(&out).is_empty());
    // It is over: its logs stay.
    let again = Running::start(&mut resume(&out)).end();
    assert!(again.status.success() && again.stderr.contains("done: 12 steps"), "{}", again.stderr);
    assert_eq!(trained(&out), (1..=12).collect::<Vec<_>>());
}
