//! Whatever the bytes: no panic, an end, and records that follow one another.

use super::*;
use crate::runtime::tests::damage::{Damage, rounds};

/// Reads the file to its end; how many bad records it has.
fn account(path: &Path, separator: Option<&str>) -> usize {
    let Ok(reader) = Reader::open(path, &options(separator), Position::default()) else { return 1 };
    let (mut line, mut end, mut bad, mut last) = (0, 0, 0, false);
    for raw in reader {
        let raw = raw.unwrap();
        assert!(!last && raw.line == line + 1 && raw.offset >= end, "{raw:?} behind {line}, {end}");
        last = matches!(raw.body, Body::Bad { last: true, .. });
        assert!(raw.next.offset >= raw.offset + raw.length && (last || raw.next.records == raw.line));
        (line, end) = (raw.line, raw.next.offset);
        bad += usize::from(matches!(raw.parse("text").content, Content::Bad { .. }));
        assert!(line < 10_000, "no end");
    }
    bad
}

fn check(name: &str, bytes: &[u8], quick: usize) {
    let dir = Dir::new();
    let mut damage = Damage::new(7);
    let mut found = 0;
    for _ in 0..rounds(quick) {
        let path = dir.file(name, &damage.of(bytes));
        found += account(&path, Some("--"));
    }
    assert!(found > 0, "{name}: no mutation was noticed");
}

#[test]
fn mutated_files_are_accounted_for() {
    let objects: Vec<String> =
        (0..12).map(|i| format!("{{\"id\": [{i}, \"\\\\\"], \"text\": \"\u{e9} {i}\"}}")).collect();
    let lines = objects.join("\n");
    let cases = [
        ("x.jsonl", lines.clone().into_bytes()),
        ("x.json", format!("[{}]", objects.join(",\n")).into_bytes()),
        ("x.txt", objects.join("\n--\n").into_bytes()),
        ("x.jsonl.gz", [gzip(lines.as_bytes()), gzip(b"\n{}")].concat()),
        ("x.json.gz", gzip(format!("[{}]", objects.join(",")).as_bytes())),
        ("x.jsonl.zst", [zstandard(lines.as_bytes()), zstandard(b"\n{}")].concat()),
        ("x.txt.zst", zstandard(objects.join("--").as_bytes())),
    ];
    for (name, bytes) in cases {
        check(name, &bytes, 300);
    }
}

#[test]
fn mutated_parquet_files_are_accounted_for() {
    for kind in ["snappy", "gzip_v2", "zstd_dictionary", "lz4", "delta", "delta_length", "nulls_dictionary", "required"]
    {
        check("x.parquet", &std::fs::read(fixture(&format!("ok_{kind}.parquet"))).unwrap(), 300);
    }
}
