//! The rows of a task's splits: from a data directory, from a mirror of the Hub's layout in one, or from the Hub.

use super::tasks::Task;
use crate::corpus::table;
use crate::corpus::table::Row;
use crate::hub::{Hub, HubName};
use crate::runtime::error::{Exit, fail};
use anyhow::Result;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// File names are looked for at most this deep in a mirror.
const DEPTH: usize = 4;

/// Where data sets are looked for.
pub struct Library {
    /// `--data-dir`.
    pub dir: Option<PathBuf>,
    /// `--download`.
    pub hub: Option<Hub>,
}

impl Library {
    /// The rows of `split` of the task's data set.
    ///
    /// # Errors
    /// [`Exit::Io`] if they are nowhere, naming where they were looked for; [`Exit::Data`] if a file is not what it should be.
    pub fn rows(&self, task: &Task, split: &str) -> Result<Vec<Value>> {
        let found = self.dir.as_ref().map_or_else(Vec::new, |dir| local(dir, task, split));
        if !found.is_empty() {
            return read_all(&found);
        }
        match &self.hub {
            Some(hub) => read_all(&download(hub, task, split)?),
            None => Err(self.missing(task, split)),
        }
    }

    fn missing(&self, task: &Task, split: &str) -> anyhow::Error {
        let place = self.dir.as_ref().map_or_else(
            || "no --data-dir was given".to_owned(),
            |dir| {
                format!(
                    "looked for {dir}/{}/{split}.jsonl, {split}.parquet there, and for a copy of the data set in {dir}/{}",
                    task.folder,
                    task.hub,
                    dir = dir.display(),
                )
            },
        );
        let of = task.subset.as_ref().map_or_else(String::new, |subset| format!(", {subset}"));
        fail(Exit::Io, format!("{}: its {split} split is missing: {place}", task.name))
            .hint(format!("add --download, or get it from the Hub: data set {}{of}", task.hub))
            .into()
    }
}

/// The files of a split in `dir`: the task's own folder, then a mirror of the data set.
fn local(dir: &Path, task: &Task, split: &str) -> Vec<PathBuf> {
    let folder = dir.join(&task.folder);
    for extension in ["jsonl", "parquet"] {
        let path = folder.join(format!("{split}.{extension}"));
        if path.exists() {
            return vec![path];
        }
    }
    let mut files = Vec::new();
    walk(&dir.join(task.hub), DEPTH, &mut files);
    let root = dir.join(task.hub);
    files.retain(|path| path.strip_prefix(&root).is_ok_and(|p| is_of_split(p, task.subset.as_deref(), split)));
    files.sort();
    // One form is enough where a mirror has several.
    if files.iter().any(|file| is_parquet(file)) {
        files.retain(|file| is_parquet(file));
    }
    files
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "parquet")
}

fn walk(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && depth > 0 {
            walk(&path, depth - 1, found);
        } else if path.extension().is_some_and(|e| e == "parquet" || e == "jsonl") {
            found.push(path);
        }
    }
}

/// Whether a data set's file is of this subset and split, by the names that data sets give: `SUBSET/SPLIT-00000-of-00001.parquet`,
/// `SUBSET/SPLIT/0000.parquet`, `NAME_SPLIT.parquet`, `SUBSET/SUBSET-SPLIT.parquet`.
fn is_of_split(path: &Path, subset: Option<&str>, split: &str) -> bool {
    let parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let Some((file, folders)) = parts.split_last() else { return false };
    let stem = file.rsplit_once('.').map_or(file.as_str(), |(stem, _)| stem);
    let by_name = stem == split
        || stem.strip_prefix(split).and_then(|rest| rest.strip_prefix('-')).is_some_and(starts_with_digit)
        || stem.strip_suffix(split).is_some_and(|head| head.ends_with(['_', '-']));
    let by_folder = starts_with_digit(stem) && folders.last().is_some_and(|folder| folder == split);
    let of_subset = subset.is_none_or(|subset| {
        let folders = if by_folder { &folders[..folders.len() - 1] } else { folders };
        folders.iter().any(|folder| folder == subset) || stem.starts_with(subset)
    });
    (by_name || by_folder) && of_subset
}

fn starts_with_digit(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

fn download(hub: &Hub, task: &Task, split: &str) -> Result<Vec<PathBuf>> {
    let name: HubName = format!("hub:{}:{}:{split}", task.hub, task.subset.as_deref().unwrap_or_default()).parse()?;
    hub.resolve(&name)?.iter().map(|file| hub.fetch(file, &|_| ())).collect()
}

fn read_all(files: &[PathBuf]) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for file in files {
        for Row { line, value } in table::rows(file)? {
            rows.push(value.map_err(|what| {
                fail(Exit::Data, format!("{}:{line}: {what}", file.display())).hint("every line must be a JSON object")
            })?);
        }
    }
    if rows.is_empty() {
        let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        return Err(fail(Exit::Data, format!("{}: no rows", names.join(", "))).hint("get the data set again").into());
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::find;

    #[test]
    fn the_names_of_splits_are_known() {
        for (path, subset, split, is) in [
            ("ARC-Easy/test-00000-of-00001.parquet", Some("ARC-Easy"), "test", true),
            ("ARC-Challenge/test-00000-of-00001.parquet", Some("ARC-Easy"), "test", false),
            ("main/test/0000.parquet", Some("main"), "test", true),
            ("piqa_validation.parquet", None, "validation", true),
            ("data/lambada_test.jsonl", None, "test", true),
            ("data/train-00000-of-00002.parquet", None, "train", true),
            ("data/train-00000-of-00002.parquet", None, "test", false),
            ("wikitext-2-raw-v1/wikitext-2-raw-v1-test.parquet", Some("wikitext-2-raw-v1"), "test", true),
            ("anatomy/dev-00000-of-00001.parquet", Some("anatomy"), "dev", true),
            ("all/dev-00000-of-00001.parquet", Some("anatomy"), "dev", false),
        ] {
            assert_eq!(is_of_split(Path::new(path), subset, split), is, "{path} {split}");
        }
    }

    #[test]
    fn a_missing_split_says_where_it_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library { dir: Some(dir.path().to_owned()), hub: None };
        let task = &find("arc_easy").unwrap()[0];
        let error = library.rows(task, "test").unwrap_err();
        let failure = error.downcast_ref::<crate::runtime::error::Failure>().unwrap();
        assert!(
            failure.message.contains("arc_easy/test.jsonl") && failure.message.contains("allenai/ai2_arc"),
            "{failure}"
        );
        assert!(failure.hint.as_ref().unwrap().contains("ARC-Easy"));
        // Its own folder first, then the mirror.
        let mirror = dir.path().join("allenai/ai2_arc/ARC-Easy");
        std::fs::create_dir_all(&mirror).unwrap();
        std::fs::write(mirror.join("test.jsonl"), "{\"id\": 1}\n\n{\"id\": 2}\n").unwrap();
        assert_eq!(library.rows(task, "test").unwrap().len(), 2);
        std::fs::create_dir_all(dir.path().join("arc_easy")).unwrap();
        std::fs::write(dir.path().join("arc_easy/test.jsonl"), "{\"id\": 3}\n").unwrap();
        assert_eq!(library.rows(task, "test").unwrap()[0]["id"], 3);
        std::fs::write(dir.path().join("arc_easy/test.jsonl"), "{\"id\": 3}\n{oops\n").unwrap();
        assert!(library.rows(task, "test").unwrap_err().to_string().contains("test.jsonl:2"));
    }
}
