//! Ranks that the program starts itself: they end together, and nobody is left behind.

use crate::generation::Terminal;
use crate::support::{TINY, arg, config, ok, pretrain, program, run, stderr, stdout};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long ranks may live on when one of them, or their parent, is gone.
const TOGETHER: Duration = Duration::from_secs(10);

/// The processes that the parent `parent` has had started, as (whether a rank, its number, process). Those of mpiexec have no number.
fn family(parent: u32) -> Vec<(bool, String, u32)> {
    let socket = format!("-ranks-{parent}-");
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        let variables = std::fs::read(process.path().join("environ")).unwrap_or_default();
        let variables = String::from_utf8_lossy(&variables).into_owned();
        let value = |name: &str| variables.split('\0').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        if value("LLAMA_LITE_LAUNCH").is_some_and(|launch| launch.contains(&socket)) {
            let is_rank = value("LLAMA_LITE_SUPERVISOR").is_some();
            found.push((is_rank, value("PMI_RANK").unwrap_or_default().to_owned(), pid));
        }
    }
    found.sort();
    found
}

/// What a parent has left in the directory for temporary files.
fn left_behind(parent: u32) -> Vec<PathBuf> {
    let files = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten().map(|file| file.path());
    files.filter(|path| path.to_string_lossy().contains(&format!("llama-lite-ranks-{parent}-"))).collect()
}

fn wait_until(what: &str, limit: Duration, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < limit, "{what} has not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(signal: &str, process: u32) {
    assert!(Command::new("kill").args(["-s", signal, &process.to_string()]).status().unwrap().success());
}

/// A training run on two ranks that does not end by itself.
struct Running {
    child: Child,
    stderr: PathBuf,
    out: PathBuf,
}

/// Its command line, without the name of the program.
fn endless(dir: &Path) -> Vec<String> {
    let (config, out) = (config(dir, TINY), dir.join("run"));
    let mut args = vec!["pretrain", "--config", arg(&config), "--out", arg(&out), "--ranks", "2"];
    for set in ["train.steps=1000000", "eval.every=1000000", "sample.every=1000000"] {
        args.extend(["--set", set]);
    }
    args.into_iter().map(str::to_owned).collect()
}

impl Running {
    /// Returns when it has trained some steps.
    fn start(dir: &Path) -> Self {
        let args = endless(dir);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (out, stderr) = (dir.join("run"), dir.join("stderr"));
        let mut command = program(&args);
        let child = command.stdout(Stdio::null()).stderr(File::create(&stderr).unwrap()).spawn().unwrap();
        let running = Self { child, stderr, out };
        wait_until("training", Duration::from_secs(120), || {
            std::fs::read_to_string(running.out.join("metrics.jsonl")).is_ok_and(|log| log.lines().count() > 3)
        });
        running
    }

    /// The process of a rank.
    fn rank(&self, number: &str) -> u32 {
        let family = family(self.child.id());
        family.iter().find(|(is_rank, rank, _)| *is_rank && rank == number).unwrap().2
    }

    /// Waits for its end, and demands that it comes soon and that all end; returns what it has said.
    fn end(mut self) -> (ExitStatus, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < TOGETHER, "it goes on: {:?}", family(self.child.id()));
            std::thread::sleep(Duration::from_millis(10));
        };
        let parent = self.child.id();
        wait_until("the end of all", TOGETHER, || family(parent).is_empty());
        wait_until("an empty directory", TOGETHER, || left_behind(parent).is_empty());
        (status, std::fs::read_to_string(&self.stderr).unwrap())
    }
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn results_and_failures_are_those_of_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = pretrain(dir.path(), "run", &[]);
    let text = dir.path().join("a.txt");
    std::fs::write(&text, "One day a boy went out. He saw a big dog. ".repeat(20)).unwrap();
    let args = ["eval", "--ckpt", arg(&run_dir), "--data", arg(&text)];
    let alone = ok(&args);
    let together = ok(&[&args[..], &["--ranks", "2"]].concat());
    assert_eq!((stdout(&together), stderr(&together)), (stdout(&alone), stderr(&alone)));
    assert!(stdout(&alone).contains("loss"));
    let nothing = dir.path().join("nothing");
    let args = ["eval", "--ckpt", arg(&nothing), "--data", arg(&text)];
    let alone = run(&args);
    let together = run(&[&args[..], &["--ranks", "2"]].concat());
    assert_eq!((together.status.code(), stderr(&together)), (Some(74), stderr(&alone)));
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_rank_that_is_killed_ends_all_and_is_named() {
    for number in ["0", "1"] {
        let dir = tempfile::tempdir().unwrap();
        let running = Running::start(dir.path());
        let process = running.rank(number);
        kill("KILL", process);
        let (status, said) = running.end();
        assert_eq!(status.code(), Some(70), "{said}");
        let error = format!("error: rank {number} (process {process}) was killed by signal 9\nhint: ");
        assert!(said.contains(&error) && said.contains("resume --ckpt"), "{said}");
        assert_eq!(said.matches("error:").count(), 1, "{said}");
    }
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_request_to_stop_reaches_all_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path());
    kill("TERM", running.child.id());
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(75), "{said}");
    assert_eq!(said.matches("stopped at step").count(), 1, "{said}");
    assert!(!said.contains("error:"), "{said}");
}

/// A batch system may signal every process of a job: a supervisor that dies of it would end its rank amid the last save.
#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn a_signal_to_supervisors_leaves_their_ranks_alone() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path());
    let family = family(running.child.id());
    let supervisors: Vec<_> = family.iter().filter(|(is_rank, rank, _)| !is_rank && !rank.is_empty()).collect();
    assert_eq!(supervisors.len(), 2);
    supervisors.iter().for_each(|(.., process)| kill("TERM", *process));
    // Longer than a rank takes to notice that its supervisor is gone.
    std::thread::sleep(Duration::from_secs(2));
    kill("TERM", running.child.id());
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(75), "{said}");
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn ranks_do_not_outlive_their_parent_or_supervisor() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path());
    kill("KILL", running.child.id());
    let (status, said) = running.end();
    assert!(status.code().is_none() && !said.contains("panicked"), "{said}");

    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path());
    let mut supervisors =
        family(running.child.id()).into_iter().filter(|(is_rank, rank, _)| !is_rank && !rank.is_empty());
    let (_, number, supervisor) = supervisors.next().unwrap();
    kill("KILL", supervisor);
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(70), "{said}");
    assert!(said.contains(&format!("the supervisor of rank {number} ")), "{said}");
}

#[test]
#[cfg_attr(not(has_mpi), ignore = "no MPI: run scripts/mpi.sh")]
fn the_terminal_is_that_of_rank_0() {
    let dir = tempfile::tempdir().unwrap();
    let args = endless(dir.path());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut terminal = Terminal::start(&args);
    // The line of progress is drawn again in place, in colours.
    for _ in 0..3 {
        let line = terminal.wait_for("tok/s");
        assert!(line.contains('\u{1b}'), "{line:?}");
    }
    let parent = terminal.child.id();
    assert_eq!(family(parent).iter().filter(|(is_rank, ..)| *is_rank).count(), 2);
    // As Ctrl-C does where the terminal is that of a shell.
    kill("INT", parent);
    let said = terminal.wait_for("stopped at step");
    assert!(!said.contains("error:"), "{said}");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(75));
    wait_until("the end of all", TOGETHER, || family(parent).is_empty());
}
