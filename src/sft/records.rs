//! Records of fine-tuning data, in all common shapes: `config::record_shapes` lists them.

use super::conversation::{Conversation, Format, Problem};
use super::fields::{Fields, set};
use super::marks::{Mark, mark_of};
use crate::chat::{Message, Turn};
use crate::config::{
    Choice as _, Meaning, NameOrPath, RecordFormat, Role, SftConfig, TemplateName, plain_role, usual_role,
};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A record of fine-tuning data.
#[derive(Clone, Debug, PartialEq)]
pub struct SftRecord {
    pub format: Format,
    pub conversation: Conversation,
    /// Whether any of its answers may be trained.
    pub trained: bool,
    /// Names of its fields that are not used.
    pub unused: Vec<String>,
}

/// Reads records as `[sft]` describes them.
pub struct RecordReader {
    format: Option<Format>,
    roles: BTreeMap<String, Role>,
    fields: BTreeMap<String, Meaning>,
    /// What stands between an Alpaca record's instruction and its input.
    input_mark: &'static str,
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

    /// The one that the configuration sets; none if the fields of each record decide.
    fn from_setting(setting: RecordFormat) -> Option<Self> {
        match setting {
            RecordFormat::Auto => None,
            RecordFormat::Alpaca => Some(Self::Alpaca),
            RecordFormat::ShareGpt => Some(Self::ShareGpt),
            RecordFormat::Messages => Some(Self::Messages),
            RecordFormat::Prompt => Some(Self::Prompt),
        }
    }
}

impl RecordReader {
    pub fn new(config: &SftConfig) -> Self {
        let alpaca = config.template == NameOrPath::Name(TemplateName::Alpaca);
        Self {
            format: Format::from_setting(config.format),
            roles: config.roles.iter().map(|(name, role)| (plain_role(name), *role)).collect(),
            fields: config.fields.clone(),
            input_mark: if alpaca { "\n\n### Input:\n" } else { "\n" },
        }
    }

    /// The conversation in `record`.
    ///
    /// # Errors
    /// What is wrong with the record.
    pub fn read(&self, record: &Value) -> Result<SftRecord, Problem> {
        self.read_fields(record).map_err(|mut problem| {
            if let (None, Some(format)) = (&problem.hint, self.format) {
                let name = format.name();
                problem.hint =
                    Some(format!("every record is read as {name:?}: let its fields decide with --set sft.format=auto"));
            }
            problem
        })
    }

    fn read_fields(&self, record: &Value) -> Result<SftRecord, Problem> {
        let fields = Fields::new(record.as_object().ok_or("not an object")?, &self.fields);
        fields.refuse_unsupported()?;
        let format = self.format_of(&fields)?;
        let (mut conversation, mut used) = match format {
            Format::Alpaca => self.question(&fields)?,
            Format::ShareGpt | Format::Messages => self.list(&fields)?,
            Format::Prompt => self.prompt(&fields)?,
        };
        let mut unused = fields.others();
        let mut trained = true;
        for (name, value, meaning) in fields.marks() {
            used.push(name);
            match mark_of(name, value, meaning, false, |role| self.role(role).ok())? {
                Mark::Train(is_trained) => trained &= is_trained,
                Mark::Nothing => unused.push(name.to_owned()),
            }
        }
        unused.extend(fields.repeated(&used, &conversation)?);
        if let Conversation::Turns { turns, values } = &mut conversation {
            values.extend(fields.for_template());
            turns.iter_mut().for_each(|turn| turn.trained &= trained);
            trained = turns.iter().any(|turn| turn.trained);
        } else if let Some((name, _)) = fields.for_template().into_iter().next() {
            return Err(unwritten(&format!("{name:?}"), "a prompt that is continued without a template"));
        }
        Ok(SftRecord { format, conversation, trained, unused })
    }

    fn format_of(&self, fields: &Fields) -> Result<Format, Problem> {
        if let Some(format) = self.format {
            return Ok(format);
        }
        let has_question = fields.has(Meaning::Instruction) || fields.has(Meaning::Input);
        match fields.list_name() {
            Some("messages") => Ok(Format::Messages),
            Some(_) => Ok(Format::ShareGpt),
            None if has_question && fields.has(Meaning::Output) => Ok(Format::Alpaca),
            None if fields.has(Meaning::Prompt) && fields.completion().is_some() => Ok(Format::Prompt),
            None => Err(fields.unknown_shape()),
        }
    }

    /// Question and answer in fields of their own.
    fn question<'a>(&self, fields: &Fields<'a>) -> Result<(Conversation, Vec<&'a str>), Problem> {
        let mut used = Vec::new();
        let instruction = fields.text(Meaning::Instruction, &mut used)?;
        let input = fields.text(Meaning::Input, &mut used)?.filter(|input| !input.trim().is_empty());
        let asked = match (instruction, input) {
            (Some(instruction), Some(input)) => format!("{instruction}{}{input}", self.input_mark),
            (Some(one), None) | (None, Some(one)) => one.to_owned(),
            (None, None) => return Err("no field \"instruction\"".into()),
        };
        let answer = fields.text(Meaning::Output, &mut used)?.ok_or("no field \"output\"")?;
        let mut turns = opening_turns(fields, &mut used)?;
        turns.push(Turn::new("user", asked));
        turns.push(Turn::new("assistant", answer));
        Ok((checked(turns)?, used))
    }

    fn list<'a>(&self, fields: &Fields<'a>) -> Result<(Conversation, Vec<&'a str>), Problem> {
        let mut used = Vec::new();
        let (name, value) = fields.one(Meaning::Messages)?.ok_or("no list \"messages\" or \"conversations\"")?;
        used.push(name);
        let mut turns = opening_turns(fields, &mut used)?;
        turns.extend(self.turns(name, value)?);
        Ok((checked(turns)?, used))
    }

    /// Prompt and completion: texts, or lists of turns of which those of the completion are trained.
    fn prompt<'a>(&self, fields: &Fields<'a>) -> Result<(Conversation, Vec<&'a str>), Problem> {
        let (prompt_name, prompt) = fields.one(Meaning::Prompt)?.ok_or("no field \"prompt\"")?;
        let (name, completion) = fields.completion().ok_or("no field \"completion\"")?;
        let mut used = vec![prompt_name, name];
        if !prompt.is_array() && !completion.is_array() {
            let prompt = fields.text(Meaning::Prompt, &mut used)?.unwrap_or_default().to_owned();
            let completion = super::fields::string(name, completion)?.to_owned();
            if completion.trim().is_empty() {
                return Err("the completion is empty".into());
            }
            return Ok((Conversation::Plain { prompt, completion }, used));
        }
        let mut turns = opening_turns(fields, &mut used)?;
        let mut before = self.turns_or_text(prompt_name, prompt, "user")?;
        before.iter_mut().for_each(|turn| turn.trained = false);
        turns.extend(before);
        turns.extend(self.turns_or_text(name, completion, "assistant")?);
        Ok((checked(turns)?, used))
    }

    fn turns_or_text(&self, name: &str, value: &Value, role: &str) -> Result<Vec<Turn>, Problem> {
        match value {
            Value::String(text) => Ok(vec![Turn::new(role, text.as_str())]),
            other => self.turns(name, other),
        }
    }

    fn turns(&self, name: &str, value: &Value) -> Result<Vec<Turn>, Problem> {
        let items = value.as_array().ok_or_else(|| format!("no list {name:?}"))?;
        items.iter().enumerate().map(|(i, item)| self.turn(item).map_err(|problem| problem.in_turn(i))).collect()
    }

    fn turn(&self, item: &Value) -> Result<Turn, Problem> {
        let fields = Fields::new(item.as_object().ok_or("not an object")?, &self.fields);
        fields.refuse_unsupported()?;
        let mut used = Vec::new();
        let role =
            fields.text(Meaning::Role, &mut used)?.ok_or_else(|| fields.missing("\"role\" or \"from\"", "role"))?;
        let role = self.role(role)?;
        let mut extra = fields.for_template();
        let content = match fields.one(Meaning::Content)? {
            Some((name, value)) => text_of(name, value)?,
            // An answer may consist of tool calls alone; templates then check whether its content is none.
            None if role == "assistant" && !extra.is_empty() => {
                extra.insert("content".into(), Value::Null);
                String::new()
            }
            None => return Err(fields.missing("\"content\" or \"value\"", "content")),
        };
        let mut trained = role == "assistant";
        for (name, value, meaning) in fields.marks() {
            match mark_of(name, value, meaning, true, |role| self.role(role).ok())? {
                Mark::Train(true) if role != "assistant" && meaning == Meaning::Train => {
                    return Err(Problem::hint(
                        format!("{name} = {value} on a turn of the role {role:?}: only answers are trained"),
                        format!(
                            "remove the mark, or train all turns: {} --set sft.train_on=all",
                            set("fields", name, "ignore")
                        ),
                    ));
                }
                Mark::Train(is_trained) => trained &= is_trained,
                Mark::Nothing => drop(extra.insert(name.to_owned(), value.clone())),
            }
        }
        extra.extend(fields.others_of_turn());
        Ok(Turn { message: Message { role: role.to_owned(), content, extra }, trained })
    }

    fn role(&self, name: &str) -> Result<&'static str, Problem> {
        let role = self.roles.get(&plain_role(name)).copied().or_else(|| usual_role(name));
        role.map(Role::name).ok_or_else(|| {
            let mapping = set("roles", name.trim(), "user");
            Problem::hint(
                format!("the role {name:?} is not known"),
                format!("say what it is: {mapping} (or assistant, system, tool)"),
            )
        })
    }
}

/// The problem of a field that `by` does not write.
pub fn unwritten(what: &str, by: &str) -> Problem {
    let field = what.rsplit(' ').next().unwrap_or(what).trim_matches('"');
    Problem::hint(
        format!("{what} would be lost: it is not written by {by}"),
        format!("choose an sft.template that writes it, or leave it out: {}", set("fields", field, "ignore")),
    )
}

/// The system message beside the turns, and earlier pairs of question and answer.
fn opening_turns<'a>(fields: &Fields<'a>, used: &mut Vec<&'a str>) -> Result<Vec<Turn>, Problem> {
    let system = fields.text(Meaning::System, used)?.filter(|text| !text.trim().is_empty());
    let mut turns: Vec<Turn> = system.map(|text| Turn::new("system", text)).into_iter().collect();
    let Some((name, history)) = fields.one(Meaning::History)? else { return Ok(turns) };
    used.push(name);
    for (i, pair) in history.as_array().ok_or_else(|| format!("no list {name:?}"))?.iter().enumerate() {
        let texts = pair.as_array().map(|pair| pair.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        let Some([question, answer]) = texts.as_deref() else {
            return Err(format!("{name}, entry {}: not a pair of question and answer", i + 1).into());
        };
        turns.push(Turn::new("user", *question));
        turns.push(Turn::new("assistant", *answer));
    }
    Ok(turns)
}

/// A text, or a list of parts that are all texts.
fn text_of(name: &str, value: &Value) -> Result<String, Problem> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => parts.iter().map(part_text).collect(),
        _ => Err(format!("no text in {name:?}").into()),
    }
}

fn part_text(part: &Value) -> Result<&str, Problem> {
    let kind = part["type"].as_str().unwrap_or("text");
    match part["text"].as_str() {
        Some(text) if kind == "text" => Ok(text),
        _ => Err(format!("a part of type {kind:?} is not text").into()),
    }
}

/// The conversation of `turns` up to the last answer.
fn checked(mut turns: Vec<Turn>) -> Result<Conversation, Problem> {
    let Some(last) = turns.iter().rposition(|turn| turn.message.role == "assistant") else {
        return Err("no answer in it".into());
    };
    turns.truncate(last + 1);
    for (i, turn) in turns.iter().enumerate() {
        let message = &turn.message;
        if message.role == "assistant" && message.content.trim().is_empty() && message.extra.is_empty() {
            return Err(Problem::from("the answer is empty").in_turn(i));
        }
        if message.role == "system" && i > 0 {
            return Err(Problem::from("a system message can only be the first").in_turn(i));
        }
    }
    Ok(Conversation::Turns { turns, values: Map::new() })
}
