//! Tokenizers in GGUF files: what is written of them, and what is refused by name.

use serde_json::{Value, json};

use super::{Example, ROWS, model, trained_tokenizer};
use crate::checkpoint::{ExportDtype, names};
use crate::config::ModelConfig;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::pretokenize::splits::KnownSplit;

#[test]
fn tokens_have_types_and_padding_has_names() {
    let example = Example::usual();
    let tokenizer = Tokenizer::from_dir(&example.dir.path().join("model")).unwrap();
    let read = example.export(ExportDtype::F16, false).unwrap();
    let tokens = read.list("tokenizer.ggml.tokens");
    let types = read.list("tokenizer.ggml.token_type");
    assert_eq!((tokens.len(), types.len()), (ROWS, ROWS));
    let size = tokenizer.vocab_size();
    assert!(size < ROWS);
    let end = tokenizer.eos_id().unwrap();
    for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
        let (token, kind) = (token.to_string().unwrap(), kind.to_i32().unwrap());
        match id {
            _ if id >= size => assert_eq!((token.as_str(), kind), (format!("[PAD{id}]").as_str(), 5)),
            _ if id == end as usize => assert_eq!((token.as_str(), kind), ("<|endoftext|>", 3)),
            _ => assert_eq!((tokenizer.id_of(token), kind), (Some(id as u32), 1)),
        }
    }
    assert_eq!((read.text("tokenizer.ggml.model"), read.text("tokenizer.ggml.pre")), ("gpt2", "gpt-2"));
    let merges = read.list("tokenizer.ggml.merges");
    // Every token is a byte, a merge of two, or the end of text.
    assert_eq!(merges.len(), size - 256 - 1);
    assert_eq!(merges[0].to_string().unwrap(), trained_tokenizer()["model"]["merges"][0].as_str().unwrap());
    assert_eq!((read.number("tokenizer.ggml.eos_token_id"), read.number("tokenizer.ggml.bos_token_id")), (end, end));
    for key in ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"] {
        assert!(!read.entry(key).to_bool().unwrap(), "{key}");
    }
    let trimmed = example.export(ExportDtype::F16, true).unwrap();
    assert_eq!(trimmed.list("tokenizer.ggml.tokens").len(), size);
    assert_eq!(trimmed.content.tensor_infos["token_embd.weight"].shape.dims(), [size, 64]);
}

#[test]
fn what_a_prompt_begins_with_and_ends_an_answer_is_written() {
    let mut root = trained_tokenizer();
    let mut added = root["added_tokens"][0].clone();
    for (content, id) in [("<s>", 295), ("<|im_end|>", 296), ("<tool>", 297)] {
        added["content"] = content.into();
        added["id"] = id.into();
        added["special"] = (content != "<tool>").into();
        root["added_tokens"].as_array_mut().unwrap().push(added.clone());
    }
    let settings =
        json!({"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<tool>", "add_bos_token": true});
    let example = Example::new(model(), &root, &settings);
    let model_dir = example.dir.path().join("model");
    let [bos, end, turn, tool] = {
        let tokenizer = Tokenizer::from_dir(&model_dir).unwrap();
        ["<s>", "<|endoftext|>", "<|im_end|>", "<tool>"].map(|token| tokenizer.id_of(token).unwrap())
    };
    let generation = json!({"eos_token_id": [end, turn]});
    std::fs::write(model_dir.join(names::GENERATION), generation.to_string()).unwrap();
    let read = example.export(ExportDtype::F16, false).unwrap();
    let ids = ["bos", "eos", "eot", "padding"].map(|name| read.number(&format!("tokenizer.ggml.{name}_token_id")));
    assert_eq!(ids, [bos, end, turn, tool]);
    assert!(read.entry("tokenizer.ggml.add_bos_token").to_bool().unwrap());
    let kinds = [bos, turn, tool].map(|id| read.list("tokenizer.ggml.token_type")[id as usize].to_i32().unwrap());
    assert_eq!(kinds, [3, 3, 4]);
}

fn split_step(split: KnownSplit) -> Value {
    json!({"type": "Split", "pattern": {"Regex": split.regex()}, "behavior": "Isolated", "invert": false})
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn with_steps(steps: &[Value], ignore_merges: bool) -> Example {
    let mut root = trained_tokenizer();
    root["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
    root["model"]["ignore_merges"] = ignore_merges.into();
    Example::new(model(), &root, &json!({}))
}

#[test]
fn the_split_is_named_by_what_it_does() {
    let digits = json!({"type": "Digits", "individual_digits": true});
    let after = |split| vec![split_step(split), byte_level(false)];
    let named = [
        (vec![byte_level(true)], false, "gpt-2"),
        (after(KnownSplit::Gpt2), false, "gpt-2"),
        (vec![digits.clone(), byte_level(true)], false, "smollm"),
        (after(KnownSplit::Gpt4), true, "llama-bpe"),
        (after(KnownSplit::Gpt4), false, "dbrx"),
        (after(KnownSplit::Qwen2), false, "qwen2"),
        (after(KnownSplit::Gpt4o), false, "gpt-4o"),
        (after(KnownSplit::MistralNemo), true, "tekken"),
    ];
    for (steps, ignore_merges, name) in named {
        let read = with_steps(&steps, ignore_merges).export(ExportDtype::F16, false).unwrap();
        assert_eq!(read.text("tokenizer.ggml.pre"), name, "{steps:?}");
    }
    let mut other = split_step(KnownSplit::Gpt4);
    other["pattern"]["Regex"] = r"\p{L}+|\p{N}{1,2}|\s+".into();
    let mut prefix = byte_level(true);
    prefix["add_prefix_space"] = true.into();
    let unnamed = [
        (vec![other, byte_level(false)], false, "N}{1,2}"),
        (vec![prefix], false, "add_prefix_space"),
        (vec![byte_level(true), digits.clone()], false, "Digits"),
        (vec![digits, split_step(KnownSplit::Gpt4), byte_level(false)], true, "Digits"),
        (vec![byte_level(true)], true, "with ignore_merges"),
        (after(KnownSplit::Qwen2), true, "with ignore_merges"),
    ];
    for (steps, ignore_merges, part) in unnamed {
        let message = with_steps(&steps, ignore_merges).refusal();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn tokenizers_that_llama_cpp_would_run_otherwise_are_refused_by_name() {
    let refused = |place: &str, value: Value| {
        let mut root = trained_tokenizer();
        *root.pointer_mut(place).unwrap() = value;
        Example::new(model(), &root, &json!({})).refusal()
    };
    assert!(refused("/normalizer", json!({"type": "Lowercase"})).contains("Lowercase"));
    assert!(refused("/added_tokens/0/lstrip", json!(true)).contains("lstrip"));
    let words = json!({"type": "WordLevel", "vocab": {"<unk>": 0, "<|endoftext|>": 1}, "unk_token": "<unk>"});
    assert!(refused("/model", words).contains("WordLevel"));
    let no_end = json!({"eos_token": null, "added_tokens_decoder": {}});
    assert!(Example::new(model(), &trained_tokenizer(), &no_end).refusal().contains("end of text"));
    let few_rows = ModelConfig { vocab_size: 270, ..model() };
    assert!(Example::new(few_rows, &trained_tokenizer(), &json!({})).refusal().contains("270"));
}

/// A tokenizer in the style of SentencePiece: bytes, letters and a few words.
fn sentencepiece() -> Value {
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let words = ["\u{2581}", "a", "b", "c", "ab", "\u{2581}a", "\u{2581}ab"].map(String::from);
    let tokens = ["<unk>", "<s>", "</s>"].map(String::from).into_iter().chain(bytes).chain(words);
    let vocab: serde_json::Map<String, Value> = tokens.zip(0u32..).map(|(token, id)| (token, id.into())).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab,
            "merges": ["a b", "\u{2581} a", "\u{2581} ab", "\u{2581}a b"]},
    })
}

#[test]
fn ranks_become_scores_where_they_come_from_scores() {
    let example = Example::new(model(), &sentencepiece(), &json!({}));
    let read = example.export(ExportDtype::F16, false).unwrap();
    assert_eq!((read.text("tokenizer.ggml.model"), read.text("tokenizer.ggml.pre")), ("llama", "default"));
    let at = |key: &str, token: &str| {
        let position = read.list("tokenizer.ggml.tokens").iter().position(|t| t.to_string().unwrap() == token);
        read.list(key)[position.unwrap()].clone()
    };
    let scores = ["ab", "\u{2581}a", "\u{2581}ab"].map(|token| at("tokenizer.ggml.scores", token).to_f32().unwrap());
    assert_eq!(scores, [0.0, -1.0, -2.0]);
    let kinds = ["<unk>", "<s>", "<0x0A>", "ab", "[PAD303]"];
    let kinds = kinds.map(|token| at("tokenizer.ggml.token_type", token).to_i32().unwrap());
    assert_eq!(kinds, [2, 3, 6, 1, 5]);
    for key in ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix"] {
        assert!(read.entry(key).to_bool().unwrap(), "{key}");
    }
    assert_eq!(read.number("tokenizer.ggml.unknown_token_id"), 0);

    let refused = |place: &str, value: Value| {
        let mut root = sentencepiece();
        *root.pointer_mut(place).unwrap() = value;
        Example::new(model(), &root, &json!({})).refusal()
    };
    let apart = json!(["\u{2581} ab", "a b", "\u{2581} a", "\u{2581}a b"]);
    assert!(refused("/model/merges", apart).contains("apart"));
    let missing = json!(["a b", "\u{2581} a", "\u{2581} ab"]);
    assert!(refused("/model/merges", missing).contains("does not merge"));
    assert!(refused("/normalizer/normalizers/0/prepend", json!("_")).contains("spaces"));
}

#[test]
fn spaces_before_a_text_are_told_and_remarked_on() {
    let metaspace = |scheme: &str| {
        let mut root = sentencepiece();
        root["normalizer"] = Value::Null;
        root["pre_tokenizer"] =
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": true});
        root
    };
    for (scheme, begins, is_remarked) in [("always", true, false), ("first", true, true), ("never", false, false)] {
        let read = Example::new(model(), &metaspace(scheme), &json!({})).export(ExportDtype::F16, false).unwrap();
        assert_eq!(read.entry("tokenizer.ggml.add_space_prefix").to_bool().unwrap(), begins, "{scheme}");
        assert_eq!(read.remark.is_some(), is_remarked, "{scheme}");
    }
    // A merge across a space, which the split never lets happen and llama.cpp would make.
    let mut root = metaspace("always");
    root["model"]["vocab"]["b\u{2581}"] = json!(290);
    root["model"]["merges"].as_array_mut().unwrap().push(json!("b \u{2581}"));
    assert!(Example::new(model(), &root, &json!({})).refusal().contains("splits texts at spaces"));
    let mut root = trained_tokenizer();
    root["normalizer"] = json!({"type": "NFC"});
    let read = Example::new(model(), &root, &json!({})).export(ExportDtype::F16, false).unwrap();
    assert!(read.remark.is_some_and(|remark| remark.contains("NFC")));
}
