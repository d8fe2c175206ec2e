//! Where in a text the answers are, and whether a template writes all that it is given.

use super::{ChatTemplate, MARKS, Message, Program, TEMPLATE_ARGUMENTS, Turn};
use crate::config::{Meaning, TrainOn};
use crate::runtime::error::{Exit, Failure, fail};
use anyhow::Result;
use serde_json::{Map, Value as Json};
use std::ops::Range;

/// A text, and the ranges of its bytes that are trained, ends of turn included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    pub trained: Vec<Range<usize>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts {
    /// One text; one for each answer if the template writes earlier turns differently from the last one.
    pub texts: Vec<Rendered>,
    /// Names of fields of turns that the template does not use.
    pub unused: Vec<String>,
}

/// A template and what it is run with.
struct Chat<'a> {
    program: &'a Program<'a>,
    turns: &'a [Turn],
    values: &'a Map<String, Json>,
}

impl ChatTemplate {
    /// The text of a conversation and the bytes of it that are trained: what `{% generation %}` encloses, or, in a template without
    /// it, what each answer adds to the prompt before it. The template gets `values` too.
    ///
    /// # Errors
    /// [`Exit::Data`] as for [`render`](Self::render), if the template leaves out a turn or a field that means something, and if
    /// the text with an answer does not begin with the prompt for that answer.
    pub fn texts(&self, turns: &[Turn], values: &Map<String, Json>, wanted: TrainOn) -> Result<Texts> {
        let program = self.program()?;
        let chat = Chat { program: &program, turns, values };
        let whole = chat.run(turns.len(), false)?;
        // Before the answers are looked for: what the template leaves out would be missing in training without a word.
        if let Some(what) = chat.unwritten(&whole)? {
            return Err(unwritten(&what).into());
        }
        let unused = chat.unused(&whole)?;
        let texts = if self.marks {
            let (text, spans) = between_marks(&whole);
            vec![Rendered { trained: chat.trained_in_marked(spans, text.len(), wanted)?, text }]
        } else {
            chat.between_prompts(whole, wanted)?
        };
        Ok(Texts { texts, unused })
    }

    /// The text up to where the assistant answers `turns`.
    ///
    /// # Errors
    /// [`Exit::Data`] as for [`render`](Self::render).
    pub fn prompt(&self, turns: &[Turn], values: &Map<String, Json>) -> Result<String> {
        let text = self.program()?.run(turns.iter().map(|turn| &turn.message), values, true)?;
        Ok(if text.contains(MARKS) { text.replace(MARKS, "") } else { text })
    }
}

impl Chat<'_> {
    fn run(&self, turns: usize, open: bool) -> Result<String> {
        self.program.run(self.turns[..turns].iter().map(|turn| &turn.message), self.values, open)
    }

    /// The text with one message changed.
    fn run_with(&self, turns: usize, i: usize, change: impl FnOnce(&mut Message)) -> Result<String> {
        let mut messages: Vec<Message> = self.turns[..turns].iter().map(|turn| turn.message.clone()).collect();
        change(&mut messages[i]);
        self.program.run(&messages, self.values, false)
    }

    fn answers(&self) -> impl Iterator<Item = usize> {
        (0..self.turns.len()).filter(|&i| self.turns[i].message.role == "assistant")
    }

    /// Whether answer `i` is to be trained.
    fn is_trained(&self, i: usize, wanted: TrainOn) -> bool {
        self.turns[i].trained && (wanted != TrainOn::Last || Some(i) == self.answers().last())
    }

    /// The trained ranges of a text of `length` bytes, whose answers are at `spans`.
    fn trained_ranges(&self, spans: &[Range<usize>], length: usize, wanted: TrainOn) -> Vec<Range<usize>> {
        let spans = spans.iter().zip(self.answers());
        if wanted != TrainOn::All {
            return spans.filter(|(_, i)| self.is_trained(*i, wanted)).map(|(span, _)| span.clone()).collect();
        }
        let mut rest = Vec::new();
        let mut start = 0;
        for (span, _) in spans.filter(|(_, i)| !self.turns[*i].trained) {
            rest.push(start..span.start);
            start = span.end;
        }
        rest.push(start..length);
        rest.retain(|span| !span.is_empty());
        rest
    }

    /// The trained ranges of a text of `length` bytes, of which the template itself marks `spans`.
    fn trained_in_marked(&self, spans: Vec<Range<usize>>, length: usize, wanted: TrainOn) -> Result<Vec<Range<usize>>> {
        if spans.len() == self.answers().count() {
            return Ok(self.trained_ranges(&spans, length, wanted));
        }
        let all_trained = self.answers().all(|i| self.turns[i].trained);
        match wanted {
            TrainOn::All if all_trained => {
                let whole = 0..length;
                Ok(vec![whole])
            }
            TrainOn::Answers if all_trained => Ok(spans),
            TrainOn::Last if all_trained => Ok(spans.into_iter().last().into_iter().collect()),
            _ => Err(fail(
                Exit::Data,
                "some answers are not to be trained, and the template marks other parts than answers",
            )
            .hint("put one {% generation %} ... {% endgeneration %} around each answer in the template")
            .into()),
        }
    }

    /// The texts of a template that marks nothing: an answer is what it adds to the prompt before it.
    fn between_prompts(&self, whole: String, wanted: TrainOn) -> Result<Vec<Rendered>> {
        if wanted == TrainOn::All && self.answers().all(|i| self.turns[i].trained) {
            let all = 0..whole.len();
            return Ok(vec![Rendered { trained: vec![all], text: whole }]);
        }
        let mut answered = Vec::new();
        for i in self.answers().filter(|&i| wanted == TrainOn::All || self.is_trained(i, wanted)) {
            answered.push((i, self.answered(i, &whole)?));
        }
        // Each text is then a beginning of the whole: later turns change nothing before them, and one text serves all.
        if answered.iter().all(|(_, one)| whole.starts_with(&one.text)) {
            let spans: Vec<Range<usize>> = answered.into_iter().flat_map(|(_, one)| one.trained).collect();
            let trained = if wanted == TrainOn::All { self.trained_ranges(&spans, whole.len(), wanted) } else { spans };
            return Ok(vec![Rendered { text: whole, trained }]);
        }
        if wanted == TrainOn::All {
            return Err(rewrites("it writes an answer differently when more turns follow").into());
        }
        // One text for each answer, with its earlier turns as the template rewrites them at generation.
        Ok(answered.into_iter().map(|(_, one)| one).collect())
    }

    /// The text up to answer `i`, as its last turn.
    fn answered(&self, i: usize, whole: &str) -> Result<Rendered> {
        let text = if i + 1 == self.turns.len() { whole.to_owned() } else { self.run(i + 1, false)? };
        let start = match self.run(i, true) {
            Ok(asked) if text.starts_with(&asked) => asked.len(),
            // Nothing asks for an answer that opens a conversation, and few templates write a prompt of no turns.
            _ if self.turns[..i].iter().all(|turn| turn.message.role == "system") => self.content_start(i, &text)?,
            Ok(asked) => {
                let shared = common_start(&asked, &text);
                let expected = asked[shared..].chars().take(20).collect::<String>();
                return Err(rewrites(&format!(
                    "it asks for an answer with {expected:?}, and writes the answer without"
                ))
                .into());
            }
            Err(error) => return Err(error),
        };
        let answer = start..text.len();
        Ok(Rendered { trained: vec![answer], text })
    }

    /// Where the content of turn `i`, the last of `text`, begins: where the texts of two contents begin to differ.
    fn content_start(&self, i: usize, text: &str) -> Result<usize> {
        // Two contents that differ in their first character: what both texts share ends where the content begins.
        let a = self.run_with(i + 1, i, |message| message.content = "Q".to_owned())?;
        let b = self.run_with(i + 1, i, |message| message.content = "Z".to_owned())?;
        let start = common_start(&a, &b);
        if text.starts_with(&a[..start]) { Ok(start) } else { Err(rewrites("its text changes with the answer").into()) }
    }

    /// A turn or field that the template leaves out of `whole`.
    fn unwritten(&self, whole: &str) -> Result<Option<String>> {
        for name in self.values.keys() {
            let mut fewer = self.values.clone();
            fewer.shift_remove(name);
            if name == TEMPLATE_ARGUMENTS {
                let arguments = self.values[name].as_object().into_iter().flatten();
                let source = self.program.template.source();
                if let Some((argument, _)) =
                    arguments.into_iter().find(|(argument, _)| !source.contains(argument.as_str()))
                {
                    return Ok(Some(format!("{argument} of {TEMPLATE_ARGUMENTS}")));
                }
            } else if same(self.program.run(self.turns.iter().map(|turn| &turn.message), &fewer, false), whole) {
                return Ok(Some(name.clone()));
            }
        }
        let mut from = 0;
        for (i, turn) in self.turns.iter().enumerate() {
            let message = &turn.message;
            for name in message.extra.keys().filter(|name| Meaning::of_field(name) == Some(Meaning::Template)) {
                if same(self.run_with(self.turns.len(), i, |message| drop(message.extra.shift_remove(name))), whole) {
                    return Ok(Some(format!("turn {}: {name}", i + 1)));
                }
            }
            let content = message.content.trim();
            let found = whole[from..].find(content);
            // The content of a system or tool turn may be found because a user or an answer says the same.
            let seen = found.is_some() && ["user", "assistant"].contains(&message.role.as_str());
            if !content.is_empty() && !seen && same(self.run_with(self.turns.len(), i, |m| m.content.push('x')), whole)
            {
                return Ok(Some(format!("turn {} of the role {}", i + 1, message.role)));
            }
            from += found.map_or(0, |at| at + content.len());
        }
        Ok(None)
    }

    /// Names of other fields of turns, if none of them changes `whole`.
    fn unused(&self, whole: &str) -> Result<Vec<String>> {
        fn is_other(name: &str) -> bool {
            Meaning::of_field(name) != Some(Meaning::Template) && name != "content"
        }
        let mut names: Vec<String> = self
            .turns
            .iter()
            .flat_map(|turn| turn.message.extra.keys())
            .filter(|name| is_other(name))
            .cloned()
            .collect();
        names.sort();
        names.dedup();
        if names.is_empty() {
            return Ok(names);
        }
        let mut messages: Vec<Message> = self.turns.iter().map(|turn| turn.message.clone()).collect();
        messages.iter_mut().for_each(|message| message.extra.retain(|name, _| !is_other(name)));
        Ok(if same(self.program.run(&messages, self.values, false), whole) { names } else { Vec::new() })
    }
}

fn same(text: Result<String>, whole: &str) -> bool {
    text.is_ok_and(|text| text == whole)
}

/// Length in bytes of the characters that both texts begin with.
fn common_start(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

fn rewrites(how: &str) -> Failure {
    fail(Exit::Data, format!("the chat template rewrites earlier turns, so its answers cannot be found: {how}"))
        .hint("put {% generation %} ... {% endgeneration %} around the answers in the template")
}

fn unwritten(what: &str) -> Failure {
    let field = what.rsplit(' ').next().unwrap_or(what);
    let hint = if what.contains(" of the role ") {
        "choose an sft.template that writes every role, such as \"chatml\" or \"zephyr\"".to_owned()
    } else if what.ends_with(TEMPLATE_ARGUMENTS) {
        format!("choose an sft.template that reads it, or leave it out: --set sft.fields.{TEMPLATE_ARGUMENTS}=ignore")
    } else {
        format!("choose an sft.template that writes it, or leave it out: --set sft.fields.{field}=ignore")
    };
    fail(Exit::Data, format!("{what} would be lost: the template does not write it")).hint(hint)
}

/// `text` without marks, and the ranges between them.
fn between_marks(text: &str) -> (String, Vec<Range<usize>>) {
    let mut plain = String::with_capacity(text.len());
    let mut answers = Vec::new();
    let mut start = 0;
    for c in text.chars() {
        match c {
            c if c == MARKS[0] => start = plain.len(),
            c if c == MARKS[1] => answers.push(start..plain.len()),
            c => plain.push(c),
        }
    }
    (plain, answers)
}
