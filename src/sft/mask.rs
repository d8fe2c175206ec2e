//! Which tokens of a conversation are trained.
//!
//! The text is written as a whole and encoded as a whole, as at generation; a token is trained if any byte of it belongs to an
//! answer. The token that ends an answer is part of it: a model that is not trained on it does not stop.

use super::conversation::Conversation;
use crate::chat::{ChatTemplate, Message, Texts, Turn};
use crate::config::TrainOn;
use crate::data::packed_rows::Example;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use std::ops::Range;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// One example, or one for each answer; none if no answer is to be trained.
    pub examples: Vec<Example>,
    /// Names of fields of turns that the template does not use.
    pub unused: Vec<String>,
}

pub struct MaskEncoder<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: &'a ChatTemplate,
    pub train_on: TrainOn,
    /// Largest number of ids of an example.
    pub longest: usize,
}

impl MaskEncoder<'_> {
    /// The ids of `conversation`, cut off at `longest`.
    ///
    /// # Errors
    /// Those of the template and of the tokenizer; a turn that holds the string of a control token.
    pub fn encode(&self, conversation: &Conversation) -> Result<Encoded> {
        match conversation {
            Conversation::Turns { turns, values } => {
                self.refuse_control(turns, values)?;
                let Texts { texts, unused } = self.template.texts(turns, values, self.train_on)?;
                let mut examples = Vec::with_capacity(texts.len());
                for text in texts.iter().filter(|text| !text.trained.is_empty()) {
                    examples.push(self.cut(self.tokenizer.encode_rendered_with_places(&text.text)?, &text.trained));
                }
                Ok(Encoded { examples, unused })
            }
            Conversation::Plain { prompt, completion } => {
                let text = format!("{prompt}{completion}");
                let mut ids = self.tokenizer.encode_rendered_with_places(&text)?;
                ids.splice(0..0, self.tokenizer.bos_id().map(|id| (id, 0..0)));
                let end =
                    self.tokenizer.eos_id().context("the tokenizer has no end of text to end a completion with")?;
                ids.push((end, text.len()..text.len() + 1));
                let start = if self.train_on == TrainOn::All { 0 } else { prompt.len() };
                let trained = start..text.len() + 1;
                Ok(Encoded { examples: vec![self.cut(ids, &[trained])], unused: Vec::new() })
            }
        }
    }

    /// Refuses turns that hold the string of a control token: it would be encoded as the end of a turn, or of the text. (A
    /// prompt and its completion are taken as they are: some data contain the marks of turns.)
    fn refuse_control(&self, turns: &[Turn], values: &Map<String, Value>) -> Result<()> {
        for Turn { message: Message { role, content, extra }, .. } in turns {
            self.refuse_control_in(content, role)?;
            if !extra.is_empty() {
                self.refuse_control_in(&Value::Object(extra.clone()).to_string(), role)?;
            }
        }
        if values.is_empty() {
            return Ok(());
        }
        self.refuse_control_in(&Value::Object(values.clone()).to_string(), "record")
    }

    fn refuse_control_in(&self, text: &str, owner: &str) -> Result<()> {
        match self.tokenizer.control_string_in(text) {
            Some(string) => {
                bail!("the text of the {owner} holds {string:?}, which this tokenizer reads as a control token")
            }
            None => Ok(()),
        }
    }

    /// The ids of `conversation` without its last answer, up to where the model answers.
    ///
    /// # Errors
    /// Those of the template and of the tokenizer.
    pub fn prompt(&self, conversation: &Conversation) -> Result<Vec<u32>> {
        match conversation {
            Conversation::Turns { turns, values } => {
                let before_answer = &turns[..turns.len().saturating_sub(1)];
                self.tokenizer.encode_rendered(&self.template.prompt(before_answer, values)?)
            }
            Conversation::Plain { prompt, .. } => {
                let mut ids: Vec<u32> = self.tokenizer.bos_id().into_iter().collect();
                ids.extend(self.tokenizer.encode_rendered(prompt)?);
                Ok(ids)
            }
        }
    }

    /// The example of `tokens` (ids and their bytes of the text), of which those that overlap `spans` of bytes are trained.
    fn cut(&self, tokens: Vec<(u32, Range<usize>)>, spans: &[Range<usize>]) -> Example {
        fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
            a.start < b.end && b.start < a.end
        }
        let length = tokens.len();
        let mut trained = vec![false; tokens.len()];
        let mut ends = Vec::new();
        let mut truncated = false;
        for span in spans {
            let Some(first) = tokens.iter().position(|(_, bytes)| overlap(bytes, span)) else { continue };
            let count = tokens[first..].iter().take_while(|(_, bytes)| overlap(bytes, span)).count();
            let last = self.end_of_turn(&tokens[first..first + count]);
            let stop = first + last.map_or(count, |last| last + 1);
            trained[first..stop].fill(true);
            truncated |= stop > self.longest;
            ends.extend(last.filter(|_| stop <= self.longest).map(|last| tokens[first + last].0));
        }
        let mut ids: Vec<u32> = tokens.into_iter().map(|(id, _)| id).collect();
        ids.truncate(self.longest);
        trained.truncate(self.longest);
        // Nothing stands before the first id to predict it from.
        if let Some(first) = trained.first_mut() {
            *first = false;
        }
        Example { ids, trained, ends, truncated, length }
    }

    /// The index of the token that ends an answer: its last special one. What a template writes behind it (a line break) is not
    /// trained, because generation stops before it.
    fn end_of_turn(&self, answer: &[(u32, Range<usize>)]) -> Option<usize> {
        let stop_ids = self.tokenizer.stop_ids();
        let last = answer.iter().rposition(|(id, _)| self.tokenizer.is_special(*id) || stop_ids.contains(id))?;
        let rest: Vec<u32> = answer[last + 1..].iter().map(|(id, _)| *id).collect();
        self.tokenizer.decode(&rest, false).is_ok_and(|text| text.trim().is_empty()).then_some(last)
    }
}
