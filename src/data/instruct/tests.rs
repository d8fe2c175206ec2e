//! Ids and masks against transformers, which has rendered and encoded the same conversations.

use super::mask::{Encoder, Example, TrainOn};
use super::records::Conversation;
use super::template::choose;
use crate::config::SftConfig;
use crate::data::chat::{ChatTemplate, Message};
use crate::data::tokenizer::Tokenizer;
use serde_json::Value;
use std::path::Path;

fn fixture() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn config(template: &str) -> SftConfig {
    SftConfig {
        base: None,
        format: "auto".into(),
        template: template.into(),
        train_on: "answers".into(),
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

fn encoder<'a>(tokenizer: &'a Tokenizer, template: &'a ChatTemplate, train_on: TrainOn) -> Encoder<'a> {
    Encoder { tokenizer, template, train_on, longest: 10_000 }
}

fn trained(example: &Example) -> Vec<u32> {
    example.ids.iter().zip(&example.trained).filter(|(_, trained)| **trained).map(|(id, _)| *id).collect()
}

#[test]
fn ids_prompts_and_masks_are_those_of_transformers() {
    let tokenizer = Tokenizer::gpt2().unwrap();
    let eos = tokenizer.eos_id().unwrap();
    let cases = fixture();
    assert_eq!(cases.len(), 30);
    for case in &cases {
        let (template, turns) = (template(case, &tokenizer), turns(case));
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(case[key].clone()).unwrap();
        assert_eq!(template.render(&turns, false).unwrap(), case["text"].as_str().unwrap());
        let encoder = encoder(&tokenizer, &template, TrainOn::Answers);
        let conversation = Conversation::Turns(turns.clone());
        let example = encoder.encode(&conversation).unwrap();
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
    let encode = |train_on| encoder(&tokenizer, &template, train_on).encode(&Conversation::Turns(turns(case))).unwrap();
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
    let example = encoder(&tokenizer, &template, TrainOn::Answers).encode(&plain).unwrap();
    assert_eq!(tokenizer.decode(&example.ids, false).unwrap(), "<|endoftext|>One, two, three, four<|endoftext|>");
    assert_eq!(tokenizer.decode(&trained(&example), false).unwrap(), " three, four<|endoftext|>");
    assert!(!example.truncated && example.ends.len() == 1);
    for (longest, left) in [(7, 2), (5, 0)] {
        let short = Encoder { longest, ..encoder(&tokenizer, &template, TrainOn::Answers) };
        let cut = short.encode(&plain).unwrap();
        assert_eq!((cut.ids.len(), cut.trained_tokens(), cut.truncated, cut.ends.len()), (longest, left, true, 0));
    }
}

#[test]
fn a_template_that_rewrites_earlier_turns_needs_marks() {
    let tokenizer = Tokenizer::gpt2().unwrap();
    let source = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let template = ChatTemplate::new(source.into(), &tokenizer).unwrap();
    let said = vec![Message::new("user", "a"), Message::new("assistant", "b")];
    let error = encoder(&tokenizer, &template, TrainOn::Answers).encode(&Conversation::Turns(said)).unwrap_err();
    assert!(error.to_string().contains("rewrites earlier turns"), "{error}");
}
