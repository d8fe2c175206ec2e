//! Puts the commit into the version string, so that every checkpoint and report can say what made it; compiles the CUDA kernels if asked to.

#[cfg(feature = "cuda")]
#[path = "src/ops/cuda/build.rs"]
mod cuda;

use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

fn main() {
    name_commit();
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
