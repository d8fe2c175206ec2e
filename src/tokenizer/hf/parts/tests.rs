//! Texts encoded in parts against the same texts encoded whole.

use super::super::tests::{hub, llama2, llama3, words};
use super::*;
use rand::{Rng, SeedableRng};
use serde_json::json;

/// A Qwen 2 file: NFC, single digits, an added token that is not special.
fn qwen() -> Value {
    let mut root = llama3();
    root["normalizer"] = json!({"type": "NFC"});
    root["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(KnownSplit::Qwen2.regex());
    root["added_tokens"][2]["special"] = json!(false);
    root["added_tokens"][2]["content"] = json!("end tool_call, please");
    root
}

/// Llama 2 with an alphabet of all that `keeps_spaces_first` asks for.
fn llama2_with_alphabet() -> Value {
    let mut root = llama2();
    for (c, id) in ('A'..='Z').chain('0'..='9').zip(400u32..) {
        root["model"]["vocab"][c.to_string()] = json!(id);
    }
    root
}

/// Newer conversions of the same.
fn metaspace() -> Value {
    let mut root = llama2_with_alphabet();
    root["normalizer"] = Value::Null;
    root["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false});
    root
}

/// Words, numbers, marks and strings at which cuts could go wrong, in any order.
fn text(random: &mut impl Rng, bytes: usize) -> String {
    const PIECES: [&str; 24] = [
        "the",
        " the",
        "he",
        " ",
        "  ",
        "\n",
        "\r\n",
        "12",
        "12345",
        "'s",
        "'ll",
        "don't",
        "end tool_call, please",
        "<|eot_id|>",
        "</s>",
        "e\u{301}",
        "\u{e9}",
        "\u{4f60}\u{597d}",
        "\u{3002}",
        "...",
        "=\u{338}",
        "\u{1100}\u{1161}",
        " a",
        "\t",
    ];
    let mut text = String::new();
    while text.len() < bytes {
        text.push_str(PIECES[random.random_range(0..PIECES.len())]);
    }
    text
}

#[test]
fn parts_encode_as_the_whole_in_every_known_form() {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    for (root, form) in [
        (llama3(), CutRule::Words),
        (qwen(), CutRule::Words),
        (llama2_with_alphabet(), CutRule::Spaces),
        (metaspace(), CutRule::Spaces),
    ] {
        let hub = hub(&root).unwrap();
        assert_eq!(hub.parts.rule, form);
        for round in 0..2 {
            let mut text = text(&mut random, 150_000);
            if round == 0 {
                // No place to cut for longer than a part.
                text.insert_str(
                    70_000 - (0..4).find(|back| text.is_char_boundary(70_000 - back)).unwrap(),
                    &"x".repeat(2 * PART),
                );
            }
            assert!(hub.parts.divide(&text).unwrap().len() > 2);
            assert!(hub.encode_ordinary(&text).unwrap() == hub.run_ordinary(&text).unwrap(), "{form:?} {round}");
            assert!(hub.encode(&text).unwrap() == hub.run(&text).unwrap(), "{form:?} {round}");
        }
    }
}

/// Every place that may be cut, one by one: short texts, in which the places near the borders of strings matter.
#[test]
fn every_cut_leaves_the_encoding_as_it_was() {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(12);
    for root in [llama3(), qwen(), llama2_with_alphabet(), metaspace()] {
        let hub = hub(&root).unwrap();
        let words = hub.parts.pretokenizer.as_ref().unwrap();
        let mut cuts = 0;
        for _ in 0..250 {
            let text = text(&mut random, 60);
            let (whole, prompt) = (hub.run_ordinary(&text).unwrap(), hub.encode_rendered(&text).unwrap());
            for at in (1..text.len()).filter(|at| hub.parts.may_cut(words, &text, *at)) {
                let rest = &text[at + usize::from(hub.parts.rule == CutRule::Spaces)..];
                let ids = [hub.run_ordinary(&text[..at]).unwrap(), hub.run_ordinary(rest).unwrap()].concat();
                assert_eq!(ids, whole, "{text:?} at {at}");
                let ids = [hub.encode_rendered(&text[..at]).unwrap(), hub.encode_rendered(rest).unwrap()].concat();
                assert_eq!(ids, prompt, "{text:?} at {at}");
                cuts += 1;
            }
        }
        assert!(cuts > 150, "{cuts}");
    }
}

#[test]
fn places_of_parts_are_those_of_the_whole() {
    let hub = hub(&llama3()).unwrap();
    let text = text(&mut rand_chacha::ChaCha8Rng::seed_from_u64(13), 150_000);
    let whole = hub.tokenizer.encode(text.as_str(), false).unwrap();
    let places: Vec<(usize, usize)> = hub
        .encode_rendered_with_places(&text)
        .unwrap()
        .into_iter()
        .map(|(_, place)| (place.start, place.end))
        .collect();
    assert!(places == whole.get_offsets());
}

#[test]
fn what_is_not_known_to_be_cut_is_refused_with_its_size() {
    let hub = hub(&words()).unwrap();
    assert_eq!(hub.parts.rule, CutRule::Unknown);
    assert_eq!(hub.parts.divide(&"a ".repeat(PART)).unwrap().len(), 1);
    let error = hub.encode_ordinary(&"a ".repeat(LONGEST / 2 + 1)).unwrap_err().to_string();
    assert!(error.contains("16.8 MB") && error.contains("2.7 GB"), "{error}");
    assert!(super::super::tests::hub(&llama3()).unwrap().encode_ordinary(&"a".repeat(LONGEST + 1)).is_err());
}

#[test]
fn files_with_rules_of_their_own_are_not_cut() {
    let changes: [(&str, Value); 7] = [
        ("/normalizer", json!({"type": "NFKC"})),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!(r"\s+")),
        ("/pre_tokenizer/pretokenizers/0/behavior", json!("MergedWithNext")),
        ("/pre_tokenizer/pretokenizers/1/add_prefix_space", json!(true)),
        ("/pre_tokenizer", json!({"type": "Whitespace"})),
        ("/added_tokens/0/lstrip", json!(true)),
        ("/added_tokens/0/single_word", json!(true)),
    ];
    for (place, value) in changes {
        let mut root = llama3();
        *root.pointer_mut(place).unwrap() = value;
        assert_eq!(TextParts::new(&root).rule, CutRule::Unknown, "{place}");
    }
    let mut joined = llama2_with_alphabet();
    joined["model"]["vocab"]["a\u{2581}"] = json!(450);
    assert_eq!(TextParts::new(&joined).rule, CutRule::Unknown);
    assert_eq!(TextParts::new(&llama2()).rule, CutRule::Unknown, "some letters would be unknown");
}
