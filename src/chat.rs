//! Chat templates: the messages of a conversation as the text that a model was tuned on.
//!
//! A template is a program in a file that anyone may have written. It runs in minijinja: no files, no includes, a bounded number of
//! steps, a bounded source and a bounded output. Templates are Jinja as Python has it, so its string methods and the two functions
//! that Hugging Face adds are there.

mod end_of_turn;

pub use end_of_turn::EndOfTurn;

use crate::runtime::error::{Exit, fail};
use crate::runtime::files::read_bounded;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use date::Date;
use minijinja::{Environment, Error, Value, context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use std::path::Path;

mod answers;
mod date;
mod filters;
mod jinja;
mod methods;
mod python;
mod source;
#[cfg(test)]
mod tests;

pub use answers::{Rendered, Texts};

/// Largest source in bytes; the longest known ones have 30 kB.
pub(crate) const MAX_SOURCE: u64 = 256 << 10;

/// Largest tokenizer_config.json, which may hold hundreds of special tokens.
const MAX_SETTINGS: u64 = 16 << 20;

const MAX_OUTPUT: usize = 16 << 20;

const NAME: &str = "chat_template";

/// Names that data give to the reasoning before an answer; the first one found goes before the others.
const REASONS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Values that are given to a template one by one.
const TEMPLATE_ARGUMENTS: &str = "chat_template_kwargs";

/// Written around what `{% generation %}` encloses, then removed again. No text holds them: they are noncharacters (Unicode
/// 23.7).
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user", "assistant" or "tool".
    pub role: String,
    pub content: String,
    /// Other fields for the template, such as `tool_calls`; a `content` here goes before the text.
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

/// A message of a conversation that is trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub message: Message,
    /// Whether it may be trained.
    pub trained: bool,
}

impl Message {
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into(), extra: Map::new() }
    }

    /// The message as a template gets it. Reasoning has the names that transformers uses, whatever the data call it.
    fn value(&self) -> Value {
        let mut fields = Map::from_iter([
            ("role".to_owned(), Json::from(self.role.as_str())),
            ("content".to_owned(), Json::from(self.content.as_str())),
        ]);
        fields.extend(self.extra.clone());
        let reason = REASONS.iter().find_map(|name| self.extra.get(*name)).cloned();
        if let Some(reason) = reason {
            fields.entry("thinking").or_insert_with(|| reason.clone());
            fields.insert("reasoning_content".into(), reason);
        }
        python::from_json(&Json::Object(fields))
    }
}

impl Turn {
    /// A turn of `role`; those of the assistant are trained.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { message: Message::new(role, content), trained: role == "assistant" }
    }
}

/// The template of a model.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    /// The source as minijinja understands it; this is what runs.
    program: String,
    /// Whether it marks answers with `{% generation %}`.
    marks: bool,
    bos: String,
    eos: String,
    /// What `strftime_now` gives. It is fixed in training, because training data must not change with the day.
    date: Date,
}

impl ChatTemplate {
    /// The template of a Hugging Face model directory: `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`; none if
    /// it has none.
    ///
    /// # Errors
    /// [`Exit::Data`] if there is one that is no template.
    pub fn from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let file = dir.join("chat_template.jinja");
        let source = if file.exists() {
            Some(String::from_utf8_lossy(&read_bounded(&file, MAX_SOURCE, true)?).into_owned())
        } else {
            template_in(&dir.join("tokenizer_config.json"))?
        };
        source.map(|source| Self::new(source, tokenizer)).transpose()
    }

    /// # Errors
    /// [`Exit::Data`] if `source` is no template.
    pub fn new(source: String, tokenizer: &Tokenizer) -> Result<Self> {
        let (program, marks) = source::translated(&source);
        let [bos, eos] = [tokenizer.bos_id(), tokenizer.eos_id()]
            .map(|id| id.and_then(|id| tokenizer.decode(&[id], false).ok()).unwrap_or_default());
        let template = Self { source, program, marks, bos, eos, date: Date::FIXED };
        if template.source.len() as u64 > MAX_SOURCE {
            let message = format!("the chat template has {} bytes", template.source.len());
            return Err(fail(Exit::Data, message)
                .hint(format!("templates of up to {MAX_SOURCE} bytes are run"))
                .into());
        }
        // Compiled once now, so that a wrong template fails here and not at the first conversation.
        template.program()?;
        Ok(template)
    }

    /// The same template, with today's date where it writes one.
    pub fn today(self) -> Self {
        Self { date: Date::now(), ..self }
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of `messages`; with `open`, up to where the assistant's answer begins.
    ///
    /// # Errors
    /// [`Exit::Data`] if the template refuses them or does not end.
    pub fn render(&self, messages: &[Message], open: bool) -> Result<String> {
        let text = self.program()?.run(messages, &Map::new(), open)?;
        Ok(if text.contains(MARKS) { text.replace(MARKS, "") } else { text })
    }

    /// The compiled template, which can run many times.
    fn program(&self) -> Result<Program<'_>> {
        let mut environment = jinja::environment(self.date).map_err(|e| wrong(&e))?;
        environment.add_template(NAME, &self.program).map_err(|e| wrong(&e))?;
        Ok(Program { environment, template: self })
    }
}

/// A template that minijinja has compiled.
struct Program<'t> {
    environment: Environment<'t>,
    template: &'t ChatTemplate,
}

impl Program<'_> {
    fn run<'m>(
        &self,
        messages: impl IntoIterator<Item = &'m Message>,
        values: &Map<String, Json>,
        open: bool,
    ) -> Result<String> {
        let mut fields = Vec::new();
        for message in messages {
            if message.content.contains(MARKS) {
                return Err(fail(Exit::Data, "a message holds U+FDD0 or U+FDD1, which are no characters")
                    .hint("remove them from the data")
                    .into());
            }
            fields.push(message.value());
        }
        let names = context! {
            messages => fields, add_generation_prompt => open, bos_token => &self.template.bos,
            eos_token => &self.template.eos, tools => (), documents => (),
        };
        let arguments = values.get(TEMPLATE_ARGUMENTS).map(python::from_json).unwrap_or_default();
        let values = python::from_json(&Json::Object(values.clone()));
        let values = context! { ..values, ..arguments, ..names };
        let mut output = Bounded::default();
        let written =
            self.environment.get_template(NAME).and_then(|template| template.render_captured_to(values, &mut output));
        written.map(drop).map_err(|e| wrong(&e))?;
        Ok(String::from_utf8_lossy(&output.0).into_owned())
    }
}

/// `chat_template` of the tokenizer_config.json at `path`.
fn template_in(path: &Path) -> Result<Option<String>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_bounded(path, MAX_SETTINGS, true)?;
    let settings: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| {
        fail(Exit::Data, format!("{}: {e}", path.display())).hint("restore the file from the model's directory")
    })?;
    let template = &settings["chat_template"];
    // A list of named templates: the one called default.
    let named = template.as_array().and_then(|all| all.iter().find(|t| t["name"] == "default"));
    Ok(named.map_or(template, |t| &t["template"]).as_str().map(str::to_owned))
}

fn wrong(error: &Error) -> anyhow::Error {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let line = error.line().map_or_else(String::new, |line| format!(" in line {line}"));
    fail(Exit::Data, format!("the chat template{line}: {what}"))
        .hint("it may want another order of roles; or use another template: sft.template, or chat_template.jinja in the model's directory")
        .into()
}

/// Output that fails beyond [`MAX_OUTPUT`]: a template may write without end.
#[derive(Default)]
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
