//! Ranks as a launcher starts them, and those that the program starts itself. What is refused here needs no MPI.

mod own;

use crate::support::{TINY, arg, config, root, stderr, without_launcher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs the program with the variables `variables`, written `NAME=value` with blanks between.
fn run_with(variables: &str, args: &[&str]) -> Output {
    let mut command = without_launcher(Command::new(env!("CARGO_BIN_EXE_llama-lite")));
    command
        .args(args)
        .current_dir(root())
        .env_remove("LLAMA_LITE_MPIEXEC")
        .envs(variables.split_whitespace().map(|pair| pair.split_once('=').unwrap()));
    command.output().unwrap()
}

/// Demands that a run of TINY with these variables and flags is refused before it begins; returns stderr.
fn refused(dir: &Path, variables: &str, flags: &[&str]) -> String {
    let (config, out) = (config(dir, TINY), dir.join("run"));
    let args = [&["pretrain", "--device", "cpu", "--config", arg(&config), "--out", arg(&out)], flags].concat();
    let output = run_with(variables, &args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(78), "{variables} {flags:?}: {message}");
    assert!(!out.exists(), "{variables} {flags:?} has begun a run");
    message
}

#[test]
fn a_launcher_without_mpi_starts_no_copies() {
    let dir = tempfile::tempdir().unwrap();
    for (variables, name) in [
        ("RANK=0 WORLD_SIZE=2", "torchrun"),
        (
            "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=1 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1",
            "torchrun",
        ),
        ("SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0 SLURM_STEP_NODELIST=n[1-2]", "srun"),
    ] {
        let message = refused(dir.path(), variables, &[]);
        let first = message.lines().next().unwrap();
        assert!(first.contains(name) && first.contains("2 ranks") && first.contains("an MPI launcher"), "{message}");
        assert!(message.contains("\nhint: ") && message.contains("--ranks 2"), "{message}");
        assert!(message.contains("pip install mpich"), "{message}");
    }
}

#[test]
fn what_all_ranks_are_refused_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(refused(dir.path(), "RANK=1 WORLD_SIZE=2", &[]), "");
    // No rank of that number exists: then this one speaks for itself.
    assert!(refused(dir.path(), "RANK=2 WORLD_SIZE=2", &[]).contains("this is rank 2"));
}

#[test]
fn numbers_of_ranks_must_fit() {
    let dir = tempfile::tempdir().unwrap();
    let six = refused(dir.path(), "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=6", &[]);
    assert!(six.contains("Open MPI") && six.contains("hint: use 4 or 8 ranks"), "{six}");
    let three = refused(dir.path(), "", &["--ranks", "3"]);
    assert!(three.contains("--ranks 3") && three.contains("hint: use 2 or 4 ranks"), "{three}");
    for variables in ["OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=4", "PMI_RANK=0 PMI_SIZE=1"] {
        let other = refused(dir.path(), variables, &["--ranks", "2"]);
        assert!(other.contains("--ranks asks for 2"), "{other}");
    }
}

#[test]
fn without_mpiexec_the_package_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = refused(dir.path(), &format!("PATH={}", dir.path().display()), &["--ranks", "2"]);
    assert!(
        message.contains("mpiexec") && message.contains("hint: ") && message.contains("pip install mpich"),
        "{message}"
    );
}

#[test]
fn other_commands_are_one_process() {
    for command in ["sample --ckpt x", "report x", "export --ckpt x --out y", "plan --config configs/develop.toml"] {
        let args: Vec<&str> = command.split(' ').collect();
        let output = run_with("RANK=0 WORLD_SIZE=4", &args);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(78), "{message}");
        assert!(message.contains("4 ranks") && message.contains(&format!("`{}` is one process", args[0])), "{message}");
    }
}

#[test]
fn what_is_no_launcher_changes_nothing() {
    for variables in ["SLURM_NTASKS=8 SLURM_PROCID=0", "WORLD_SIZE=2", "RANK=0 WORLD_SIZE=1", "PMI_RANK=0 PMI_SIZE=1"] {
        for flags in [&[][..], &["--ranks", "1"], &["--ranks", "auto"]] {
            let args = [&["pretrain", "--device", "cpu", "--config", "configs/develop.toml", "--print-config"], flags]
                .concat();
            let output = run_with(variables, &args);
            assert!(output.status.success(), "{variables} {flags:?}: {}", stderr(&output));
        }
    }
}

/// A script in the place of mpiexec, in an installation that looks as if it had the library.
fn mpiexec(dir: &Path, script: &str) -> PathBuf {
    for (folder, file, content) in [("bin", "mpiexec", script), ("lib", "libmpi_abi.so.1", "")] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
        std::fs::write(dir.join(folder).join(file), content).unwrap();
    }
    let program = dir.join("bin/mpiexec");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn an_mpiexec_that_starts_nothing_is_quoted() {
    let dir = tempfile::tempdir().unwrap();
    for (script, words) in [
        ("#!/bin/sh\necho 'no slots' >&2\nexit 3\n", "exit code 3 before any rank had started: no slots"),
        // It starts all, but tells none its number: each would take itself for the whole.
        ("#!/bin/sh\nshift 2\n\"$@\" & \"$@\" & wait $!\n", "does not tell ranks their number"),
    ] {
        let program = mpiexec(&dir.path().join("mpi"), script);
        let message = refused(dir.path(), &format!("LLAMA_LITE_MPIEXEC={}", program.display()), &["--ranks", "2"]);
        assert!(message.contains(words) && message.contains("hint: "), "{message}");
    }
}
