//! A generator plants defects of every kind, at known places and in known numbers; every one is found, counted and kept.

use super::*;
use crate::corpus::source::MAX_LINE;

/// A defect: a line, and how it must be counted.
fn defects() -> Vec<(&'static str, Vec<u8>)> {
    let deep = [&b"{\"text\": "[..], &[b'['; 10_000], &[b']'; 10_000], b"}"].concat();
    let lines: [(&str, &[u8]); 21] = [
        ("empty", b""),
        ("empty", b" \t\r"),
        ("empty", b"{\"text\": \"\"}"),
        ("empty", b"{\"text\": \" \\n\\u3000\"}"),
        ("filtered", b"{\"text\": \"short\"}"),
        ("filtered", "{\"text\": \"\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\"}".as_bytes()),
        ("duplicate", b"{\"text\": \"the first of all\"}"),
        ("duplicate", b"{\"id\": 7, \"text\": \"the first \\u006ff all\"}\r"),
        ("utf8", b"{\"text\": \"not \xff\xfe UTF-8\"}"),
        ("utf8", b"{\"text\": \"a surrogate \xed\xa0\x80\"}"),
        ("json", b"{\"text\": \"a lone surrogate \\ud83d in an escape\"}"),
        ("json", b"{\"text\": \"a lone one \\udc00 of the other kind\"}"),
        ("json", b"{\"text\": \"not closed}"),
        ("json", b"{\"text\": \"a raw \x00 in a string\"}"),
        ("json", b"\xef\xbb\xbf{\"text\": \"a byte order mark inside a file\"}"),
        ("field", b"{\"txt\": \"the field is missing\"}"),
        ("field", b"{\"text\": [\"no string in it\"]}"),
        ("field", b"{\"text\": null}"),
        ("field", b"{\"text\": \"it occurs\", \"text\": \"twice in one line\"}"),
        ("field", b"[\"no object\"]"),
        ("deep", &deep),
    ];
    lines.map(|(fate, line)| (fate, line.to_vec())).to_vec()
}

/// Two files with the good `texts`, in which defect `i` occurs `1 + i % 3` times; and what was planted, in order.
fn plant(bench: &Bench, texts: &[String]) -> Vec<(&'static str, &'static str, u64, Vec<u8>)> {
    let mut lines: Vec<(&str, Vec<u8>)> = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let end = if i % 5 == 0 { "\r" } else { "" };
        lines.push(("used", format!("{}{end}", serde_json::json!({ "text": text })).into_bytes()));
    }
    for (i, (fate, line)) in defects().into_iter().enumerate() {
        for n in 0..1 + i % 3 {
            // After the first line, which some repeat.
            let at = 1 + (i * 37 + n * 101) % (lines.len() - 1);
            lines.insert(at, (fate, line.clone()));
        }
    }
    let long = [&b"{\"text\": \""[..], &vec![b'x'; MAX_LINE], b"\"}"].concat();
    lines.insert(lines.len() / 2, ("too_long", long));
    let half = lines.len() / 3;
    let (mut planted, mut rest) = (Vec::new(), lines.into_iter());
    for (name, count) in [("b.jsonl", half), ("c.jsonl", usize::MAX)] {
        // A byte order mark at the start of a file and no newline at its end are no defects.
        let mut bytes = b"\xef\xbb\xbf".to_vec();
        for (fate, line) in rest.by_ref().take(count) {
            let offset = if bytes.len() == 3 { 0 } else { bytes.len() as u64 };
            bytes.extend([&line[..], b"\n"].concat());
            planted.push((name, fate, offset, line));
        }
        bytes.pop();
        bench.write(name, bytes);
    }
    planted
}

#[test]
fn planted_defects_are_counted_exactly_and_kept() {
    let bench = Bench::new();
    let mut texts: Vec<String> =
        (0..400).map(|i| format!("a good text, number {i}{}", "\u{0}".repeat(i % 3))).collect();
    texts[0] = "the first of all".into();
    let planted = plant(&bench, &texts);
    // No newline at the end of a line is no defect, and no bytes are a document without text.
    bench.write("a.txt", "").write("d.jsonl", "").write("e.jsonl", "{\"text\": \"the last line has no newline\"}");
    texts.push("the last line has no newline".into());
    let opts = PrepareOptions { min_chars: 10, dedup: true, allow_bad: true, ..bench.options("out") };
    let summary = bench.run(&opts).unwrap();
    let lines = &summary.manifest.lines;

    let count = |fate: &str| planted.iter().filter(|(_, planted, ..)| *planted == fate).count() as u64;
    let said = |reason: &str| lines.quarantined.get(reason).copied().unwrap_or(0);
    assert_eq!((lines.read, lines.used), (planted.len() as u64 + 2, texts.len() as u64));
    assert_eq!((lines.empty, lines.duplicate), (count("empty") + 1, count("duplicate")));
    assert_eq!(lines.filtered, count("filtered"));
    // Arrays 10,000 deep may be called either: all of them the same.
    let deep_is = if said("field") == count("field") { "json" } else { "field" };
    for reason in ["utf8", "json", "field", "too_long"] {
        let deep = if reason == deep_is { count("deep") } else { 0 };
        assert_eq!(said(reason), count(reason) + deep, "{reason}");
    }
    assert_eq!(lines.quarantined.len(), 4);

    let kept = fs::read_to_string(opts.out.join(QUARANTINE_FILE)).unwrap();
    let good = ["used", "empty", "duplicate", "filtered"];
    let bad: Vec<_> = planted.iter().filter(|(_, fate, ..)| !good.contains(fate)).collect();
    assert_eq!(kept.lines().count(), bad.len());
    for (entry, (name, fate, offset, line)) in kept.lines().zip(bad) {
        let entry: serde_json::Value = serde_json::from_str(entry).unwrap();
        assert!(entry["file"].as_str().unwrap().ends_with(name));
        assert_eq!(entry["offset"].as_u64(), Some(*offset), "{fate}");
        assert_eq!(entry["length"].as_u64(), Some(line.len() as u64), "{fate}");
        assert_eq!(entry["reason"].as_str(), Some(if *fate == "deep" { deep_is } else { fate }));
        let number = planted.iter().filter(|(other, _, before, _)| other == name && before <= offset).count();
        assert_eq!(entry["line"].as_u64(), Some(number as u64));
        let hex = entry["hex"].as_str().unwrap().as_bytes();
        let digit = |b: u8| (b as char).to_digit(16).unwrap() as u8;
        assert!(hex.chunks(2).zip(line).all(|(pair, byte)| digit(pair[0]) << 4 | digit(pair[1]) == *byte), "{fate}");
        // The line is the first of its file: its mark is a part of it.
        assert_eq!(hex.len() / 2, line.len().min(MAX_LINE), "{fate}");
    }
    let mut written = [decode(&opts.out, Split::Train), decode(&opts.out, Split::Val)].concat();
    written.sort();
    texts.sort();
    assert_eq!(written, texts);
    verify(&opts.out).unwrap();
}

/// Id = byte, and the separator is a letter that texts have.
struct Careless;

impl Encode for Careless {
    fn encode_ordinary_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        Ok(texts.iter().map(|text| text.bytes().map(u32::from).collect()).collect())
    }
    fn separator(&self) -> u32 {
        u32::from(b'x')
    }
    fn vocab_size(&self) -> usize {
        256
    }
    fn fingerprint(&self) -> String {
        blake3::hash(b"careless").to_hex().to_string()
    }
    fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        BYTES.files()
    }
}

#[test]
fn verify_finds_separators_inside_documents() {
    let bench = Bench::new();
    let prepared = |name: &str, eot, text: &str| {
        let lines: String =
            (0..60).map(|i| format!("{}\n", serde_json::json!({"text": format!("{i} {text}")}))).collect();
        bench.write("a.jsonl", lines);
        let opts = PrepareOptions { eot, val: ValSplit::None, shard_tokens: 300, ..bench.options(name) };
        prepare(&opts, &bench.inputs(), &Careless, &|_| {}).unwrap();
        verify(&opts.out)
    };
    for (name, eot) in [("before", Eot::Before), ("after", Eot::After)] {
        prepared(&format!("sound-{name}"), eot, "one of the usual kind").unwrap();
        let message = prepared(&format!("faulty-{name}"), eot, "one about an axe").unwrap_err().to_string();
        assert!(message.contains("train-00000.npy") && message.contains("separator"), "{message}");
    }
}
