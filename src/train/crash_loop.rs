//! A checkpoint that is whole by its hashes and yet makes the program panic when it is loaded: the third start does without it.
//!
//! Only panics that were caught are counted. A start that was killed says nothing about the checkpoint.

use crate::checkpoint::{self, Valid};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{read_bounded, write_atomic};
use crate::runtime::panic::catch_panic;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Panics after which a checkpoint is no longer used.
const MOST: u64 = 2;

fn marker(checkpoint: &Path) -> PathBuf {
    let name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    // Beside the checkpoint, whose own files stay as they were saved.
    checkpoint.with_file_name(format!(".panicked-{name}"))
}

/// How often loading `checkpoint` has panicked.
fn panics(checkpoint: &Path) -> u64 {
    let text = read_bounded(&marker(checkpoint), 64, false).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().parse().unwrap_or(0)
}

/// Runs `load`, which reads `checkpoint`. A panic is counted, and is an error.
///
/// # Errors
/// Those of `load`; [`Exit::Internal`] if it panicked.
pub fn counted<T>(checkpoint: &Path, load: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_panic(load).unwrap_or_else(|panic| {
        let n = panics(checkpoint) + 1;
        // Durable before the error is passed on: it ends the process, and the next one must know of it.
        write_atomic(&marker(checkpoint), format!("{n}\n").as_bytes())?;
        let message = format!("loading {} has panicked ({n} times): {panic}", checkpoint.display());
        Err(fail(Exit::Internal, message)
            .hint(format!("please report it; after {MOST} times a resume of the run takes the checkpoint before it"))
            .into())
    })
}

/// Sets `valid` aside if loading it has panicked too often; its new name.
///
/// # Errors
/// Those of renaming it.
pub fn quarantine(valid: &Valid) -> Result<Option<PathBuf>> {
    if panics(&valid.dir) < MOST {
        return Ok(None);
    }
    checkpoint::quarantine(&valid.dir, &format!(".bad-{}-panic", valid.manifest.step)).map(Some)
}
