//! Ids and masks against transformers, which has rendered and encoded the same conversations.

use super::conversation::Conversation;
use super::mask::{Encoded, MaskEncoder};
use super::records::RecordReader;
use super::template::choose;
use crate::chat::{ChatTemplate, Message};
use crate::config::{RecordFormat, SftConfig, TrainOn};
use crate::data::packed_rows::Example;
use crate::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::path::Path;

fn read(record: &Value) -> Result<Vec<(String, String)>, String> {
    let reader = RecordReader::new(&config("vicuna"));
    match reader.read(record).map_err(|problem| problem.what)?.conversation {
        Conversation::Turns { turns, .. } => {
            Ok(turns.into_iter().map(|turn| (turn.message.role, turn.message.content)).collect())
        }
        Conversation::Plain { prompt, completion } => {
            Ok(vec![("prompt".into(), prompt), ("completion".into(), completion)])
        }
    }
}

#[test]
fn every_format_is_found_and_read() {
    let two = |a: &str, b: &str| Ok(vec![("user".to_owned(), a.to_owned()), ("assistant".to_owned(), b.to_owned())]);
    assert_eq!(read(&json!({"instruction": "Add", "input": "1 2", "output": "3"})), two("Add\n1 2", "3"));
    assert_eq!(read(&json!({"instruction": "Add", "input": "", "output": "3"})), two("Add", "3"));
    assert_eq!(read(&json!({"instruction": "Add", "input": null, "output": "3"})), two("Add", "3"));
    let chat = json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]});
    assert_eq!(read(&chat), two("a", "b"));
    let parts = json!([{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]);
    let messages = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": parts}]});
    assert_eq!(read(&messages), two("a", "bc"));
    let with_system = json!({"system": "Be brief", "conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]});
    assert_eq!(read(&with_system).unwrap()[0], ("system".into(), "Be brief".into()));
    assert_eq!(read(&json!({"prompt": "1, 2,", "completion": " 3"})).unwrap()[1].1, " 3");
    assert_eq!(read(&json!({"prompt": "1, 2,", "response": " 3"})).unwrap()[1].1, " 3");
}

#[test]
fn what_is_wrong_is_said() {
    for (record, says) in [
        (json!([]), "not an object"),
        (json!({"instruction": "a"}), "no field \"output\""),
        (json!({"instruction": 1, "output": "b"}), "\"instruction\" is a number"),
        (json!({"instruction": "a", "output": " "}), "turn 2: the answer is empty"),
        (json!({"conversations": []}), "no answer"),
        (json!({"conversations": "a"}), "no list \"conversations\""),
        (json!({"conversations": [{"from": "narrator", "value": "x"}]}), "turn 1: the role \"narrator\""),
        (json!({"messages": [{"role": "user", "content": 5}]}), "turn 1: no text"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "a part of type \"image_url\" is not text",
        ),
        (json!({"prompt": "a", "completion": ""}), "the completion is empty"),
        (json!({"instruction": "a", "output": "b", "history": [["q"]]}), "history, entry 1: not a pair"),
        (json!({"text": "a"}), "no shape that is known; the fields are text"),
        (json!({}), "the fields are none"),
    ] {
        let error = read(&record).unwrap_err();
        assert!(error.contains(says), "{record}: {error}");
    }
}

fn fixture() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn config(template: &str) -> SftConfig {
    SftConfig {
        base: None,
        format: RecordFormat::Auto,
        roles: Default::default(),
        fields: Default::default(),
        max_bad: 0.0,
        template: template.into(),
        new_tokens: vec![],
        train_on: TrainOn::Answers,
        epochs: 1.0,
        packing: true,
        max_truncated: 0.0,
        neftune_alpha: 0.0,
        judged_prompts: 0,
        judged_tokens: 1,
        base_val: vec![],
    }
}

fn template(case: &Value, tokenizer: &Tokenizer) -> ChatTemplate {
    match case["source"].as_str() {
        Some(source) => ChatTemplate::new(source.into(), tokenizer).unwrap(),
        None => choose(&config(case["template"].as_str().unwrap()), Path::new("."), tokenizer).unwrap().0,
    }
}

fn turns(case: &Value) -> Vec<Message> {
    serde_json::from_value(case["messages"].clone()).unwrap()
}

fn encoder<'a>(tokenizer: &'a Tokenizer, template: &'a ChatTemplate, train_on: TrainOn) -> MaskEncoder<'a> {
    MaskEncoder { tokenizer, template, train_on, longest: 10_000 }
}

fn one(encoded: anyhow::Result<Encoded>) -> Example {
    let mut examples = encoded.unwrap().examples;
    assert_eq!(examples.len(), 1);
    examples.remove(0)
}

fn trained(example: &Example) -> Vec<u32> {
    example.ids.iter().zip(&example.trained).filter(|(_, trained)| **trained).map(|(id, _)| *id).collect()
}

#[test]
fn ids_prompts_and_masks_are_those_of_transformers() {
    let tokenizer = Tokenizer::gpt2().unwrap();
    let eos = tokenizer.eos_id().unwrap();
    let cases = fixture();
    assert_eq!(cases.len(), 54);
    for case in &cases {
        let (template, turns) = (template(case, &tokenizer), turns(case));
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(case[key].clone()).unwrap();
        assert_eq!(template.render(&turns, false).unwrap(), case["text"].as_str().unwrap());
        let encoder = encoder(&tokenizer, &template, TrainOn::Answers);
        let conversation = Conversation::from_messages(turns.clone());
        let example = one(encoder.encode(&conversation));
        assert_eq!(example.ids, ids("ids"), "{case}");
        assert_eq!(encoder.prompt(&conversation).unwrap(), ids("prompt"), "{case}");
        if case["mask"].is_array() {
            let mask: Vec<bool> = ids("mask").iter().map(|&m| m == 1).collect();
            assert_eq!(example.trained, mask, "{case}");
        }
        // What is trained are the answers and their ends, and nothing else.
        let answers: Vec<&str> = turns.iter().filter(|t| t.role == "assistant").map(|t| t.content.trim()).collect();
        let text = tokenizer.decode(&trained(&example), false).unwrap();
        let parts: Vec<&str> = text.split("<|endoftext|>").map(str::trim).filter(|part| !part.is_empty()).collect();
        assert_eq!(parts, answers, "{case}");
        assert_eq!(example.ends, vec![eos; answers.len()], "{case}");
        assert_eq!(trained(&example).last(), Some(&eos));
    }
}

#[test]
fn the_last_answer_or_everything_can_be_trained() {
    let tokenizer = Tokenizer::gpt2().unwrap();
    let case = &fixture()[2]; // two answers
    let template = template(case, &tokenizer);
    let encode =
        |train_on| one(encoder(&tokenizer, &template, train_on).encode(&Conversation::from_messages(turns(case))));
    let last = encode(TrainOn::Last);
    assert_eq!(tokenizer.decode(&trained(&last), false).unwrap().trim(), "Red.<|endoftext|>");
    let all = encode(TrainOn::All);
    assert!(!all.trained[0] && all.trained[1..].iter().all(|&trained| trained));
}

#[test]
fn completions_end_and_what_does_not_fit_is_cut() {
    let tokenizer = Tokenizer::gpt2().unwrap();
    let template = ChatTemplate::new("{{ messages }}".into(), &tokenizer).unwrap();
    let plain = Conversation::Plain { prompt: "One, two,".into(), completion: " three, four".into() };
    let example = one(encoder(&tokenizer, &template, TrainOn::Answers).encode(&plain));
    assert_eq!(tokenizer.decode(&example.ids, false).unwrap(), "<|endoftext|>One, two, three, four<|endoftext|>");
    assert_eq!(tokenizer.decode(&trained(&example), false).unwrap(), " three, four<|endoftext|>");
    assert!(!example.truncated && example.ends.len() == 1);
    for (longest, left) in [(7, 2), (5, 0)] {
        let short = MaskEncoder { longest, ..encoder(&tokenizer, &template, TrainOn::Answers) };
        let cut = one(short.encode(&plain));
        assert_eq!((cut.ids.len(), cut.trained_tokens(), cut.truncated, cut.ends.len()), (longest, left, true, 0));
    }
}

#[test]
fn a_template_that_rewrites_earlier_turns_needs_marks() {
    let tokenizer = Tokenizer::gpt2().unwrap();
    let source = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let template = ChatTemplate::new(source.into(), &tokenizer).unwrap();
    let said = vec![Message::new("user", "a"), Message::new("assistant", "b")];
    let error =
        encoder(&tokenizer, &template, TrainOn::Answers).encode(&Conversation::from_messages(said)).unwrap_err();
    assert!(error.to_string().contains("rewrites earlier turns"), "{error}");
}
