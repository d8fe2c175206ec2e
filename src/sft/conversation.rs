//! A conversation of fine-tuning data, and the problem of a record that is not one.

use crate::chat::{Message, Turn};
use serde_json::{Map, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// A question and its answer in fields of their own.
    Alpaca,
    ShareGpt,
    Messages,
    Prompt,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Conversation {
    /// Turns, to be written by a template. The last one is an answer.
    Turns {
        turns: Vec<Turn>,
        /// Other values for the template.
        values: Map<String, Value>,
    },
    /// A prompt and its completion, written without a template.
    Plain { prompt: String, completion: String },
}

/// Why a record cannot be trained on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong with it.
    pub what: String,
    /// What the user can do about it, other than repair the record.
    pub hint: Option<String>,
}

impl Problem {
    pub fn hint(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: Some(hint.into()) }
    }

    /// The same problem, with the number of the turn that has it; `turn` counts from 0.
    pub(super) fn in_turn(self, turn: usize) -> Self {
        Self { what: format!("turn {}: {}", turn + 1, self.what), ..self }
    }
}

impl<S: Into<String>> From<S> for Problem {
    fn from(what: S) -> Self {
        Self { what: what.into(), hint: None }
    }
}

impl Conversation {
    /// The first question. Conversations with equal ones stay on one side of the split.
    pub fn opening(&self) -> &str {
        match self {
            Self::Turns { turns, .. } => {
                turns.iter().find(|turn| turn.message.role == "user").map_or("", |turn| &turn.message.content)
            }
            Self::Plain { prompt, .. } => prompt,
        }
    }

    /// Whether `text` is a part of its content.
    pub(super) fn contains(&self, text: &str) -> bool {
        match self {
            Self::Turns { turns, .. } => turns.iter().any(|turn| turn.message.content.contains(text.trim())),
            Self::Plain { prompt, completion } => prompt.contains(text) || completion.contains(text),
        }
    }

    /// All of its content as one text: equal conversations give equal texts.
    pub fn whole(&self) -> String {
        match self {
            Self::Turns { turns, values } => {
                let messages = turns.iter().map(|turn| {
                    let Message { role, content, extra } = &turn.message;
                    Value::from(vec![role.as_str().into(), content.as_str().into(), Value::Object(extra.clone())])
                });
                Value::from(vec![messages.collect(), Value::Object(values.clone())]).to_string()
            }
            Self::Plain { prompt, completion } => Value::from(vec![prompt.as_str(), completion]).to_string(),
        }
    }

    /// A conversation of which every turn may be trained, without other values.
    #[cfg(test)]
    pub(super) fn from_messages(messages: Vec<Message>) -> Self {
        let turns = messages.into_iter().map(|message| Turn { message, trained: true }).collect();
        Self::Turns { turns, values: Map::new() }
    }
}
