//! From files to conversations and examples. A record that is no conversation is counted, with its problem.

use super::conversation::{Conversation, Format, Problem};
use super::mask::MaskEncoder;
use super::records::RecordReader;
use crate::corpus::table;
use crate::corpus::{expand, left_out};
use crate::data::packed_rows::Example;
use crate::runtime::error::{failure_in, note};
use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A record that cannot be trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BadRecord {
    pub file: String,
    /// Its line, element or row, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub what: String,
    /// What can be done about this and similar records.
    #[serde(skip)]
    pub hint: Option<String>,
}

/// A conversation and where it came from.
pub(super) struct LoadedConversation {
    pub(super) file: Arc<str>,
    pub(super) line: u64,
    pub(super) format: Format,
    pub(super) conversation: Conversation,
}

/// An example and the record that it comes from.
pub(super) struct EncodedExample {
    pub(super) file: Arc<str>,
    pub(super) line: u64,
    pub(super) example: Example,
}

/// Counts of records, by what became of them.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub records: usize,
    /// Number of records of each format.
    pub formats: BTreeMap<Format, usize>,
    pub bad: Vec<BadRecord>,
    /// Number of records whose answers are all marked as not to be trained.
    pub marked: usize,
    /// Fields that are not used, and in how many records they are.
    pub unused: BTreeMap<String, usize>,
    /// Number of conversations that became an example for each answer, and number of those examples.
    pub split_by_answer: (usize, usize),
}

impl Tally {
    /// The conversations in the files of `patterns`.
    ///
    /// # Errors
    /// Those of the files.
    pub(super) fn load(&mut self, reader: &RecordReader, patterns: &[String]) -> Result<Vec<LoadedConversation>> {
        let mut found = Vec::new();
        let files = expand(patterns)?;
        left_out::note(&files.left_out).iter().for_each(|line| note(line));
        for path in files.files {
            let file: Arc<str> = path.display().to_string().into();
            let rows = table::rows(&path)?;
            let records = rows.into_par_iter().map(|table::Row { line, value }| {
                let record = value.map_err(Problem::from).and_then(|value| reader.read(&value));
                (line, record)
            });
            let records: Vec<_> = records.collect();
            self.records += records.len();
            for (line, record) in records {
                let record = match record {
                    Ok(record) => record,
                    Err(Problem { what, hint }) => {
                        self.bad.push(BadRecord { file: file.to_string(), line, what, hint });
                        continue;
                    }
                };
                *self.formats.entry(record.format).or_default() += 1;
                self.count_unused(record.unused);
                if record.trained {
                    found.push(LoadedConversation {
                        file: file.clone(),
                        line,
                        format: record.format,
                        conversation: record.conversation,
                    });
                } else {
                    self.marked += 1;
                }
            }
        }
        Ok(found)
    }

    /// The examples of the conversations `found`. One that the template refuses is counted as a bad record.
    pub(super) fn encode(&mut self, encoder: &MaskEncoder, found: Vec<LoadedConversation>) -> Vec<EncodedExample> {
        let encoded: Vec<_> = found.par_iter().map(|found| encoder.encode(&found.conversation)).collect();
        let mut made = Vec::with_capacity(encoded.len());
        for (found, encoded) in found.into_iter().zip(encoded) {
            let encoded = match encoded {
                Ok(encoded) => encoded,
                Err(error) => {
                    let hint = failure_in(&error).and_then(|failure| failure.hint.clone());
                    let what = format!("{error:#}");
                    self.bad.push(BadRecord { file: found.file.to_string(), line: found.line, what, hint });
                    self.uncount(found.format);
                    continue;
                }
            };
            self.count_unused(encoded.unused);
            match encoded.examples.len() {
                0 => self.marked += 1,
                1 => {}
                examples => {
                    self.split_by_answer.0 += 1;
                    self.split_by_answer.1 += examples;
                }
            }
            let file = found.file;
            let line = found.line;
            made.extend(encoded.examples.into_iter().map(|example| EncodedExample {
                file: file.clone(),
                line,
                example,
            }));
        }
        made
    }

    fn count_unused(&mut self, names: Vec<String>) {
        names.into_iter().for_each(|name| *self.unused.entry(name).or_default() += 1);
    }

    fn uncount(&mut self, format: Format) {
        self.formats.entry(format).and_modify(|count| *count -= 1);
    }

    /// Number of good records of each format, in words.
    pub(super) fn formats_text(&self) -> String {
        let formats: Vec<_> = self.formats.iter().filter(|(_, count)| **count > 0).collect();
        match formats[..] {
            [(format, _)] => format.name().into(),
            _ => formats
                .iter()
                .map(|(format, count)| format!("{count} {}", format.name()))
                .collect::<Vec<_>>()
                .join(", "),
        }
    }
}
