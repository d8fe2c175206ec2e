//! The rows of a Parquet file: the values of one column of strings.
//!
//! Pages are read one after the other, so memory is that of a page, whatever the size of a row group. The library panics
//! on some damaged files; the panic is caught and reported as damage.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Result;
use parquet::basic::{Compression, Type as Physical};
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::corpus::source::input::Fault;
use crate::corpus::source::{Body, Cut, MAX_LINE, Position, RawRecord, Reason};
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files;
use crate::runtime::panic;
use crate::runtime::shell::quoted;

/// The rows of one file.
pub(super) struct Rows {
    path: PathBuf,
    size: u64,
    /// Absent if the file is damaged so that it cannot be opened.
    table: Option<Table>,
    /// Rows of the file, as far as they are known.
    rows: u64,
    /// What to report as the last record.
    fault: Option<Fault>,
    advice: Option<String>,
    at: Position,
}

struct Table {
    reader: SerializedFileReader<File>,
    /// Index of the text among the file's columns, and whether it can be null.
    column: usize,
    nullable: bool,
    rows: u64,
    /// Index of the row group that is opened next.
    group: usize,
    values: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Rows of the current row group that are not read yet.
    left: u64,
}

/// The name of a compression that is not read, if `column` of the file, or any without one, has it.
pub fn unread_compression(meta: &ParquetMetaData, column: Option<usize>) -> Option<String> {
    let columns = meta.row_groups().iter().flat_map(|group| group.columns().iter().enumerate());
    let mut codecs = columns.filter(|(at, _)| column.is_none_or(|column| column == *at)).map(|(_, c)| c.compression());
    let unread = codecs.find(|codec| {
        use Compression::{GZIP, LZ4, LZ4_RAW, SNAPPY, UNCOMPRESSED, ZSTD};
        !matches!(codec, UNCOMPRESSED | SNAPPY | GZIP(_) | LZ4 | LZ4_RAW | ZSTD(_))
    })?;
    let name = format!("{unread:?}");
    Some(name.split('(').next().unwrap_or_default().to_ascii_lowercase())
}

/// The command that writes the file again with a compression that is read.
pub fn rewrite_hint(path: &Path) -> String {
    format!(
        "write it again with zstd: python3 -c \"import sys, pyarrow.parquet as p; p.write_table(p.read_table(sys.argv[1]), \
         sys.argv[2], compression='zstd')\" {} NEW.parquet",
        quoted(path)
    )
}

/// Why a call of the library failed.
enum ReadFailure {
    Io(io::Error),
    /// The file is not as it should be.
    Damage(String),
    /// The column is compressed in a way that is not read.
    Unsupported {
        codec: String,
        rows: u64,
    },
}

impl From<ParquetError> for ReadFailure {
    fn from(error: ParquetError) -> Self {
        match error {
            ParquetError::External(inner) => match inner.downcast::<io::Error>() {
                Ok(e) if e.raw_os_error().is_some() => Self::Io(*e),
                Ok(e) => Self::Damage(e.to_string()),
                Err(other) => Self::Damage(other.to_string()),
            },
            other => Self::Damage(other.to_string()),
        }
    }
}

/// Calls the library, which panics on some damaged files.
fn catch_panic<T>(call: impl FnOnce() -> Result<T, ReadFailure>) -> Result<T, ReadFailure> {
    panic::catch_panic(call).unwrap_or_else(|_| Err(ReadFailure::Damage("the Parquet reader gave up on it".into())))
}

impl Rows {
    /// Opens `path` before row `from.records`; the text is in the column `field`.
    pub(super) fn open(path: &Path, field: &str, from: Position) -> Result<Self> {
        let (mut file, size) = files::open_input(path, true)?;
        // A file that was cut off while it was copied has no end; one that has it is damaged elsewhere.
        let whole = has_magic(&mut file, size).map_err(|e| files::io_failure("read", path, &e))?;
        let mut rows =
            Self { path: path.to_path_buf(), size, table: None, rows: 0, fault: None, advice: None, at: from };
        match catch_panic(|| Table::open(file, path, field)) {
            Ok(table) => {
                let table = table?;
                rows.rows = table.rows;
                rows.table = Some(table);
            }
            Err(ReadFailure::Io(e)) => return Err(files::io_failure("read", path, &e).into()),
            Err(ReadFailure::Unsupported { codec, rows: all }) => {
                rows.rows = all;
                rows.unsupported(&codec);
            }
            Err(ReadFailure::Damage(detail)) if whole => rows.damaged(&detail),
            Err(ReadFailure::Damage(_)) => {
                let detail = "the Parquet file has no end".into();
                rows.fault = Some(Fault { reason: Reason::CutOff, detail });
            }
        }
        match &mut rows.table {
            Some(table) => {
                let skipped = catch_panic(|| table.skip(from.records));
                rows.settle(skipped)?;
            }
            // The damage was reported as the first record.
            None if from.records > 0 => rows.fault = None,
            None => {}
        }
        Ok(rows)
    }

    fn damaged(&mut self, detail: &str) {
        let detail = format!("the Parquet file is damaged: {}", detail.replace('\n', " "));
        self.fault = Some(Fault { reason: Reason::Damaged, detail });
    }

    fn unsupported(&mut self, codec: &str) {
        let detail = format!("not supported: the Parquet file is compressed with {codec}");
        self.fault = Some(Fault { reason: Reason::Unsupported, detail });
        self.advice = Some(rewrite_hint(&self.path));
    }

    /// The result of a call; damage is kept for the last record, and nothing more is read.
    fn settle<T>(&mut self, result: Result<T, ReadFailure>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(ReadFailure::Io(e)) => Err(files::io_failure("read", &self.path, &e).into()),
            Err(ReadFailure::Damage(detail)) => {
                self.damaged(&detail);
                Ok(None)
            }
            Err(ReadFailure::Unsupported { codec, .. }) => {
                self.unsupported(&codec);
                Ok(None)
            }
        }
    }

    fn raw(&mut self, length: u64, body: Body) -> RawRecord {
        let line = self.at.records + 1;
        let offset = self.at.offset;
        self.at = Position { records: line, offset: offset + length };
        RawRecord { line, offset, length, next: self.at, count: 1, body }
    }

    fn row(&mut self, value: &ByteArray) -> RawRecord {
        let data = value.data();
        let length = data.len();
        let bytes = data[..length.min(MAX_LINE)].to_vec();
        let body = if length > MAX_LINE {
            Body::bad(Reason::TooLong, format!("a value of {length} bytes; at most {MAX_LINE} are read"), bytes)
        } else {
            Body::Text { bytes, after_separator: false, before_separator: false }
        };
        self.raw(length as u64, body)
    }

    /// The record that stands for the rest of the file; its end is the end of the file.
    fn last(&mut self, fault: Fault) -> RawRecord {
        // All rows that cannot be read count as bad, or a damaged file would look like one bad record.
        let left = self.rows.saturating_sub(self.at.records).max(1);
        let Fault { reason, detail } = fault;
        let body = Body::Bad { reason, detail, advice: self.advice.take(), bytes: Vec::new(), last: true };
        let mut raw = self.raw(0, body);
        raw.next.records = raw.next.records.max(self.rows);
        raw.count = left;
        raw
    }
}

impl Cut for Rows {
    fn cut(&mut self) -> Result<Option<RawRecord>> {
        if let (None, Some(table)) = (&self.fault, &mut self.table) {
            let value = catch_panic(|| table.next());
            match self.settle(value)? {
                Some(None) => return Ok(None),
                Some(Some(Some(value))) => return Ok(Some(self.row(&value))),
                Some(Some(None)) => {
                    let body = Body::bad(Reason::Field, "null instead of a text".into(), Vec::new());
                    return Ok(Some(self.raw(0, body)));
                }
                None => {}
            }
        }
        let fault = self.fault.take();
        Ok(fault.map(|fault| self.last(fault)))
    }

    fn file_bytes(&self) -> u64 {
        let rows = self.rows.max(1);
        (u128::from(self.size) * u128::from(self.at.records.min(rows)) / u128::from(rows)) as u64
    }
}

/// Whether the file ends as Parquet files do, of which the smallest has 12 bytes; `file` is left at its start.
fn has_magic(file: &mut File, size: u64) -> io::Result<bool> {
    let mut magic = [0; 4];
    if size >= 12 {
        file.seek(SeekFrom::End(-4))?;
        file.read_exact(&mut magic)?;
        file.rewind()?;
    }
    Ok(&magic == b"PAR1")
}

impl Table {
    /// Reads the description of the file. The inner error: there is no such column of strings.
    fn open(file: File, path: &Path, field: &str) -> Result<Result<Self, Failure>, ReadFailure> {
        let reader = SerializedFileReader::new(file)?;
        let meta = reader.metadata();
        let schema = meta.file_metadata().schema_descr();
        let named = schema.columns().iter().position(|column| column.path().parts() == [field]);
        let strings = named.filter(|&at| {
            schema.column(at).physical_type() == Physical::BYTE_ARRAY && schema.column(at).max_rep_level() == 0
        });
        let Some(column) = strings else {
            let names: Vec<String> =
                schema.root_schema().get_fields().iter().map(|f| f.name().escape_debug().to_string()).collect();
            let problem =
                if names.iter().any(|name| name == field) { "is not one of strings" } else { "does not exist" };
            let message = format!("{}: the column {field:?} {problem}", path.display());
            let hint = format!(
                "name the column of the text (--text-field NAME, data.text_field); there are: {}",
                names.join(", ")
            );
            return Ok(Err(fail(Exit::Data, message).hint(hint)));
        };
        let nullable = schema.column(column).max_def_level() > 0;
        let mut rows = 0u64;
        for group in meta.row_groups() {
            let more = u64::try_from(group.num_rows()).ok().and_then(|n| rows.checked_add(n));
            rows = more.ok_or_else(|| ReadFailure::Damage("impossible numbers of rows".into()))?;
        }
        if let Some(codec) = unread_compression(meta, Some(column)) {
            return Err(ReadFailure::Unsupported { codec, rows });
        }
        Ok(Ok(Self { reader, column, nullable, rows, group: 0, values: None, left: 0 }))
    }

    /// Passes over the first `rows` rows: whole row groups unread, then pages.
    fn skip(&mut self, rows: u64) -> Result<(), ReadFailure> {
        let mut ahead = rows;
        while self.group < self.reader.num_row_groups() {
            let in_group = self.reader.metadata().row_group(self.group).num_rows() as u64;
            if ahead < in_group {
                if ahead > 0 {
                    self.open_group()?;
                    self.left -= ahead;
                    let skipped = self.values.as_mut().map(|values| values.skip_records(ahead as usize));
                    if skipped.transpose()? != Some(ahead as usize) {
                        return Err(ReadFailure::Damage(format!("row group {} is short", self.group - 1)));
                    }
                }
                return Ok(());
            }
            ahead -= in_group;
            self.group += 1;
        }
        Ok(())
    }

    fn open_group(&mut self) -> Result<(), ReadFailure> {
        let group = self.reader.get_row_group(self.group)?;
        self.left = group.metadata().num_rows() as u64;
        self.values = Some(get_typed_column_reader(group.get_column_reader(self.column)?));
        self.group += 1;
        Ok(())
    }

    /// The next row: its value, or null. Absent behind the last row.
    fn next(&mut self) -> Result<Option<Option<ByteArray>>, ReadFailure> {
        while self.left == 0 {
            if self.group == self.reader.num_row_groups() {
                return Ok(None);
            }
            self.open_group()?;
        }
        let Some(values) = &mut self.values else { return Ok(None) };
        let mut levels = Vec::new();
        let mut value = Vec::new();
        let (rows, ..) = values.read_records(1, self.nullable.then_some(&mut levels), None, &mut value)?;
        if rows != 1 {
            return Err(ReadFailure::Damage(format!("row group {} is {} rows short", self.group - 1, self.left)));
        }
        self.left -= 1;
        Ok(Some(value.pop()))
    }
}
