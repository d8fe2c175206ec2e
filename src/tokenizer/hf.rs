//! Any other `tokenizer.json`, run by Hugging Face's crate.
//!
//! The crate panics on some bad files, while loading or at the first use, so the panics of all calls are caught, and a file
//! is tried before it is accepted. Truncation and padding that a file asks for are switched off: they would cut documents.

mod encode;
mod ordinary;
mod parts;

use std::sync::OnceLock;

use anyhow::Result;
use serde_json::Value;

use super::Piece;
use super::decoder::{Decoder, OwnedPiece};
use crate::runtime::error::{Exit, fail};
use crate::runtime::panic::catch_panic;
use ordinary::Ordinary;
use parts::TextParts;

/// A tokenizer of the tokenizers crate.
pub(super) struct HfTokenizer {
    tokenizer: tokenizers::Tokenizer,
    /// The same, for documents; made when first needed.
    ordinary: OnceLock<Ordinary>,
    /// Ids that no document may give, ascending.
    control: Vec<u32>,
    parts: TextParts,
    decoder: Decoder,
    /// The piece of each id, by id.
    pieces: Vec<OwnedPiece>,
    specials: Vec<u32>,
    /// The bytes of the file.
    pub(super) json: Vec<u8>,
}

impl HfTokenizer {
    /// The tokenizer of the file `json`, parsed as `root`. `Err` says in a few words why the file is not usable.
    pub(super) fn new(json: Vec<u8>, root: &Value) -> Result<Self, String> {
        if root["model"]["dropout"].as_f64().is_some_and(|p| p > 0.0) {
            return Err("it encodes at random (model.dropout)".into());
        }
        let mut tokenizer = catch_errors(|| tokenizers::Tokenizer::from_bytes(&json))?;
        catch_errors(|| tokenizer.with_truncation(None).map(|_| ()))?;
        tokenizer.with_padding(None);
        let added = root["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
        let added = added.iter().filter_map(|t| Some((tokenizer.token_to_id(t["content"].as_str()?)?, t)));
        let added: Vec<(u32, &Value)> = added.collect();
        let mut specials: Vec<u32> = added.iter().filter(|(_, t)| t["special"] == true).map(|(id, _)| *id).collect();
        specials.sort_unstable();
        let decoder = Decoder::recognise(&root["decoder"]);
        let size = vocab_size(root).ok_or("its vocabulary is not a list of tokens with ids below 2^22")?;
        // The crate gives added tokens that the vocabulary lacks the next free ids, whatever the file says.
        let size = added.iter().map(|(id, _)| id.saturating_add(1)).fold(size, u32::max);
        let pieces = (0..size).map(|id| decoder.piece(tokenizer.id_to_token(id))).collect();
        let control = specials.clone();
        let parts = TextParts::new(root);
        let ordinary = OnceLock::new();
        let loaded = Self { tokenizer, ordinary, control, parts, decoder, pieces, specials, json };
        loaded.try_out()?;
        Ok(loaded)
    }

    /// Encodes and decodes some text, so that a file that cannot work fails when it is loaded.
    fn try_out(&self) -> Result<(), String> {
        for text in ["Hello, world! 123\n", "", " \t\u{e9}\u{1f600}"] {
            for ids in [catch_errors(|| self.run(text))?, catch_errors(|| self.run_ordinary(text))?] {
                if let Some(id) = ids.iter().find(|id| **id as usize >= self.pieces.len()) {
                    return Err(format!("it encodes to id {id}, which is not in its vocabulary"));
                }
                catch_errors(|| self.tokenizer.decode(&ids, false))?;
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
            Some(OwnedPiece::Unknown) | None => Piece::Unknown,
            Some(_) if self.decodes_as_a_whole() => Piece::Contextual,
            Some(OwnedPiece::Bytes(bytes)) => Piece::Bytes(bytes),
            Some(OwnedPiece::Text(text)) => Piece::Text(text),
            Some(OwnedPiece::Byte(byte)) => Piece::Byte(*byte),
        }
    }

    /// Whether the ids can only be decoded all at once.
    pub(super) fn decodes_as_a_whole(&self) -> bool {
        self.decoder == Decoder::Other
    }

    pub(super) fn decoder(&self) -> Decoder {
        self.decoder
    }

    pub(super) fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        catch_errors(|| self.tokenizer.decode(ids, skip_special)).map_err(failed)
    }
}

fn failed(why: String) -> anyhow::Error {
    fail(Exit::Data, format!("the tokenizer failed: {why}")).into()
}

/// The result of a call into the crate, with an error or a panic as its message, on one line.
fn catch_errors<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
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
pub(super) mod tests;
