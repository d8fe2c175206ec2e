//! What a fine-tuning run will train on: counts, excerpts in which trained tokens stand out, and reasons to refuse the data.

use super::load::{EncodedExample, Tally};
use crate::config::Config;
use crate::data::packed_rows::Example;
use crate::data::packed_rows::PackedRows;
use crate::runtime::error::{Exit, Failure, fail};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::collections::BTreeMap;

/// Examples that can be shown, the first ones.
const SHOWN: usize = 1000;

/// What is known of the data of a fine-tuning run before it starts.
#[derive(Clone, Debug)]
pub struct MaskReport {
    pub template: String,
    /// Notes about the template and the held-out conversations.
    pub notes: Vec<String>,
    pub tally: Tally,
    /// Number of examples to be trained on: conversations, or their answers.
    pub examples: usize,
    /// Number of trained answers that are not cut off.
    pub answers: usize,
    /// Number of examples in which the end of an answer is cut off, and the first of them.
    pub truncated: (usize, Option<RecordPlace>),
    /// Of those, the number in which no trained token is left.
    pub dropped: usize,
    /// Number of examples that are whole and have no trained token, and the first of them.
    pub untrained: (usize, Option<RecordPlace>),
    pub tokens: u64,
    pub trained: u64,
    /// Number of rows, and of their positions.
    pub rows: (usize, u64),
    /// Number of held-out trained tokens.
    pub held_out: u64,
    pub length: usize,
    /// Largest share of examples that may be truncated.
    pub allowed: f64,
    /// Largest share of records that may be bad.
    pub allowed_bad: f64,
    has_end: bool,
    ends: BTreeMap<u32, usize>,
    shown: Vec<Example>,
}

/// Where the record of an example is.
#[derive(Clone, Debug)]
pub struct RecordPlace {
    /// `FILE:LINE`.
    pub at: String,
    /// Number of ids of the example.
    pub length: usize,
}

impl MaskReport {
    /// The report on `examples` before they are packed; `has_end`: whether the tokenizer has an end of text.
    pub(super) fn new(
        config: &Config,
        notes: Vec<String>,
        tally: &Tally,
        examples: &[EncodedExample],
        has_end: bool,
    ) -> Self {
        let mut ends: BTreeMap<u32, usize> = BTreeMap::new();
        for end in examples.iter().flat_map(|made| &made.example.ends) {
            *ends.entry(*end).or_default() += 1;
        }
        let untrained: Vec<_> = examples.iter().filter(|made| made.example.trained_tokens() == 0).collect();
        Self {
            template: config.sft.template.as_str().to_owned(),
            notes,
            tally: tally.clone(),
            examples: examples.len(),
            answers: examples.iter().map(|made| made.example.ends.len()).sum(),
            truncated: counted(examples.iter().filter(|made| made.example.truncated)),
            dropped: untrained.iter().filter(|made| made.example.truncated).count(),
            untrained: counted(untrained.into_iter().filter(|made| !made.example.truncated)),
            tokens: examples.iter().map(|made| made.example.ids.len() as u64).sum(),
            trained: 0,
            rows: (0, 0),
            held_out: 0,
            length: config.train.sequence_length,
            allowed: config.sft.max_truncated,
            allowed_bad: config.sft.max_bad,
            has_end,
            ends,
            shown: Vec::new(),
        }
    }

    /// Adds what packing decides. The first examples are kept for [`Self::excerpts`].
    pub(super) fn add_packed(&mut self, train: &PackedRows, val: Option<&PackedRows>, mut examples: Vec<Example>) {
        self.trained = train.trained();
        self.rows = (train.len(), (train.len() * train.length()) as u64);
        self.held_out = val.map_or(0, PackedRows::trained);
        examples.truncate(SHOWN);
        self.shown = examples;
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
        self.shown.iter().take(n).map(|example| excerpt(example, tokenizer, limit, marks)).collect()
    }

    /// The counts, a line each.
    pub fn lines(&self) -> Vec<String> {
        let tally = &self.tally;
        let mut lines = self.notes.clone();
        let formats = tally.formats_text();
        lines.push(format!("{} records ({formats}), written with the template {:?}", tally.records, self.template));
        if tally.marked > 0 {
            lines.push(format!("{} records have no answer that is to be trained: they are marked so", tally.marked));
        }
        if !tally.unused.is_empty() {
            let fields: Vec<_> = tally.unused.iter().map(|(name, count)| format!("{name} ({count})")).collect();
            lines.push(format!("fields that are not used, and in how many records: {}", fields.join(", ")));
        }
        let (conversations, examples) = tally.split_by_answer;
        if conversations > 0 {
            lines.push(format!(
                "the template rewrites earlier turns: {conversations} conversations became {examples} examples, one for each answer"
            ));
        }
        lines.push(format!(
            "{} conversations, {} answers to their end; {} of {} tokens are trained ({:.1} %)",
            self.examples,
            self.answers,
            self.trained,
            self.tokens,
            percent(self.trained, self.tokens)
        ));
        if self.truncated.0 > 0 {
            lines.push(format!(
                "{} conversations are longer than {} tokens: the end of an answer is cut off; of {} nothing is left",
                self.truncated.0, self.length, self.dropped
            ));
        }
        let (rows, positions) = self.rows;
        let used = self.tokens.saturating_sub(self.examples as u64);
        lines.push(format!(
            "{rows} rows of {} tokens, {:.1} % full; {} trained tokens held out",
            self.length,
            percent(used, positions),
            self.held_out
        ));
        lines
    }

    /// The warning about bad records, which is shown with --quiet too.
    pub fn warning(&self) -> Option<String> {
        let first = self.tally.bad.first()?;
        Some(format!(
            "warning: {} of {} records cannot be learned from; the first, {}:{}: {}",
            self.tally.bad.len(),
            self.tally.records,
            first.file,
            first.line,
            first.what
        ))
    }

    /// Refuses data from which the model would not learn to answer.
    ///
    /// # Errors
    /// [`Exit::Data`] if too many records are bad, if no end of an answer is trained, if a whole conversation has no trained token, or
    /// if too many are cut off.
    pub fn check(&self) -> Result<(), Failure> {
        self.check_bad()?;
        if self.answers == 0 {
            return Err(self.no_ends());
        }
        if let (count, Some(first)) = &self.untrained {
            let what = format!(
                "{count} conversations have no trained token although they are whole; the first is {}",
                first.at
            );
            return Err(fail(Exit::Data, what)
                .hint("the template does not write their answers: look at them with --show-data 5"));
        }
        let (count, first) = &self.truncated;
        let share = *count as f64 / self.examples.max(1) as f64;
        if share > self.allowed {
            return Err(fail(
                Exit::Data,
                format!(
                    "{count} of {} conversations ({:.1} %) lose the end of an answer at {} tokens, more than sft.max_truncated = {}{}",
                    self.examples,
                    100.0 * share,
                    self.length,
                    self.allowed,
                    first_of(first)
                ),
            )
            .hint("raise train.sequence_length, or sft.max_truncated if that is meant"));
        }
        Ok(())
    }

    fn check_bad(&self) -> Result<(), Failure> {
        let bad = &self.tally.bad;
        let records = self.tally.records;
        let share = bad.len() as f64 / records.max(1) as f64;
        let Some(first) = bad.first().filter(|_| share > self.allowed_bad) else { return Ok(()) };
        let what = format!(
            "{} of {records} records ({:.1} %) cannot be learned from, more than sft.max_bad = {}; the first, {}:{}: {}",
            bad.len(),
            100.0 * share,
            self.allowed_bad,
            first.file,
            first.line,
            first.what
        );
        let remedy = first.hint.as_deref().unwrap_or("repair the records");
        let without = if self.examples > 0 { "; or train without such records: --set sft.max_bad=1" } else { "" };
        Err(fail(Exit::Data, what).hint(format!("{remedy}{without}")))
    }

    fn no_ends(&self) -> Failure {
        if self.truncated.0 > 0 && self.truncated.0 == self.examples {
            let what = format!(
                "every answer is cut off at train.sequence_length = {}{}",
                self.length,
                first_of(&self.truncated.1)
            );
            return fail(Exit::Data, what)
                .hint("raise train.sequence_length, up to the model's max_position_embeddings");
        }
        let failure = fail(Exit::Data, "no answer ends with a token that stops generation: the model would never stop");
        if !self.has_end {
            return failure
                .hint("the tokenizer has no end of text: name one as eos_token in the model's tokenizer_config.json");
        }
        failure.hint("choose an sft.template whose answers end with the tokenizer's end of text, such as \"vicuna\"")
    }

    /// Why there is no example to train on.
    pub(super) fn no_examples(&self) -> Failure {
        let records = self.tally.records;
        if self.dropped > 0 {
            let what = format!("of {} conversations nothing to train is left at {} tokens", self.dropped, self.length);
            return fail(Exit::Data, format!("the questions are too long: {what}{}", first_of(&self.truncated.1)))
                .hint("raise train.sequence_length, or choose an sft.template that writes less before the question");
        }
        if let Err(failure) = self.check_bad() {
            return failure;
        }
        if records == 0 {
            return fail(Exit::Data, "the data hold no records")
                .hint("give --data files with records; `llama-lite sft --help` lists their shapes");
        }
        let marked = self.tally.marked;
        if marked > 0 {
            return fail(
                Exit::Data,
                format!("none of the {records} records can be learned from: {marked} are marked as not to be trained"),
            )
            .hint("leave the marks out if that is meant: --set sft.fields.NAME=ignore");
        }
        let untrained =
            self.untrained.1.as_ref().map_or_else(String::new, |first| format!("; the first is {}", first.at));
        fail(Exit::Data, format!("none of the {records} records can be learned from{untrained}"))
            .hint("give --data records with answers; `llama-lite sft --help` lists their shapes")
    }
}

/// The first `limit` characters of `example`; [`MaskReport::excerpts`] has the meaning of `marks`.
fn excerpt(example: &Example, tokenizer: &Tokenizer, limit: usize, marks: [&str; 4]) -> Result<String> {
    let mut out = String::new();
    let mut at = 0;
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
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// How many there are, and where the first is.
fn counted<'a>(mut examples: impl Iterator<Item = &'a EncodedExample>) -> (usize, Option<RecordPlace>) {
    let Some(first) = examples.next() else { return (0, None) };
    let at = format!("{}:{}", first.file, first.line);
    (1 + examples.count(), Some(RecordPlace { at, length: first.example.length }))
}

fn first_of(place: &Option<RecordPlace>) -> String {
    place.as_ref().map_or_else(String::new, |place| format!("; the first, {}, has {} tokens", place.at, place.length))
}
