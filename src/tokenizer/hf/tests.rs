use super::*;
use serde_json::json;

fn special(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

/// Puts `first` before the text, as Llama's files do.
fn begins_with(first: &str, id: u32) -> Value {
    json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": first, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {first: {"id": first, "ids": [id], "tokens": [first]}}})
}

/// A file in Llama 2's style, with the letters and a few merges.
pub(in super::super) fn llama2() -> Value {
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let pieces = ["\u{2581}", "\u{2581}t", "he", "\u{2581}the", "\u{2581}\u{2581}", "\u{e9}"].map(String::from);
    let tokens = ["<unk>", "<s>", "</s>"].map(String::from).into_iter().chain(bytes);
    let tokens = tokens.chain(pieces).chain(('a'..='z').map(String::from));
    let vocab: serde_json::Map<String, Value> = tokens.zip(0u32..).map(|(token, id)| (token, id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null, "post_processor": begins_with("<s>", 1),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": ["\u{2581} t", "h e", "\u{2581}t he", "\u{2581} \u{2581}"]},
    })
}

/// The same vocabulary as SentencePiece's converters write it: `Metaspace` before the model and behind it.
pub(in super::super) fn metaspace(prepend_scheme: &str) -> Value {
    let mut root = llama2();
    let step = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": prepend_scheme, "split": true});
    root["normalizer"] = Value::Null;
    root["pre_tokenizer"] = step.clone();
    root["decoder"] = step;
    root
}

/// The same vocabulary with the decoder `steps`.
pub(in super::super) fn decoded_by(steps: Value) -> Value {
    let mut root = llama2();
    root["decoder"] = json!({"type": "Sequence", "decoders": steps});
    root
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// A file in Llama 3's style: its own split, byte-level tokens, special tokens beyond the vocabulary.
pub(in super::super) fn llama3() -> Value {
    let tokens = (0..=255).map(|byte| super::super::byte_alphabet::char_of(byte).to_string());
    let tokens = tokens.chain(["\u{120}t", "he", "\u{120}the", "12"].map(String::from));
    let vocab: serde_json::Map<String, Value> = tokens.zip(0u32..).map(|(token, id)| (token, id.into())).collect();
    let split = concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let added = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"].into_iter().zip(260..);
    let added: Vec<Value> = added.map(|(content, id)| special(id, content)).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false},
            byte_level(false)]},
        "post_processor": begins_with("<|begin_of_text|>", 260),
        "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": ["\u{120} t", "h e", "\u{120}t he", "1 2"]},
    })
}

/// Words, with no decoder: joined by spaces.
pub(in super::super) fn words() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(3, "<eos>")],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1, "b": 2, "<eos>": 3}, "unk_token": "<unk>"},
    })
}

pub(in super::super) fn hub(root: &Value) -> Result<HfTokenizer, String> {
    HfTokenizer::new(root.to_string().into_bytes(), root)
}

#[test]
fn prompts_begin_as_the_file_says_and_documents_do_not() {
    let llama2 = hub(&llama2()).unwrap();
    let the = llama2.id_of("\u{2581}the").unwrap();
    let space = llama2.id_of("\u{2581}").unwrap();
    assert_eq!(llama2.encode("the the</s>").unwrap(), [1, the, the, 2]);
    let letter = |c: char| 3 + 256 + 6 + (u32::from(c) - u32::from('a'));
    let byte = |c: char| 3 + u32::from(c);
    let ordinary = [space, byte('<'), byte('/'), letter('s'), byte('>')];
    assert_eq!(llama2.encode_ordinary("</s>").unwrap(), ordinary);
    let llama3 = hub(&llama3()).unwrap();
    assert_eq!(llama3.encode(" the 12<|eot_id|>").unwrap(), [260, 258, u32::from(b' '), 259, 262]);
    assert!(llama3.encode_ordinary("<|eot_id|>").unwrap().iter().all(|id| *id < 256));
}

#[test]
fn truncation_and_padding_are_switched_off() {
    let mut root = llama3();
    root["truncation"] = json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    root["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    let plain = hub(&llama3()).unwrap();
    let changed = hub(&root).unwrap();
    assert_eq!(changed.encode("a b c d e f").unwrap(), plain.encode("a b c d e f").unwrap());
    assert_eq!(changed.encode_ordinary("a b c d e f").unwrap().len(), 11);
}

#[test]
fn what_cannot_work_is_refused_in_a_few_words() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut root = llama2();
        change(&mut root);
        let why = hub(&root).err().unwrap();
        assert!(!why.is_empty() && !why.contains('\n'), "{why:?}");
        why
    };
    assert!(refused(&|root| root["model"]["dropout"] = json!(0.1)).contains("at random"));
    refused(&|root| root["model"]["merges"] = json!(["q \u{2581}nothere"]));
    refused(&|root| root["model"]["vocab"]["a"] = json!(-1));
    assert!(refused(&|root| root["model"]["vocab"]["a"] = json!(4_000_000_000u64)).contains("2^22"));
    refused(&|root| root["decoder"] = json!({"type": "Nothing"}));
    refused(&|root| root["post_processor"]["special_tokens"] = json!({}));
}
