//! Which text goes to validation.
//!
//! By the hash of the text: the choice needs no state, is the same for the same text wherever it stands and however
//! often (so no document is in both splits), and holds when documents are added. That fails for a corpus of few
//! documents, where one split would be empty; there the last part of the text is taken instead, cut inside a document
//! if need be. A first pass over the sources decides; it ends as soon as both splits have a document, which takes
//! about 1 / fraction documents.

use std::path::PathBuf;

use anyhow::Result;

use crate::data::prepare::source::{Content, Record, records};

/// A rule that divides the corpus, applied to its documents in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
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
}

impl Rule {
    /// Chooses the rule for the corpus in `paths`, with a share `fraction` of it for validation.
    ///
    /// # Errors
    /// Those of reading the sources.
    pub fn choose(paths: &[PathBuf], text_field: &str, fraction: f64) -> Result<Self> {
        if fraction == 0.0 {
            return Ok(Self::None);
        }
        let (mut train, mut val, mut bytes) = (false, false, 0u64);
        for path in paths {
            for record in records(path, text_field)? {
                let Record { content: Content::Text(text), .. } = record? else { continue };
                bytes += text.len() as u64;
                if is_val(&text, fraction) {
                    val = true
                } else {
                    train = true
                }
                if train && val {
                    return Ok(Self::Hash(fraction));
                }
            }
        }
        let tail = (bytes as f64 * fraction).ceil() as u64;
        Ok(Self::Tail { cut: bytes.saturating_sub(tail), seen: 0 })
    }

    /// The next document's text, divided into its training and its validation part (either may be empty).
    pub fn divide<'t>(&mut self, text: &'t str) -> (&'t str, &'t str) {
        match self {
            Self::None => (text, ""),
            Self::Hash(fraction) if is_val(text, *fraction) => ("", text),
            Self::Hash(_) => (text, ""),
            Self::Tail { cut, seen } => {
                let before = cut.saturating_sub(*seen).min(text.len() as u64) as usize;
                *seen += text.len() as u64;
                text.split_at(cut_place(text, before))
            }
        }
    }

    /// How `shards.json` describes it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Hash(_) => "documents by hash",
            Self::Tail { .. } => "the end of the text",
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

fn is_val(text: &str, fraction: f64) -> bool {
    let hash = blake3::hash(text.as_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    // 2^64 has an exact f64, and a share of all 64 bits is finer than any fraction one could ask for.
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]) as f64) < fraction * 18_446_744_073_709_551_616.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(dir: &std::path::Path, documents: &[&str]) -> Vec<PathBuf> {
        let path = dir.join("corpus.jsonl");
        let lines = documents.iter().map(|text| serde_json::json!({ "text": text }).to_string() + "\n");
        std::fs::write(&path, lines.collect::<String>()).unwrap();
        vec![path]
    }

    #[test]
    fn hash_share_is_near_the_fraction() {
        let n = 20_000;
        let count = (0..n).filter(|i| is_val(&format!("document {i}"), 0.05)).count();
        // Binomial: mean 1000, standard deviation 31.
        assert!((850..1150).contains(&count), "{count}");
        assert!(is_val("any", 1.0) && !is_val("any", 0.0));
    }

    #[test]
    fn rules_follow_the_corpus() {
        let dir = tempfile::tempdir().unwrap();
        let many: Vec<String> = (0..200).map(|i| format!("document {i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let choose = |texts: &[&str], fraction| Rule::choose(&corpus(dir.path(), texts), "text", fraction).unwrap();
        assert_eq!(choose(&many, 0.2), Rule::Hash(0.2));
        assert_eq!(choose(&many, 0.0), Rule::None);
        assert_eq!(choose(&["0123456789"; 7], 0.1), Rule::Tail { cut: 63, seen: 0 });
        // One document that its hash would send to validation must not leave training empty.
        assert!(matches!(choose(&["one"], 0.999), Rule::Tail { cut: 0, .. }));
    }

    #[test]
    fn tail_is_cut_at_a_line_or_a_character_and_loses_nothing() {
        let divide = |cut, texts: &[&'static str]| {
            let mut rule = Rule::Tail { cut, seen: 0 };
            texts.iter().map(|text| rule.divide(text)).collect::<Vec<_>>()
        };
        assert_eq!(divide(8, &["ab\ncd", "ef\ngh\nij\nkl", "mn"])[1], ("ef\ngh\n", "ij\nkl"));
        assert_eq!(divide(5, &["ab\ncd", "ef\n", "mn"]), [("ab\ncd", ""), ("", "ef\n"), ("", "mn")]);
        assert_eq!(divide(3, &["aééé"]), [("aé", "éé")]);
        assert_eq!(divide(4, &["aééé"]), [("aé", "éé")]);
        assert_eq!(divide(100, &["ab", "cd"]), [("ab", ""), ("cd", "")]);
    }
}
