//! Which split a file belongs to, by the words of its name.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::runtime::error::{Exit, Failure, fail};

/// The words for the splits in the names of files, as in Hugging Face's `datasets`.
pub const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Names shown in a message.
const SHOWN: usize = 3;

/// The files of a directory or a glob, by split.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FilesBySplit {
    pub train: Vec<PathBuf>,
    pub val: Vec<PathBuf>,
    /// Files for testing, and files whose names have no word for a split while others have one.
    pub ignored: Vec<PathBuf>,
}

/// The split that a file's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NamedSplit {
    Train,
    Val,
    Test,
    Unnamed,
}

impl FilesBySplit {
    /// Divides `files`, which were found at `from`. If no name says a split, all are for training.
    ///
    /// # Errors
    /// [`Exit::Config`] if a name says more than one split, or if the names say what is held out but not what is trained on.
    pub fn divide(files: Vec<PathBuf>, from: &Path) -> Result<Self, Failure> {
        let mut words: Vec<Vec<String>> = files.iter().map(|file| words_of(file.file_stem())).collect();
        if words.iter().all(|words| named_split(words) == Some(NamedSplit::Unnamed)) {
            words = words_of_directories(&files);
        }
        // A word that all names have, such as the name of the corpus, does not distinguish them.
        let mut common = words.first().cloned().filter(|_| words.len() > 1).unwrap_or_default();
        common.retain(|word| words.iter().all(|words| words.contains(word)));
        let mut splits = Vec::with_capacity(files.len());
        for (file, words) in files.iter().zip(&words) {
            let own = words.iter().filter(|word| !common.contains(word)).cloned().collect::<Vec<_>>();
            let split = named_split(words).or_else(|| named_split(&own).filter(|split| *split != NamedSplit::Unnamed));
            splits.push(split.ok_or_else(|| ambiguous(file))?);
        }
        if splits.iter().all(|split| *split == NamedSplit::Unnamed) {
            return Ok(Self { train: files, ..Self::default() });
        }
        let mut divided = Self::default();
        for (file, split) in files.into_iter().zip(&splits) {
            match split {
                NamedSplit::Train => divided.train.push(file),
                NamedSplit::Val => divided.val.push(file),
                NamedSplit::Test | NamedSplit::Unnamed => divided.ignored.push(file),
            }
        }
        if divided.train.is_empty() && splits.contains(&NamedSplit::Unnamed) {
            return Err(half_named(&divided, from));
        }
        Ok(divided)
    }

    /// A note about the files of `from`; none if all are trained on.
    pub fn note(&self, from: &str) -> Option<String> {
        if self.val.is_empty() && self.ignored.is_empty() {
            return None;
        }
        let mut note = format!("{from}, by the names of its files: {} for training", some_names(&self.train));
        if !self.val.is_empty() {
            note += &format!("; {} held out for validation", some_names(&self.val));
        }
        if !self.ignored.is_empty() {
            note += &format!("; {} ignored", some_names(&self.ignored));
        }
        Some(note)
    }
}

/// The words of the names of the files' directories, if there are several: a single one says nothing, the user chose it.
fn words_of_directories(files: &[PathBuf]) -> Vec<Vec<String>> {
    let parents: Vec<_> = files.iter().map(|file| file.parent().and_then(Path::file_name)).collect();
    let differ = parents.iter().any(|parent| *parent != parents[0]);
    parents.iter().map(|parent| if differ { words_of(*parent) } else { Vec::new() }).collect()
}

/// The runs of letters in a name, in lower case.
fn words_of(name: Option<&OsStr>) -> Vec<String> {
    let name = name.unwrap_or_default().to_string_lossy().to_lowercase();
    name.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The split that `words` name; none if they name both training and held out. A name for validation may also say test.
fn named_split(words: &[String]) -> Option<NamedSplit> {
    match SPLITS.map(|(_, names)| words.iter().any(|word| names.contains(&word.as_str()))) {
        [true, false, false] => Some(NamedSplit::Train),
        [false, true, _] => Some(NamedSplit::Val),
        [false, false, true] => Some(NamedSplit::Test),
        [false, false, false] => Some(NamedSplit::Unnamed),
        [true, ..] => None,
    }
}

fn ambiguous(file: &Path) -> Failure {
    fail(Exit::Config, format!("{}: the name says both training and held out", file.display()))
        .hint("name the files themselves in data.train and data.val, or rename this one")
}

fn half_named(divided: &FilesBySplit, from: &Path) -> Failure {
    let held_out = if divided.val.is_empty() { &divided.ignored } else { &divided.val };
    let message = format!(
        "{}: the names say which files are held out ({}), but not which are for training",
        from.display(),
        some_names(held_out)
    );
    fail(Exit::Config, message)
        .hint("name the files themselves in data.train and data.val, or put `train` in their names")
}

/// `3 files (a.bin, b.bin, c.bin)`
fn some_names(files: &[PathBuf]) -> String {
    let names: Vec<_> =
        files.iter().take(SHOWN).map(|file| file.file_name().unwrap_or_default().to_string_lossy()).collect();
    let more = if files.len() > SHOWN { ", ..." } else { "" };
    match files.len() {
        0 => "no file".into(),
        1 => format!("1 file ({})", names.join("")),
        count => format!("{count} files ({}{more})", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divide(names: &[&str]) -> Result<[Vec<String>; 3], Failure> {
        let text = |paths: Vec<PathBuf>| paths.into_iter().map(|path| path.display().to_string()).collect();
        let FilesBySplit { train, val, ignored } =
            FilesBySplit::divide(names.iter().map(PathBuf::from).collect(), Path::new("d"))?;
        Ok([text(train), text(val), text(ignored)])
    }

    #[test]
    fn words_decide_and_not_parts_of_words() {
        let none: &[&str] = &[];
        for (names, train, val, ignored) in [
            (
                &["pretrain_train_000001.bin", "pretrain_val_000000.bin"][..],
                &["pretrain_train_000001.bin"][..],
                &["pretrain_val_000000.bin"][..],
                none,
            ),
            (&["TRAIN_0.npy", "VAL_0.npy"], &["TRAIN_0.npy"], &["VAL_0.npy"], none),
            (&["a_train_0.bin", "b_0.bin", "test-0.bin"], &["a_train_0.bin"], none, &["b_0.bin", "test-0.bin"]),
            (&["train0.bin", "valid1.bin"], &["train0.bin"], &["valid1.bin"], none),
            (
                &["pretrain_0.bin", "evaluated_1.bin", "retrieval.bin"],
                &["pretrain_0.bin", "evaluated_1.bin", "retrieval.bin"],
                none,
                none,
            ),
            // A word of all names is part of the corpus's.
            (
                &["test.corpus.train.bin", "test.corpus.val.bin"],
                &["test.corpus.train.bin"],
                &["test.corpus.val.bin"],
                none,
            ),
            (&["d/train/0.bin", "d/val/0.bin"], &["d/train/0.bin"], &["d/val/0.bin"], none),
            (&["val/0.bin", "val/1.bin"], &["val/0.bin", "val/1.bin"], none, none),
            (&["x.dev.eval.bin"], none, &["x.dev.eval.bin"], none),
        ] {
            assert_eq!(divide(names).unwrap(), [train, val, ignored], "{names:?}");
        }
    }

    #[test]
    fn what_could_be_either_is_refused() {
        for (names, said) in [
            (&["train_val_0.bin", "x.bin"][..], "train_val_0.bin"),
            (&["train_val_0.bin"], "both"),
            (&["val_0.bin", "x_0.bin"], "not which are for training"),
            (&["test_0.bin", "x_0.bin"], "not which are for training"),
        ] {
            let failure = divide(names).unwrap_err();
            assert!(failure.message.contains(said) && failure.hint.is_some(), "{failure}");
        }
    }
}
