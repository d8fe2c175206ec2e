//! What a record of fine-tuning data holds, or why it cannot be learned from.

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
        /// What the template is given besides.
        values: Map<String, Value>,
    },
    /// A text and how it goes on.
    Plain { prompt: String, completion: String },
}

/// Why a record cannot be learned from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong with it.
    pub what: String,
    /// What the user can do about it, where that is more than to mend the record.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem with a remedy.
    pub fn hint(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: Some(hint.into()) }
    }

    /// The same, of one turn.
    pub(super) fn at(self, turn: usize) -> Self {
        Self { what: format!("turn {}: {}", turn + 1, self.what), ..self }
    }
}

impl<S: Into<String>> From<S> for Problem {
    fn from(what: S) -> Self {
        Self { what: what.into(), hint: None }
    }
}

impl Conversation {
    /// What is asked first: conversations that begin alike stay on one side of the split.
    pub fn opening(&self) -> &str {
        match self {
            Self::Turns { turns, .. } => {
                turns.iter().find(|turn| turn.message.role == "user").map_or("", |turn| &turn.message.content)
            }
            Self::Plain { prompt, .. } => prompt,
        }
    }

    /// All that is said in it, as one text.
    pub fn whole(&self) -> String {
        match self {
            Self::Turns { turns, values } => {
                let said = turns.iter().map(|turn| {
                    let Message { role, content, extra } = &turn.message;
                    Value::from(vec![role.as_str().into(), content.as_str().into(), Value::Object(extra.clone())])
                });
                Value::from(vec![said.collect(), Value::Object(values.clone())]).to_string()
            }
            Self::Plain { prompt, completion } => Value::from(vec![prompt.as_str(), completion]).to_string(),
        }
    }

    /// Turns that are all trained, with nothing besides.
    #[cfg(test)]
    pub(super) fn of_messages(messages: Vec<Message>) -> Self {
        let turns = messages.into_iter().map(|message| Turn { message, trained: true }).collect();
        Self::Turns { turns, values: Map::new() }
    }
}
