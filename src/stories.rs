//! The built-in corpus: short children's stories drawn from a probabilistic grammar, as many as asked for, with no
//! file and no network.
//!
//! The grammar is a probability model of its own text, so it gives what no natural corpus does: the exact information
//! content of every story. Its mean over a validation set is a floor under the loss of ANY model of these stories, which a
//! correct training stack approaches and cannot beat beyond sampling error. For
//! the floor to be exact each text must have one derivation; `stories/tests/ambiguity.rs` proves it for the whole language.
//!
//! Stories are split by a hash of their text, so that no story is in both splits, whatever the seed. A model that
//! knew the hash could save log2(64/63) = 0.02 bits per training story, or 6 per validation story; no model learns it.

use std::sync::LazyLock;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

mod compile;
mod expand;
mod grammar;
mod plots;
mod words;

use grammar::Grammar;

/// One text in this many is a validation text.
const VALIDATION_BUCKETS: u8 = 64;

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(|| {
    compile::compile(words::WORDS, &plots::RULES, "story").unwrap_or_else(|error| panic!("built-in grammar: {error}"))
});

/// Which part of the corpus a story belongs to. No text belongs to both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorySplit {
    /// What a model is trained on: 63 texts in 64.
    Train,
    /// What it is validated on: 1 text in 64.
    Val,
}

impl StorySplit {
    /// The split that `text` belongs to: a function of the text alone.
    pub fn for_text(text: &str) -> Self {
        // By the text and not by its number: a text that is drawn twice is on the same side both times.
        let bucket = blake3::hash(text.as_bytes()).as_bytes()[0] % VALIDATION_BUCKETS;
        if bucket == 0 { Self::Val } else { Self::Train }
    }
}

/// A story and its information content under the grammar.
#[derive(Clone, Debug, PartialEq)]
pub struct Story {
    pub text: String,
    /// -log2 P(text, end of text included).
    pub bits: f64,
}

/// The corpus drawn with one seed: any number of stories, each a function of (seed, split, index) alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stories {
    seed: u64,
}

impl Stories {
    /// The corpus of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Story number `index` of `split`. A validation story takes about 64 times as long as a training story, because
    /// stories are drawn until one belongs to the split.
    pub fn story(&self, split: StorySplit, index: u64) -> Story {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&index.to_le_bytes());
        key[16] = u8::from(split == StorySplit::Val);
        let mut rng = ChaCha8Rng::from_seed(key);
        let mut story = Story { text: String::new(), bits: 0.0 };
        loop {
            story.bits = expand::expand(&GRAMMAR, &mut rng, &mut story.text);
            if StorySplit::for_text(&story.text) == split {
                return story;
            }
        }
    }

    /// Hex digest of all that the stories depend on, the seed and the grammar: equal fingerprints, equal stories.
    #[cfg(test)]
    fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes()).update(words::WORDS.as_bytes());
        for rules in plots::RULES {
            hasher.update(rules.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// The smallest loss that any model can reach on a set of stories, up to sampling error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// Information per byte of UTF-8 text.
    pub bits_per_byte: f64,
    /// Standard error of `bits_per_byte` as an estimate of the whole corpus's; NaN for fewer than two stories.
    pub stderr: f64,
    pub stories: usize,
    /// Their UTF-8 bytes, ends of text not counted.
    pub bytes: usize,
}

/// The floor of `stories`: the sum of their bits over the sum of their bytes. Its error is that of a ratio of two sums
/// over independent stories (the delta method): the scatter of `bits - ratio * bytes`.
pub fn floor<'a>(stories: impl Iterator<Item = &'a Story>) -> Floor {
    let mut count = 0.0;
    let mut bits = 0.0;
    let mut bytes = 0.0;
    let mut bits2 = 0.0;
    let mut bytes2 = 0.0;
    let mut cross = 0.0;
    for story in stories {
        let length = story.text.len() as f64;
        count += 1.0;
        bits += story.bits;
        bytes += length;
        bits2 += story.bits * story.bits;
        bytes2 += length * length;
        cross += story.bits * length;
    }
    let ratio = bits / bytes;
    // The residuals sum to zero by the choice of the ratio, so this is their sum of squares about the mean.
    let squares: f64 = bits2 - 2.0 * ratio * cross + ratio * ratio * bytes2;
    let stderr = if count < 2.0 { f64::NAN } else { (squares.max(0.0) * count / (count - 1.0)).sqrt() / bytes };
    Floor { bits_per_byte: ratio, stderr, stories: count as usize, bytes: bytes as usize }
}

#[cfg(test)]
mod tests {
    mod ambiguity;
    pub(super) mod parser;

    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// -log2 of the grammar's probability of exactly this text, end of text included; `None` if it cannot produce it.
    /// Found by parsing, with no knowledge of how the text came about.
    fn surprisal_bits(text: &str) -> Option<f64> {
        parser::parse(&GRAMMAR, text).surprisal()
    }

    fn sample(split: StorySplit, count: u64) -> Vec<Story> {
        (0..count).map(|index| Stories::new(3).story(split, index)).collect()
    }

    #[test]
    fn the_parser_finds_one_derivation_with_the_bits_of_the_generator() {
        for story in sample(StorySplit::Train, 3000).iter().chain(&sample(StorySplit::Val, 30)) {
            let parses = parser::parse(&GRAMMAR, &story.text);
            assert_eq!(parses.bits.len(), 1, "parsed up to byte {}: {}", parses.reached, story.text);
            let bits = surprisal_bits(&story.text).unwrap();
            assert!((bits - story.bits).abs() < 1e-9, "{bits} {}: {}", story.bits, story.text);
        }
    }

    #[test]
    fn other_texts_have_no_probability() {
        let text = Stories::new(3).story(StorySplit::Train, 0).text;
        assert!(surprisal_bits(&text).is_some());
        for other in ["", &text[1..], &text[..text.len() - 1], &format!("{text}{text}"), &text.replace("he ", "they ")]
        {
            assert_eq!(surprisal_bits(other), None, "{other}");
        }
    }

    #[test]
    fn a_story_depends_on_seed_split_and_index_alone() {
        let stories = Stories::new(5);
        let forwards: Vec<Story> = (0..20).map(|index| stories.story(StorySplit::Train, index)).collect();
        let mut backwards: Vec<Story> =
            (0..20).rev().map(|index| Stories::new(5).story(StorySplit::Train, index)).collect();
        backwards.reverse();
        assert_eq!(forwards, backwards);
        let mut texts: BTreeSet<String> = forwards.into_iter().map(|story| story.text).collect();
        texts.extend((0..20).map(|index| Stories::new(6).story(StorySplit::Train, index).text));
        texts.extend((0..20).map(|index| stories.story(StorySplit::Val, index).text));
        assert_eq!(texts.len(), 60);
        assert_eq!(stories.fingerprint(), Stories::new(5).fingerprint());
        assert_ne!(stories.fingerprint(), Stories::new(6).fingerprint());
    }

    #[test]
    fn the_splits_share_no_text() {
        assert!(
            sample(StorySplit::Train, 500).iter().all(|story| StorySplit::for_text(&story.text) == StorySplit::Train)
        );
        assert!(sample(StorySplit::Val, 50).iter().all(|story| StorySplit::for_text(&story.text) == StorySplit::Val));
        let validation =
            (0..6400).filter(|number| StorySplit::for_text(&format!("text {number}")) == StorySplit::Val).count();
        assert!((60..=140).contains(&validation), "{validation} of 6400 are validation texts");
    }

    /// Runs are resumed on the stories that they started with, so the grammar must not change unnoticed.
    #[test]
    fn the_corpus_is_what_it_was() {
        let mut hasher = blake3::Hasher::new();
        for index in 0..1000 {
            hasher.update(Stories::new(0).story(StorySplit::Train, index).text.as_bytes());
        }
        assert_eq!(&hasher.finalize().to_hex()[..16], "96da7189bfa71b9b", "{}", Stories::new(0).fingerprint());
    }

    #[test]
    fn stories_are_well_formed_english_text() {
        for Story { text, .. } in sample(StorySplit::Train, 3000) {
            assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
            for wrong in ["  ", " .", " ,", "..", " a a", " a e", " a i", " a o", " a u", "(", "{", "<", "|"] {
                assert!(!text.contains(wrong), "`{wrong}` in {text}");
            }
            assert!(text.ends_with(['.', '!', '"']), "{text}");
            for (at, _) in text.match_indices(' ') {
                let (before, after) = (&text[..at], text[at + 1..].trim_start_matches('"'));
                if before.ends_with(['.', '!', '?']) {
                    assert!(after.starts_with(|first: char| first.is_ascii_uppercase()), "{after} in {text}");
                }
            }
            let words = text.split_whitespace().count();
            assert!((60..=160).contains(&words), "{words} words: {text}");
        }
    }

    #[test]
    fn pronouns_agree_with_names() {
        let names = |table: &str| {
            let table = GRAMMAR.tables.iter().find(|known| known.name == table).unwrap();
            table.rows.iter().map(|row| row.cells[0][0].clone()).collect::<BTreeSet<_>>()
        };
        let (boys, girls) = (names("boy"), names("girl"));
        assert!(boys.is_disjoint(&girls) && names("pal").is_disjoint(&(&boys | &girls)));
        for Story { text, .. } in sample(StorySplit::Train, 2000) {
            let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphabetic()).collect();
            let is_boy = words.iter().any(|&word| boys.contains(word));
            assert_ne!(is_boy, words.iter().any(|&word| girls.contains(word)), "{text}");
            let wrong = if is_boy { ["she", "her", "girl"] } else { ["he", "him", "boy"] };
            assert!(wrong.iter().all(|word| !words.contains(word)), "{text}");
        }
    }

    #[test]
    fn words_are_few_and_frequent() {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for Story { text, .. } in sample(StorySplit::Train, 10_000) {
            for word in text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty()) {
                *counts.entry(word.to_ascii_lowercase()).or_default() += 1;
            }
        }
        let rarest = counts.iter().min_by_key(|(_, count)| **count).unwrap();
        assert!(counts.len() < 600 && *rarest.1 > 50, "{} words, rarest {rarest:?}", counts.len());
    }

    #[test]
    fn the_floor_is_a_ratio_of_sums_and_knows_its_error() {
        let story = |length: usize, bits: f64| Story { text: "x".repeat(length), bits };
        let two = [story(10, 5.0), story(30, 9.0)];
        let known = floor(two.iter());
        assert_eq!((known.bits_per_byte, known.stories, known.bytes), (0.35, 2, 40));
        // Residuals 1.5 and -1.5: sqrt(4.5 * 2 / 1) / 40.
        assert!((known.stderr - 3.0 / 40.0).abs() < 1e-12);
        assert!(floor(two[..1].iter()).stderr.is_nan());

        // Against the jackknife, which knows no formula.
        let stories = sample(StorySplit::Train, 400);
        let without = |left_out: usize| {
            let rest = stories.iter().enumerate().filter(|(index, _)| *index != left_out);
            floor(rest.map(|(_, story)| story)).bits_per_byte
        };
        let ratios: Vec<f64> = (0..stories.len()).map(without).collect();
        let mean = ratios.iter().sum::<f64>() / 400.0;
        let jackknife = (ratios.iter().map(|ratio| (ratio - mean).powi(2)).sum::<f64>() * 399.0 / 400.0).sqrt();
        let whole = floor(stories.iter());
        assert!((whole.stderr / jackknife - 1.0).abs() < 0.02, "{} {jackknife}", whole.stderr);
        assert!((0.39..0.42).contains(&whole.bits_per_byte), "{whole:?}");
    }
}
