//! What several targets need: the input as a file in memory, and what a refusal must be.
#![allow(dead_code)]

use llama_lite::runtime::error::{Exit, Failure};
use std::path::PathBuf;
use tempfile::TempDir;

/// A directory in memory that is gone with the value.
pub fn dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").expect("memory")
}

/// The only file of a directory in memory.
pub fn file(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = dir();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("memory");
    (dir, path)
}

/// It is the file's fault, the system's or the configuration's.
pub fn assert_refusal(error: &anyhow::Error) {
    let failure = error.chain().find_map(|e| e.downcast_ref::<Failure>()).expect("a class");
    assert!([Exit::Data, Exit::Io, Exit::Config].contains(&failure.exit), "{error:#}");
}

/// libFuzzer's own hook ends the process at any panic, also at those of libraries that are caught. One that is not caught still ends it.
pub fn let_panics_be_caught() {
    std::panic::set_hook(Box::new(|_| ()));
}
