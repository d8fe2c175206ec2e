//! Arrays of JSON.

use super::*;

#[test]
fn elements_are_cut_at_the_commas_of_the_array() {
    let dir = Dir::new();
    let get = |json: &str| outcomes(&dir.records("x.json", json.as_bytes(), None));
    use Reason::{CutOff, Field, Json};
    let a = || text("a");
    assert_eq!(get("[]"), []);
    assert_eq!(get("\u{feff} \n[ \r\n ]\t\n"), []);
    assert_eq!(get(r#"[{"text": "a"}]"#), [a()]);
    assert_eq!(get(r#"[{"text": "],[\\\"]}"}, {"x": [{"text": 1}, "\\"], "text": "a"} ]"#), [text("],[\\\"]}"), a()]);
    assert_eq!(get(r#"[1, "text" ,null,[{}],{}]"#), vec![bad_for(Field); 5]);
    assert_eq!(get(r#"[{"text": "a"},,{"text": "a"},]"#), [a(), bad_for(Json), a(), bad_for(Json)]);
    assert_eq!(get(r#"[{"text": "a"} {"text": "a"}, {"text": "a"}]"#), [bad_for(Json), a()]);
    assert_eq!(get(r#"[{"text": "a"}, }, {"text": "a"}]"#), [a(), bad_for(Json), a()]);
    assert_eq!(get(r#"[{"text": "a"}] [{"text": "a"}]"#), [a(), bad_for(Json)]);
    assert_eq!(get("["), [bad_for(CutOff)]);
    assert_eq!(get(r#"[{"text": "a"}"#), [bad_for(CutOff)]);
    for end in [",", ", ", r#", {"text": "b"#, r#", {"text": "b\"#, r#", {"text": "b""#] {
        assert_eq!(get(&format!(r#"[{{"text": "a"}}{end}"#)), [a(), bad_for(CutOff)], "{end}");
    }
}

#[test]
fn places_are_those_of_the_elements() {
    let json = b" [\n {\"text\": \"a\"} , 17,\n{\"text\": \"b\"}\n]\n";
    let raws = raws(&Dir::new().file("x.json", json), &options(None), Position::default());
    let places: Vec<_> = raws.iter().map(|raw| (raw.line, raw.offset, raw.length)).collect();
    assert_eq!(places, [(1, 4, 13), (2, 20, 2), (3, 24, 13)]);
    for raw in &raws {
        let behind = json[raw.next.offset as usize];
        assert!(raw.next.records == raw.line && [b',', b']'].contains(&behind));
    }
}

#[test]
fn elements_above_the_limit_are_skipped_exactly() {
    let element = |length: usize| format!("{{\"text\": \"{}\"}}", "[,".repeat(length / 2));
    for long in [100, 1000, 700_000] {
        let json = format!("[{},{},{}]", element(long), element(10), element(long));
        let path = Dir::new().0.path().with_extension("json");
        std::fs::write(&path, json).unwrap();
        let mut array = Array::new(Input::open(&path, Compression::None).unwrap(), 0);
        array.max = 500;
        let got = std::iter::from_fn(|| array.cut().unwrap()).map(|raw| raw.parse("text")).collect::<Vec<_>>();
        std::fs::remove_file(path).unwrap();
        let expected = if long > 500 { bad_for(Reason::TooLong) } else { Ok("[,".repeat(long / 2)) };
        assert_eq!(outcomes(&got[..2]), [expected.clone(), Ok("[,".repeat(5))]);
        assert_eq!((outcome(&got[2]), got[2].length, got.len()), (expected, long as u64 + 12, 3));
    }
}
