//! Reading the value of one key from the entries, and what is said of a value that is wrong.

use super::field::{Check, Default, Field, Spec, Visitor};
use super::nearest::nearest;
use super::problems::Problems;
use super::source::{Entries, Raw};

/// Reads every key from the entries, putting defaults where a key is not given and a placeholder where it is wrong.
pub(super) struct KeyReader<'a> {
    pub(super) entries: &'a Entries,
    pub(super) problems: &'a mut Problems,
}

impl KeyReader<'_> {
    /// Reports a required key that is not given, unless it or its section has been written wrongly.
    fn missing(&mut self, key: &str, doc: &str) {
        let section = key.split('.').next().unwrap_or_default();
        if self.problems.usable(&[section, key]) {
            let hint = format!("it has no default; {doc}");
            self.problems.add(&self.entries.file, key, "missing", hint);
        }
        self.problems.mark_unusable(key);
    }
}

impl Visitor for KeyReader<'_> {
    fn field<T: Field>(&mut self, spec: Spec<T>) -> T {
        let key = spec.key;
        let check = spec.allowed();
        let Some(entry) = self.entries.get(key) else {
            return match spec.default {
                Default::Value(value) => value,
                Default::Derived(_) => T::default(),
                Default::Required => {
                    self.missing(key, spec.doc.trim());
                    T::default()
                }
            };
        };
        let value = &entry.value;
        if let Some((what, hint)) = T::problem(value) {
            self.problems.add(&entry.origin, key, what, hint);
            return T::default();
        }
        match T::read(value) {
            Some(read) if check.accepts(value) => read,
            _ if T::has_type(value) => {
                let allowed = check.describe();
                // In a table, the message is about the one value that is wrong.
                let refused = match value {
                    Raw::Table(items) => items.iter().find(|(_, _, item)| !check.accepts(item)),
                    _ => None,
                };
                let (key, value) = match refused {
                    Some((name, _, item)) => (format!("{key}.{name}"), item),
                    None => (key.to_owned(), value),
                };
                let what = format!("must be {allowed}, found {value}");
                self.problems.add(&entry.origin, &key, what, choose(check, value, spec.doc));
                T::default()
            }
            _ => {
                let article = if T::TYPE.starts_with('i') { "an" } else { "a" };
                let what = format!("expected {article} {}, found {value}", T::TYPE);
                self.problems.add(&entry.origin, key, what, rewrite(T::TYPE, value));
                T::default()
            }
        }
    }
}

/// The remedy for a value outside its range.
fn choose(check: Check, value: &Raw, doc: &str) -> String {
    match (check, value) {
        (Check::Choice(words), Raw::String(text)) => match nearest(text, words) {
            Some(word) => format!("did you mean {word:?}?"),
            None => format!("choose one of these; {}", doc.trim()),
        },
        _ => format!("bring it into this range; {}", doc.trim()),
    }
}

/// The remedy for a value of another type.
fn rewrite(expected: &str, value: &Raw) -> String {
    match (expected, value) {
        ("boolean", _) => "write true or false, without quotes".into(),
        ("integer", Raw::Integer(negative)) if *negative < 0 => "it cannot be negative".into(),
        ("integer", Raw::Float(number)) if number.fract() == 0.0 && number.abs() < 1e15 => {
            format!("write {number} without point or exponent")
        }
        ("integer", _) => "write a whole number such as 1000 or 10_000, without quotes".into(),
        ("number", Raw::Float(_)) => "only finite numbers make sense here".into(),
        ("number", _) => "write a number such as 0.1 or 6e-4, without quotes".into(),
        ("list of 2 numbers", _) => "write for example [0.9, 0.95]".into(),
        ("list of integers", _) => "write for example [1, 1, 1, 0]".into(),
        ("table", _) => "write a table of settings, such as { rope_type = \"linear\", factor = 2.0 }".into(),
        ("list of strings", Raw::String(text)) => format!("write [{text:?}]"),
        ("list of strings", _) => "write for example [\"one\", \"two\"]".into(),
        _ => "put the value in quotes".into(),
    }
}
