//! Chat templates: the messages of a conversation as the text that a model was tuned on.
//!
//! A template is a program in a file that anyone may have written. It runs in minijinja: no files, no includes, a bounded number of
//! steps, a bounded source and a bounded output. Templates are Jinja as Python has it, so its string methods and the two functions
//! that Hugging Face adds are there.

mod end_of_turn;

pub use end_of_turn::EndOfTurn;

use crate::data::tokenizer::Tokenizer;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::read_bounded;
use anyhow::Result;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// Steps of the interpreter: a real template needs some hundreds for each message.
const FUEL: u64 = 2_000_000;

/// Largest source; the longest known ones have 30 kB.
const MAX_SOURCE: u64 = 256 << 10;

/// Largest tokenizer_config.json, which may hold hundreds of special tokens.
const MAX_SETTINGS: u64 = 16 << 20;

/// Largest conversation as text.
const MAX_OUTPUT: usize = 16 << 20;

const NAME: &str = "chat_template";

/// Written around what `{% generation %}` encloses, then taken out again. No text has them: they are no characters (Unicode 23.7).
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// Something that was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user" or "assistant".
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// Of `role`.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

/// The template of a model.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    /// What is run: the source, with marks where it has `{% generation %}`.
    program: String,
    bos: String,
    eos: String,
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
            of_settings(&dir.join("tokenizer_config.json"))?
        };
        source.map(|source| Self::new(source, tokenizer)).transpose()
    }

    /// The template of this source.
    ///
    /// # Errors
    /// [`Exit::Data`] if it is none.
    pub fn new(source: String, tokenizer: &Tokenizer) -> Result<Self> {
        let name = |id: Option<u32>| id.and_then(|id| tokenizer.decode(&[id], false).ok()).unwrap_or_default();
        let program = marked(&source);
        let template = Self { source, program, bos: name(tokenizer.bos_id()), eos: name(tokenizer.eos_id()) };
        if template.source.len() as u64 > MAX_SOURCE {
            let message = format!("the chat template has {} bytes", template.source.len());
            return Err(fail(Exit::Data, message)
                .hint(format!("templates of up to {MAX_SOURCE} bytes are run"))
                .into());
        }
        template.environment()?;
        Ok(template)
    }

    /// Its source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of `messages`; with `open`, up to where the assistant begins to speak.
    ///
    /// # Errors
    /// [`Exit::Data`] if the template refuses them or does not end.
    pub fn render(&self, messages: &[Message], open: bool) -> Result<String> {
        let text = self.run(messages, open)?;
        Ok(if text.contains(MARKS) { text.replace(MARKS, "") } else { text })
    }

    /// The text of `messages`, and the bytes of it that are answers, ends of turn included: what `{% generation %}` encloses, or, in a
    /// template without it, what each answer adds to the text that asks for it.
    ///
    /// # Errors
    /// [`Exit::Data`] as for [`render`](Self::render), and if the text so far changes when an answer is added to it.
    pub fn render_answers(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        let whole = self.run(messages, false)?;
        if self.program != self.source {
            return Ok(between_marks(&whole));
        }
        let mut answers = Vec::new();
        for i in (0..messages.len()).filter(|&i| messages[i].role == "assistant") {
            let asked = self.run(&messages[..i], true)?;
            let answered = if i + 1 == messages.len() { whole.clone() } else { self.run(&messages[..=i], false)? };
            if !answered.starts_with(&asked) || !whole.starts_with(&answered) {
                return Err(fail(Exit::Data, "the chat template rewrites earlier turns: its answers cannot be found")
                    .hint("put {% generation %} ... {% endgeneration %} around the answers in the template")
                    .into());
            }
            answers.push(asked.len()..answered.len());
        }
        Ok((whole, answers))
    }

    fn run(&self, messages: &[Message], open: bool) -> Result<String> {
        if messages.iter().any(|m| m.content.contains(MARKS)) {
            return Err(fail(Exit::Data, "a message holds U+FDD0 or U+FDD1, which are no characters")
                .hint("remove them from the data")
                .into());
        }
        let environment = self.environment()?;
        let said = messages.iter().map(|m| Value::from_pairs([("role", &m.role), ("content", &m.content)]));
        let values = context! {
            messages => Value::from_iter(said), add_generation_prompt => open, bos_token => &self.bos, eos_token => &self.eos,
        };
        let mut output = Bounded::default();
        let written =
            environment.get_template(NAME).and_then(|template| template.render_captured_to(values, &mut output));
        written.map(drop).map_err(|e| wrong(&e))?;
        Ok(String::from_utf8_lossy(&output.0).into_owned())
    }

    fn environment(&self) -> Result<Environment<'_>> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // As transformers sets Jinja up.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| wrong(&e))?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |text: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        // A conversation must not change with the day: templates that ask for the date get a fixed one.
        environment.add_function("strftime_now", |_: String| "1 January 2025".to_owned());
        environment.add_filter("answer_marks", |text: String| format!("{}{text}{}", MARKS[0], MARKS[1]));
        environment.add_template(NAME, &self.program).map_err(|e| wrong(&e))?;
        Ok(environment)
    }
}

/// `source` with blocks that minijinja knows in the place of Hugging Face's `{% generation %}`.
fn marked(source: &str) -> String {
    let mut program = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, from)) = rest.split_once("{%") {
        program.push_str(before);
        program.push_str("{%");
        let Some((tag, after)) = from.split_once("%}") else {
            rest = from;
            continue;
        };
        match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => program.push_str(&tag.replace("generation", "filter answer_marks")),
            "endgeneration" => program.push_str(&tag.replace("endgeneration", "endfilter")),
            _ => program.push_str(tag),
        }
        program.push_str("%}");
        rest = after;
    }
    program + rest
}

/// `text` without marks, and what stood between them.
fn between_marks(text: &str) -> (String, Vec<Range<usize>>) {
    let (mut plain, mut answers, mut start) = (String::with_capacity(text.len()), Vec::new(), 0);
    for c in text.chars() {
        match c {
            c if c == MARKS[0] => start = plain.len(),
            c if c == MARKS[1] => answers.push(start..plain.len()),
            c => plain.push(c),
        }
    }
    (plain, answers)
}

fn of_settings(path: &Path) -> Result<Option<String>> {
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
        .hint("another order of roles may be what it wants; or put another chat_template.jinja into the model's directory")
        .into()
}

/// Refuses to grow without end.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'].strip() + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    fn template(source: &str) -> Result<ChatTemplate> {
        ChatTemplate::new(source.to_owned(), &Tokenizer::gpt2().unwrap())
    }

    fn messages() -> Vec<Message> {
        vec![Message::new("user", " Hi "), Message::new("assistant", "Ho"), Message::new("user", "?")]
    }

    #[test]
    fn conversations_become_text() {
        let text = template(CHATML).unwrap().render(&messages(), true).unwrap();
        let want = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(text, want);
        let source = "{{ bos_token }}\n{%- for m in messages %}\n    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\n        {{- raise_exception('roles must alternate') }}\n    {%- endif %}\n{{ m['content'] | trim }}{{ eos_token }}\n{%- endfor %}";
        let alternating = template(source).unwrap();
        assert_eq!(
            alternating.render(&messages(), false).unwrap(),
            "<|endoftext|>Hi<|endoftext|>Ho<|endoftext|>?<|endoftext|>"
        );
        let error = alternating.render(&messages()[1..], false).unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
    }

    #[test]
    fn it_is_found_where_hugging_face_puts_it() {
        let (dir, tokenizer) = (tempfile::tempdir().unwrap(), Tokenizer::gpt2().unwrap());
        assert!(ChatTemplate::from_dir(dir.path(), &tokenizer).unwrap().is_none());
        let settings = dir.path().join("tokenizer_config.json");
        for (value, want) in [
            (serde_json::json!({"chat_template": "a"}), Some("a")),
            (
                serde_json::json!({"chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": "b"}]}),
                Some("b"),
            ),
            (serde_json::json!({}), None),
        ] {
            std::fs::write(&settings, value.to_string()).unwrap();
            let found = ChatTemplate::from_dir(dir.path(), &tokenizer).unwrap();
            assert_eq!(found.as_ref().map(ChatTemplate::source), want);
        }
        std::fs::write(dir.path().join("chat_template.jinja"), "c").unwrap();
        assert_eq!(ChatTemplate::from_dir(dir.path(), &tokenizer).unwrap().unwrap().source(), "c");
    }

    /// Endless, huge, recursive, reaching outside: each is an error, at once and in little memory.
    #[test]
    fn hostile_templates_are_refused() {
        let hostile = [
            "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
            "{% for a in range(99999999999) %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% include '/etc/passwd' %}",
            "{% import 'os' as os %}{{ os }}",
            "{% extends '/etc/passwd' %}",
            "{{ self.__init__.__globals__.os.system('true') }}",
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.__class__.__base__ }}{{ messages.__class__.__base__.x }}",
            "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
            "{{ lipsum.__globals__ }}{{ lipsum.__globals__.os }}",
            "{{ config.items() }}",
            "{{ request.application }}",
            "{{ get_flashed_messages.__globals__ }}",
            "{{ open('/etc/passwd').read() }}",
            "{{ range(9999999999) | list }}",
            "{{ 'a' * 99999999999 }}",
            "{% set x = 'aaaaaaaaaa' %}{% for i in range(60) %}{% set x = x ~ x %}{% endfor %}{{ x.y.z }}",
            "{% for i in range(1, 100000) %}{{ messages | tojson }}{{ 'x' * 1000 }}{% endfor %}",
            "{{ 1 / 0 }}",
            "{{ messages[99].content.x }}",
            "{{ undefined_function() }}",
            "{% unknown_tag %}",
            "{{ unclosed",
            "{{ raise_exception('no') }}",
        ];
        for source in hostile {
            let begun = Instant::now();
            let result = template(source).and_then(|t| t.render(&messages(), true));
            let took = begun.elapsed();
            let error = result.expect_err(source);
            assert!(error.downcast_ref::<crate::runtime::error::Failure>().is_some(), "{source}: {error}");
            assert!(took.as_millis() < 1500, "{source}: {took:?}");
        }
        let long = "x".repeat(MAX_SOURCE as usize + 1);
        assert!(template(&long).is_err());
    }
}
