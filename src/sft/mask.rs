//! Which tokens of a conversation are trained.
//!
//! The text is written as a whole and encoded as a whole, as it will be met later; a token is trained if any byte of it belongs to an
//! answer. The token that ends an answer is part of it: a model that never saw it trained does not stop.

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
    /// One example, or one for each answer; none if none of the answers is to be trained.
    pub examples: Vec<Example>,
    /// Fields of turns that change nothing.
    pub unused: Vec<String>,
}

pub struct Encoder<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: &'a ChatTemplate,
    pub train_on: TrainOn,
    /// Most ids of an example.
    pub longest: usize,
}

impl Encoder<'_> {
    /// The ids of `conversation`, as many of its beginning as fit.
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

    /// Refuses turns that hold the string of a control token: it would be read as the end of a turn, or of the text. (A prompt and
    /// its completion are taken as they are: some data have the marks written out.)
    fn refuse_control(&self, turns: &[Turn], values: &Map<String, Value>) -> Result<()> {
        let refuse = |who: &str, text: &str| match self.tokenizer.control_string_in(text) {
            Some(string) => {
                bail!("the text of the {who} holds {string:?}, which this tokenizer reads as a control token")
            }
            None => Ok(()),
        };
        for Turn { message: Message { role, content, extra }, .. } in turns {
            refuse(role, content)?;
            if !extra.is_empty() {
                refuse(role, &Value::Object(extra.clone()).to_string())?;
            }
        }
        if values.is_empty() { Ok(()) } else { refuse("record", &Value::Object(values.clone()).to_string()) }
    }

    /// The ids up to where the model is to answer, of the conversation without its last answer.
    ///
    /// # Errors
    /// The same.
    pub fn prompt(&self, conversation: &Conversation) -> Result<Vec<u32>> {
        match conversation {
            Conversation::Turns { turns, values } => {
                let asked = &turns[..turns.len().saturating_sub(1)];
                self.tokenizer.encode_rendered(&self.template.prompt(asked, values)?)
            }
            Conversation::Plain { prompt, .. } => {
                let mut ids: Vec<u32> = self.tokenizer.bos_id().into_iter().collect();
                ids.extend(self.tokenizer.encode_rendered(prompt)?);
                Ok(ids)
            }
        }
    }

    fn cut(&self, places: Vec<(u32, Range<usize>)>, spans: &[Range<usize>]) -> Example {
        let length = places.len();
        let mut trained = vec![false; places.len()];
        let mut ends = Vec::new();
        let mut truncated = false;
        for span in spans {
            let inside = |(_, place): &(u32, Range<usize>)| place.start < span.end && span.start < place.end;
            let Some(first) = places.iter().position(inside) else { continue };
            let count = places[first..].iter().take_while(|place| inside(place)).count();
            let last = self.end_of_turn(&places[first..first + count]);
            let stop = first + last.map_or(count, |last| last + 1);
            trained[first..stop].fill(true);
            truncated |= stop > self.longest;
            ends.extend(last.filter(|_| stop <= self.longest).map(|last| places[first + last].0));
        }
        let mut ids: Vec<u32> = places.into_iter().map(|(id, _)| id).collect();
        ids.truncate(self.longest);
        trained.truncate(self.longest);
        if let Some(first) = trained.first_mut() {
            *first = false;
        }
        Example { ids, trained, ends, truncated, length }
    }

    /// The index of the token that ends an answer: its last special one. What a template writes behind it (a line break) is not
    /// trained, for generation has stopped by then.
    fn end_of_turn(&self, answer: &[(u32, Range<usize>)]) -> Option<usize> {
        let ends = |id: u32| self.tokenizer.is_special(id) || self.tokenizer.stop_ids().contains(&id);
        let last = answer.iter().rposition(|(id, _)| ends(*id))?;
        let rest: Vec<u32> = answer[last + 1..].iter().map(|(id, _)| *id).collect();
        self.tokenizer.decode(&rest, false).is_ok_and(|text| text.trim().is_empty()).then_some(last)
    }
}
