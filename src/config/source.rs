//! The raw side of a configuration: TOML text, JSON text and `--set` become one flat list of (key, value, origin).
//!
//! Both formats go through the same small [`Raw`] value, so a rule cannot hold in one and not in the other. The list
//! keeps every origin, so that any later check can say where the value at fault was written.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use toml::de::{DeTable, DeValue};

use super::choices::{Choice, ScheduleKind};
use super::problems::Problems;
use super::renamed::RenamedKey;

/// A value as written, before any type is asked of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    Bool(bool),
    Integer(i64),
    Float(f64),
    String(String),
    List(Vec<Raw>),
    /// Name, place and value, in the order written.
    Table(Vec<(String, Spot, Raw)>),
    /// Something no key accepts, in words ("null", "a date").
    Other(&'static str),
}

impl Raw {
    /// A value as TOML writes it. Quotes may be left out of a string: a shell would take them away anyway.
    pub(super) fn from_text(text: &str) -> Self {
        match DeValue::parse(text) {
            Ok(parsed) => from_toml(parsed.into_inner()),
            Err(_) => Self::String(text.to_string()),
        }
    }
}

/// Byte offset in the text, where the parser tells it (TOML).
type Spot = Option<usize>;

/// One `section.key = value`.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: Raw,
    /// File with line and column, or `--set`.
    pub(super) origin: String,
}

/// Everything a configuration is made from.
#[derive(Clone, Debug)]
pub(super) struct Entries {
    list: Vec<Entry>,
    /// The keys that the file gives under an old name.
    renamed: Vec<&'static RenamedKey>,
    /// The sections that are there, empty ones too.
    pub(super) sections: Vec<String>,
    /// The file as a whole: the place of what is missing.
    pub(super) file: String,
}

/// The languages of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConfigFormat {
    Toml,
    Json,
}

impl Entries {
    /// The entries of a file's text. Faults of syntax and structure go to `problems`.
    pub(super) fn parse(text: &str, file: &str, format: ConfigFormat, problems: &mut Problems) -> Self {
        let mut entries = Self { list: Vec::new(), renamed: Vec::new(), sections: Vec::new(), file: file.to_string() };
        let root = match format {
            ConfigFormat::Toml => parse_toml(text, file, problems),
            ConfigFormat::Json => parse_json(text, file, problems),
        };
        for (section, spot, value) in root {
            let Raw::Table(keys) = value else {
                let what = format!("found {value} where a section was expected");
                let hint =
                    format!("every key is in a section: write [{section}] on a line of its own and its keys below");
                problems.add(place(file, text, spot), &section, what, hint);
                continue;
            };
            entries.sections.push(section.clone());
            for (name, spot, value) in keys {
                entries.add(&format!("{section}.{name}"), value, place(file, text, spot), problems);
            }
        }
        entries
    }

    /// Adds an entry of a file, under the key's new name if it was renamed.
    fn add(&mut self, key: &str, value: Raw, origin: String, problems: &mut Problems) {
        let renamed = RenamedKey::find(key);
        let name = renamed.map_or(key, |renamed| renamed.new);
        self.renamed.extend(renamed);
        if let Some(other) = self.get(name) {
            let what = format!("is given at {} as well, under {name}", other.origin);
            problems.add(origin, key, what, format!("keep {name}, and remove the other"));
            return;
        }
        self.list.push(Entry { key: name.to_string(), value, origin });
    }

    /// Says on stderr which keys were given under a name that they no longer have.
    pub(super) fn note_renamed_keys(&self) {
        self.renamed.iter().for_each(|renamed| renamed.note());
    }

    /// Applies one `--set KEY=VALUE`, which replaces what was there; of a key of `tables`, such as sft.roles, one name.
    pub(super) fn set(&mut self, argument: &str, tables: &[&str], problems: &mut Problems) {
        let (key, value) = argument.split_once('=').unwrap_or((argument, ""));
        let key = key.trim();
        let named = key.split_once('.').is_some_and(|(section, name)| !section.is_empty() && !name.is_empty());
        if !argument.contains('=') || !named {
            let what = format!("{argument:?} is not of the form section.key=value");
            problems.add("--set", key, what, "write for example --set optimizer.lr=3e-4");
            return;
        }
        let renamed = RenamedKey::find(key);
        let key = renamed.map_or(key, |renamed| renamed.new);
        renamed.inspect(|renamed| renamed.note());
        let value = Raw::from_text(value.trim());
        if let Some((table, name)) =
            tables.iter().find_map(|table| Some((*table, key.strip_prefix(*table)?.strip_prefix('.')?)))
        {
            return self.set_in_table(table, name, value);
        }
        // The last one counts, as on every command line.
        self.list.retain(|entry| entry.key != key);
        self.list.push(Entry { key: key.to_string(), value, origin: "--set".into() });
    }

    /// Sets one name of a table and keeps its others.
    fn set_in_table(&mut self, table: &str, name: &str, value: Raw) {
        let mut names = match self.take(table) {
            Some(Entry { value: Raw::Table(names), .. }) => names,
            _ => Vec::new(),
        };
        names.retain(|(other, ..)| other != name);
        names.push((name.to_string(), None, value));
        self.list.push(Entry { key: table.to_string(), value: Raw::Table(names), origin: "--set".into() });
    }

    /// Adds an entry, unless the key has a value of its own.
    pub(super) fn supply(&mut self, key: &str, value: Raw, origin: &str) {
        if self.get(key).is_none() {
            self.list.push(Entry { key: key.to_string(), value, origin: origin.to_string() });
        }
    }

    /// The entry of `key`.
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.list.iter().find(|entry| entry.key == key)
    }

    pub(super) fn take(&mut self, key: &str) -> Option<Entry> {
        let index = self.list.iter().position(|entry| entry.key == key)?;
        Some(self.list.remove(index))
    }

    /// If `schedule.kind` changes from `old`: removes the lengths that were derived for `old`, because they mean something else for
    /// another kind. Lengths that are set along with the kind stay.
    pub(super) fn forget_derived_lengths(&mut self, old: ScheduleKind) {
        let Some(Raw::String(new)) = self.get("schedule.kind").map(|entry| &entry.value) else { return };
        let new = ScheduleKind::from_name(new);
        let both_end_at_a_step =
            [Some(old), new].iter().all(|kind| matches!(kind, Some(ScheduleKind::Cosine | ScheduleKind::Linear)));
        if new == Some(old) || both_end_at_a_step {
            return;
        }
        self.list.retain(|entry| {
            entry.origin == "--set" || !["schedule.decay_steps", "schedule.total_steps"].contains(&entry.key.as_str())
        });
    }

    /// Where `key` was written, or the file if it was not.
    pub(super) fn origin(&self, key: &str) -> &str {
        self.get(key).map_or(&self.file, |entry| &entry.origin)
    }

    /// The entries in the order in which they were written.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.list.iter()
    }
}

/// `file:line:column` of a byte offset, counted from 1, columns in characters.
fn place(file: &str, text: &str, spot: Spot) -> String {
    match spot.and_then(|offset| text.get(..offset)) {
        Some(before) => {
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
            format!("{file}:{line}:{column}")
        }
        None => file.to_string(),
    }
}

fn parse_toml(text: &str, file: &str, problems: &mut Problems) -> Vec<(String, Spot, Raw)> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let origin = place(file, text, error.span().map(|span| span.start));
        problems.syntax(origin, format!("not valid TOML: {}", one_line(error.message())));
    }
    // What recovery makes of a broken file is a guess: its keys are not worth a message.
    if errors.is_empty() { toml_table(table.into_inner()) } else { Vec::new() }
}

fn toml_table(table: DeTable<'_>) -> Vec<(String, Spot, Raw)> {
    let mut entries = Vec::new();
    for (name, value) in table {
        let spot = name.span().start;
        entries.push((name.into_inner().into_owned(), Some(spot), from_toml(value.into_inner())));
    }
    entries
}

fn from_toml(value: DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::String(text.into_owned()),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(integer) => Raw::Integer(integer),
            Err(_) => Raw::Other(TOO_BIG),
        },
        DeValue::Float(digits) => digits.as_str().parse().map_or(Raw::Other("an unreadable number"), Raw::Float),
        DeValue::Boolean(truth) => Raw::Bool(truth),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Array(items) => Raw::List(items.into_iter().map(|item| from_toml(item.into_inner())).collect()),
        DeValue::Table(table) => Raw::Table(toml_table(table)),
    }
}

const TOO_BIG: &str = "an integer beyond 9,223,372,036,854,775,807";

fn parse_json(text: &str, file: &str, problems: &mut Problems) -> Vec<(String, Spot, Raw)> {
    match serde_json::from_str(text) {
        Ok(Raw::Table(root)) => root,
        Ok(other) => {
            problems.syntax(file, format!("found {other} where an object of sections was expected"));
            Vec::new()
        }
        Err(error) => {
            // serde_json ends its message with the position, which belongs in front here.
            let message = one_line(&error.to_string());
            let message = message.split(" at line ").next().unwrap_or_default();
            let origin = format!("{file}:{}:{}", error.line(), error.column());
            problems.syntax(origin, format!("not valid JSON: {message}"));
            Vec::new()
        }
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Reads JSON without serde_json's own `Value`, which lets the second of two equal keys win in silence.
impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(truth))
    }

    fn visit_i64<E>(self, integer: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(integer))
    }

    fn visit_u64<E>(self, integer: u64) -> Result<Raw, E> {
        Ok(i64::try_from(integer).map_or(Raw::Other(TOO_BIG), Raw::Integer))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Raw, E> {
        Ok(Raw::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::String(text.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Other("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, Raw>()? {
            // In TOML an error of syntax.
            if entries.iter().any(|(other, _, _)| *other == name) {
                return Err(A::Error::custom(format!("`{name}` is given twice")));
            }
            entries.push((name, None, value));
        }
        Ok(Raw::Table(entries))
    }
}

/// How a message speaks of a value: kind and, where short, the value itself.
impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Raw::Bool(truth) => write!(f, "{truth}"),
            Raw::Integer(integer) => write!(f, "{integer}"),
            Raw::Float(number) => write!(f, "{number:?}"),
            Raw::String(text) if text.chars().count() > 60 => {
                write!(f, "the string {:?}", text.chars().take(57).chain("...".chars()).collect::<String>())
            }
            Raw::String(text) => write!(f, "the string {text:?}"),
            Raw::List(items) => write!(f, "a list of {}", items.len()),
            Raw::Table(_) => f.write_str("a table"),
            Raw::Other(what) => f.write_str(what),
        }
    }
}
