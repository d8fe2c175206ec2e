//! Which files of an output directory are ours: only those are ever removed, and only there are shards made.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::corpus::dedup::HASHES_FILE;
use crate::corpus::journal::STATE_FILE;
use crate::corpus::quarantine::QUARANTINE_FILE;
use crate::corpus::shards::PREPARE_FILE;
use crate::corpus::shards::manifest::{MANIFEST_FILE, ShardEntry};
use crate::corpus::writer::PART_PREFIX;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files;

/// What a file is to `data prepare`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// What a process left that died while it wrote; of no use to anybody.
    Temporary,
    /// Needed until the output is finished.
    Working,
    /// Part of the finished output.
    Output,
}

fn kind(name: &str) -> Option<Kind> {
    if let Some(rest) = name.strip_prefix(files::TEMP_PREFIX) {
        // The final name, the process and a number.
        let of = rest.rsplitn(3, '-').last().unwrap_or_default();
        let written = [PREPARE_FILE, STATE_FILE, MANIFEST_FILE, "tokenizer.json", "tokenizer_config.json"];
        return (written.contains(&of) || kind(of).is_some()).then_some(Kind::Temporary);
    }
    if let Some(rest) = name.strip_prefix(PART_PREFIX) {
        return (is_shard(rest) || name.starts_with(HASHES_FILE)).then_some(Kind::Working);
    }
    (is_shard(name) || name == QUARANTINE_FILE).then_some(Kind::Output)
}

fn is_shard(name: &str) -> bool {
    let numbered = name.strip_prefix("train-").or_else(|| name.strip_prefix("val-")).and_then(|n| n.split_once('.'));
    numbered.is_some_and(|(number, kind)| {
        number.len() >= 5 && number.bytes().all(|b| b.is_ascii_digit()) && matches!(kind, "npy" | "docs")
    })
}

fn list(out: &Path) -> Result<Vec<(PathBuf, Kind)>> {
    let mut found = Vec::new();
    if out.exists() {
        let io_failure = |e| files::io_failure("list the directory", out, &e);
        for entry in fs::read_dir(out).map_err(io_failure)? {
            let path = entry.map_err(io_failure)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(kind) = kind(&name) {
                found.push((path, kind));
            }
        }
    }
    Ok(found)
}

/// Refuses to finish a directory that holds shards beside `made`: they would be taken for part of it.
pub(super) fn refuse_foreign(out: &Path, made: &[ShardEntry]) -> Result<()> {
    let known = |name: &str| made.iter().any(|entry| entry.name == name || entry.docs_name() == name);
    for (path, kind) in list(out)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if kind == Kind::Output && name != QUARANTINE_FILE && !known(&name) {
            let message = format!("{}: `data prepare` did not make it", path.display());
            return Err(fail(Exit::Config, message).hint("move it elsewhere, then give the same command again").into());
        }
    }
    Ok(())
}

/// Refuses a directory that holds finished or foreign shards, or another tokenizer than `tokenizer`'s files.
pub(super) fn refuse_taken(out: &Path, tokenizer: &[(&str, Vec<u8>)]) -> Result<()> {
    let taken = |what: &str| fail(Exit::Config, format!("{}: {what}", out.display())).hint("choose another --out");
    if out.join(STATE_FILE).exists() {
        return Ok(());
    }
    if out.join(MANIFEST_FILE).exists() {
        return Err(taken("already holds a finished output").into());
    }
    if out.join(PREPARE_FILE).exists() {
        return Ok(());
    }
    if list(out)?.iter().any(|(_, kind)| *kind != Kind::Temporary) {
        return Err(taken("already holds shards that `data prepare` did not make").into());
    }
    for (name, bytes) in tokenizer {
        let path = out.join(name);
        if path.exists() && files::read_bounded(&path, bytes.len() as u64, true).ok().as_ref() != Some(bytes) {
            return Err(taken(&format!("already holds another {name}")).into());
        }
    }
    Ok(())
}

/// Removes what processes that died have left half written.
pub(super) fn remove_temporary(out: &Path) -> Result<()> {
    remove(out, |kind| kind == Kind::Temporary)
}

/// Removes all of an unfinished output.
pub(super) fn remove_unfinished(out: &Path) -> Result<()> {
    // The state first: it must never count what is gone.
    remove_state(out)?;
    remove(out, |_| true)
}

/// Removes what a finished output does not need.
pub(super) fn remove_working(out: &Path) -> Result<()> {
    remove(out, |kind| kind != Kind::Output)?;
    remove_state(out)
}

fn remove(out: &Path, which: fn(Kind) -> bool) -> Result<()> {
    for (path, kind) in list(out)? {
        if which(kind) {
            fs::remove_file(&path).map_err(|e| files::io_failure("remove", &path, &e))?;
        }
    }
    Ok(())
}

fn remove_state(out: &Path) -> Result<()> {
    let path = out.join(STATE_FILE);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(files::io_failure("remove", &path, &e).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_are_known() {
        for (name, expected) in [
            ("train-00000.npy", Some(Kind::Output)),
            ("val-00012.docs", Some(Kind::Output)),
            ("quarantine.jsonl", Some(Kind::Output)),
            (".part-train-00000.npy", Some(Kind::Working)),
            (".part-hashes", Some(Kind::Working)),
            (".part-hashes-0-64", Some(Kind::Working)),
            (".tmp-shards.json-12-0", Some(Kind::Temporary)),
            (".tmp-prepare.state-12-3", Some(Kind::Temporary)),
            (".tmp-.part-hashes-0-64-12-3", Some(Kind::Temporary)),
            (".tmp-train-00003.npy-1-1", Some(Kind::Temporary)),
            ("shards.json", None),
            ("prepare.json", None),
            ("tokenizer.json", None),
            ("train-0000.npy", None),
            ("train-00000.npy.bak", None),
            ("train-x0000.npy", None),
            (".part-notes", None),
            (".tmp-notes-1-1", None),
            ("train.npy", None),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }
}
