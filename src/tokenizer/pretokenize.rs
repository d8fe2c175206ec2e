//! GPT-2's split of text into words, written by hand: a regex engine takes several times as long as the rest of encoding.
//!
//! A word is a contraction (`'s 't 're 've 'm 'll 'd`); or letters, or digits, or other visible characters, each with
//! one space before them; or white space, of which the last character is left to the word that follows. As a regex:
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.

pub(crate) mod splits;

use anyhow::Result;
use regex_syntax::hir::{Class as Ranges, HirKind};

/// The class of a character, as the split distinguishes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CharClass {
    /// `[^\s\p{L}\p{N}]`.
    Other,
    /// `\p{L}`.
    Letter,
    /// `\p{N}`.
    Digit,
    /// `\s`.
    Blank,
}

/// Splits text into words. Holds the class of every character, in pages of 256; equal pages are stored once.
pub(super) struct Pretokenizer {
    page_of: Vec<u16>,
    pages: Vec<[CharClass; 256]>,
}

impl Pretokenizer {
    /// The classes as the regex crates have them, tiktoken's among them.
    pub(super) fn new() -> Result<Self> {
        let mut classes = vec![CharClass::Other; 0x11_0000];
        for (class, name) in [(CharClass::Letter, r"\p{L}"), (CharClass::Digit, r"\p{N}"), (CharClass::Blank, r"\s")] {
            if let HirKind::Class(Ranges::Unicode(ranges)) = regex_syntax::parse(name)?.kind() {
                for range in ranges.iter() {
                    classes[range.start() as usize..=range.end() as usize].fill(class);
                }
            }
        }
        let mut page_of = Vec::new();
        let mut pages = Vec::<[CharClass; 256]>::new();
        for page in classes.as_chunks().0 {
            let at = pages.iter().position(|known| known == page).unwrap_or_else(|| {
                pages.push(*page);
                pages.len() - 1
            });
            page_of.push(u16::try_from(at)?);
        }
        Ok(Self { page_of, pages })
    }

    /// The end of the word that begins at byte `start` of `text`, which is a character boundary and not the end of the text.
    #[inline]
    pub(super) fn word_end(&self, text: &str, start: usize) -> usize {
        let text = text.as_bytes();
        let first = text[start];
        if first == b'\''
            && let Some(end) = contraction(text, start)
        {
            return end;
        }
        // The ` ?` of GPT-2's pattern: one space belongs to the word after it.
        let body = start + usize::from(first == b' ');
        match self.class_at(text, body) {
            None => body,
            Some((CharClass::Blank, _)) => self.end_of_blank(text, start),
            Some((CharClass::Letter, length)) => self.end_of_letters(text, body + length),
            Some((class, length)) => self.end_of_run(text, body + length, class),
        }
    }

    /// The class of a character.
    pub(super) fn class_of(&self, c: char) -> CharClass {
        let code = u32::from(c);
        self.pages[usize::from(self.page_of[(code >> 8) as usize])][(code & 0xff) as usize]
    }

    /// The class of the character at `at`, and its length in bytes; nothing at the end of the text.
    #[inline]
    fn class_at(&self, text: &[u8], at: usize) -> Option<(CharClass, usize)> {
        let lead = *text.get(at)?;
        if lead < 0x80 {
            return Some((self.pages[0][usize::from(lead)], 1));
        }
        // It is the text of a `str`, so its UTF-8 needs no check.
        let (bits, length) = match lead {
            ..=0xdf => (lead & 0x1f, 2),
            0xe0..=0xef => (lead & 0x0f, 3),
            0xf0.. => (lead & 0x07, 4),
        };
        let rest = text.get(at + 1..at + length)?;
        let code = rest.iter().fold(u32::from(bits), |code, byte| (code << 6) | u32::from(byte & 0x3f));
        let page = self.page_of[(code >> 8) as usize];
        Some((self.pages[usize::from(page)][(code & 0xff) as usize], length))
    }

    #[inline]
    fn end_of_letters(&self, text: &[u8], mut at: usize) -> usize {
        while let Some(eight) = text[at..].first_chunk() {
            let letters = leading_letters(u64::from_le_bytes(*eight));
            at += letters;
            if letters < 8 {
                // ASCII that is no letter ends the word. For anything else the table decides.
                if eight[letters] < 0x80 {
                    return at;
                }
                match self.class_at(text, at) {
                    Some((CharClass::Letter, length)) => at += length,
                    _ => return at,
                }
            }
        }
        self.end_of_run(text, at, CharClass::Letter)
    }

    fn end_of_run(&self, text: &[u8], mut at: usize, class: CharClass) -> usize {
        while let Some((next, length)) = self.class_at(text, at)
            && next == class
        {
            at += length;
        }
        at
    }

    /// The end of white space: its last character belongs to what follows, unless nothing does or it is alone.
    fn end_of_blank(&self, text: &[u8], start: usize) -> usize {
        let mut at = start;
        let mut last = start;
        while let Some((CharClass::Blank, length)) = self.class_at(text, at) {
            (last, at) = (at, at + length);
        }
        if at == text.len() || last == start { at } else { last }
    }
}

/// The end of the contraction at the apostrophe `at`, if one is there.
fn contraction(text: &[u8], at: usize) -> Option<usize> {
    match text[at + 1..] {
        [b's' | b't' | b'm' | b'd', ..] => Some(at + 2),
        [b'r', b'e', ..] | [b'v', b'e', ..] | [b'l', b'l', ..] => Some(at + 3),
        _ => None,
    }
}

/// How many of eight bytes, from the lowest, are ASCII letters: all eight are looked at together, since a loop would be
/// mispredicted at the end of nearly every word.
#[inline]
fn leading_letters(bytes: u64) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    // The high bit of each byte of a sum says whether its low seven bits reach a bound.
    let lower = (bytes | (0x20 * ONES)) & !HIGH;
    let from_a = lower + ((0x80 - u64::from(b'a')) * ONES);
    let above_z = lower + ((0x7f - u64::from(b'z')) * ONES);
    let letters = from_a & !above_z & !bytes & HIGH;
    ((letters ^ HIGH).trailing_zeros() / 8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::utils::SysRegex;

    /// The regex in the words of GPT-2's authors.
    const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    fn split<'a>(words: &Pretokenizer, text: &'a str) -> Vec<&'a str> {
        let (mut split, mut start) = (Vec::new(), 0);
        while start < text.len() {
            let end = words.word_end(text, start);
            split.push(&text[start..end]);
            start = end;
        }
        split
    }

    #[test]
    fn words_are_split_by_hand_as_written_out() {
        let words = Pretokenizer::new().unwrap();
        let text = "It's  the dog's 12th\n\n 'tis!?'ll we'LL\u{a0}\u{a0}x \t";
        let expected = [
            "It", "'s", " ", " the", " dog", "'s", " 12", "th", "\n\n", " '", "tis", "!?'", "ll", " we", "'", "LL",
            "\u{a0}", "\u{a0}", "x", " \t",
        ];
        assert_eq!(split(&words, text), expected);
    }

    /// Oniguruma, which Hugging Face uses, has its own tables.
    #[test]
    fn every_character_has_the_class_that_oniguruma_gives_it() {
        let words = Pretokenizer::new().unwrap();
        let all: String = ('\0'..=char::MAX).collect();
        let mut count = [0; 4];
        let mut theirs = vec![CharClass::Other; all.len()];
        for (class, name) in [(CharClass::Letter, r"\p{L}"), (CharClass::Digit, r"\p{N}"), (CharClass::Blank, r"\s")] {
            for (start, _) in SysRegex::new(name).unwrap().find_iter(&all) {
                theirs[start] = class;
            }
        }
        for (at, c) in all.char_indices() {
            let (class, length) = words.class_at(all.as_bytes(), at).unwrap();
            assert_eq!((class, length), (theirs[at], c.len_utf8()), "{:?}", c);
            count[class as usize] += 1;
        }
        assert_eq!(
            count,
            [969_100, 141_028, 1911, 25],
            "Unicode has changed, and with it the ids of texts with the new characters"
        );
    }

    #[test]
    fn every_character_is_split_as_by_the_regex() {
        let words = Pretokenizer::new().unwrap();
        let regex = SysRegex::new(WORDS).unwrap();
        for block in (0..0x11_0000u32).step_by(0x1000) {
            let chars = (block..block + 0x1000).filter_map(char::from_u32);
            let text: String = chars.flat_map(|c| [c, 'a', ' ', c, '1', c, c]).collect();
            let theirs: Vec<&str> = regex.find_iter(&text).map(|(start, end)| &text[start..end]).collect();
            assert_eq!(split(&words, &text), theirs);
        }
    }

    #[test]
    fn eight_bytes_are_looked_at_as_one_by_one() {
        for (place, byte) in (0..8).flat_map(|place| (0..=255u8).map(move |byte| (place, byte))) {
            let mut bytes = *b"azAZmMqQ";
            bytes[place] = byte;
            let expected = bytes.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
            assert_eq!(leading_letters(u64::from_le_bytes(bytes)), expected, "{bytes:?}");
        }
    }
}
