//! A reader opened at a place goes on with the very records that an uninterrupted one gives.

use super::*;

/// Opens the file behind each of its records; returns the records.
fn check(path: &Path, separator: Option<&str>) -> Vec<RawRecord> {
    let options = options(separator);
    let all = raws(path, &options, Position::default());
    for (i, raw) in all.iter().enumerate() {
        let json = serde_json::to_string(&raw.next).unwrap();
        let from: Position = serde_json::from_str(&json).unwrap();
        assert!(raws(path, &options, from) == all[i + 1..], "{} behind record {}", path.display(), i + 1);
    }
    all
}

#[test]
fn every_place_of_every_format() {
    let dir = Dir::new();
    let text = |i: usize| format!("\u{e9} {i} {}", "lorem \\\"ipsum\\n".repeat(i * i % 50));
    let objects: Vec<String> = (0..24).map(|i| format!("{{\"id\": {i}, \"text\": \"{}\"}}", text(i))).collect();
    let lines = format!("\u{feff}{}\n\nno json\n{}", objects.join("\n"), objects[0]);
    let cases = [
        ("x.jsonl", lines.clone(), 27),
        ("y.jsonl", lines.clone() + "\n", 27),
        ("z.jsonl", lines + "\n{\"text\": \"cut", 28),
        ("x.json", format!("\u{feff}\n [{} , 7 ]\n", objects.join(" ,\n ")), 25),
        ("y.json", format!("[{},", objects.join(",")), 25),
        ("z.json", format!("[{}] and more", objects.join(",")), 25),
        ("l.json", format!(" \n{}\n", objects.join("\n")), 24),
        ("x.txt", objects.join("\n<|end|>\n"), 24),
        ("y.txt", format!("\u{feff}<|end|>{}<|end|>\n", objects.join("<|end|>")), 26),
        ("z.txt", String::new(), 1),
    ];
    for (name, content, records) in cases {
        for (end, bytes) in [
            ("", content.as_bytes().to_vec()),
            (".gz", gzip(content.as_bytes())),
            (".zst", zstandard(content.as_bytes())),
        ] {
            let all = check(&dir.file(&format!("{name}{end}"), &bytes), Some("<|end|>"));
            assert_eq!(all.len(), records, "{name}{end}");
        }
        check(&dir.file(name, content.as_bytes()), None);
    }
}

#[test]
fn every_row_of_every_fixture() {
    let mut files = 0;
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("ok") {
            check(&path, None);
            files += 1;
        }
    }
    assert!(files >= 14);
}

#[test]
fn behind_a_torn_or_broken_end() {
    let dir = Dir::new();
    let lines: String = (0..40).map(|i| format!("{{\"text\": \"{i} {}\"}}\n", i * 7919 % 1000)).collect();
    for (name, packed) in [("x.jsonl.gz", gzip(lines.as_bytes())), ("x.jsonl.zst", zstandard(lines.as_bytes()))] {
        for size in (0..packed.len()).step_by(7) {
            let all = check(&dir.file(name, &packed[..size]), None);
            assert!(matches!(all.last().unwrap().body, Body::Bad { reason: Reason::CutOff, last: true, .. }));
        }
        let mut broken = packed.clone();
        broken[packed.len() - 2] ^= 1;
        let all = check(&dir.file(name, &broken), None);
        assert!(matches!(all.last().unwrap().body, Body::Bad { reason: Reason::Damaged, last: true, .. }));
    }
}

#[test]
fn a_file_that_has_become_shorter_is_refused() {
    let dir = Dir::new();
    let short = b"{\"text\": \"a\"}\n";
    for (name, bytes) in [("x.jsonl", short.to_vec()), ("x.jsonl.gz", gzip(short)), ("x.jsonl.zst", zstandard(short))] {
        let path = dir.file(name, &bytes);
        let (exit, message) = exit_of(Reader::open(&path, &options(None), Position { records: 2, offset: 100 }));
        assert_eq!(exit, Exit::Data);
        assert!(message.contains(name) && message.contains("byte 100"), "{message}");
    }
}

#[test]
fn progress_is_measured_in_the_file() {
    let dir = Dir::new();
    let lines = "{\"text\": \"some text\"}\n".repeat(50_000);
    let plain = dir.file("x.jsonl", lines.as_bytes());
    let packed = dir.file("x.jsonl.zst", &zstandard(lines.as_bytes()));
    for path in [plain, packed, fixture("ok_snappy.parquet")] {
        let mut reader = Reader::open(&path, &options(None), Position::default()).unwrap();
        let mut before = 0;
        while let Some(raw) = reader.next() {
            raw.unwrap();
            assert!(reader.file_bytes() >= before);
            before = reader.file_bytes();
        }
        assert_eq!(reader.file_bytes(), std::fs::metadata(&path).unwrap().len(), "{}", path.display());
    }
}
