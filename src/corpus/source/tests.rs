use super::*;
use crate::runtime::error::Failure;

mod arrays;
mod damage;
mod lines;
mod parquet;
mod resume;
mod texts;

/// A directory of test files.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The records of a file with this content.
    fn records(&self, name: &str, bytes: &[u8], separator: Option<&str>) -> Vec<ParsedRecord> {
        records(raws(&self.file(name, bytes), &options(separator), Position::default()))
    }
}

fn options(separator: Option<&str>) -> ReadOptions {
    ReadOptions { text_separator: separator.map(str::to_owned), ..Default::default() }
}

fn raws(path: &Path, options: &ReadOptions, from: Position) -> Vec<RawRecord> {
    Reader::open(path, options, from).unwrap().collect::<Result<_>>().unwrap()
}

fn records(raws: Vec<RawRecord>) -> Vec<ParsedRecord> {
    raws.into_iter().map(|raw| raw.parse("text")).collect()
}

/// The text; without one, why not (`None`: empty).
type Outcome = Result<String, Option<Reason>>;

fn outcome(record: &ParsedRecord) -> Outcome {
    match &record.content {
        Content::Text(text) => Ok(text.clone()),
        Content::Empty => Err(None),
        Content::Bad { reason, .. } => Err(Some(*reason)),
    }
}

fn outcomes(records: &[ParsedRecord]) -> Vec<Outcome> {
    records.iter().map(outcome).collect()
}

fn text(text: &str) -> Outcome {
    Ok(text.into())
}

fn bad_for(reason: Reason) -> Outcome {
    Err(Some(reason))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn zstandard(bytes: &[u8]) -> Vec<u8> {
    let mut out = zstd::Encoder::new(Vec::new(), 1).unwrap();
    out.include_checksum(true).unwrap();
    std::io::Write::write_all(&mut out, bytes).unwrap();
    out.finish().unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sources").join(name)
}

/// Text `i` of the fixtures, as scripts/fixtures/parquet.py makes it.
fn fixture_text(i: usize) -> String {
    if i % 11 == 5 { String::new() } else { format!("row {i} é{}", " lorem".repeat(i % 5)) }
}

fn exit_of<T>(result: Result<T>) -> (Exit, String) {
    let error = result.err().unwrap();
    (error.downcast_ref::<Failure>().unwrap().exit, error.to_string())
}

#[test]
fn other_kinds_and_impossible_separators_are_refused() {
    let dir = Dir::new();
    let (table, text) = (dir.file("a.csv", b"x,y"), dir.file("a.txt", b"x"));
    let open = |options: &ReadOptions, path: &Path| Reader::open(path, options, Position::default());
    assert_eq!(exit_of(open(&options(None), &table)).0, Exit::Config);
    assert_eq!(exit_of(open(&options(None), Path::new("absent.txt"))).0, Exit::Io);
    assert_eq!(exit_of(open(&options(Some("")), &text)).0, Exit::Config);
    assert_eq!(exit_of(open(&options(Some(&"x".repeat(5000))), &text)).0, Exit::Config);
}

#[test]
fn readers_and_records_go_to_other_threads() {
    fn check<T: Send>() {}
    check::<Reader>();
    check::<RawRecord>();
}

#[test]
fn documents_pass_over_empty_lines_and_stop_at_bad_ones() {
    let dir = Dir::new();
    let paths = [
        dir.file("a.txt", b"first"),
        dir.file("b.jsonl", b"\n{\"body\": \"second\"}\n{\"text\": 1}\n"),
        dir.file("c.md", b""),
    ];
    let options = ReadOptions { text_field: "body".into(), ..ReadOptions::default() };
    let got: Vec<_> = documents(&paths, &options).collect();
    let document = |text: &str, file, line| TextDocument { text: text.into(), file, line };
    assert_eq!(got[0].as_ref().unwrap(), &document("first", 0, 1));
    assert_eq!(got[1].as_ref().unwrap(), &document("second", 1, 2));
    let exit = |i: usize| got[i].as_ref().unwrap_err().downcast_ref::<Failure>().unwrap().exit;
    assert_eq!((exit(2), exit(3), got.len()), (Exit::Data, Exit::Config, 4));
    assert!(got[2].as_ref().unwrap_err().to_string().contains("b.jsonl:3: "));
}
