//! Decoding one token at a time, for text that is shown while it is generated.
//!
//! A token may end inside a character, so text is held back until it can no longer change: the pieces returned, joined, are
//! always exactly [`Tokenizer::decode`] of all the ids.

use anyhow::Result;

use super::decoder::Leading;
use super::{Piece, Tokenizer};

/// Number of preceding ids on which the text of an id may depend: more than any decoder looks at.
pub(super) const CONTEXT: usize = 32;

/// A decoder that takes ids one by one and returns text as soon as it is certain.
///
/// The work is O(1) amortised per id. Decoders that do not work token by token (no Llama model has one) decode the last few
/// ids again for each id; they are assumed to change only the end of the text.
#[derive(Clone)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    held: HeldBytes,
    /// What is still to be removed from the beginning of the text.
    leading: Leading,
    /// The last ids, for decoders that do not work token by token.
    ids: Vec<u32>,
    /// How many bytes of the text of `ids` have been returned.
    returned: usize,
}

/// Bytes that are not yet text: an unfinished character (byte-level tokens), or an unfinished run of byte tokens.
#[derive(Clone, Default)]
struct HeldBytes {
    bytes: Vec<u8>,
    /// Whether the bytes are a run of `<0xNN>` tokens: text if all of them are UTF-8, else one U+FFFD each.
    is_run: bool,
}

impl DecodeStream {
    /// A stream for the ids that come after `before`.
    pub(super) fn new(tokenizer: Tokenizer, before: &[u32], skip_special: bool) -> Self {
        let leading = tokenizer.leading();
        let mut stream =
            Self { tokenizer, skip_special, held: HeldBytes::default(), leading, ids: Vec::new(), returned: 0 };
        // Once there is some text, its beginning is decided; only decoders that do not work token by token need more ids.
        if stream.tokenizer.decodes_as_a_whole() {
            stream.ids = stream.context(before);
            stream.returned = stream.decode_context().len();
        } else if !before.iter().any(|id| stream.push(*id).is_some()) {
            stream.end_fragment();
        } else {
            stream.held = HeldBytes::default();
        }
        stream
    }

    /// Takes the next id and returns the text that has become certain, if any. Unknown ids have no text.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return None;
        }
        if let Some(text) = self.take_first_token(id) {
            return self.strip_leading(text);
        }
        let mut text = String::new();
        match self.tokenizer.piece(id) {
            Piece::Bytes(bytes) => self.held.add_bytes(bytes, &mut text),
            Piece::Text(piece) => {
                self.held.release(&mut text);
                text.push_str(piece);
            }
            Piece::Byte(byte) => {
                self.held.bytes.push(byte);
                self.held.is_run = true;
            }
            Piece::Unknown => {}
            Piece::Contextual => {
                self.ids.push(id);
                text.push_str(&self.newly_certain());
            }
        }
        self.strip_leading(text)
    }

    /// The text of `id` if it is the first token and the decoder treats the first token differently.
    fn take_first_token(&mut self, id: u32) -> Option<String> {
        let Leading::FirstToken(space) = self.leading else { return None };
        let name = self.tokenizer.name_of(id)?;
        self.leading = Leading::NOTHING;
        matches!(self.tokenizer.piece(id), Piece::Text(_)).then(|| name.replace(space, ""))
    }

    /// Ends the text: what was held back, unfinished characters as U+FFFD.
    pub fn finish(mut self) -> String {
        self.end_fragment()
    }

    /// What was held back, unfinished characters as U+FFFD, as if nothing came to finish them.
    pub fn end_fragment(&mut self) -> String {
        let mut text = String::new();
        self.held.release(&mut text);
        if !self.ids.is_empty() {
            let whole = self.decode_context();
            text.push_str(whole.get(self.returned..).unwrap_or_default());
            self.returned = whole.len();
        }
        self.strip_leading(text).unwrap_or_default()
    }

    /// The last of `ids` that decoders look at.
    fn context(&self, ids: &[u32]) -> Vec<u32> {
        let shown = ids.iter().rev().copied().filter(|&id| {
            let skipped = self.skip_special && self.tokenizer.is_special(id);
            !skipped && !matches!(self.tokenizer.piece(id), Piece::Unknown)
        });
        let mut last: Vec<u32> = shown.take(CONTEXT).collect();
        last.reverse();
        last
    }

    /// The text of all `ids` at once, for decoders that do not work token by token.
    pub(super) fn decode_rest(mut self, ids: &[u32]) -> Result<String> {
        self.ids.extend_from_slice(ids);
        let mut text = self.tokenizer.decode_as_a_whole(&self.ids, self.skip_special)?;
        Ok(if text.is_char_boundary(self.returned) { text.split_off(self.returned) } else { String::new() })
    }

    fn decode_context(&self) -> String {
        self.tokenizer.decode_as_a_whole(&self.ids, self.skip_special).unwrap_or_default()
    }

    /// The text that the last id has added, for decoders that do not work token by token; empty if it may still change.
    fn newly_certain(&mut self) -> String {
        let whole = self.decode_context();
        // A replacement character at the end may be the first part of a character that the next id completes.
        let Some(new) = whole.get(self.returned..).filter(|_| !whole.ends_with(char::REPLACEMENT_CHARACTER)) else {
            return String::new();
        };
        let new = new.to_owned();
        self.returned = whole.len();
        // Only when they have doubled, so that decoding them anew costs little for each id.
        if self.ids.len() >= 2 * CONTEXT {
            self.ids.drain(..self.ids.len() - CONTEXT);
            self.returned = self.decode_context().len();
        }
        new
    }

    /// `text` without the leading spaces that the decoder removes; none if it is empty.
    fn strip_leading(&mut self, mut text: String) -> Option<String> {
        if let Leading::Spaces(most @ 1..) = self.leading
            && !text.is_empty()
        {
            let spaces = text.bytes().take(most).take_while(|byte| *byte == b' ').count();
            text.drain(..spaces);
            self.leading = Leading::Spaces(if text.is_empty() { most - spaces } else { 0 });
        }
        Some(text).filter(|text| !text.is_empty())
    }
}

impl HeldBytes {
    /// Adds a byte-level token and moves all but an unfinished last character into `text`, malformed bytes as U+FFFD
    /// as in `String::from_utf8_lossy`.
    fn add_bytes(&mut self, bytes: &[u8], text: &mut String) {
        if self.bytes.is_empty()
            && let Ok(whole) = std::str::from_utf8(bytes)
        {
            return text.push_str(whole);
        }
        self.bytes.extend_from_slice(bytes);
        let mut rest = self.bytes.as_slice();
        loop {
            let end = match std::str::from_utf8(rest) {
                Ok(_) => rest.len(),
                // An error without a length is a character that the next id may complete: it stays.
                Err(error) => error.valid_up_to() + error.error_len().unwrap_or(0),
            };
            if end == 0 {
                break;
            }
            text.push_str(&String::from_utf8_lossy(&rest[..end]));
            rest = &rest[end..];
        }
        let done = self.bytes.len() - rest.len();
        self.bytes.drain(..done);
    }

    /// Moves everything into `text`, malformed bytes as U+FFFD.
    fn release(&mut self, text: &mut String) {
        match std::str::from_utf8(&self.bytes) {
            // As Hugging Face's ByteFallback does.
            Err(_) if self.is_run => text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, self.bytes.len())),
            _ => text.push_str(&String::from_utf8_lossy(&self.bytes)),
        }
        self.bytes.clear();
        self.is_run = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Engine, Tokenizer};
    use crate::tokenizer::hf;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::sync::LazyLock;

    fn load(root: &Value) -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, root.to_string()).unwrap();
        Tokenizer::from_file(&path).unwrap()
    }

    /// Text of `ids` by Hugging Face's crate itself.
    fn hugging_face(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
        let Engine::Hf(engine) = &*tokenizer.inner.engine else { unreachable!("a file for the crate") };
        engine.decode(ids, skip_special).unwrap()
    }

    /// Checks that streamed text is the text decoded at once, and whole characters at every step.
    fn check(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
        let mut stream = tokenizer.decode_stream(&[], skip_special);
        let mut text = String::new();
        for id in ids {
            if let Some(new) = stream.push(*id) {
                assert!(!new.is_empty());
                text.push_str(&new);
            }
        }
        text.push_str(&stream.finish());
        assert_eq!(text, tokenizer.decode(ids, skip_special).unwrap());
        text
    }

    #[test]
    fn a_character_comes_with_its_last_byte() {
        let gpt2 = Tokenizer::gpt2().unwrap();
        let ids = gpt2.encode("\u{1f600}!").unwrap();
        let mut stream = gpt2.decode_stream(&[], true);
        let steps: Vec<Option<String>> = ids.iter().map(|id| stream.push(*id)).collect();
        assert!(ids.len() > 2 && steps[0].is_none());
        assert_eq!(steps.into_iter().flatten().collect::<Vec<_>>(), ["\u{1f600}", "!"]);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn an_unfinished_character_ends_as_a_replacement() {
        let gpt2 = Tokenizer::gpt2().unwrap();
        let ids = gpt2.encode("\u{1f600}").unwrap();
        let mut stream = gpt2.decode_stream(&[], true);
        assert_eq!(stream.push(ids[0]), None);
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(check(&gpt2, &[ids[0], 50256, ids[0]], false), "\u{fffd}<|endoftext|>\u{fffd}");
    }

    #[test]
    fn the_first_space_of_llama_2_is_dropped_once() {
        let llama2 = load(&hf::tests::llama2());
        for text in ["the the", " the", "  a", "", "\u{1f600}\u{e9} x", "a  b\nc "] {
            let ids = llama2.encode_ordinary(text).unwrap();
            assert_eq!(check(&llama2, &ids, true), text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn gpt2_streams_what_it_decodes(
            ids in vec(prop_oneof![0u32..50_300, 94u32..256, Just(50256)], 0..40),
            skip: bool,
        ) {
            let gpt2 = Tokenizer::gpt2().unwrap();
            let bytes: Vec<u8> = ids.iter().filter(|id| **id < 50256 || (!skip && **id == 50256))
                .flat_map(|id| gpt2.token_bytes(*id).unwrap_or(b"<|endoftext|>".to_vec())).collect();
            prop_assert_eq!(check(&gpt2, &ids, skip), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn other_styles_stream_what_hugging_face_decodes(
            ids in vec(0u32..300, 0..40),
            bytes in vec(130u32..258, 0..8),
            skip: bool,
        ) {
            for tokenizer in STYLES.iter() {
                for ids in [&ids, &bytes, &[&ids[..], &bytes[..], &ids[..]].concat()] {
                    prop_assert_eq!(check(tokenizer, ids, skip), hugging_face(tokenizer, ids, skip));
                }
            }
        }

        #[test]
        fn a_text_cut_anywhere_between_characters_is_its_parts_joined(
            text in "[a-e \u{e9}]{0,30}",
            cut in 0usize..40,
            skip: bool,
        ) {
            for tokenizer in STYLES.iter() {
                let ids = tokenizer.encode(&text).unwrap();
                let (before, ids_after) = ids.split_at(cut.min(ids.len()));
                let parts = [tokenizer.decode(before, skip), tokenizer.decode_after(before, ids_after, skip)];
                let joined = parts.map(Result::unwrap).concat();
                let divided = joined.contains(char::REPLACEMENT_CHARACTER);
                prop_assert!(divided || joined == tokenizer.decode(&ids, skip).unwrap(), "{joined:?}");
                let mut stream = tokenizer.decode_stream(before, skip);
                let mut streamed: String = ids_after.iter().filter_map(|id| stream.push(*id)).collect();
                streamed.push_str(&stream.finish());
                prop_assert_eq!(streamed, tokenizer.decode_after(before, ids_after, skip).unwrap());
            }
        }
    }

    /// One tokenizer for each way of putting tokens together.
    static STYLES: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| styles().iter().map(load).collect());

    fn styles() -> Vec<Value> {
        let replace = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
        let strip = |n: u32| json!({"type": "Strip", "content": " ", "start": n, "stop": 0});
        let [bytes, fuse] = ["ByteFallback", "Fuse"].map(|kind| json!({"type": kind}));
        let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"});
        let steps = [
            json!([replace, bytes, fuse]),
            json!([replace, bytes, fuse, strip(2)]),
            json!([replace, fuse, strip(1)]),
            json!([bytes, metaspace]),
        ];
        let metaspaces = ["always", "first", "never"].map(hf::tests::metaspace);
        let whole = [hf::tests::llama2(), hf::tests::llama3(), hf::tests::words()];
        whole.into_iter().chain(metaspaces).chain(steps.map(hf::tests::decoded_by)).collect()
    }

    #[test]
    fn what_comes_before_decides_how_a_fragment_begins() {
        for root in [hf::tests::llama2(), hf::tests::metaspace("always")] {
            let tokenizer = load(&root);
            let the = tokenizer.id_of("\u{2581}the").unwrap();
            let bos = 1;
            for (before, text) in [(vec![], "the"), (vec![bos], "the"), (vec![the], " the"), (vec![bos, the], " the")] {
                assert_eq!(tokenizer.decode_after(&before, &[the], true).unwrap(), text, "{before:?}");
            }
            assert_eq!(tokenizer.decode_after(&[bos], &[the], false).unwrap(), " the", "the beginning is shown");
            assert_eq!(tokenizer.token_bytes(the).unwrap(), b" the");
        }
        // A decoder that only the crate knows.
        let words = load(&hf::tests::words());
        assert_eq!(words.token_bytes(1).unwrap(), b" a");
    }

    /// Decoders that look around decode a window: long texts must not show where it was moved.
    #[test]
    fn long_texts_stream_as_short_ones_do() {
        let words = load(&hf::tests::words());
        let ids: Vec<u32> = (0..500).map(|i| 1 + i % 2).collect();
        assert_eq!(check(&words, &ids, true), hugging_face(&words, &ids, true));
        assert_eq!(words.decode_after(&ids, &[1], true).unwrap(), " a");
    }
}
