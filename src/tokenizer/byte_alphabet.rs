//! GPT-2's alphabet: a printable character for each byte, in which `tokenizer.json` writes byte-level tokens.

/// GPT-2's printable stand-in for a byte: itself where it prints in Latin-1, else the next free code point from 256.
pub(super) fn char_of(byte: u8) -> char {
    let shifted = match byte {
        0..=0x20 => 0x100 + u16::from(byte),
        0x7f..=0xa0 => 0x121 + u16::from(byte - 0x7f),
        0xad => 0x143,
        _ => u16::from(byte),
    };
    char::from_u32(shifted.into()).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The bytes that a byte-level token's text stands for, if every character is a stand-in.
pub(super) fn bytes_of(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte_of).collect()
}

/// The byte that `c` stands for; none if it is no stand-in.
fn byte_of(c: char) -> Option<u8> {
    let code = u16::try_from(u32::from(c)).ok()?;
    let byte = match code {
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => code,
    };
    u8::try_from(byte).ok().filter(|byte| char_of(*byte) == c)
}
