//! Which text goes to validation.
//!
//! The hash of the text decides: the choice needs no state, is the same for equal texts (so no document is in both splits),
//! and does not change when documents are added. That fails for a corpus of few documents, where one split would be empty;
//! there the last part of the text is the validation split, cut inside a document if necessary. A first pass over the sources
//! finds out which case it is; it ends as soon as both splits have a document, which takes about 1 / fraction documents.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::corpus::source::{ReadOptions, documents};

/// A corpus of this many documents has enough of them, whatever the fraction.
const MANY: usize = 1 << 20;

/// The first 128 bits of a text's BLAKE3: texts with equal keys are equal.
pub(super) type Key = u128;

pub(super) fn key(text: &str) -> Key {
    let hash = blake3::hash(text.as_bytes());
    hash.as_bytes()[..16].iter().rev().fold(0, |key, &byte| key << 8 | Key::from(byte))
}

/// A rule that divides the corpus, applied to its documents in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SplitRule {
    /// No validation split was asked for.
    None,
    /// Documents whose hash, as a fraction of 2^64, is below this go to validation.
    Hash(f64),
    /// Text from this byte of the corpus on goes to validation.
    Tail {
        /// UTF-8 bytes of text before the validation split.
        cut: u64,
        /// Bytes of text seen so far.
        seen: u64,
    },
    /// The first tokens go to validation; no text is divided by this rule, its tokens are.
    FirstShard,
}

impl SplitRule {
    /// Chooses the rule for the corpus in `paths`, with a share `fraction` of it for validation.
    ///
    /// # Errors
    /// Those of reading the sources.
    pub fn choose(paths: &[PathBuf], read: &ReadOptions, fraction: f64) -> Result<Self> {
        Self::choose_for_texts(documents(paths, read).map(|document| Ok(document?.text)), fraction, false)
    }

    /// Chooses the rule for a corpus of `texts`; repeated ones will be left out if `dedup`.
    pub(super) fn choose_for_texts(
        texts: impl Iterator<Item = Result<String>>,
        fraction: f64,
        dedup: bool,
    ) -> Result<Self> {
        if fraction == 0.0 {
            return Ok(Self::None);
        }
        let mut train = false;
        let mut val = false;
        let mut bytes = 0u64;
        let mut seen = HashSet::new();
        for (i, text) in texts.enumerate() {
            let text = text?;
            let key = key(&text);
            if dedup && !seen.insert(key) {
                continue;
            }
            bytes += text.len() as u64;
            if is_val(key, fraction) {
                val = true
            } else {
                train = true
            }
            // Each side has a document, so whole documents can be divided: there is no need to read on.
            if (train && val) || i >= MANY {
                return Ok(Self::Hash(fraction));
            }
        }
        let tail = (bytes as f64 * fraction).ceil() as u64;
        Ok(Self::Tail { cut: bytes.saturating_sub(tail), seen: 0 })
    }

    /// The next document's text, divided into its training and its validation part (either may be empty).
    pub fn divide<'t>(&mut self, text: &'t str) -> (&'t str, &'t str) {
        let key = if self.needs_key() { key(text) } else { 0 };
        text.split_at(self.cut(text, key))
    }

    /// Whether [`SplitRule::cut`] looks at the key.
    pub(super) fn needs_key(&self) -> bool {
        matches!(self, Self::Hash(_))
    }

    /// The byte of the next document's text from which on it is for validation; `key` is the text's.
    pub(super) fn cut(&mut self, text: &str, key: Key) -> usize {
        match self {
            Self::Hash(fraction) if is_val(key, *fraction) => 0,
            Self::None | Self::Hash(_) | Self::FirstShard => text.len(),
            Self::Tail { cut, seen } => {
                let before = cut.saturating_sub(*seen).min(text.len() as u64) as usize;
                *seen += text.len() as u64;
                cut_place(text, before)
            }
        }
    }

    /// How `shards.json` describes it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Hash(_) => "documents by hash",
            Self::Tail { .. } => "the end of the text",
            Self::FirstShard => "the first tokens",
        }
    }
}

/// Moves a cut at byte `at` down to a character, then up to the start of a line unless that would move it past the
/// middle of what follows.
fn cut_place(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let rest = &text[at..];
    match rest.find('\n') {
        Some(newline) if at > 0 && newline < rest.len() / 2 => at + newline + 1,
        _ => at,
    }
}

fn is_val(key: Key, fraction: f64) -> bool {
    // 2^64 has an exact f64, and a share of 64 bits is finer than any fraction one could ask for.
    (key as u64 as f64) < fraction * 18_446_744_073_709_551_616.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_share_is_near_the_fraction() {
        let n = 20_000;
        let count = (0..n).filter(|i| is_val(key(&format!("document {i}")), 0.05)).count();
        // Binomial: mean 1000, standard deviation 31.
        assert!((850..1150).contains(&count), "{count}");
        assert!(is_val(key("any"), 1.0) && !is_val(key("any"), 0.0));
    }

    #[test]
    fn rules_follow_the_corpus() {
        let choose = |texts: &[String], fraction, dedup| {
            SplitRule::choose_for_texts(texts.iter().map(|text| Ok(text.clone())), fraction, dedup).unwrap()
        };
        let many: Vec<String> = (0..200).map(|i| format!("document {i}")).collect();
        assert_eq!(choose(&many, 0.2, false), SplitRule::Hash(0.2));
        assert_eq!(choose(&many, 0.0, false), SplitRule::None);
        let same = vec!["0123456789".to_string(); 7];
        assert_eq!(choose(&same, 0.1, false), SplitRule::Tail { cut: 63, seen: 0 });
        assert_eq!(choose(&same, 0.1, true), SplitRule::Tail { cut: 9, seen: 0 });
        // One document that its hash would send to validation must not leave training empty.
        assert!(matches!(choose(&["one".into()], 0.999, false), SplitRule::Tail { cut: 0, .. }));
    }

    #[test]
    fn keys_are_the_first_bytes_of_the_hash() {
        let hash = blake3::hash(b"text");
        assert_eq!(key("text").to_le_bytes(), hash.as_bytes()[..16]);
    }

    #[test]
    fn tail_is_cut_at_a_line_or_a_character_and_loses_nothing() {
        let divide = |cut, texts: &[&'static str]| {
            let mut rule = SplitRule::Tail { cut, seen: 0 };
            texts.iter().map(|text| rule.divide(text)).collect::<Vec<_>>()
        };
        assert_eq!(divide(8, &["ab\ncd", "ef\ngh\nij\nkl", "mn"])[1], ("ef\ngh\n", "ij\nkl"));
        assert_eq!(divide(5, &["ab\ncd", "ef\n", "mn"]), [("ab\ncd", ""), ("", "ef\n"), ("", "mn")]);
        assert_eq!(divide(3, &["aééé"]), [("aé", "éé")]);
        assert_eq!(divide(4, &["aééé"]), [("aé", "éé")]);
        assert_eq!(divide(100, &["ab", "cd"]), [("ab", ""), ("cd", "")]);
    }
}
