//! Puts the commit into the version string, so that every checkpoint and report can say what made it; compiles the CUDA kernels if asked to.

#[cfg(feature = "cuda")]
#[path = "src/ops/cuda/build.rs"]
mod cuda;

use std::path::{Path, PathBuf};
use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

fn main() {
    name_commit();
    find_mpi();
    #[cfg(feature = "cuda")]
    if let Err(error) = cuda::build() {
        println!("cargo::error={error}");
    }
}

fn name_commit() {
    // Also right in a source archive without git: then the version alone is printed.
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    let suffix = match (commit.as_str(), dirty) {
        ("", _) => String::new(),
        (commit, false) => format!(" ({commit})"),
        (commit, true) => format!(" ({commit}, modified)"),
    };
    println!("cargo:rustc-env=LLAMA_LITE_COMMIT={suffix}");
    println!("cargo:rerun-if-changed=src");
    if let Some(dir) = git(&["rev-parse", "--git-dir"]) {
        println!("cargo:rerun-if-changed={dir}/HEAD");
        println!("cargo:rerun-if-changed={dir}/logs/HEAD");
    }
}

/// Says whether tests can start several ranks, and with which `mpiexec`. The program itself finds MPI when it runs.
fn find_mpi() {
    println!("cargo::rustc-check-cfg=cfg(has_mpi)");
    // `scripts/mpi.sh` touches this file: a path that does not exist would make every build start anew.
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/mpi/bin/mpiexec");
    if local.exists() {
        println!("cargo::rerun-if-changed={}", local.display());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("mpiexec"));
    let found = [local].into_iter().chain(on_path).find(|mpiexec| mpiexec.is_file() && has_abi(mpiexec));
    if found.is_some() {
        println!("cargo::rustc-cfg=has_mpi");
    }
    println!("cargo::rustc-env=LLAMA_LITE_MPIEXEC={}", found.unwrap_or_else(PathBuf::new).display());
}

/// Whether the library of MPI 5's interface belongs to `mpiexec`.
fn has_abi(mpiexec: &Path) -> bool {
    let prefix = mpiexec.canonicalize().ok().and_then(|file| Some(file.parent()?.parent()?.to_owned()));
    let libraries = ["lib/libmpi_abi.so.1", "lib/libmpi_abi.so", "lib64/libmpi_abi.so.1", "lib64/libmpi_abi.so"];
    prefix.is_some_and(|prefix| libraries.iter().any(|library| prefix.join(library).exists()))
}
