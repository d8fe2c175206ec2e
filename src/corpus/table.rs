//! Whole rows of files: the objects of .json and .jsonl, the rows of .parquet with all their columns.
//!
//! For data sets that are read once and held in memory. The corpus of a pretraining run, of which one column is wanted and the rest
//! does not fit, is read by [`source`](crate::corpus::source).

use crate::corpus::source::{
    Position, ReadOptions, Reader, holds_records, is_parquet, rewrite_hint, unread_compression,
};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::open_input;
use anyhow::{Context, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use std::path::Path;

/// Largest Parquet file; none that is held in memory as JSON comes near.
const MAX_BYTES: u64 = 1 << 30;

/// A row of a file.
#[derive(Clone, Debug)]
pub struct Row {
    /// Number of the line, element or row, from 1.
    pub line: u64,
    /// What it holds, or what is wrong with it.
    pub value: Result<Value, String>,
}

/// The rows of `path`, by its extension; blank lines are skipped.
///
/// # Errors
/// [`Exit::Config`] for a kind of file that has no rows, [`Exit::Io`] and [`Exit::Data`] for one that cannot be read.
pub fn rows(path: &Path) -> Result<Vec<Row>> {
    if is_parquet(path)? {
        let rows = parquet_rows(path)?.into_iter().zip(1..);
        return Ok(rows.map(|(value, line)| Row { line, value: Ok(value) }).collect());
    }
    if !holds_records(path)? {
        return Err(fail(Exit::Config, format!("{}: not a kind of file that holds records", path.display()))
            .hint("give .json, .jsonl (also with .gz or .zst behind) or .parquet")
            .into());
    }
    let mut rows = Vec::new();
    for raw in Reader::open(path, &ReadOptions::default(), Position::default())? {
        let raw = raw?;
        raw.refuse_foreign(path)?;
        let line = raw.line;
        match raw.value() {
            Ok(None) => {}
            Ok(Some(value)) => rows.push(Row { line, value: Ok(value) }),
            Err(what) => rows.push(Row { line, value: Err(what) }),
        }
    }
    Ok(rows)
}

/// The rows of a Parquet file.
///
/// # Errors
/// [`Exit::Data`] if it is damaged or too large to be held.
pub fn parquet_rows(path: &Path) -> Result<Vec<Value>> {
    let (file, size) = open_input(path, true)?;
    if size > MAX_BYTES {
        return Err(unusable(path, &"too large to be held in memory as records"));
    }
    // The library panics on some damaged files.
    let read = crate::runtime::panic::catch_panic(|| -> Result<Vec<Value>> {
        let reader = SerializedFileReader::new(file).map_err(|e| unusable(path, &e))?;
        if let Some(codec) = unread_compression(reader.metadata(), None) {
            let message = format!("{}: not supported: the file is compressed with {codec}", path.display());
            return Err(fail(Exit::Data, message).hint(rewrite_hint(path)).into());
        }
        let rows = reader.get_row_iter(None).map_err(|e| unusable(path, &e))?;
        rows.map(|row| Ok(row.map_err(|e| unusable(path, &e))?.to_json_value())).collect()
    });
    let rows = read.map_err(|panic| unusable(path, &panic)).and_then(|rows| rows);
    rows.with_context(|| format!("reading {}", path.display()))
}

fn unusable(path: &Path, problem: &dyn std::fmt::Display) -> anyhow::Error {
    let message = format!("{}: {problem}", path.display());
    fail(Exit::Data, message).hint("the file is damaged: get the data set again").into()
}
