//! Which files of a repository a name stands for: by path, by the subsets of the card, or by the names of the files.
//!
//! The rules are those of Hugging Face's `datasets`, so that a subset has the same files here and there. Only kinds of files
//! that `prepare` reads count; of a subset that mixes kinds, the most frequent one is taken (a repository of Parquet files
//! may have a `requirements.txt`).

use anyhow::Result;
use glob::{MatchOptions, Pattern};

use super::cache::Tree;
use super::card::Subset;
use super::name::{HubName, is_safe_path};
use crate::hub::splits::SPLITS;
use crate::runtime::error::{Exit, Failure, fail};

/// Names of files that describe data and hold none.
const NO_DATA: [&str; 4] = ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"];

/// What a file holds, by its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DataKind {
    Parquet,
    Json,
    Text,
}

const KINDS: [DataKind; 3] = [DataKind::Parquet, DataKind::Json, DataKind::Text];

fn kind(path: &str) -> Option<DataKind> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    match plain.rsplit_once('.')?.1 {
        // Parquet compresses within: it is not read out of a compressed stream.
        "parquet" => (plain == name).then_some(DataKind::Parquet),
        "jsonl" | "ndjson" | "json" => Some(DataKind::Json),
        "txt" => Some(DataKind::Text),
        _ => None,
    }
}

/// The files that `path` of `name` stands for: a file, those that match a glob, or all data in a directory.
pub(super) fn by_path<'a>(tree: &'a Tree, name: &HubName, path: &str) -> Result<Vec<&'a str>> {
    if let Some((file, _)) = tree.get_key_value(path) {
        return match kind(file) {
            Some(_) => Ok(vec![file]),
            None => Err(fail(Exit::Config, format!("{name}: this kind of file is not read"))
                .hint("data are .jsonl, .ndjson, .json and .txt files, each plain, .gz or .zst, and .parquet files")
                .into()),
        };
    }
    let pattern =
        if path.contains(['*', '?', '[']) { path.to_owned() } else { format!("{}/**", Pattern::escape(path)) };
    let chosen: Vec<_> = matching(tree, &pattern, name)?.into_iter().filter(|file| kind(file).is_some()).collect();
    if chosen.is_empty() {
        let hint = format!("the repository has {}; data are .parquet, .json(l) and .txt files", top(tree));
        return Err(fail(Exit::Config, format!("{name}: no data file matches")).hint(hint).into());
    }
    Ok(chosen)
}

/// The files of the subset and split that `name` asks for.
pub(super) fn by_subset<'a>(tree: &'a Tree, name: &HubName, subsets: &[Subset]) -> Result<Vec<&'a str>> {
    let inferred = Subset { name: "default".to_owned(), default: true, directory: None, splits: Vec::new() };
    let subset = match subsets {
        [] => std::slice::from_ref(&inferred),
        _ => subsets,
    };
    let subset = choose(name, subset)?;
    let splits = match &subset.splits[..] {
        [] => by_names(tree, subset.directory.as_deref(), name)?,
        splits => splits.to_vec(),
    };
    let wanted = name.split.as_deref().unwrap_or(super::TRAIN);
    let Some((_, patterns)) = splits.iter().find(|(split, _)| split == wanted) else {
        let names: Vec<&str> = splits.iter().map(|(split, _)| split.as_str()).collect();
        if names.is_empty() {
            let hint = format!("the repository has {}; name files with {}/PATH", top(tree), base(name));
            return Err(fail(Exit::Config, format!("{name}: no data files are found")).hint(hint).into());
        }
        let hint = format!("its splits are {}; write {}:{}:SPLIT", list(&names), base(name), subset.name);
        return Err(fail(Exit::Config, format!("{name}: there is no split `{wanted}`")).hint(hint).into());
    };
    let mut chosen = Vec::new();
    for pattern in patterns {
        chosen.extend(matching(tree, &inside(subset.directory.as_deref(), pattern, name)?, name)?);
    }
    chosen.sort_unstable();
    chosen.dedup();
    // A split may hold its data in several forms; read together they would count twice.
    let chosen = most_frequent_kind(chosen);
    if chosen.is_empty() {
        let hint = format!("its files match {}; only .parquet, .json(l) and .txt are read", list(patterns));
        return Err(fail(Exit::Config, format!("{name}: split `{wanted}` holds no data that can be read"))
            .hint(hint)
            .into());
    }
    Ok(chosen)
}

/// The subset that `name` asks for.
fn choose<'a>(name: &HubName, subsets: &'a [Subset]) -> Result<&'a Subset, Failure> {
    let found = match (&name.subset, subsets) {
        (Some(wanted), _) => subsets.iter().find(|subset| subset.name == *wanted),
        (None, [subset]) => Some(subset),
        (None, _) => subsets.iter().find(|subset| subset.default),
    };
    found.ok_or_else(|| {
        let names: Vec<&str> = subsets.iter().map(|subset| subset.name.as_str()).collect();
        let message = match &name.subset {
            Some(wanted) => format!("{name}: there is no subset `{wanted}`"),
            None => format!("{name}: the data set has several subsets and no default one"),
        };
        fail(Exit::Config, message).hint(format!("its subsets are {}; write {}:SUBSET", list(&names), base(name)))
    })
}

/// `pattern` of a subset, relative to `directory`, as a pattern for the whole repository.
fn inside(directory: Option<&str>, pattern: &str, name: &HubName) -> Result<String, Failure> {
    let joined = match directory {
        Some(directory) => format!("{directory}/{pattern}"),
        None => pattern.to_owned(),
    };
    // Cards write `./data/*`, while the list of files has no `.`.
    let plain: Vec<&str> = joined.split('/').filter(|part| *part != ".").collect();
    let plain = plain.join("/");
    if plain.contains("://") || !is_safe_path(&plain) {
        let message = format!("{name}: its card names data outside of it: `{}`", pattern.escape_debug());
        return Err(fail(Exit::Config, message).hint("download those data yourself and give their path"));
    }
    Ok(plain)
}

/// The files of the tree that match `pattern`. Hidden ones (`.x`, `__x/`) match only if the pattern has as many hidden parts.
fn matching<'a>(tree: &'a Tree, pattern: &str, name: &HubName) -> Result<Vec<&'a str>, Failure> {
    if let Some((file, _)) = tree.get_key_value(pattern) {
        return Ok(vec![file]);
    }
    let compiled = Pattern::new(pattern).map_err(|e| {
        fail(Exit::Config, format!("{name}: the pattern `{}` is wrong: {}", pattern.escape_debug(), e.msg))
            .hint("`*` stands for part of a name, `**` alone between slashes for directories")
    })?;
    let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
    let matching = tree
        .keys()
        .map(String::as_str)
        .filter(|file| compiled.matches_with(file, options) && hidden(file) == hidden(pattern) && !is_no_data(file));
    Ok(matching.collect())
}

/// Numbers of hidden parts: names with a dot, directories with two underscores.
fn hidden(path: &str) -> (usize, usize) {
    let dots = path.split('/').filter(|part| part.starts_with('.')).count();
    let directories = path.rsplit_once('/').map_or("", |(directories, _)| directories);
    (dots, directories.split('/').filter(|part| part.starts_with("__")).count())
}

fn is_no_data(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| NO_DATA.contains(&name))
}

fn most_frequent_kind(files: Vec<&str>) -> Vec<&str> {
    let counts = KINDS.map(|wanted| (wanted, files.iter().filter(|file| kind(file) == Some(wanted)).count()));
    // `max_by_key` takes the last of equals; reversed, the first kind wins.
    let Some((best, _)) = counts.into_iter().rev().max_by_key(|(_, count)| *count) else { return files };
    files.into_iter().filter(|file| kind(file) == Some(best)).collect()
}

/// Splits and their files where the card does not list them: by names like `data/train-00000-of-00002.parquet`, else by
/// directories named after splits, else by files named after splits; else all files are for training.
fn by_names(tree: &Tree, directory: Option<&str>, name: &HubName) -> Result<Vec<(String, Vec<String>)>, Failure> {
    let all = matching(tree, &inside(directory, "**", name)?, name)?;
    let all: Vec<&str> = all.into_iter().filter(|file| kind(file).is_some()).collect();
    let start = directory.map_or(0, |directory| directory.trim_start_matches("./").len() + 1);
    let files: Vec<&str> = all.iter().map(|file| file.get(start..).unwrap_or_default()).collect();
    let sharded: Vec<_> = files.iter().filter_map(|file| Some((sharded_split(file)?, *file))).collect();
    if !sharded.is_empty() {
        return Ok(group(sharded));
    }
    let directories: Vec<&str> = files.iter().map(|file| file.rsplit_once('/').map_or("", |(dirs, _)| dirs)).collect();
    let names: Vec<&str> = all.iter().map(|file| file.rsplit('/').next().unwrap_or(file)).collect();
    // The parts of the paths that name splits, if any do.
    let parts = [directories, names]
        .into_iter()
        .find(|parts| parts.iter().any(|part| SPLITS.iter().any(|(_, words)| has_word(part, words))));
    let Some(parts) = parts else {
        return Ok(group(files.into_iter().map(|file| (super::TRAIN, file)).collect()));
    };
    let mut found = Vec::new();
    for (split, words) in SPLITS {
        let named = parts.iter().zip(&files).filter(|(part, _)| has_word(part, words));
        found.extend(named.map(|(_, file)| (split, *file)));
    }
    Ok(group(found))
}

/// Pairs of split and file, as files by split, in the order in which splits and files come.
fn group(pairs: Vec<(&str, &str)>) -> Vec<(String, Vec<String>)> {
    let mut splits: Vec<(String, Vec<String>)> = Vec::new();
    for (split, file) in pairs {
        match splits.iter_mut().find(|(known, _)| known == split) {
            Some((_, files)) => files.push(file.to_owned()),
            None => splits.push((split.to_owned(), vec![file.to_owned()])),
        }
    }
    splits
}

/// Whether one of `words` is a word of `path`.
fn has_word(path: &str, words: &[&str]) -> bool {
    path.split('/').any(|part| part.split(is_separator).any(|word| words.contains(&word)))
}

fn is_separator(c: char) -> bool {
    c.is_ascii_digit() || "-._ ".contains(c)
}

/// `train` of `data/train-00000-of-00002.parquet`.
fn sharded_split(path: &str) -> Option<&str> {
    let name = path.strip_prefix("data/").filter(|name| !name.contains('/'))?;
    let stem = name.split_once('.').map(|(stem, _)| stem)?;
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (split, number) = rest.rsplit_once('-')?;
    let has_total = total.len() >= 5 && total.bytes().take(5).all(|b| b.is_ascii_digit());
    let has_number = number.len() == 5 && number.bytes().all(|b| b.is_ascii_digit());
    (has_total && has_number && !split.is_empty()).then_some(split)
}

/// The name without subset, split and path.
fn base(name: &HubName) -> String {
    HubName { subset: None, split: None, path: None, ..name.clone() }.to_string()
}

/// Names for a hint, at most twenty.
fn list<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<String> = names.iter().take(20).map(|name| format!("`{}`", name.as_ref().escape_debug())).collect();
    let more = names.len().saturating_sub(20);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// The files and directories at the top of the repository, for a hint.
fn top(tree: &Tree) -> String {
    let mut names: Vec<&str> =
        tree.keys().map(|path| path.split_once('/').map_or(path.as_str(), |(dir, _)| dir)).collect();
    names.dedup();
    if names.is_empty() { "no files".to_owned() } else { list(&names) }
}

#[cfg(test)]
mod tests {
    use super::super::cache::TreeEntry;
    use super::*;

    fn tree(paths: &[&str]) -> Tree {
        paths.iter().map(|path| ((*path).to_owned(), TreeEntry::new(1, String::new(), None, None))).collect()
    }

    fn hub(text: &str) -> HubName {
        text.parse().unwrap()
    }

    #[test]
    fn splits_are_inferred_as_datasets_does() {
        let sharded = [
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002-ab12.parquet",
            "data/odd-00000-of-00001.parquet",
        ];
        let directories = ["en/train/a.jsonl", "en/dev-set/b.jsonl", "en/x/train.jsonl", "config.json"];
        let names =
            ["my_train_1.txt.gz", "trainer.txt", "valid.txt", "sub/TRAIN.txt", ".hidden_train.txt", "__x/train.txt"];
        for (files, split, expected) in [
            (&sharded[..], "train", &sharded[..2]),
            (&sharded, "odd", &sharded[2..]),
            (&directories, "train", &directories[..1]),
            (&directories, "validation", &directories[1..2]),
            (&names, "train", &names[..1]),
            (&names, "validation", &names[2..3]),
            (&["a.parquet", "b/c.parquet", "LICENSE.txt", "x.csv"], "train", &["a.parquet", "b/c.parquet"]),
            // One of each kind: the first of Parquet, JSON, text.
            (&["a.txt", "b.json"], "train", &["b.json"]),
        ] {
            let tree = tree(files);
            assert_eq!(by_subset(&tree, &hub(&format!("hub:a/b::{split}")), &[]).unwrap(), expected);
        }
    }

    #[test]
    fn compressed_parquet_is_left_out_like_other_files_that_are_not_read() {
        let tree = tree(&["a.parquet", "b.parquet.gz", "c.parquet.zst"]);
        assert_eq!(by_subset(&tree, &hub("hub:a/b"), &[]).unwrap(), ["a.parquet"]);
        assert_eq!(by_path(&tree, &hub("hub:a/b"), "*.parquet*").unwrap(), ["a.parquet"]);
        let refused = by_path(&tree, &hub("hub:a/b"), "b.parquet.gz").unwrap_err();
        assert!(refused.to_string().contains("this kind of file is not read"), "{refused}");
    }

    #[test]
    fn missing_splits_and_subsets_are_listed() {
        let tree = tree(&["data/train-00000-of-00001.parquet", "README.md"]);
        let missing = by_subset(&tree, &hub("hub:a/b::test"), &[]).unwrap_err();
        let failure = missing.downcast::<Failure>().unwrap();
        assert!(failure.hint.unwrap().contains("`train`"), "{}", failure.message);
        let make = |name: &str| Subset { name: name.into(), default: false, directory: None, splits: Vec::new() };
        let two = [make("en"), make("fr")];
        for text in ["hub:a/b", "hub:a/b:de"] {
            let failure = by_subset(&tree, &hub(text), &two).unwrap_err().downcast::<Failure>().unwrap();
            assert_eq!(failure.exit, Exit::Config);
            assert!(failure.hint.unwrap().contains("`en`, `fr`"), "{}", failure.message);
        }
        assert_eq!(by_subset(&tree, &hub("hub:a/b"), &two[..1]).unwrap().len(), 1, "the only one is meant");
        let none = by_subset(&Tree::new(), &hub("hub:a/b"), &[]).unwrap_err();
        assert!(none.to_string().contains("no data files"), "{none}");
    }

    #[test]
    fn patterns_of_cards_start_from_their_directory_and_stay_inside() {
        let tree = tree(&["x/a.txt", "x/y/b.txt", "x/y/z/c.txt", "d.txt", "x/[1].txt", "x/.h/e.txt"]);
        let make = |directory: Option<&str>, pattern: &str| Subset {
            name: "default".into(),
            default: true,
            directory: directory.map(str::to_owned),
            splits: vec![("train".into(), vec![pattern.into()])],
        };
        for (directory, pattern, expected) in [
            (None, "x/*", &["x/[1].txt", "x/a.txt"][..]),
            (None, "./x/**/*.txt", &["x/[1].txt", "x/a.txt", "x/y/b.txt", "x/y/z/c.txt"]),
            (Some("./x"), "y/*", &["x/y/b.txt"]),
            (None, "x/[1].txt", &["x/[1].txt"]),
            (None, "x/.*/*", &["x/.h/e.txt"]),
        ] {
            assert_eq!(by_subset(&tree, &hub("hub:a/b"), &[make(directory, pattern)]).unwrap(), expected, "{pattern}");
        }
        for pattern in ["../x", "/etc/*", "https://elsewhere/x", "hf://datasets/c/d/*.txt", "a\\b"] {
            let error = by_subset(&tree, &hub("hub:a/b"), &[make(None, pattern)]).unwrap_err();
            assert!(error.to_string().contains("outside"), "{pattern}: {error}");
        }
        let inferred = Subset { splits: Vec::new(), ..make(Some("./x/y"), "") };
        assert_eq!(by_subset(&tree, &hub("hub:a/b"), &[inferred]).unwrap(), ["x/y/b.txt", "x/y/z/c.txt"]);
    }

    #[test]
    fn paths_are_files_globs_or_directories() {
        let tree = tree(&["x/a.txt", "x/b.bin", "x/y/c.jsonl.zst", "d.parquet", "x/dataset_info.json"]);
        for (path, expected) in [
            ("d.parquet", &["d.parquet"][..]),
            ("x", &["x/a.txt", "x/y/c.jsonl.zst"]),
            ("x/", &["x/a.txt", "x/y/c.jsonl.zst"]),
            ("x/*", &["x/a.txt"]),
            ("**/*.zst", &["x/y/c.jsonl.zst"]),
        ] {
            let name = hub(&format!("hub:a/b/{path}"));
            assert_eq!(by_path(&tree, &name, name.path.as_deref().unwrap()).unwrap(), expected, "{path}");
        }
        for path in ["x/b.bin", "nothing", "*.csv", "x/**b"] {
            let name = hub(&format!("hub:a/b/{path}"));
            let failure = by_path(&tree, &name, path).unwrap_err().downcast::<Failure>().unwrap();
            assert!(failure.exit == Exit::Config && failure.hint.is_some(), "{path}");
        }
    }
}
