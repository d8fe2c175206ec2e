//! Files that were found and not read: why, how many, and which.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

use crate::corpus::source::suffixes;

pub use crate::corpus::shards::manifest::LeftOut;

/// Names kept for each reason: enough to see what they are.
const MAX_NAMES: usize = 100;

/// Names shown on the console.
const SHOWN: usize = 3;

const MACOS: &str = "AppleDouble files of macOS (._*, __MACOSX)";
const NOTEBOOK: &str = "notebook copies (.ipynb_checkpoints)";
const HIDDEN: &str = "hidden files (.*)";

/// Files left out, by reason.
#[derive(Debug, Default)]
pub(super) struct Reasons(BTreeMap<String, LeftOut>);

impl Reasons {
    /// Counts a file or directory that is left out.
    pub(super) fn add(&mut self, what: &str, path: &Path) {
        let entry =
            self.0.entry(what.to_owned()).or_insert_with(|| LeftOut { what: what.into(), ..LeftOut::default() });
        let name = shown(path);
        // Patterns may overlap.
        if entry.names.contains(&name) {
            return;
        }
        entry.files += 1;
        if entry.names.len() < MAX_NAMES {
            entry.names.push(name);
        }
    }

    /// Counts a file of a kind that is not read.
    pub(super) fn add_kind(&mut self, path: &Path) {
        match suffixes(path).as_str() {
            "" => self.add("files without a suffix", path),
            suffix => self.add(&format!("files ending in {suffix}"), path),
        }
    }

    /// Whether `name` is that of a file that systems leave beside the user's files; if so, the file is counted.
    pub(super) fn count_if_litter(&mut self, name: &OsStr, path: &Path) -> bool {
        let name = name.to_string_lossy();
        let what = match name.as_ref() {
            "__MACOSX" => MACOS,
            ".ipynb_checkpoints" => NOTEBOOK,
            name if name.starts_with("._") => MACOS,
            name if name.starts_with('.') => HIDDEN,
            _ => return false,
        };
        self.add(what, path);
        true
    }

    /// Number of files left out, for whatever reason.
    pub(super) fn count(&self) -> u64 {
        self.0.values().map(|entry| entry.files).sum()
    }

    pub(super) fn into_list(self) -> Vec<LeftOut> {
        self.0.into_values().collect()
    }
}

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<String> = self.0.values().map(describe).collect();
        f.write_str(&kinds.join("; "))
    }
}

/// `files ending in .csv: 2 (a.csv, b.csv)`
fn describe(entry: &LeftOut) -> String {
    let more = if entry.files > SHOWN as u64 { ", ..." } else { "" };
    let names: Vec<&str> = entry.names.iter().take(SHOWN).map(|name| name.rsplit('/').next().unwrap_or(name)).collect();
    format!("{}: {} ({}{more})", entry.what, entry.files, names.join(", "))
}

/// A note for the user about `left_out`; none if it is empty.
pub fn note(left_out: &[LeftOut]) -> Option<String> {
    let kinds: Vec<String> = left_out.iter().map(describe).collect();
    (!kinds.is_empty()).then(|| format!("not read: {}", kinds.join("; ")))
}

/// A path as text, also where its name is not UTF-8.
pub fn shown(path: &Path) -> String {
    match path.to_str() {
        Some(text) => text.to_owned(),
        None => path.as_os_str().as_encoded_bytes().escape_ascii().to_string(),
    }
}
