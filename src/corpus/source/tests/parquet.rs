//! Parquet files made by pyarrow.

use super::*;

const ROWS: usize = 60;

fn get(name: &str) -> Vec<ParsedRecord> {
    records(raws(&fixture(name), &options(None), Position::default()))
}

#[test]
fn every_encoding_and_compression_is_read() {
    let expected: Vec<Outcome> =
        (0..ROWS).map(|i| Some(fixture_text(i)).filter(|t| !t.is_empty()).ok_or(None)).collect();
    let kinds = "snappy gzip_v2 zstd_dictionary lz4 large_string binary required delta delta_length";
    for kind in kinds.split(' ') {
        let got = get(&format!("ok_{kind}.parquet"));
        assert_eq!(outcomes(&got), expected, "{kind}");
        let mut offset = 0;
        for (i, record) in got.iter().enumerate() {
            let length = fixture_text(i).len() as u64;
            assert_eq!((record.line, record.offset, record.length), (i as u64 + 1, offset, length));
            offset += length;
        }
    }
    for name in ["ok.jsonl.gz", "ok.jsonl.zst"] {
        assert_eq!(outcomes(&get(name)), expected, "{name}");
    }
    assert!(get("ok_none.parquet").is_empty());
}

#[test]
fn nulls_and_foreign_bytes_are_bad_records() {
    for name in ["ok_nulls.parquet", "ok_nulls_dictionary.parquet"] {
        for (i, record) in get(name).iter().enumerate() {
            let expected = match fixture_text(i) {
                _ if i % 7 == 3 => bad_for(Reason::Field),
                text if text.is_empty() => Err(None),
                text => Ok(text),
            };
            assert_eq!(outcome(record), expected, "{name} row {i}");
        }
    }
    assert_eq!(outcomes(&get("bad_utf8.parquet")), [text("good"), bad_for(Reason::Utf8), text("good")]);
}

#[test]
fn a_column_that_is_not_there_is_named_with_those_that_are() {
    for (name, problem, columns) in [
        ("bad_missing.parquet", "does not exist", "id, body, url"),
        ("bad_list.parquet", "not one of strings", "text"),
        ("bad_number.parquet", "not one of strings", "text"),
    ] {
        let error = Reader::open(&fixture(name), &options(None), Position::default()).err().unwrap();
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(failure.exit, Exit::Data);
        assert!(failure.message.contains(name) && failure.message.contains(problem), "{failure}");
        assert!(failure.hint.as_ref().unwrap().ends_with(columns), "{:?}", failure.hint);
    }
    let body = ReadOptions { text_field: "body".into(), ..ReadOptions::default() };
    assert_eq!(raws(&fixture("bad_missing.parquet"), &body, Position::default()).len(), 1);
}

#[test]
fn torn_and_broken_files_end_with_a_bad_record() {
    let dir = Dir::new();
    let whole = std::fs::read(fixture("ok_large_string.parquet")).unwrap();
    for size in [0, 1, 3, 4, 100, whole.len() - 1] {
        let got = dir.records("x.parquet", &whole[..size], None);
        assert_eq!(outcomes(&got), [bad_for(Reason::CutOff)], "{size}");
    }
    // The pages carry checksums: a changed byte of a text is found, and the texts before its page are kept.
    let at = whole.windows(6).rposition(|w| w == b"row 55").unwrap();
    let broken = [&whole[..at], b"ROW 55", &whole[at + 6..]].concat();
    let got = dir.records("x.parquet", &broken, None);
    assert_eq!((got.len(), outcome(&got[50])), (51, bad_for(Reason::Damaged)));
    assert_eq!(outcome(&got[49]), Err(None));
}
