//! What will be trained, before it is: counts, excerpts in which trained tokens stand out, and reasons not to begin.

use super::Example;
use super::pack::PackedRows;
use super::records::Format;
use crate::config::Config;
use crate::data::tokenizer::Tokenizer;
use crate::runtime::error::{Exit, Failure, fail};
use anyhow::Result;
use std::collections::BTreeMap;

/// Examples kept to be shown.
const SHOWN: usize = 1000;

/// What was found out about the data of a fine-tuning run.
#[derive(Clone, Debug)]
pub struct Proof {
    /// How the records are written.
    pub format: Format,
    /// The template's name.
    pub template: String,
    /// What should be said about it.
    pub said: Option<String>,
    /// Records of the training files.
    pub records: usize,
    /// Of those, the ones that cannot be learned from.
    pub bad: usize,
    /// Conversations to be trained on.
    pub conversations: usize,
    /// Trained answers that are there to their end.
    pub answers: usize,
    /// Of how many conversations the end of an answer is cut off.
    pub truncated: usize,
    /// Of those, the ones of which nothing is left to train.
    pub dropped: usize,
    /// Conversations that are whole and yet without a trained token.
    pub untrained: usize,
    /// Ids of all conversations.
    pub tokens: u64,
    /// Ids that are trained.
    pub trained: u64,
    /// Rows and their places.
    pub rows: (usize, u64),
    /// Held-out trained tokens.
    pub held_out: u64,
    /// T.
    pub length: usize,
    /// Most that may be truncated, as a share.
    pub allowed: f64,
    ends: BTreeMap<u32, usize>,
    examples: Vec<Example>,
}

impl Proof {
    /// Of `examples`, before they are put into rows.
    pub(super) fn new(
        config: &Config,
        format: Format,
        said: Option<String>,
        (records, bad): (usize, usize),
        examples: &[Example],
    ) -> Self {
        let mut ends: BTreeMap<u32, usize> = BTreeMap::new();
        for end in examples.iter().flat_map(|example| &example.ends) {
            *ends.entry(*end).or_default() += 1;
        }
        let count = |of: &dyn Fn(&Example) -> bool| examples.iter().filter(|example| of(example)).count();
        Self {
            format,
            template: config.sft.template.clone(),
            said,
            records,
            bad,
            conversations: examples.len(),
            answers: examples.iter().map(|example| example.ends.len()).sum(),
            truncated: count(&|e| e.truncated),
            dropped: count(&|e| e.truncated && e.trained_tokens() == 0),
            untrained: count(&|e| !e.truncated && e.trained_tokens() == 0),
            tokens: examples.iter().map(|example| example.ids.len() as u64).sum(),
            trained: 0,
            rows: (0, 0),
            held_out: 0,
            length: config.train.sequence_length,
            allowed: config.sft.max_truncated,
            ends,
            examples: Vec::new(),
        }
    }

    pub(super) fn packed(&mut self, train: &PackedRows, val: Option<&PackedRows>, mut examples: Vec<Example>) {
        self.trained = train.trained();
        self.rows = (train.len(), (train.len() * train.length()) as u64);
        self.held_out = val.map_or(0, PackedRows::trained);
        examples.truncate(SHOWN);
        self.examples = examples;
    }

    /// The id that ends most answers.
    pub fn end_of_turn(&self) -> Option<u32> {
        self.ends.iter().max_by_key(|(_, count)| **count).map(|(id, _)| *id)
    }

    /// The first `n` examples, at most `limit` characters of each: trained tokens between `marks[0]` and `marks[1]`, all others between
    /// `marks[2]` and `marks[3]`.
    ///
    /// # Errors
    /// Those of decoding.
    pub fn excerpts(&self, tokenizer: &Tokenizer, n: usize, limit: usize, marks: [&str; 4]) -> Result<Vec<String>> {
        let excerpt = |example: &Example| -> Result<String> {
            let (mut out, mut at) = (String::new(), 0);
            for run in example.trained.chunk_by(|a, b| a == b) {
                let (before, rest) = example.ids.split_at(at);
                let text = tokenizer.decode_after(before, &rest[..run.len()], false)?;
                at += run.len();
                let [open, close] = if run[0] { [marks[0], marks[1]] } else { [marks[2], marks[3]] };
                let room = limit.saturating_sub(out.chars().count());
                let cut: String = text.chars().take(room).collect();
                let more = if cut.len() < text.len() { " ..." } else { "" };
                out.push_str(&format!("{open}{cut}{more}{close}"));
                if !more.is_empty() {
                    break;
                }
            }
            Ok(out)
        };
        self.examples.iter().take(n).map(excerpt).collect()
    }

    /// The counts, a line each.
    pub fn lines(&self) -> Vec<String> {
        let share = |a: u64, b: u64| 100.0 * a as f64 / b.max(1) as f64;
        let mut lines: Vec<String> = self.said.iter().cloned().collect();
        lines.push(format!(
            "{} records ({}), written with the template {:?}",
            self.records,
            self.format.name(),
            self.template
        ));
        if self.bad > 0 {
            lines.push(format!("warning: {} records cannot be learned from: see quarantine.jsonl", self.bad));
        }
        lines.push(format!(
            "{} conversations, {} answers to their end; {} of {} tokens are trained ({:.1} %)",
            self.conversations,
            self.answers,
            self.trained,
            self.tokens,
            share(self.trained, self.tokens)
        ));
        if self.truncated > 0 {
            lines.push(format!(
                "{} conversations are longer than {} tokens: the end of an answer is cut off; of {} nothing is left",
                self.truncated, self.length, self.dropped
            ));
        }
        let (rows, places) = self.rows;
        let used = self.tokens.saturating_sub(self.conversations as u64);
        lines.push(format!(
            "{rows} rows of {} tokens, {:.1} % full; {} trained tokens held out",
            self.length,
            share(used, places),
            self.held_out
        ));
        lines
    }

    /// Refuses what would not teach what it is meant to.
    ///
    /// # Errors
    /// [`Exit::Data`] if no end of an answer is trained, if a whole conversation has no trained token, or if too many are cut off.
    pub fn check(&self) -> Result<(), Failure> {
        if self.answers == 0 {
            return Err(fail(
                Exit::Data,
                "no answer ends with a token that stops generation: the model would never stop",
            )
            .hint("choose an sft.template whose answers end with the tokenizer's end of text, such as \"vicuna\""));
        }
        if self.untrained > 0 {
            return Err(fail(
                Exit::Data,
                format!("{} conversations have no trained token although they are whole", self.untrained),
            )
            .hint("the template does not write their answers: look at them with --show-data 5"));
        }
        let share = self.truncated as f64 / self.conversations.max(1) as f64;
        if share > self.allowed {
            return Err(fail(
                Exit::Data,
                format!(
                    "{} of {} conversations ({:.1} %) lose the end of an answer at {} tokens, more than sft.max_truncated = {}",
                    self.truncated,
                    self.conversations,
                    100.0 * share,
                    self.length,
                    self.allowed
                ),
            )
            .hint("raise train.sequence_length, or sft.max_truncated if that is meant"));
        }
        Ok(())
    }
}
