//! Records of fine-tuning data, in the forms in which the world keeps them.
//!
//! | format | fields |
//! |---|---|
//! | alpaca | `instruction`, `input` (may be empty or missing), `output` |
//! | sharegpt | `conversations`: list of `from` ("human", "gpt", "system") and `value` |
//! | messages | `messages`: list of `role` ("user", "assistant", "system") and `content` |
//! | prompt | `prompt` and `completion` (or `response`), continued as they are, without a template |

use crate::data::chat::Message;
use serde_json::Value;

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Instruction, input, output.
    Alpaca,
    /// Conversations with from and value.
    ShareGpt,
    /// Messages with role and content.
    Messages,
    /// Prompt and completion.
    Prompt,
}

/// Something to learn from.
#[derive(Clone, Debug, PartialEq)]
pub enum Conversation {
    /// Turns, to be written by a template. The last one is an answer.
    Turns(Vec<Message>),
    /// A text and how it goes on.
    Plain {
        /// What is given.
        prompt: String,
        /// What is learned.
        completion: String,
    },
}

impl Conversation {
    /// What is asked first: conversations that begin alike stay on one side of the split.
    pub fn opening(&self) -> &str {
        match self {
            Self::Turns(turns) => turns.iter().find(|turn| turn.role == "user").map_or("", |turn| &turn.content),
            Self::Plain { prompt, .. } => prompt,
        }
    }
}

impl Format {
    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::ShareGpt => "sharegpt",
            Self::Messages => "messages",
            Self::Prompt => "prompt",
        }
    }

    /// The one that the configuration names; none for "auto".
    pub fn named(name: &str) -> Option<Self> {
        [Self::Alpaca, Self::ShareGpt, Self::Messages, Self::Prompt].into_iter().find(|format| format.name() == name)
    }

    /// The format of `record`, by its fields.
    pub fn of(record: &Value) -> Option<Self> {
        let has = |key: &str| record.get(key).is_some();
        match () {
            () if record["messages"].is_array() => Some(Self::Messages),
            () if record["conversations"].is_array() => Some(Self::ShareGpt),
            () if has("instruction") && has("output") => Some(Self::Alpaca),
            () if has("prompt") && (has("completion") || has("response")) => Some(Self::Prompt),
            () => None,
        }
    }

    /// The conversation in `record`. `input_mark` stands between an Alpaca record's instruction and its input.
    ///
    /// # Errors
    /// What is wrong with the record, in words.
    pub fn read(self, record: &Value, input_mark: &str) -> Result<Conversation, String> {
        if !record.is_object() {
            return Err("not an object".into());
        }
        let turns = match self {
            Self::Alpaca => alpaca(record, input_mark)?,
            Self::ShareGpt => list(record, "conversations", "from", "value")?,
            Self::Messages => list(record, "messages", "role", "content")?,
            Self::Prompt => return plain(record),
        };
        checked(turns)
    }
}

/// The string in `key`.
fn string(record: &Value, key: &str) -> Result<String, String> {
    match &record[key] {
        Value::String(text) => Ok(text.clone()),
        Value::Null if record.get(key).is_none() => Err(format!("no field {key:?}")),
        other => Err(format!("the field {key:?} is {}, not a string", kind(other))),
    }
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

fn alpaca(record: &Value, input_mark: &str) -> Result<Vec<Message>, String> {
    let instruction = string(record, "instruction")?;
    let input = match &record["input"] {
        Value::Null => String::new(),
        _ => string(record, "input")?,
    };
    let asked = if input.trim().is_empty() { instruction } else { format!("{instruction}{input_mark}{input}") };
    let mut turns = system(record);
    turns.push(Message::new("user", asked));
    turns.push(Message::new("assistant", string(record, "output")?));
    Ok(turns)
}

/// A system message beside the turns, as some data sets have it.
fn system(record: &Value) -> Vec<Message> {
    let text = record["system"].as_str().filter(|text| !text.trim().is_empty());
    text.map(|text| Message::new("system", text)).into_iter().collect()
}

fn list(record: &Value, field: &str, role: &str, content: &str) -> Result<Vec<Message>, String> {
    let items = record[field].as_array().ok_or_else(|| format!("no list {field:?}"))?;
    let mut turns = system(record);
    for (i, item) in items.iter().enumerate() {
        let at = |what: String| format!("turn {}: {what}", i + 1);
        let said = string(item, role).map_err(at)?;
        let role = match said.as_str() {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "bot" | "model" => "assistant",
            "system" => "system",
            other => return Err(at(format!("the role {other:?} is not known"))),
        };
        turns.push(Message::new(role, text_of(&item[content]).ok_or_else(|| at(format!("no text in {content:?}")))?));
    }
    Ok(turns)
}

/// A text, or a list of parts that are all texts.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            parts.iter().map(|part| part["text"].as_str()).collect::<Option<Vec<_>>>().map(|p| p.concat())
        }
        _ => None,
    }
}

fn plain(record: &Value) -> Result<Conversation, String> {
    let key = if record.get("completion").is_some() { "completion" } else { "response" };
    let (prompt, completion) = (string(record, "prompt")?, string(record, key)?);
    if completion.trim().is_empty() {
        return Err("the completion is empty".into());
    }
    Ok(Conversation::Plain { prompt, completion })
}

/// Turns that can be learned from: what follows the last answer is left out.
fn checked(mut turns: Vec<Message>) -> Result<Conversation, String> {
    let Some(last) = turns.iter().rposition(|turn| turn.role == "assistant") else {
        return Err("no answer in it".into());
    };
    turns.truncate(last + 1);
    for (i, turn) in turns.iter().enumerate() {
        if turn.role == "assistant" && turn.content.trim().is_empty() {
            return Err(format!("turn {}: the answer is empty", i + 1));
        }
        if turn.role == "system" && i > 0 {
            return Err(format!("turn {}: a system message can only be the first", i + 1));
        }
    }
    Ok(Conversation::Turns(turns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn turns(record: &Value) -> Vec<(String, String)> {
        let format = Format::of(record).unwrap();
        match format.read(record, "\n").unwrap() {
            Conversation::Turns(turns) => turns.into_iter().map(|turn| (turn.role, turn.content)).collect(),
            Conversation::Plain { prompt, completion } => {
                vec![("prompt".into(), prompt), ("completion".into(), completion)]
            }
        }
    }

    #[test]
    fn every_format_is_found_and_read() {
        let two = |a: &str, b: &str| vec![("user".to_owned(), a.to_owned()), ("assistant".to_owned(), b.to_owned())];
        assert_eq!(turns(&json!({"instruction": "Add", "input": "1 2", "output": "3"})), two("Add\n1 2", "3"));
        assert_eq!(turns(&json!({"instruction": "Add", "input": "", "output": "3"})), two("Add", "3"));
        assert_eq!(turns(&json!({"instruction": "Add", "output": "3"})), two("Add", "3"));
        let chat = json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]});
        assert_eq!(turns(&chat), two("a", "b"));
        let parts = json!([{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]);
        let messages = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": parts}]});
        assert_eq!(turns(&messages), two("a", "bc"));
        let with_system = turns(
            &json!({"system": "Be brief", "conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]}),
        );
        assert_eq!(with_system[0], ("system".into(), "Be brief".into()));
        let plain = turns(&json!({"prompt": "1, 2,", "completion": " 3"}));
        assert_eq!(plain[1].1, " 3");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (format, record, says) in [
            (Format::Alpaca, json!([]), "not an object"),
            (Format::Alpaca, json!({"instruction": "a"}), "no field \"output\""),
            (Format::Alpaca, json!({"instruction": 1, "output": "b"}), "\"instruction\" is a number"),
            (Format::Alpaca, json!({"instruction": "a", "output": " "}), "turn 2: the answer is empty"),
            (Format::ShareGpt, json!({"conversations": []}), "no answer"),
            (Format::ShareGpt, json!({"conversations": [{"from": "tool", "value": "x"}]}), "turn 1: the role \"tool\""),
            (Format::Messages, json!({"messages": [{"role": "user", "content": 5}]}), "turn 1: no text"),
            (Format::Prompt, json!({"prompt": "a", "completion": ""}), "the completion is empty"),
        ] {
            let error = format.read(&record, "\n").unwrap_err();
            assert!(error.contains(says), "{record}: {error}");
        }
        assert_eq!(Format::of(&json!({"text": "a"})), None);
    }
}
