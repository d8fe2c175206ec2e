//! Lines of JSON.

use super::*;

#[test]
fn lines_are_classified_one_by_one() {
    let deep = |close: &str| format!("{{\"x\": {}{}, \"text\": \"a\"}}", "[".repeat(10_000), close.repeat(10_000));
    let (deep_ok, deep_open) = (deep("]"), deep(""));
    let deep_text = format!("{{\"text\": {}{}}}", "{\"text\":".repeat(10_000), "}".repeat(10_000));
    use Reason::{Field, Json, Utf8};
    let cases: &[(&[u8], Outcome)] = &[
        (br#"{"text": "a\nb"}"#, text("a\nb")),
        (br#"  {"id": {"text": [1, "x"]}, "text": "\u00e9\ud83d\ude00", "n": 1e400}  "#, text("\u{e9}\u{1f600}")),
        (br#"{"te\u0078t": "key with an escape", "a\"b": "\""}"#, text("key with an escape")),
        (b"{\"text\": \"with CR\"}\r", text("with CR")),
        (br#"{"text": "a\u0000b"}"#, text("a\0b")),
        (b"", Err(None)),
        (b" \t\r", Err(None)),
        (br#"{"text": ""}"#, Err(None)),
        (br#"{"text": " \n\u00a0"}"#, Err(None)),
        (br#"{"text": "a""#, bad_for(Json)),
        (br#"{"text": "a"} {}"#, bad_for(Json)),
        (br#"{"text": "\ud83d"}"#, bad_for(Json)),
        (br#"{"text": "\ude00\ud83d"}"#, bad_for(Json)),
        (b"{\"text\": \"a\0b\"}", bad_for(Json)),
        (b"{'text': 'a'}", bad_for(Json)),
        (br#"{"body": "a"}"#, bad_for(Field)),
        (br#"{"text": null}"#, bad_for(Field)),
        (br#"{"text": ["a"]}"#, bad_for(Field)),
        (br#"{"text": "a", "text": "b"}"#, bad_for(Field)),
        (br#"{"text": "a", "text": null}"#, bad_for(Field)),
        (br#"["a"]"#, bad_for(Field)),
        (br#""text""#, bad_for(Field)),
        (b"{\"text\": \"\xff\"}", bad_for(Utf8)),
        (b"{\"text\": \"\xc0\xaf\"}", bad_for(Utf8)),
        (deep_ok.as_bytes(), text("a")),
        (deep_open.as_bytes(), bad_for(Json)),
        (deep_text.as_bytes(), bad_for(Field)),
    ];
    let all = cases.iter().map(|(line, _)| [line, &b"\n"[..]].concat()).collect::<Vec<_>>().concat();
    let got = Dir::new().records("x.jsonl", &all, None);
    assert_eq!(got.len(), cases.len());
    let mut offset = 0;
    for (i, (record, (line, expected))) in got.iter().zip(cases).enumerate() {
        assert_eq!(&outcome(record), expected, "line {}", i + 1);
        let length = line.len() as u64;
        assert_eq!((record.line, record.offset, record.length), (i as u64 + 1, offset, length));
        offset += length + 1;
        if let Content::Bad { bytes, .. } = &record.content {
            assert_eq!(bytes, line);
        }
    }
    let Content::Bad { detail, .. } = &got[18].content else { panic!() };
    assert!(detail.contains("\"text\" occurs twice"), "{detail}");
}

#[test]
fn a_last_line_without_newline_is_used_or_cut_off() {
    let dir = Dir::new();
    for name in ["x.jsonl", "x.ndjson", "x.json"] {
        let last = |end: &[u8]| {
            let bytes = [b"\xef\xbb\xbf{\"text\": \"a\"}\n", end].concat();
            let mut records = dir.records(name, &bytes, None);
            assert_eq!(outcome(&records[0]), text("a"), "after a byte order mark");
            outcome(&records.pop().unwrap())
        };
        assert_eq!(last(br#"{"text": "b"}"#), text("b"));
        assert_eq!(last(b"  "), Err(None));
        assert_eq!(last(br#"{"text": "b"#), bad_for(Reason::CutOff));
        assert_eq!(last(b"{\"text\": \"\xc3"), bad_for(Reason::CutOff));
        assert_eq!(last(b"{\"text\": \"\xff"), bad_for(Reason::Utf8));
        assert_eq!(last(b"{]"), bad_for(Reason::Json));
    }
    assert!(dir.records("x.jsonl", b"", None).is_empty());
}

#[test]
fn lines_above_the_limit_are_skipped_exactly() {
    let dir = Dir::new();
    for long in [40, 41, 42, 200, 3 << 20] {
        let line = format!("{{\"text\": \"{}\"}}", "x".repeat(long - 12));
        assert_eq!(line.len(), long);
        let path = dir.file("x.jsonl", format!("{line}\n{{\"text\": \"y\"}}\n{line}").as_bytes());
        let mut lines = Delimited::lines(Input::open(&path, Compression::None).unwrap(), 0);
        lines.max = 41;
        let got = std::iter::from_fn(|| lines.cut().unwrap()).map(|raw| raw.parse("text")).collect::<Vec<_>>();
        let place: Vec<_> = got.iter().map(|r| (r.line, r.offset, r.length)).collect();
        let length = long as u64;
        assert_eq!(place, [(1, 0, length), (2, length + 1, 13), (3, length + 15, length)]);
        assert_eq!(outcome(&got[1]), text("y"));
        for record in [&got[0], &got[2]] {
            let expected = if long > 41 { bad_for(Reason::TooLong) } else { Ok("x".repeat(long - 12)) };
            assert_eq!(outcome(record), expected);
        }
    }
}
