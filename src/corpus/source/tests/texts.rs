//! Text files, whole and divided.

use super::*;

#[test]
fn a_text_file_is_one_document() {
    let dir = Dir::new();
    let one = |bytes: &[u8]| {
        let records = dir.records("x.TXT", bytes, None);
        assert_eq!((records.len(), records[0].line), (1, 1));
        outcome(&records[0])
    };
    assert_eq!(one(b"\xef\xbb\xbfa\r\n\nb\n"), text("a\r\n\nb\n"));
    assert_eq!(one(b" \n"), Err(None));
    assert_eq!(one(b""), Err(None));
    assert_eq!(one(b"\xef\xbb\xbf"), Err(None));
    assert_eq!(one(b"a\xffb"), bad_for(Reason::Utf8));
    assert_eq!(one(b"a\xe2\x82"), bad_for(Reason::Utf8));
}

#[test]
fn a_separator_divides_it_and_takes_the_line_breaks_next_to_it() {
    let dir = Dir::new();
    let divided = |bytes: &[u8]| dir.records("x.txt", bytes, Some("<|end|>"));
    let got = divided(b"\n a\r\n<|end|>\r\n\nb \nc <|end|><|end|>\n<|end|>\n d\n");
    assert_eq!(outcomes(&got), [text("\n a"), text("b \nc "), Err(None), Err(None), text(" d\n")]);
    let places: Vec<_> = got.iter().map(|r| (r.line, r.offset, r.length)).collect();
    assert_eq!(places, [(1, 0, 5), (2, 12, 8), (3, 27, 0), (4, 34, 1), (5, 42, 4)]);
    assert_eq!(outcomes(&divided(b"a<|end|>")), [text("a")]);
    assert_eq!(outcomes(&divided(b"<|end|>a<|end|")), [Err(None), text("a<|end|")]);
    assert_eq!(outcomes(&divided(b"")), [Err(None)]);
    let got = divided(b"a<|end|>\n\xff\n<|end|>b");
    assert_eq!(outcomes(&got), [text("a"), bad_for(Reason::Utf8), text("b")]);
    assert!(matches!(&got[1].content, Content::Bad { bytes, .. } if bytes == b"\n\xff\n"));
}

#[test]
fn separators_across_reads_are_found() {
    let dir = Dir::new();
    // Prime lengths, so that the ends of reads fall on every byte of some separator.
    for (separator, length) in [("<|endoftext|>", 997), ("\n\n", 131)] {
        let parts: Vec<String> = (0..2000).map(|i| format!("{i}{}", "x".repeat(length - i % 7))).collect();
        let all = parts.join(separator).into_bytes();
        let expected: Vec<Outcome> = parts.into_iter().map(Ok).collect();
        for (name, bytes) in [("x.txt", all.clone()), ("x.txt.gz", gzip(&all)), ("x.txt.zst", zstandard(&all))] {
            assert!(outcomes(&dir.records(name, &bytes, Some(separator))) == expected, "{name} {separator:?}");
        }
    }
}

#[test]
fn texts_above_the_limit_are_skipped_exactly() {
    let dir = Dir::new();
    let long = "x".repeat(600_000);
    let cut = |name: &str, separator: Option<&str>| {
        let path = dir.file(name, format!("{long}--short--{long}").as_bytes());
        let mut cut = Delimited::text(Input::open(&path, Compression::None).unwrap(), separator, 0);
        cut.max = 1000;
        std::iter::from_fn(|| cut.cut().unwrap()).map(|raw| raw.parse("text")).collect::<Vec<_>>()
    };
    let got = cut("x.txt", Some("--"));
    assert_eq!(outcomes(&got), [bad_for(Reason::TooLong), text("short"), bad_for(Reason::TooLong)]);
    assert_eq!((got[2].offset, got[2].length), (600_009, 600_000));
    let got = cut("x.txt", None);
    assert_eq!((outcomes(&got), got[0].length), (vec![bad_for(Reason::TooLong)], 1_200_009));
    let Content::Bad { detail, bytes, .. } = &got[0].content else { panic!() };
    assert!(detail.contains("separator") && bytes.len() == 1000, "{detail}");
}
