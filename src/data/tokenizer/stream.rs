//! Decoding one token at a time, for text that is shown while it is generated.
//!
//! A token may end inside a character, so text is held back until it can no longer change: the pieces handed out,
//! joined, are always exactly [`Tokenizer::decode`] of all the ids.

use super::{Piece, Tokenizer};

/// A decoder that is given ids one by one and gives back text as soon as it is certain.
///
/// The work is O(1) amortised per id, except for decoders that the program does not know token by token (none that
/// Llama models use): those decode everything again at each id, and are taken to change nothing but the end.
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    held: Held,
    /// Whether the next space is the first character and to be left out.
    strip: bool,
    /// Everything so far, for decoders that need it all, and how many bytes of its text have been handed out.
    ids: Vec<u32>,
    given: usize,
}

/// Bytes that are not yet text: an unfinished character (byte-level tokens), or an unfinished run of byte tokens.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    /// Whether the bytes are a run of `<0xNN>` tokens: all text if they are UTF-8, else one U+FFFD each.
    run: bool,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        let strip = tokenizer.strips_first_space();
        Self { tokenizer, skip_special, held: Held::default(), strip, ids: Vec::new(), given: 0 }
    }

    /// Takes the next id and gives the text that has become certain, if any. Unknown ids have no text.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return None;
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
                self.held.run = true;
            }
            Piece::Unknown => {}
            Piece::Contextual => {
                self.ids.push(id);
                text.push_str(&self.newly_certain());
            }
        }
        self.hand_out(text)
    }

    /// Ends the text: what was held back, unfinished characters as U+FFFD.
    pub fn finish(mut self) -> String {
        let mut text = String::new();
        self.held.release(&mut text);
        if !self.ids.is_empty() {
            let whole = self.tokenizer.decode(&self.ids, self.skip_special).unwrap_or_default();
            text.push_str(whole.get(self.given..).unwrap_or_default());
        }
        self.hand_out(text).unwrap_or_default()
    }

    /// For decoders that need all ids: what has been added to the text, unless it may still change.
    fn newly_certain(&mut self) -> String {
        let whole = self.tokenizer.decode(&self.ids, self.skip_special).unwrap_or_default();
        match whole.get(self.given..) {
            Some(new) if !whole.ends_with(char::REPLACEMENT_CHARACTER) => {
                self.given = whole.len();
                new.to_owned()
            }
            _ => String::new(),
        }
    }

    /// Leaves the first space out where the decoder does, and empty text.
    fn hand_out(&mut self, mut text: String) -> Option<String> {
        if text.is_empty() {
            return None;
        }
        if std::mem::take(&mut self.strip) && text.starts_with(' ') {
            text.remove(0);
        }
        Some(text).filter(|text| !text.is_empty())
    }
}

impl Held {
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

    /// Moves everything into `text`, what is no text as U+FFFD.
    fn release(&mut self, text: &mut String) {
        match std::str::from_utf8(&self.bytes) {
            Err(_) if self.run => text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, self.bytes.len())),
            _ => text.push_str(&String::from_utf8_lossy(&self.bytes)),
        }
        self.bytes.clear();
        self.run = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Engine, Tokenizer, hub};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::Value;

    fn load(root: &Value) -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, root.to_string()).unwrap();
        Tokenizer::from_file(&path).unwrap()
    }

    /// Text of `ids` by Hugging Face's crate itself.
    fn hugging_face(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
        let Engine::Hub(engine) = &*tokenizer.inner.engine else { unreachable!("a file for the crate") };
        engine.decode(ids, skip_special).unwrap()
    }

    /// Checks that streamed text is the text decoded at once, and whole characters at every step.
    fn check(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
        let mut stream = tokenizer.decode_stream(skip_special);
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
        let mut stream = gpt2.decode_stream(true);
        let steps: Vec<Option<String>> = ids.iter().map(|id| stream.push(*id)).collect();
        assert!(ids.len() > 2 && steps[0].is_none());
        assert_eq!(steps.into_iter().flatten().collect::<Vec<_>>(), ["\u{1f600}", "!"]);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn an_unfinished_character_ends_as_a_replacement() {
        let gpt2 = Tokenizer::gpt2().unwrap();
        let ids = gpt2.encode("\u{1f600}").unwrap();
        let mut stream = gpt2.decode_stream(true);
        assert_eq!(stream.push(ids[0]), None);
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(check(&gpt2, &[ids[0], 50256, ids[0]], false), "\u{fffd}<|endoftext|>\u{fffd}");
    }

    #[test]
    fn the_first_space_of_llama_2_is_dropped_once() {
        let llama2 = load(&hub::tests::llama2());
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
            for root in [hub::tests::llama2(), hub::tests::llama3(), hub::tests::words()] {
                let tokenizer = load(&root);
                for ids in [&ids, &bytes, &[&ids[..], &bytes[..], &ids[..]].concat()] {
                    prop_assert_eq!(check(&tokenizer, ids, skip), hugging_face(&tokenizer, ids, skip));
                }
            }
        }
    }
}
