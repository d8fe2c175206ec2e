//! Any other `tokenizer.json`, run by Hugging Face's crate, whose panics end here.
//!
//! The crate answers some bad files by a panic, in loading or at the first use, so all calls are caught, and a file is
//! tried before it is accepted. Truncation and padding that a file asks for are switched off: they would cut documents.

mod encode;
mod ordinary;
mod parts;

use std::sync::OnceLock;

use anyhow::Result;
use serde_json::Value;

use super::Piece;
use super::decoder::{Decoder, Owned};
use crate::runtime::error::{Exit, fail};
use crate::runtime::panic::catch_panic;
use ordinary::Ordinary;
use parts::Parts;

/// A tokenizer of the tokenizers crate.
pub(super) struct Hub {
    tokenizer: tokenizers::Tokenizer,
    /// The same, for documents; made when first needed.
    ordinary: OnceLock<Ordinary>,
    /// Ids that no document may give, ascending.
    control: Vec<u32>,
    parts: Parts,
    decoder: Decoder,
    /// What each id stands for, by id.
    pieces: Vec<Owned>,
    specials: Vec<u32>,
    /// The file as it was read.
    pub(super) json: Vec<u8>,
}

impl Hub {
    /// The tokenizer of the file `json`, parsed as `root`. `Err` says in a few words why it is none.
    pub(super) fn new(json: Vec<u8>, root: &Value) -> Result<Self, String> {
        if root["model"]["dropout"].as_f64().is_some_and(|p| p > 0.0) {
            return Err("it encodes at random (model.dropout)".into());
        }
        let mut tokenizer = caught(|| tokenizers::Tokenizer::from_bytes(&json))?;
        caught(|| tokenizer.with_truncation(None).map(|_| ()))?;
        tokenizer.with_padding(None);
        let added = root["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
        let id_of = |t: &Value| tokenizer.token_to_id(t["content"].as_str()?);
        let mut specials: Vec<u32> = added.iter().filter(|t| t["special"] == true).filter_map(id_of).collect();
        specials.sort_unstable();
        let decoder = Decoder::recognise(&root["decoder"]);
        let size = vocab_size(root).ok_or("its vocabulary is not a list of tokens with ids below 2^22")?;
        // The crate gives added tokens that the vocabulary lacks the next free ids, whatever the file says.
        let size = added.iter().filter_map(id_of).map(|id| id.saturating_add(1)).fold(size, u32::max);
        let pieces = (0..size).map(|id| decoder.piece(tokenizer.id_to_token(id))).collect();
        let control = specials.clone();
        let parts = Parts::new(root);
        let ordinary = OnceLock::new();
        let hub = Self { tokenizer, ordinary, control, parts, decoder, pieces, specials, json };
        hub.try_out()?;
        Ok(hub)
    }

    /// Encodes and decodes a little text, so that what cannot work fails when it is loaded.
    fn try_out(&self) -> Result<(), String> {
        for text in ["Hello, world! 123\n", "", " \t\u{e9}\u{1f600}"] {
            for ids in [caught(|| self.run(text))?, caught(|| self.run_ordinary(text))?] {
                if let Some(id) = ids.iter().find(|id| **id as usize >= self.pieces.len()) {
                    return Err(format!("it encodes to id {id}, which is not in its vocabulary"));
                }
                caught(|| self.tokenizer.decode(&ids, false))?;
            }
        }
        Ok(())
    }

    /// One more than the largest id.
    pub(super) fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    pub(super) fn name_of(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.specials.binary_search(&id).is_ok()
    }

    pub(super) fn piece(&self, id: u32) -> Piece<'_> {
        match self.pieces.get(id as usize) {
            Some(Owned::Unknown) | None => Piece::Unknown,
            Some(_) if self.decodes_as_a_whole() => Piece::Contextual,
            Some(Owned::Bytes(bytes)) => Piece::Bytes(bytes),
            Some(Owned::Text(text)) => Piece::Text(text),
            Some(Owned::Byte(byte)) => Piece::Byte(*byte),
        }
    }

    /// Whether the ids can only be decoded all at once.
    pub(super) fn decodes_as_a_whole(&self) -> bool {
        self.decoder == Decoder::Other
    }

    /// How decoding changes the beginning of a text.
    pub(super) fn decoder(&self) -> Decoder {
        self.decoder
    }

    pub(super) fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        caught(|| self.tokenizer.decode(ids, skip_special)).map_err(failed)
    }
}

fn failed(why: String) -> anyhow::Error {
    fail(Exit::Data, format!("the tokenizer failed: {why}")).into()
}

/// The result of a call into the crate, with an error or a panic as its message, on one line.
fn caught<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    let message = match catch_panic(call) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic,
    };
    Err(message.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// One more than the largest id of a `tokenizer.json`, which must be of a credible size.
fn vocab_size(root: &Value) -> Option<u32> {
    const MOST: u64 = 1 << 22;
    let mut size = 0;
    match &root["model"]["vocab"] {
        Value::Object(vocab) => {
            for id in vocab.values() {
                size = size.max(id.as_u64()?.checked_add(1)?);
            }
        }
        // Unigram lists [token, score] in id order.
        Value::Array(vocab) => size = u64::try_from(vocab.len()).ok()?,
        _ => return None,
    }
    for token in root["added_tokens"].as_array().into_iter().flatten() {
        size = size.max(token["id"].as_u64()?.checked_add(1)?);
    }
    u32::try_from(size).ok().filter(|_| (1..=MOST).contains(&size))
}

#[cfg(test)]
pub(super) mod tests {
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
        let step =
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": prepend_scheme, "split": true});
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
        let tokens = (0..=255).map(|byte| super::super::byte_json::char_of(byte).to_string());
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

    pub(in super::super) fn hub(root: &Value) -> Result<Hub, String> {
        Hub::new(root.to_string().into_bytes(), root)
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
}
