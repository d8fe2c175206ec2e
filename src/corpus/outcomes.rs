//! What becomes of each record: used, empty, filtered, duplicate or quarantined, and nothing else.

use anyhow::Result;
use rayon::prelude::*;

use crate::corpus::dedup::Dedup;
use crate::corpus::journal::State;
use crate::corpus::options::PrepareOptions;
use crate::corpus::quarantine::{Quarantine, QuarantineEntry};
use crate::corpus::sample::is_short;
use crate::corpus::shards::manifest::{LineCounts, SourceCounts};
use crate::corpus::source::{Content, ParsedRecord, RawRecord, Reason};
use crate::corpus::split::{Key, key};
use crate::runtime::error::{Exit, fail};

/// Largest share of bad records that is accepted.
const MAX_BAD: f64 = 0.001;

/// Records read after which the share is checked before the end of the corpus.
const CHECKED_FROM: u64 = 100_000;

/// Records without the text field after which a corpus that has given no text is not read on.
const NO_TEXT_FROM: u64 = 1000;

/// A document that will be written.
pub(super) struct AcceptedDocument {
    pub(super) file: usize,
    pub(super) text: String,
    /// The byte from which on it is for validation.
    pub(super) cut: usize,
}

/// What is known of a record without knowing the others.
struct ExaminedRecord {
    file: usize,
    record: ParsedRecord,
    is_short: bool,
    key: Key,
    /// The key is among those on disk.
    is_old: bool,
}

pub(super) struct Outcomes {
    pub(super) quarantine: Quarantine,
    dedup: Option<Dedup>,
}

impl Outcomes {
    pub(super) fn new(quarantine: Quarantine, dedup: Option<Dedup>) -> Self {
        Self { quarantine, dedup }
    }

    /// Counts the outcomes of the next `records` in `state` and returns the documents to be written.
    ///
    /// # Errors
    /// [`Exit::Data`] if too much of the input is bad.
    pub(super) fn decide(
        &mut self,
        opts: &PrepareOptions,
        state: &mut State,
        records: Vec<(usize, RawRecord)>,
    ) -> Result<Vec<AcceptedDocument>> {
        let needs_key = self.dedup.is_some() || state.rule.needs_key();
        let examined = records.into_par_iter().map(|(file, raw)| self.examine(opts, needs_key, file, raw));
        let examined: Vec<ExaminedRecord> = examined.collect::<Result<_>>()?;
        // All threads have examined the records; decisions follow their order, so that of equal texts the first stays.
        let mut documents = Vec::with_capacity(examined.len());
        for ExaminedRecord { file, record, is_short, key, is_old } in examined {
            let lines = &mut state.lines;
            let source = &mut state.sources[file];
            lines.read += record.count;
            source.lines += record.count;
            match record.content {
                Content::Empty => lines.empty += 1,
                Content::Text(_) if is_short => lines.filtered += 1,
                Content::Text(_) if is_old || !self.is_new(key)? => lines.duplicate += 1,
                Content::Text(text) => {
                    lines.used += 1;
                    source.used += 1;
                    let cut = state.rule.cut(&text, key);
                    documents.push(AcceptedDocument { file, text, cut });
                }
                Content::Bad { .. } => self.quarantine(opts, lines, source, record)?,
            }
        }
        // Between batches only: within one, `is_old` was asked about every record beforehand.
        self.dedup.as_mut().map_or(Ok(()), Dedup::settle)?;
        Ok(documents)
    }

    fn examine(&self, opts: &PrepareOptions, needs_key: bool, file: usize, raw: RawRecord) -> Result<ExaminedRecord> {
        let record = raw.parse(&opts.read.text_field);
        let mut examined = ExaminedRecord { file, record, is_short: false, key: 0, is_old: false };
        if let Content::Text(text) = &examined.record.content {
            examined.is_short = is_short(text, opts.min_chars);
            if needs_key && !examined.is_short {
                examined.key = key(text);
                examined.is_old = self.dedup.as_ref().map_or(Ok(false), |dedup| dedup.is_old(examined.key))?;
            }
        }
        Ok(examined)
    }

    fn is_new(&mut self, key: Key) -> Result<bool> {
        self.dedup.as_mut().map_or(Ok(true), |dedup| dedup.insert(key))
    }

    /// Records a bad record. One that takes the rest of its file with it is an error unless `allow_bad`.
    fn quarantine(
        &mut self,
        opts: &PrepareOptions,
        lines: &mut LineCounts,
        source: &mut SourceCounts,
        record: ParsedRecord,
    ) -> Result<()> {
        let ParsedRecord { line, offset, length, count, content } = record;
        let Content::Bad { reason, detail, advice, bytes } = content else { return Ok(()) };
        let path = source.path.clone();
        let entry = QuarantineEntry {
            file: &path,
            line,
            offset,
            length,
            records: count,
            reason: reason.name(),
            detail: &detail,
        };
        self.quarantine.add(&entry, &bytes)?;
        *lines.quarantined.entry(reason.name().into()).or_default() += count;
        lines.first_bad.get_or_insert_with(|| format!("{path}:{line}: {detail}"));
        let what = match reason {
            Reason::CutOff => format!("{path}:{line}: the file ends within a record ({detail})"),
            Reason::Damaged => format!("{path}:{line}: the rest of the file is damaged ({detail})"),
            Reason::Unsupported | Reason::Foreign => format!("{path}: {detail}"),
            _ => return self.check_share_early(opts, lines),
        };
        source.unread = Some(if line > 1 { format!("from record {line} on: {detail}") } else { detail });
        match advice {
            _ if opts.allow_bad => Ok(()),
            Some(advice) => {
                Err(fail(Exit::Data, what).hint(format!("{advice}; or leave it out with --allow-bad")).into())
            }
            None => Err(self.too_bad(what)),
        }
    }

    /// [`Self::check_share`] before the end, once enough records were read: the user should not wait for a failure.
    fn check_share_early(&self, opts: &PrepareOptions, lines: &LineCounts) -> Result<()> {
        let no_text = lines.used == 0 && lines.only_fields_missing() && lines.bad() >= NO_TEXT_FROM;
        if no_text || lines.read >= CHECKED_FROM { self.check_share(opts, lines) } else { Ok(()) }
    }

    /// Fails if too large a share of the records was bad.
    pub(super) fn check_share(&self, opts: &PrepareOptions, lines: &LineCounts) -> Result<()> {
        let bad = lines.bad();
        let read = lines.read;
        if opts.allow_bad || bad as f64 <= MAX_BAD * read as f64 {
            return Ok(());
        }
        let first = lines.first_bad.as_ref().map_or_else(String::new, |first| format!("; the first, {first}"));
        if lines.only_fields_missing() {
            let message = format!("{bad} of {read} records read have no text in the field that was asked for{first}");
            return Err(fail(Exit::Data, message).hint(self.field_hint()).into());
        }
        let share = MAX_BAD * 100.0;
        Err(self.too_bad(format!("{bad} of {read} records cannot be used, more than {share} % ({lines}){first}")))
    }

    fn field_hint(&self) -> String {
        let path = self.quarantine.path().display();
        format!(
            "name the field that holds the text with --text-field NAME; to continue without these records, which are in {path}, add --allow-bad"
        )
    }

    fn too_bad(&self, message: String) -> anyhow::Error {
        let path = self.quarantine.path().display();
        let hint =
            format!("they are in {path}: repair the input, or accept the loss with --allow-bad, and run it again");
        fail(Exit::Data, message).hint(hint).into()
    }

    /// Makes quarantine and log of hashes durable.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.quarantine.sync()?;
        self.dedup.as_mut().map_or(Ok(()), Dedup::sync)
    }

    /// Number of texts in the log of hashes.
    pub(super) fn hashes(&self) -> u64 {
        self.dedup.as_ref().map_or(0, Dedup::len)
    }
}
