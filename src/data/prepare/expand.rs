//! From what the user names to files, in an order that does not depend on the machine.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::data::prepare::PREPARE_FILE;
use crate::data::prepare::source::{KNOWN, is_known};
use crate::data::shards::manifest::MANIFEST_FILE;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files;

/// Directories below a given one that are followed down; deeper is taken for a loop of symbolic links.
const MAX_DEPTH: usize = 32;

/// The files that `patterns` stand for: files, globs, and directories, which give the files of text ([`is_known`]) below
/// them, hidden ones left out. Sorted by path, each once.
///
/// # Errors
/// [`Exit::Io`] for a pattern that stands for no file, naming it; [`Exit::Config`] for a malformed glob or a directory
/// of prepared shards.
pub fn expand(patterns: &[String]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for pattern in patterns {
        let before = found.len();
        if Path::new(pattern).exists() {
            add_path(Path::new(pattern), &mut found)?;
        } else {
            let malformed = |e| fail(Exit::Config, format!("{pattern:?} is no path and no glob: {e}"));
            for path in glob::glob(pattern).map_err(malformed)? {
                let path = path.map_err(|e| files::io_failure("list", e.path(), e.error()))?;
                add_path(&path, &mut found)?;
            }
        }
        if found.len() == before {
            return Err(fail(Exit::Io, format!("{pattern}: no such file"))
                .hint(format!("give existing files, globs, or directories that hold files of text: {KNOWN}"))
                .into());
        }
    }
    found.sort();
    // The same file by two names is still one corpus.
    let mut seen = HashSet::new();
    found.retain(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
    if let Some(path) = found.iter().find(|path| path.to_str().is_none()) {
        return Err(fail(Exit::Config, format!("{path:?}: the name is not UTF-8")).hint("rename the file").into());
    }
    Ok(found)
}

fn add_path(path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        found.push(path.to_path_buf());
        return Ok(());
    }
    if is_prepared(path) {
        return Err(fail(Exit::Config, format!("{}: holds prepared shards, not text", path.display()))
            .hint("give the directory of the text; prepared shards are used as data.train and data.val")
            .into());
    }
    walk(path, 0, found)
}

fn is_prepared(dir: &Path) -> bool {
    dir.join(MANIFEST_FILE).exists() || dir.join(PREPARE_FILE).exists()
}

fn walk(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if depth > MAX_DEPTH {
        let message = format!("{}: directories nested more than {MAX_DEPTH} deep", dir.display());
        return Err(fail(Exit::Config, message).hint("look for a symbolic link that leads back up").into());
    }
    let io_failure = |e| files::io_failure("list the directory", dir, &e);
    for entry in fs::read_dir(dir).map_err(io_failure)? {
        let entry = entry.map_err(io_failure)?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if path.is_dir() {
            // The output of an earlier run below its own input: its quarantine file is not text.
            if !is_prepared(&path) {
                walk(&path, depth + 1, found)?;
            }
        } else if is_known(&path) {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::error::Failure;

    #[test]
    fn files_globs_and_directories() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display().to_string();
        for name in [
            "b.txt",
            "a.jsonl",
            "sub/deep/c.txt",
            "notes.md",
            "n.json.gz",
            ".hidden/d.txt",
            "[x].txt",
            "out/val-00000.npy",
        ] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        fs::write(dir.path().join("out/shards.json"), "{}").unwrap();
        fs::write(dir.path().join("out/quarantine.jsonl"), "{}").unwrap();
        let get = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|p| format!("{root}/{p}")).collect();
            let found = expand(&patterns)?;
            let relative = |p: PathBuf| p.strip_prefix(dir.path()).unwrap().display().to_string();
            anyhow::Ok(found.into_iter().map(relative).collect::<Vec<_>>())
        };
        assert_eq!(get(&[""]).unwrap(), ["[x].txt", "a.jsonl", "b.txt", "n.json.gz", "sub/deep/c.txt"]);
        assert_eq!(get(&["*.txt", "a.jsonl", "b.txt"]).unwrap(), ["[x].txt", "a.jsonl", "b.txt"]);
        assert_eq!(get(&["**/*.txt", "notes.md"]).unwrap().len(), 5);
        assert_eq!(get(&["[x].txt"]).unwrap(), ["[x].txt"]);
        assert_eq!(get(&["s*"]).unwrap(), ["sub/deep/c.txt"]);
        for (pattern, exit) in
            [("absent.txt", Exit::Io), ("*.parquet", Exit::Io), ("out", Exit::Config), ("a***b", Exit::Config)]
        {
            let error = get(&["b.txt", pattern]).unwrap_err();
            assert_eq!(error.downcast_ref::<Failure>().unwrap().exit, exit, "{pattern}");
            assert!(error.to_string().contains(pattern), "{error}");
        }
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.txt"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("again")).unwrap();
        let error = expand(&[dir.path().display().to_string()]).unwrap_err();
        assert_eq!(error.downcast_ref::<Failure>().unwrap().exit, Exit::Config);
    }
}
