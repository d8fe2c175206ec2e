//! A file whose content is not what its name says: it gives one bad record, which says what it is.

use std::path::Path;

use anyhow::Result;

use crate::corpus::source::names::Format;
use crate::corpus::source::{Body, Cut, Position, RawRecord, Reason};
use crate::runtime::content::Kind;

/// Whether no record of `format` can be in a file whose content is of `kind`. Unknown bytes are left to the records.
pub(super) fn is_foreign(format: Format, kind: Kind) -> bool {
    match kind {
        Kind::Empty | Kind::Json | Kind::Text | Kind::Binary => format == Format::Parquet,
        // A page may well be a text to learn from, but is no record.
        Kind::Html | Kind::Xml => format != Format::Text,
        _ => true,
    }
}

/// Gives one record for the whole file.
pub(super) struct Refused(Option<RawRecord>);

impl Refused {
    pub(super) fn new(path: &Path, kind: Kind, from: Position) -> Self {
        let body = Body::Bad {
            reason: Reason::Foreign,
            detail: format!("the file is {}", kind.describe()),
            advice: Some(kind.advice(path)),
            bytes: Vec::new(),
            last: true,
        };
        let next = Position { records: from.records + 1, offset: from.offset + 1 };
        Self(Some(RawRecord { line: 1, offset: 0, length: 0, next, count: 1, body }))
    }
}

impl Cut for Refused {
    fn cut(&mut self) -> Result<Option<RawRecord>> {
        Ok(self.0.take())
    }

    fn file_bytes(&self) -> u64 {
        0
    }
}
