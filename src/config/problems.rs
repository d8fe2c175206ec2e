//! The list of everything wrong with a configuration, reported at once: one line per problem, one failure in all.

use std::collections::BTreeSet;

use crate::runtime::error::{Exit, Failure, fail};

struct Problem {
    origin: String,
    key: String,
    what: String,
    hint: String,
}

/// The problems found so far, and the keys that have no usable value because of them.
#[derive(Default)]
pub(super) struct Problems {
    list: Vec<Problem>,
    unusable: BTreeSet<String>,
    unreadable: bool,
}

impl Problems {
    /// Reports a problem with `key` (or a section).
    pub(super) fn add(
        &mut self,
        origin: impl Into<String>,
        key: &str,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.unusable.insert(key.to_string());
        // JSON and quoted TOML know names without a letter.
        let key = if key.is_empty() { "(empty name)" } else { key };
        let key = key.to_string();
        self.list.push(Problem { origin: origin.into(), key, what: what.into(), hint: hint.into() });
    }

    /// Reports that the text as a whole cannot be read.
    pub(super) fn syntax(&mut self, origin: impl Into<String>, what: impl Into<String>) {
        self.unreadable = true;
        let hint = "configs/quickstart.toml is an example of a valid file".into();
        self.list.push(Problem { origin: origin.into(), key: String::new(), what: what.into(), hint });
    }

    /// Marks a key whose value follows from unusable ones: checks over it would only echo their problems.
    pub(super) fn mark_unusable(&mut self, key: &str) {
        self.unusable.insert(key.to_string());
    }

    /// Whether all of `keys` have a value that a check may rely on.
    pub(super) fn usable(&self, keys: &[&str]) -> bool {
        keys.iter().all(|&key| !self.unusable.contains(key))
    }

    /// Whether the text could be read at all.
    pub(super) fn readable(&self) -> bool {
        !self.unreadable
    }

    /// All problems as one failure with exit code 78; `None` if there are none.
    pub(super) fn failure(&self) -> Option<Failure> {
        match self.list.as_slice() {
            [] => None,
            [only] => Some(fail(Exit::Config, only.line()).hint(&only.hint)),
            many => {
                let lines: Vec<_> =
                    many.iter().map(|problem| format!("{} ({})", problem.line(), problem.hint)).collect();
                let hint = format!("{} problems; the remedy of each is in parentheses above", many.len());
                Some(fail(Exit::Config, lines.join("\n")).hint(hint))
            }
        }
    }
}

impl Problem {
    fn line(&self) -> String {
        if self.key.is_empty() {
            format!("{}: {}", self.origin, self.what)
        } else {
            // A quoted TOML key may hold anything, line breaks too.
            format!("{}: {}: {}", self.origin, self.key.escape_debug(), self.what)
        }
    }
}
