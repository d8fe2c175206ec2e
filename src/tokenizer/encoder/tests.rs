//! The encoder against tiktoken's and Hugging Face's, on texts made to tell them apart.

use std::sync::LazyLock;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use tiktoken_rs::CoreBPE;

use super::super::byte_bpe::{ByteBpe, recover_merges};
use super::super::train::train;
use super::*;

static GPT2: LazyLock<ByteBpe> = LazyLock::new(|| ByteBpe::gpt2().unwrap());
static TIKTOKEN: LazyLock<CoreBPE> = LazyLock::new(|| tiktoken_rs::r50k_base().unwrap());
static HUGGING_FACE: LazyLock<tokenizers::Tokenizer> = LazyLock::new(|| hugging_face(&GPT2));

fn hugging_face(bpe: &ByteBpe) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(bpe.to_json()).unwrap()
}

/// Characters at which the split turns, of every kind that has its own branch, and a few that look like another kind.
const TURNING: &[&str] = &[
    "'",
    "s",
    "t",
    "re",
    "ve",
    "m",
    "ll",
    "d",
    "S",
    "LL",
    "\u{2019}s",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\0",
    "\u{b}",
    "\u{1c}",
    "\u{85}",
    "\u{a0}",
    "\u{180e}",
    "\u{200b}",
    "\u{200d}",
    "\u{2003}",
    "\u{2028}",
    "\u{3000}",
    "\u{feff}",
    "a",
    "word",
    "Z",
    "\u{aa}",
    "\u{df}",
    "\u{1c5}",
    "\u{130}",
    "e\u{301}",
    "\u{301}",
    "\u{5d0}",
    "\u{627}\u{64e}",
    "\u{915}\u{94d}\u{937}",
    "\u{e01}\u{e33}",
    "\u{4f60}\u{597d}",
    "\u{ac00}",
    "\u{1100}\u{1161}",
    "\u{1d400}",
    "0",
    "42",
    "\u{661}",
    "\u{96a}",
    "\u{b2}",
    "\u{bd}",
    "\u{2167}",
    "\u{3007}",
    "\u{1d7d8}",
    "!",
    "...",
    "_",
    "-",
    "\u{20ac}",
    "\u{1f600}",
    "\u{1f468}\u{200d}\u{1f469}",
    "\u{1f1e9}\u{1f1ea}",
    "\u{fe0f}",
    "\u{fffd}",
    "\u{e000}",
    "\u{10ffff}",
    "<|endoftext|>",
];

/// A text of `count` pieces of [`TURNING`].
fn turning(random: &mut impl Rng, count: usize) -> String {
    (0..count).map(|_| TURNING[random.random_range(0..TURNING.len())]).collect()
}

fn assert_same(text: &str) {
    let ids = GPT2.encode_ordinary(text);
    assert!(ids == TIKTOKEN.encode_ordinary(text), "not as tiktoken: {:.200?}", text);
    if !text.contains("<|endoftext|>") {
        let theirs = HUGGING_FACE.encode_fast(text, false).unwrap();
        assert!(ids == theirs.get_ids(), "not as Hugging Face: {:.200?}", text);
    }
}

#[test]
fn turning_texts_are_encoded_as_by_tiktoken_and_hugging_face() {
    for a in TURNING {
        for b in TURNING {
            for text in [format!("{a}{b}"), format!("x{a}{b} y"), format!(" {a} {b} "), format!("{a}{a}{b}{b}1")] {
                assert_same(&text);
            }
        }
    }
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    for _ in 0..300 {
        let count = random.random_range(1..300);
        assert_same(&turning(&mut random, count));
    }
}

#[test]
fn every_character_is_encoded_as_by_tiktoken() {
    for block in (0..0x11_0000u32).step_by(0x400) {
        let text: String = (block..block + 0x400).filter_map(char::from_u32).flat_map(|c| [c, 'a', ' ', c]).collect();
        assert!(GPT2.encode_ordinary(&text) == TIKTOKEN.encode_ordinary(&text), "block {block:#x}");
    }
}

/// One word, one run of white space or of marks, without end; tiktoken's regex does not survive some of them.
#[test]
fn a_text_without_a_border_is_encoded_too() {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let letters: String = (0..1 << 17).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect();
    let runs = [" ", "\n", "\u{3000}", "\u{4f60}", "=", "'s", "7"].map(|run| run.repeat((1 << 17) / run.len()));
    for text in runs.into_iter().chain([letters, "a".repeat(1 << 20), format!("a{}b", " ".repeat(1 << 20))]) {
        let ids = GPT2.encode_ordinary(&text);
        assert!(ids == HUGGING_FACE.encode_fast(text.as_str(), false).unwrap().get_ids(), "{:.20?}", text);
    }
}

#[test]
fn trained_vocabularies_encode_as_in_hugging_face() {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    for round in 0..12u8 {
        // Few letters give deep merges that overlap; more of them, and other scripts, shallow ones.
        let mut word = |most: usize| -> String {
            let length = random.random_range(1..=most);
            (0..length)
                .map(|_| match random.random_range(0..12) {
                    0 => '\u{e9}',
                    1 => '\u{4f60}',
                    _ => char::from(b'a' + random.random_range(0..2 + round * 2)),
                })
                .collect()
        };
        let texts: Vec<String> = (0..200).map(|_| [word(9), word(4), word(20)].join(" ")).collect();
        let bpe = train(texts.iter().map(String::as_str), 300 + 60 * usize::from(round)).unwrap();
        let theirs = hugging_face(&bpe);
        for text in texts.into_iter().chain((0..100).map(|_| [word(12), word(60), word(400)].join("  "))) {
            // Twice: merged, and found again.
            for _ in 0..2 {
                assert_eq!(bpe.encode_ordinary(&text), theirs.encode_fast(text.as_str(), false).unwrap().get_ids());
            }
        }
    }
}

#[test]
fn threads_share_the_encoder_and_no_more_caches_than_needed() {
    let tokens = GPT2.tokens();
    let merges = recover_merges(tokens, GPT2.specials()).unwrap();
    let byte_ids = std::array::from_fn(|byte| tokens.iter().position(|t| **t == [byte as u8]).unwrap() as u32);
    let encoder = Encoder::new(byte_ids, &merges).unwrap();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(9);
    let texts: Vec<String> = (0..50).map(|_| turning(&mut random, 100)).collect();
    let expected: Vec<Vec<u32>> = texts.iter().map(|text| TIKTOKEN.encode_ordinary(text)).collect();
    for _ in 0..5 {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for (text, expected) in texts.iter().zip(&expected) {
                        let mut ids = Vec::new();
                        encoder.encode(text, &mut ids);
                        assert_eq!(&ids, expected);
                    }
                });
            }
        });
    }
    let pool = encoder.lock_pool();
    assert_eq!(pool.caches.len(), pool.made);
    assert!(pool.made <= pool.enough.max(8), "{} caches", pool.made);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_encoded_as_by_tiktoken_and_hugging_face(
        pieces in proptest::collection::vec(
            prop_oneof![any::<char>().prop_map(String::from), proptest::sample::select(TURNING).prop_map(str::to_owned)],
            0..40,
        ),
    ) {
        assert_same(&pieces.concat());
    }
}
