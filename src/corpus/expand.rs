//! From what the user names to files, in an order that does not depend on the machine.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use anyhow::Result;
use glob::{MatchOptions, Pattern};

use crate::corpus::PREPARE_FILE;
use crate::corpus::left_out::{LeftOut, Reasons};
use crate::corpus::list_dir::list_dir;
use crate::corpus::shards::is_token_file;
use crate::corpus::shards::manifest::MANIFEST_FILE;
use crate::corpus::source::{KNOWN, is_corpus_file, refuse_other_kinds};
use crate::runtime::error::{Exit, fail};
use crate::runtime::home::expand_home_text;

/// How many levels of directories are searched; deeper nesting is assumed to be a loop of symbolic links.
const MAX_DEPTH: usize = 32;

/// The kind of files to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Files of text or records ([`is_corpus_file`]).
    Text,
    /// `.npy` and `.bin` files.
    Tokens,
}

impl FileKind {
    fn accepts(self, path: &Path) -> Result<bool> {
        match self {
            // Pipes and devices are not opened: reading from them could wait for ever.
            Self::Text if path.is_file() => is_corpus_file(path),
            Self::Text => Ok(false),
            Self::Tokens => Ok(is_token_file(path)),
        }
    }
}

/// The files that patterns stand for, and those that were left out.
#[derive(Debug, Default)]
pub struct ExpandedFiles {
    pub files: Vec<PathBuf>,
    pub left_out: Vec<LeftOut>,
}

/// The files of text that `patterns` stand for: files, globs, and directories, which give the files of text below them. Hidden
/// files, and what macOS and notebooks leave beside files, are taken only where a pattern names them. Sorted by path, each
/// once.
///
/// # Errors
/// [`Exit::Io`] for a pattern that stands for no file, naming it; [`Exit::Config`] for a malformed glob, a directory of
/// prepared shards, or a named file of a kind that is not read.
pub fn expand(patterns: &[String]) -> Result<ExpandedFiles> {
    find(patterns, FileKind::Text)
}

/// As [`expand`], for files of any kind.
///
/// # Errors
/// Those of [`expand`].
pub fn find(patterns: &[String], wanted: FileKind) -> Result<ExpandedFiles> {
    let mut search = Search { wanted, found: Vec::new(), reasons: Reasons::default() };
    for pattern in patterns {
        let pattern = &expand_home_text(pattern);
        let found = search.found.len();
        let passed = search.reasons.count();
        if Path::new(pattern).exists() {
            search.named(Path::new(pattern))?;
        } else {
            search.glob(pattern)?;
        }
        if search.found.len() == found {
            let message = match search.reasons.count() - passed {
                0 => format!("{pattern}: no such file"),
                n => format!("{pattern}: none of its {n} files is read: {}", search.reasons),
            };
            return Err(fail(Exit::Io, message)
                .hint(format!("give existing files, globs, or directories that hold files of text: {KNOWN}"))
                .into());
        }
    }
    let mut files = search.found;
    files.sort();
    // The same file by two names is still one corpus.
    let mut seen = HashSet::new();
    files.retain(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
    Ok(ExpandedFiles { files, left_out: search.reasons.into_list() })
}

struct Search {
    wanted: FileKind,
    found: Vec<PathBuf>,
    reasons: Reasons,
}

impl Search {
    /// A path that the user has named.
    fn named(&mut self, path: &Path) -> Result<()> {
        if path.is_dir() {
            return self.directory(path);
        }
        if self.wanted == FileKind::Text {
            refuse_other_kinds(&[path.to_path_buf()])?;
        }
        self.found.push(path.to_path_buf());
        Ok(())
    }

    fn directory(&mut self, path: &Path) -> Result<()> {
        if is_prepared(path) {
            return Err(fail(Exit::Config, format!("{}: holds prepared shards, not text", path.display()))
                .hint("give the directory of the text; prepared shards are used as data.train and data.val")
                .into());
        }
        self.walk(path, 0)
    }

    fn walk(&mut self, dir: &Path, depth: usize) -> Result<()> {
        for (name, path) in entries(dir, depth)? {
            if self.reasons.count_if_litter(&name, &path) {
                continue;
            }
            if !path.is_dir() {
                self.candidate(path)?;
            } else if is_prepared(&path) {
                // The output of an earlier run below its own input: its quarantine file is not text.
                self.reasons.add("directories of prepared shards", &path);
            } else {
                self.walk(&path, depth + 1)?;
            }
        }
        Ok(())
    }

    /// A file that was found in a directory or by a glob, not named by the user.
    fn candidate(&mut self, path: PathBuf) -> Result<()> {
        if self.wanted.accepts(&path)? {
            self.found.push(path);
        } else {
            self.reasons.add_kind(&path);
        }
        Ok(())
    }

    fn glob(&mut self, pattern: &str) -> Result<()> {
        Pattern::new(pattern).map_err(|e| {
            fail(Exit::Config, format!("{pattern:?} is no path and no glob: {e}"))
                .hint("`*` stands for part of a name, `**` alone between slashes for directories")
        })?;
        let mut start = PathBuf::new();
        let mut parts = Vec::new();
        for part in Path::new(pattern).components() {
            match part {
                Component::Normal(part) if !parts.is_empty() || is_glob(&part.to_string_lossy()) => {
                    parts.push(part.to_string_lossy().into_owned());
                }
                // Behind a wildcard, `..` would lead out of what it stands for: it is a name that nothing has.
                part if parts.is_empty() => start.push(part),
                part => parts.push(part.as_os_str().to_string_lossy().into_owned()),
            }
        }
        if parts.is_empty() { Ok(()) } else { self.matching(&start, &parts, 0) }
    }

    /// Adds the files below `dir` that match `parts`, one pattern for each level.
    fn matching(&mut self, dir: &Path, parts: &[String], depth: usize) -> Result<()> {
        let Some((part, rest)) = parts.split_first() else {
            return if dir.is_dir() { self.directory(dir) } else { self.candidate(dir.to_path_buf()) };
        };
        if !is_glob(part) {
            let next = dir.join(part);
            return if next.exists() { self.matching(&next, rest, depth + 1) } else { Ok(()) };
        }
        if part == "**" {
            self.matching(dir, rest, depth)?;
            // A directory at the end of a pattern is searched to its bottom.
            if rest.is_empty() {
                return Ok(());
            }
        }
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        if !dir.is_dir() {
            return Ok(());
        }
        let pattern = Pattern::new(part).map_err(|e| fail(Exit::Config, format!("{part:?} is no glob: {e}")))?;
        for (name, path) in entries(dir, depth)? {
            let path = path.strip_prefix(".").map_or(path.clone(), Path::to_path_buf);
            let text = name.to_string_lossy();
            if part == "**" {
                if path.is_dir() && !self.reasons.count_if_litter(&name, &path) {
                    self.matching(&path, parts, depth + 1)?;
                }
            } else if pattern.matches_with(&text, SHELL) && (text.starts_with('.') || !is_litter(&text)) {
                self.matching(&path, rest, depth + 1)?;
            } else if rest.is_empty() && pattern.matches(&text) {
                self.reasons.count_if_litter(&name, &path);
            }
        }
        Ok(())
    }
}

/// As in a shell: a dot at the start of a name must be written.
const SHELL: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

fn is_glob(part: &str) -> bool {
    part.contains(['*', '?', '['])
}

/// A directory in which macOS keeps what its archives say about files.
fn is_litter(name: &str) -> bool {
    name == "__MACOSX"
}

fn is_prepared(dir: &Path) -> bool {
    dir.join(MANIFEST_FILE).exists() || dir.join(PREPARE_FILE).exists()
}

/// The entries of `dir`, by name.
fn entries(dir: &Path, depth: usize) -> Result<Vec<(OsString, PathBuf)>> {
    if depth > MAX_DEPTH {
        let message = format!("{}: directories nested more than {MAX_DEPTH} deep", dir.display());
        return Err(fail(Exit::Config, message).hint("look for a symbolic link that leads back up").into());
    }
    let mut entries = list_dir(dir)?;
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::error::Failure;
    use std::fs;

    fn lay(dir: &Path, names: &[&str]) {
        for name in names {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
    }

    type Counts = Vec<(String, u64)>;

    /// Files and what was left out, of patterns below `dir`.
    fn get(dir: &Path, patterns: &[&str]) -> Result<(Vec<String>, Counts)> {
        let patterns: Vec<String> = patterns.iter().map(|p| format!("{}/{p}", dir.display())).collect();
        let ExpandedFiles { files, left_out } = expand(&patterns)?;
        let relative = |p: PathBuf| p.strip_prefix(dir).unwrap().display().to_string();
        let counts = left_out.into_iter().map(|kind| (kind.what, kind.files)).collect();
        Ok((files.into_iter().map(relative).collect(), counts))
    }

    #[test]
    fn files_globs_and_directories() {
        let dir = tempfile::tempdir().unwrap();
        lay(dir.path(), &["b.txt", "a.jsonl", "sub/deep/c.txt", "notes.md", "n.json.gz", ".hidden/d.txt", "[x].txt"]);
        lay(dir.path(), &["out/val-00000.npy", "out/shards.json", "out/quarantine.jsonl"]);
        let files = |patterns: &[&str]| get(dir.path(), patterns).map(|(files, _)| files);
        assert_eq!(files(&[""]).unwrap(), ["[x].txt", "a.jsonl", "b.txt", "n.json.gz", "sub/deep/c.txt"]);
        assert_eq!(files(&["*.txt", "a.jsonl", "b.txt"]).unwrap(), ["[x].txt", "a.jsonl", "b.txt"]);
        assert_eq!(files(&["**/*.txt"]).unwrap(), ["[x].txt", "b.txt", "sub/deep/c.txt"]);
        assert_eq!(files(&["sub/**"]).unwrap(), ["sub/deep/c.txt"]);
        assert_eq!(files(&["*/deep/c.txt"]).unwrap(), ["sub/deep/c.txt"]);
        assert_eq!(files(&["[x].txt"]).unwrap(), ["[x].txt"]);
        assert_eq!(files(&["s*"]).unwrap(), ["sub/deep/c.txt"]);
        assert_eq!(files(&[".h*/*"]).unwrap(), [".hidden/d.txt"]);
        for (pattern, exit) in [
            ("absent.txt", Exit::Io),
            ("*.parquet", Exit::Io),
            ("*.md", Exit::Io),
            ("out", Exit::Config),
            ("a***b", Exit::Config),
            ("notes.md", Exit::Config),
        ] {
            let error = files(&["b.txt", pattern]).unwrap_err();
            assert_eq!(error.downcast_ref::<Failure>().unwrap().exit, exit, "{pattern}");
            assert!(error.to_string().contains(pattern), "{error}");
        }
    }

    #[test]
    fn what_is_passed_over_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        lay(
            dir.path(),
            &["a.jsonl", "._a.jsonl", ".h.jsonl", "__MACOSX/b.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl"],
        );
        lay(dir.path(), &["x.CSV", "y.csv", "LICENSE", "z.jsonl.part", "old/shards.json"]);
        let count = |what: &str, n| (what.to_owned(), n);
        let hidden = [count("AppleDouble files of macOS (._*, __MACOSX)", 2), count("hidden files (.*)", 1)];
        let notebook = count("notebook copies (.ipynb_checkpoints)", 1);
        let (files, left_out) = get(dir.path(), &[""]).unwrap();
        assert_eq!(files, ["a.jsonl"]);
        let kinds = [count("directories of prepared shards", 1)];
        let suffixes =
            [count("files ending in .csv", 2), count("files ending in .part", 1), count("files without a suffix", 1)];
        assert_eq!(left_out, [&hidden[..1], &kinds, &suffixes, &hidden[1..], std::slice::from_ref(&notebook)].concat());
        let (files, left_out) = get(dir.path(), &["**/*.jsonl"]).unwrap();
        assert_eq!(files, ["a.jsonl"]);
        assert_eq!(left_out, [hidden[0].clone(), hidden[1].clone(), notebook]);
        assert_eq!(get(dir.path(), &["*.jsonl"]).unwrap().0, ["a.jsonl"]);
        assert_eq!(get(dir.path(), &["*/*.jsonl", "*.jsonl"]).unwrap_err().to_string().lines().count(), 1);
        // What is named is taken.
        assert_eq!(get(dir.path(), &[".h.jsonl", "__MACOSX/*.jsonl"]).unwrap().0, [".h.jsonl", "__MACOSX/b.jsonl"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn names_that_are_not_utf8_are_read() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let name = std::ffi::OsStr::from_bytes(b"caf\xe9.txt");
        fs::write(dir.path().join(name), "x").unwrap();
        for pattern in ["", "/*.txt"] {
            let found = expand(&[format!("{}{pattern}", dir.path().display())]).unwrap();
            assert_eq!(found.files, [dir.path().join(name)], "{pattern}");
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
