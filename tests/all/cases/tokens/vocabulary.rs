//! A small SentencePiece vocabulary in the two forms in which Hugging Face writes it, and its decoder written a second time.

use serde_json::{Map, Value, json};

/// Ids of the vocabulary: three special tokens, the bytes of an emoji and of a line break, letters, pairs of letters.
pub(super) const IDS: usize = 310;

fn names() -> Vec<String> {
    let bytes = [0xf0u8, 0x9f, 0x98, 0x80, 0x0a].map(|byte| format!("<0x{byte:02X}>"));
    let letters = ('a'..='z').map(String::from);
    let begun = ('a'..='z').map(|letter| format!("\u{2581}{letter}"));
    let pairs = ('a'..='z').flat_map(|a| ('a'..='z').map(move |b| format!("\u{2581}{a}{b}")));
    let special = ["<unk>", "<s>", "</s>"].map(String::from).into_iter();
    special.chain(bytes).chain(["\u{2581}".to_owned()]).chain(letters).chain(begun).chain(pairs).take(IDS).collect()
}

/// How the space before a text is written and taken away again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// A normalizer that prepends `▁` and a decoder that strips a space: Llama 2.
    Llama2,
    /// `Metaspace` as pre-tokenizer and as decoder: what SentencePiece's converters write.
    Metaspace,
}

/// The `tokenizer.json` of that form.
pub(super) fn tokenizer_json(form: Form) -> Value {
    let vocab: Map<String, Value> = names().into_iter().zip(0u32..).map(|(name, id)| (name, id.into())).collect();
    let merge = |name: &String| {
        let last = name.char_indices().last()?.0;
        (name.starts_with('\u{2581}') && last > 0).then(|| format!("{} {}", &name[..last], &name[last..]))
    };
    let merges: Vec<String> = names().iter().filter_map(merge).collect();
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let mut root = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges},
    });
    match form {
        Form::Llama2 => {
            root["normalizer"] = json!({"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "\u{2581}"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]});
            root["decoder"] = json!({"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        }
        Form::Metaspace => {
            let step =
                json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
            root["pre_tokenizer"] = step.clone();
            root["decoder"] = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, step]});
        }
    }
    root
}

/// The text that `ids` are in the middle of another text, with their special tokens if `special`.
pub(super) fn fragment(ids: &[u64], special: bool) -> String {
    let (names, mut text, mut bytes) = (names(), String::new(), Vec::new());
    let end_of_bytes = |bytes: &mut Vec<u8>, text: &mut String| {
        match std::str::from_utf8(bytes) {
            Ok(whole) => text.push_str(whole),
            Err(_) => text.extend(bytes.iter().map(|_| '\u{fffd}')),
        }
        bytes.clear();
    };
    for &id in ids {
        let Some(name) = names.get(id as usize) else { continue };
        if (3..8).contains(&id) {
            bytes.push(u8::from_str_radix(&name[3..5], 16).unwrap());
        } else if id >= 3 || special {
            end_of_bytes(&mut bytes, &mut text);
            text.push_str(&name.replace('\u{2581}', " "));
        }
    }
    end_of_bytes(&mut bytes, &mut text);
    text
}
