//! Which files of an output directory `data prepare` made: only those are ever removed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::corpus::dedup::HASHES_FILE;
use crate::corpus::journal::STATE_FILE;
use crate::corpus::list_dir::list_dir;
use crate::corpus::quarantine::QUARANTINE_FILE;
use crate::corpus::shards::PREPARE_FILE;
use crate::corpus::shards::manifest::{MANIFEST_FILE, ShardEntry};
use crate::corpus::writer::PART_PREFIX;
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files;

/// What a file is to `data prepare`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileRole {
    /// Left by a process that died while it wrote; of no use.
    Temporary,
    /// Needed until the output is finished.
    Working,
    /// Part of the finished output.
    Output,
}

fn role(name: &str) -> Option<FileRole> {
    if let Some(rest) = name.strip_prefix(files::TEMP_PREFIX) {
        // The final name, the process and a number.
        let target = rest.rsplitn(3, '-').last().unwrap_or_default();
        let written = [PREPARE_FILE, STATE_FILE, MANIFEST_FILE, "tokenizer.json", "tokenizer_config.json"];
        return (written.contains(&target) || role(target).is_some()).then_some(FileRole::Temporary);
    }
    if let Some(rest) = name.strip_prefix(PART_PREFIX) {
        return (is_shard(rest) || name.starts_with(HASHES_FILE)).then_some(FileRole::Working);
    }
    (is_shard(name) || name == QUARANTINE_FILE).then_some(FileRole::Output)
}

fn is_shard(name: &str) -> bool {
    let numbered = name.strip_prefix("train-").or_else(|| name.strip_prefix("val-")).and_then(|n| n.split_once('.'));
    numbered.is_some_and(|(number, kind)| {
        number.len() >= 5 && number.bytes().all(|b| b.is_ascii_digit()) && matches!(kind, "npy" | "docs")
    })
}

fn list(out: &Path) -> Result<Vec<(PathBuf, FileRole)>> {
    let mut found = Vec::new();
    if out.exists() {
        for (name, path) in list_dir(out)? {
            if let Some(role) = role(&name.to_string_lossy()) {
                found.push((path, role));
            }
        }
    }
    Ok(found)
}

/// Refuses to finish a directory that holds other shards than `made`: they would be taken for a part of the output.
pub(super) fn refuse_foreign(out: &Path, made: &[ShardEntry]) -> Result<()> {
    for (path, role) in list(out)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_known = name == QUARANTINE_FILE || made.iter().any(|e| e.name == name || e.docs_name() == name);
        if role == FileRole::Output && !is_known {
            let message = format!("{}: `data prepare` did not make it", path.display());
            return Err(fail(Exit::Config, message).hint("move it elsewhere, then give the same command again").into());
        }
    }
    Ok(())
}

/// Refuses a directory that holds finished or foreign shards, or another tokenizer than `tokenizer`'s files.
pub(super) fn refuse_taken(out: &Path, tokenizer: &[(&str, Vec<u8>)]) -> Result<()> {
    if out.join(STATE_FILE).exists() {
        return Ok(());
    }
    if out.join(MANIFEST_FILE).exists() {
        return Err(taken(out, "already holds a finished output").into());
    }
    if out.join(PREPARE_FILE).exists() {
        return Ok(());
    }
    if list(out)?.iter().any(|(_, role)| *role != FileRole::Temporary) {
        return Err(taken(out, "already holds shards that `data prepare` did not make").into());
    }
    for (name, bytes) in tokenizer {
        let path = out.join(name);
        if path.exists() && files::read_bounded(&path, bytes.len() as u64, true).ok().as_ref() != Some(bytes) {
            return Err(taken(out, &format!("already holds another {name}")).into());
        }
    }
    Ok(())
}

fn taken(out: &Path, what: &str) -> Failure {
    fail(Exit::Config, format!("{}: {what}", out.display())).hint("choose another --out")
}

/// Removes the half-written files of processes that died.
pub(super) fn remove_temporary(out: &Path) -> Result<()> {
    remove(out, |role| role == FileRole::Temporary)
}

/// Removes all of an unfinished output.
pub(super) fn remove_unfinished(out: &Path) -> Result<()> {
    // The state first: it must never count files that are removed.
    remove_state(out)?;
    remove(out, |_| true)
}

/// Removes what a finished output does not need.
pub(super) fn remove_working(out: &Path) -> Result<()> {
    remove(out, |role| role != FileRole::Output)?;
    remove_state(out)
}

fn remove(out: &Path, which: fn(FileRole) -> bool) -> Result<()> {
    for (path, role) in list(out)? {
        if which(role) {
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
            ("train-00000.npy", Some(FileRole::Output)),
            ("val-00012.docs", Some(FileRole::Output)),
            ("quarantine.jsonl", Some(FileRole::Output)),
            (".part-train-00000.npy", Some(FileRole::Working)),
            (".part-hashes", Some(FileRole::Working)),
            (".part-hashes-0-64", Some(FileRole::Working)),
            (".tmp-shards.json-12-0", Some(FileRole::Temporary)),
            (".tmp-prepare.state-12-3", Some(FileRole::Temporary)),
            (".tmp-.part-hashes-0-64-12-3", Some(FileRole::Temporary)),
            (".tmp-train-00003.npy-1-1", Some(FileRole::Temporary)),
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
            assert_eq!(role(name), expected, "{name}");
        }
    }
}
