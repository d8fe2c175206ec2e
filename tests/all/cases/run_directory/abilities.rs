//! File systems that lack an ability, as strace pretends them: the program goes on, with one warning that names what is missing.

use crate::support::{TINY, arg, assert_same_checkpoint, checkpoint, config, pretrain, program, stderr};
use std::path::Path;
use std::process::{Command, Output};

/// `args` of the program, with the calls of `inject` failing for the files below `dir`.
fn without(dir: &Path, inject: &str, args: &[&str]) -> Output {
    let call = inject.split(':').next().unwrap();
    let command = program(args);
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-e", &format!("trace={call}"), "-e", &format!("inject={inject}"), "-o", "/dev/null"]);
    if call == "fsync" {
        // Of the syncs only those of directories.
        for name in ["", "run", "run/checkpoints", "run/replaced"] {
            traced.arg("-P").arg(dir.join(name));
        }
    }
    traced.arg(command.get_program()).args(command.get_args()).current_dir(crate::support::root());
    traced.output().unwrap()
}

fn able_to_trace() -> bool {
    let probe = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    probe.is_ok_and(|status| status.success())
}

#[test]
fn a_run_goes_on_without_them_and_says_so_once() {
    if !able_to_trace() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let whole = pretrain(dir.path(), "whole", &[]);
    // The answer of a file system that does not count: of 0 blocks 0 are free.
    let no_blocks = format!("statfs:retval=0:poke_exit=@arg2={}", "00".repeat(120));
    let cases = [
        ("flock:error=ENOSYS", Some("file locks")),
        ("flock:error=EOPNOTSUPP", Some("file locks")),
        ("flock:error=ENOLCK", Some("file locks")),
        ("fsync:error=EOPNOTSUPP", Some("sync of directories")),
        ("fsync:error=EBADF", Some("sync of directories")),
        ("statfs:error=ENOSYS", Some("count of free space")),
        (&no_blocks, Some("count of free space")),
        // Nothing is lost with these: the lock keeps others away.
        ("renameat2:error=EINVAL", None),
        ("renameat2:error=EPERM", None),
    ];
    let config = config(dir.path(), TINY);
    let run = dir.path().join("run");
    for (inject, missing) in cases {
        let output = without(dir.path(), inject, &["pretrain", "--config", arg(&config), "--out", arg(&run)]);
        let said = stderr(&output);
        assert!(output.status.success(), "{inject}: {said}");
        let warnings: Vec<&str> = said.lines().filter(|line| line.starts_with("warning: /")).collect();
        let named = warnings.iter().all(|warning| missing.is_some_and(|missing| warning.contains(missing)));
        assert!(named && warnings.len() == usize::from(missing.is_some()), "{inject}: {said}");
        assert_same_checkpoint(&checkpoint(&run, 12), &checkpoint(&whole, 12));
        std::fs::remove_dir_all(&run).unwrap();
    }
}
