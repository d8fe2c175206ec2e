//! The fields of one record or turn, by their meaning.

use super::conversation::{Conversation, Problem};
use crate::config::Meaning;
use crate::config::Meaning::{
    Completion, Content, History, Ignore, Input, Instruction, Mask, Messages, Output, Prompt,
};
use crate::config::Meaning::{Role, System, Template, Train, Unsupported};
use crate::runtime::shell::quoted;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// The fields of an object.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    named: &'a BTreeMap<String, Meaning>,
}

impl<'a> Fields<'a> {
    /// The fields of `object`. `named` holds the meanings that the configuration gives; they go before the usual ones.
    pub(super) fn new(object: &'a Map<String, Value>, named: &'a BTreeMap<String, Meaning>) -> Self {
        Self { object, named }
    }

    fn meaning(&self, field: &str) -> Option<Meaning> {
        self.named.get(field).copied().or_else(|| Meaning::of_field(field))
    }

    /// Name and value of all fields of `meaning` that are not absent (null, or empty where that means the same).
    fn all(&self, meaning: Meaning) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let may_be_empty = !matches!(meaning, System | Input | History | Template | Unsupported);
        let object = self.object;
        let fields = object.iter().filter(move |(name, value)| {
            let is_absent = if may_be_empty { value.is_null() } else { is_empty(value) };
            self.meaning(name) == Some(meaning) && !is_absent
        });
        fields.map(|(name, value)| (name.as_str(), value)).collect::<Vec<_>>().into_iter()
    }

    pub(super) fn has(&self, meaning: Meaning) -> bool {
        self.all(meaning).next().is_some()
    }

    /// The one field of `meaning`: the one that the configuration names, else the only one.
    pub(super) fn one(&self, meaning: Meaning) -> Result<Option<(&'a str, &'a Value)>, Problem> {
        let mut found: Vec<_> = self.all(meaning).collect();
        if found.iter().any(|(name, _)| self.named.contains_key(*name)) {
            found.retain(|(name, _)| self.named.contains_key(*name));
        }
        let Some((name, value)) = found.first().copied() else { return Ok(None) };
        match found.iter().find(|(_, other)| *other != value) {
            None => Ok(Some((name, value))),
            Some((other, _)) => Err(Problem::hint(
                format!("the fields {name:?} and {other:?} stand for the same"),
                format!("say which one is meant: {}", set("fields", other, "ignore")),
            )),
        }
    }

    /// The one text of `meaning`.
    pub(super) fn text(&self, meaning: Meaning, used: &mut Vec<&'a str>) -> Result<Option<&'a str>, Problem> {
        let Some((name, value)) = self.one(meaning)? else { return Ok(None) };
        used.push(name);
        string(name, value).map(Some)
    }

    /// The continuation of a prompt: `completion`, or `response`, which other records use for the answer of an instruction.
    pub(super) fn completion(&self) -> Option<(&'a str, &'a Value)> {
        let completion = self.one(Completion).ok().flatten();
        completion.or_else(|| self.all(Output).find(|(name, _)| *name == "response"))
    }

    /// The name of the list of turns.
    pub(super) fn list_name(&self) -> Option<&'a str> {
        self.all(Messages).find(|(_, value)| value.is_array()).map(|(name, _)| name)
    }

    /// Fields that say whether answers are trained.
    pub(super) fn marks(&self) -> Vec<(&'a str, &'a Value, Meaning)> {
        let train = self.all(Train).map(|(name, value)| (name, value, Train));
        train.chain(self.all(Mask).map(|(name, value)| (name, value, Mask))).collect()
    }

    /// The fields that the template gets under their own names.
    pub(super) fn for_template(&self) -> Map<String, Value> {
        self.all(Template).map(|(name, value)| (name.to_owned(), unpacked(name, value))).collect()
    }

    /// Names of fields that mean nothing in a record.
    pub(super) fn others(&self) -> Vec<String> {
        let others = self
            .object
            .iter()
            .filter(|(name, value)| matches!(self.meaning(name), None | Some(Role | Content)) && !is_empty(value));
        others.map(|(name, _)| name.clone()).collect()
    }

    /// Fields that mean nothing in a turn, for the template.
    pub(super) fn others_of_turn(&self) -> Map<String, Value> {
        let known = [Role, Content, Train, Mask, Template, Ignore, Unsupported];
        let others = self.object.iter().filter(|(name, value)| {
            self.meaning(name).is_none_or(|meaning| !known.contains(&meaning)) && !is_empty(value)
        });
        others.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Names of fields that mean something and were not `used`, because they repeat a part of `conversation`.
    ///
    /// # Errors
    /// A field whose content would be lost.
    pub(super) fn repeated(&self, used: &[&str], conversation: &Conversation) -> Result<Vec<String>, Problem> {
        let handled_elsewhere = [Role, Content, Template, Ignore, Unsupported];
        let mut unused = Vec::new();
        for (name, value) in self.object {
            let is_handled = self.meaning(name).is_none_or(|meaning| handled_elsewhere.contains(&meaning));
            if is_handled || used.contains(&name.as_str()) || is_empty(value) {
                continue;
            }
            if !value.as_str().is_some_and(|text| conversation.contains(text)) {
                let what = format!("the field {name:?} would be lost: the conversation is made of other fields");
                return Err(Problem::hint(
                    what,
                    format!("leave it out if that is meant: {}", set("fields", name, "ignore")),
                ));
            }
            unused.push(name.clone());
        }
        Ok(unused)
    }

    /// Refuses fields that cannot be written as text, such as images.
    pub(super) fn refuse_unsupported(&self) -> Result<(), Problem> {
        match self.all(Unsupported).next() {
            None => Ok(()),
            Some((name, _)) => Err(Problem::hint(
                format!("the field {name:?} is not supported"),
                format!("train without it, if that makes sense: {}", set("fields", name, "ignore")),
            )),
        }
    }

    /// The problem of a record of no shape in the table.
    pub(super) fn unknown_shape(&self) -> Problem {
        if let Some((name, _)) = self.all(Messages).next() {
            return format!("no list {name:?}").into();
        }
        let missing = [(Instruction, Output, "output"), (Input, Output, "output"), (Prompt, Completion, "completion")];
        for (present, needed, name) in missing {
            if self.has(present) && !self.has(needed) {
                return self.missing(&format!("{name:?}"), name);
            }
        }
        Problem::hint(
            format!("no shape that is known; the fields are {}", self.names()),
            "say what they stand for, as in --set sft.fields.NAME=instruction --set sft.fields.OTHER=output; \
             `llama-lite sft --help` lists the shapes",
        )
    }

    /// The problem of a record without a field for `meaning`, which is usually called `usual`.
    pub(super) fn missing(&self, usual: &str, meaning: &str) -> Problem {
        Problem::hint(
            format!("no field {usual}"),
            format!("name the field that is meant, of {}: --set sft.fields.NAME={meaning}", self.names()),
        )
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.object.keys().map(String::as_str).collect();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    }
}

/// `--set sft.SECTION.NAME=WORD`, to be pasted into a shell.
pub(super) fn set(section: &str, name: &str, word: &str) -> String {
    format!("--set {}", quoted(Path::new(&format!("sft.{section}.{name}={word}"))))
}

pub(super) fn string<'a>(name: &str, value: &'a Value) -> Result<&'a str, Problem> {
    value.as_str().ok_or_else(|| format!("the field {name:?} is {}, not a string", kind(value)).into())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Whether a field is as good as absent: in a table every row has all columns.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

/// Parses JSON that data sets store as a string: templates need the objects themselves.
fn unpacked(name: &str, value: &Value) -> Value {
    fn parse(text: &str) -> Option<Value> {
        serde_json::from_str(text).ok().filter(|parsed: &Value| parsed.is_array() || parsed.is_object())
    }
    match (name, value) {
        ("tools" | "documents" | "tool_calls" | "function_call" | "chat_template_kwargs", Value::String(text)) => {
            parse(text).unwrap_or_else(|| value.clone())
        }
        ("tool_calls", Value::Array(calls)) => {
            let mut calls = calls.clone();
            for call in &mut calls {
                // OpenAI's form has the arguments as a string, transformers' as an object.
                let arguments = call.pointer("/function/arguments").and_then(Value::as_str).and_then(parse);
                if let (Some(parsed), Some(place)) = (arguments, call.pointer_mut("/function/arguments")) {
                    *place = parsed;
                }
            }
            Value::Array(calls)
        }
        _ => value.clone(),
    }
}
