//! The keys as a reference for people: a Markdown table for docs/configuration.md, a plain list for `--help`.

use std::fmt::Write;

use super::field::{Default, Field, Section, Spec, TABLES, Visitor};
use super::schema::{self, Config};

/// One key of the reference.
pub(super) struct KeyRow {
    /// `section.key`.
    pub(super) key: &'static str,
    kind: &'static str,
    default: String,
    allowed: String,
    meaning: String,
}

/// One section of the reference.
pub(super) struct KeyGroup {
    /// Its name in the file.
    pub(super) name: &'static str,
    about: &'static str,
    pub(super) rows: Vec<KeyRow>,
}

/// Every section and key there is, in the order of the schema.
pub(super) fn groups() -> Vec<KeyGroup> {
    let mut lister = Lister { groups: Vec::new() };
    Config::visit(&mut lister);
    lister.groups
}

/// Every `section.key` there is.
pub(super) fn keys() -> Vec<&'static str> {
    groups().iter().flat_map(|group| &group.rows).map(|row| row.key).collect()
}

/// The keys that hold a table of names, such as sft.roles and model.rope_scaling.
pub(super) fn tables() -> Vec<&'static str> {
    groups().iter().flat_map(|group| &group.rows).filter(|row| TABLES.contains(&row.kind)).map(|row| row.key).collect()
}

/// The reference of all keys as Markdown: a table of key, type, default and meaning for each section.
pub fn reference() -> String {
    let mut out = String::new();
    for group in groups() {
        let _ = writeln!(out, "### `[{}]`\n\n{}\n", group.name, group.about.trim());
        out.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
        for row in group.rows {
            let name = row.key.split_once('.').map_or(row.key, |(_, name)| name);
            let cells =
                [&format!("`{name}`"), row.kind, &row.default, &row.describe()].map(|cell| cell.replace('|', "\\|"));
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        }
        out.push('\n');
    }
    out
}

/// The reference of all keys as plain text, for `--help`.
pub fn reference_text() -> String {
    let mut out = String::from("Configuration keys (type, default, meaning):\n");
    for group in groups() {
        let _ = writeln!(out, "\n[{}] {}", group.name, group.about.trim());
        for row in group.rows {
            let name = row.key.split_once('.').map_or(row.key, |(_, name)| name);
            let _ = writeln!(out, "  {name} ({}; {}): {}", row.kind, row.default, row.describe());
        }
    }
    out
}

impl KeyRow {
    fn describe(&self) -> String {
        if self.allowed.is_empty() {
            self.meaning.clone()
        } else {
            format!("{} Allowed: {}.", self.meaning, self.allowed)
        }
    }
}

/// Collects the keys that it visits.
struct Lister {
    groups: Vec<KeyGroup>,
}

impl Visitor for Lister {
    fn field<T: Field>(&mut self, spec: Spec<T>) -> T {
        let allowed = spec.allowed().describe();
        let (default, value) = match spec.default {
            Default::Required => ("required".to_string(), T::default()),
            Default::Derived(rule) => (rule.to_string(), T::default()),
            Default::Value(value) => (value.write().unwrap_or_default(), value),
        };
        let row = KeyRow { key: spec.key, kind: T::TYPE, default, allowed, meaning: spec.doc.trim().to_string() };
        if let Some(group) = self.groups.last_mut() {
            group.rows.push(row);
        }
        value
    }

    fn section<S: Section>(&mut self) -> S {
        self.groups.push(KeyGroup { name: S::NAME, about: S::ABOUT, rows: Vec::new() });
        if S::NAME == "model" {
            self.field(schema::preset());
        }
        S::visit(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_row_with_a_meaning() {
        let groups = groups();
        assert_eq!(groups.len(), 12);
        for row in groups.iter().flat_map(|group| &group.rows) {
            assert!(row.meaning.ends_with('.'), "{}: {:?}", row.key, row.meaning);
            assert!(!row.default.is_empty(), "{}", row.key);
        }
        let mut keys = keys();
        let total = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), total, "a key is described twice");
    }

    #[test]
    fn the_table_shows_defaults_and_ranges() {
        let table = reference();
        assert!(
            table.contains("| `lr` | number | 0.0006 | Peak learning rate. Allowed: above 0, at most 100. |"),
            "{table}"
        );
        assert!(
            table.contains(
                "| `steps` | integer | required | Number of optimizer steps of the run. Allowed: at least 1. |"
            )
        );
        assert!(table.contains("| `preset` | string | none |"));
        let rows = table.lines().filter(|line| line.starts_with("| `"));
        assert_eq!(rows.clone().count(), keys().len());
        for row in rows {
            assert_eq!(row.replace("\\|", "").matches('|').count(), 5, "{row}");
        }
        assert!(reference_text().contains("\n  lr (number; 0.0006): Peak learning rate."));
    }
}
