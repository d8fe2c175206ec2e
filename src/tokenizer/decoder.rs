//! The decoders of `tokenizer.json` that work token by token: GPT-2's, and SentencePiece's in the forms in which Hugging Face writes it.
//!
//! SentencePiece writes a space as `▁` and puts one before the text; decoders remove it again, each in its own way. What they
//! remove depends on whether a token is the first of its text, so it is not part of the tokens ([`Leading`]).

use serde_json::Value;

use super::byte_alphabet::bytes_of;

/// SentencePiece's sign for a space.
const SPACE_SIGN: char = '\u{2581}';

/// What an id contributes to decoded text, if it is not the first one.
pub(super) enum OwnedPiece {
    Bytes(Vec<u8>),
    Text(String),
    Byte(u8),
    Unknown,
}

/// How a decoder puts tokens together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Decoder {
    /// Bytes written as printable characters, as GPT-2 and Llama 3.
    ByteLevel,
    /// `space` for a space and, with `byte_fallback`, `<0xNN>` for the bytes of rare characters, as Llama 2.
    SentencePiece { space: char, byte_fallback: bool, leading: Leading },
    /// A decoder that only Hugging Face's crate knows.
    Other,
}

/// What a decoder removes at the beginning of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leading {
    /// At most so many spaces (`Strip`).
    Spaces(usize),
    /// Every sign for a space in the first token (`Metaspace`).
    FirstToken(char),
}

impl Leading {
    pub(super) const NOTHING: Self = Self::Spaces(0);
}

impl Decoder {
    /// The decoder that the file describes.
    pub(super) fn recognise(decoder: &Value) -> Self {
        if decoder["type"] == "ByteLevel" {
            return Self::ByteLevel;
        }
        let steps: Vec<&Value> = match decoder["decoders"].as_array() {
            Some(steps) if decoder["type"] == "Sequence" => steps.iter().collect(),
            _ => vec![decoder],
        };
        let kinds: Vec<&str> = steps.iter().map(|step| step["type"].as_str().unwrap_or_default()).collect();
        match kinds.as_slice() {
            ["Metaspace"] => metaspace(steps[0], false),
            ["ByteFallback", "Metaspace"] => metaspace(steps[1], true),
            ["Replace", "Fuse"] => replaced(steps[0], false, None),
            ["Replace", "Fuse", "Strip"] => replaced(steps[0], false, Some(steps[2])),
            ["Replace", "ByteFallback", "Fuse"] => replaced(steps[0], true, None),
            ["Replace", "ByteFallback", "Fuse", "Strip"] => replaced(steps[0], true, Some(steps[3])),
            _ => Self::Other,
        }
    }

    pub(super) fn leading(self) -> Leading {
        if let Self::SentencePiece { leading, .. } = self { leading } else { Leading::NOTHING }
    }

    /// What `token` contributes to decoded text.
    pub(super) fn piece(self, token: Option<String>) -> OwnedPiece {
        let Some(token) = token else {
            return OwnedPiece::Unknown;
        };
        match self {
            Self::ByteLevel => OwnedPiece::Bytes(bytes_of(&token).unwrap_or_else(|| token.into_bytes())),
            Self::SentencePiece { space, byte_fallback, .. } => match byte_of(&token).filter(|_| byte_fallback) {
                Some(byte) => OwnedPiece::Byte(byte),
                None => OwnedPiece::Text(token.replace(space, " ")),
            },
            Self::Other => OwnedPiece::Text(token),
        }
    }
}

/// The byte that `<0xNN>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}

/// Files of before 2024 say `add_prefix_space` instead of `prepend_scheme`.
fn metaspace(step: &Value, byte_fallback: bool) -> Decoder {
    let mut chars = step["replacement"].as_str().unwrap_or_default().chars();
    let (Some(space), None) = (chars.next(), chars.next()) else {
        return Decoder::Other;
    };
    let never = step["prepend_scheme"] == "never" || step["add_prefix_space"] == false;
    let leading = if never { Leading::NOTHING } else { Leading::FirstToken(space) };
    Decoder::SentencePiece { space, byte_fallback, leading }
}

fn replaced(replace: &Value, byte_fallback: bool, strip: Option<&Value>) -> Decoder {
    let known = replace["pattern"]["String"] == SPACE_SIGN.to_string().as_str() && replace["content"] == " ";
    let spaces = match strip {
        None => Some(0),
        Some(strip) if strip["content"] == " " && strip["stop"] == 0 => strip["start"].as_u64(),
        Some(_) => None,
    };
    match spaces.and_then(|spaces| usize::try_from(spaces).ok()).filter(|_| known) {
        Some(spaces) => Decoder::SentencePiece { space: SPACE_SIGN, byte_fallback, leading: Leading::Spaces(spaces) },
        None => Decoder::Other,
    }
}
