//! Training of a byte-level BPE vocabulary on the run's own text.
//!
//! The tokenizers crate's trainer chooses the merges (most frequent pair, ties to the lower ids). The words are split and
//! counted here, without copies and on all cores, because the crate's own split copies and aligns every character. The ids
//! are laid out as GPT-2's: 256 bytes, the merges, and the end of text last.

use std::collections::BTreeMap;

use anyhow::Result;
use rayon::prelude::*;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::byte_alphabet::{bytes_of, char_of};
use super::byte_bpe::{ByteBpe, END_OF_TEXT};
use crate::runtime::error::{Exit, fail};
use crate::tokenizer::pretokenize::Pretokenizer;

/// Bytes of text after which no further text is read: the trainer counts pairs in 32 bits, and more text hardly changes the
/// merges.
const MOST_BYTES: usize = 1 << 30;

/// Texts whose words are counted together by one thread; fixed, so that memory does not grow with the text.
const TEXTS_PER_TASK: usize = 256;

/// Longest word that is counted as one, in bytes: the trainer's time grows with the square of it. A sentence of Chinese or
/// Thai, which has no spaces, is shorter.
const LONGEST_WORD: usize = 1024;

/// Number of ids of the smallest vocabulary: the bytes and the end of text.
const SMALLEST: usize = 257;

/// Trains a vocabulary of at most `vocab_size` ids: fewer if the text has fewer pairs to merge.
pub(super) fn train<'a>(texts: impl Iterator<Item = &'a str>, vocab_size: usize) -> Result<ByteBpe> {
    if vocab_size < SMALLEST {
        return Err(fail(Exit::Config, format!("a byte-level vocabulary of {vocab_size} ids is too small"))
            .hint(format!("ask for at least {SMALLEST}: 256 bytes and the end of text"))
            .into());
    }
    let counts = count_words(texts)?;
    if counts.is_empty() {
        return Err(fail(Exit::Data, "there is no text to train a tokenizer on")
            .hint("give data.train files with text")
            .into());
    }
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        // One id is left for the end of text, which no merge makes.
        .vocab_size(vocab_size - 1)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut model = BPE::default();
    let written = counts.iter().map(|(word, count)| (word.bytes().map(char_of).collect(), *count)).collect();
    trainer.do_train(&written, &mut model).map_err(internal)?;
    // The trainer gives ids to its alphabet in code-point order, then to the merges: GPT-2's order.
    let size = u32::try_from(model.get_vocab_size())?;
    let mut tokens: Vec<Vec<u8>> = (0..size)
        .map(|id| model.id_to_token(id).as_deref().and_then(bytes_of))
        .collect::<Option<_>>()
        .ok_or_else(|| internal("the trainer left a gap in the ids"))?;
    tokens.push(END_OF_TEXT.into());
    ByteBpe::new(tokens, vec![(size, END_OF_TEXT.into())])
}

/// How often each word occurs in the texts, in word order.
fn count_words<'a>(texts: impl Iterator<Item = &'a str>) -> Result<BTreeMap<&'a str, u64>> {
    let words = Pretokenizer::new()?;
    let mut seen = 0usize;
    let texts: Vec<&str> = texts
        .take_while(|text| {
            seen = seen.saturating_add(text.len());
            seen <= MOST_BYTES
        })
        .collect();
    let counts = texts
        .par_chunks(TEXTS_PER_TASK)
        .map(|texts| {
            let mut counts = BTreeMap::new();
            for text in texts {
                let mut start = 0;
                while start < text.len() {
                    let end = words.word_end(text, start);
                    while start < end {
                        let most = end.min(start + LONGEST_WORD);
                        let cut = (start + 1..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(end);
                        *counts.entry(&text[start..cut]).or_default() += 1;
                        start = cut;
                    }
                }
            }
            counts
        })
        // Sums do not depend on their order, and the map sorts the words: the number of threads changes nothing.
        .reduce(BTreeMap::new, |mut all: BTreeMap<&str, u64>, some| {
            for (word, count) in some {
                *all.entry(word).or_default() += count;
            }
            all
        });
    Ok(counts)
}

fn internal(error: impl std::fmt::Display) -> anyhow::Error {
    fail(Exit::Internal, format!("training the tokenizer failed: {error}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "the cat sat on the mat; the cat's hat — thé çà 猫\n  the end";

    #[test]
    fn ids_are_bytes_then_merges_then_the_end_of_text() {
        let bpe = train([TEXT; 3].into_iter(), 280).unwrap();
        assert_eq!(bpe.tokens().len(), 280);
        assert_eq!(bpe.specials(), [(279, END_OF_TEXT.to_owned())]);
        assert_eq!((bpe.tokens()[0].as_slice(), bpe.tokens()[255].as_slice()), (&b"!"[..], &b"\xad"[..]));
        // Both 5 times 3; at has the lower ids.
        assert_eq!(bpe.tokens()[256..258], [b"at".to_vec(), b"th".to_vec()]);
        assert!(bpe.tokens().contains(&b" the".to_vec()));
    }

    #[test]
    fn the_merges_are_the_trainers_own() {
        let texts: Vec<String> =
            (0..300u32).map(|i| format!("{TEXT} {} {}", i * i, "aab".repeat(i as usize % 7))).collect();
        let bpe = train(texts.iter().map(String::as_str), 700).unwrap();
        let mut theirs =
            tokenizers::TokenizerBuilder::<BPE, tokenizers::NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::new()
                .with_model(BPE::default())
                .with_pre_tokenizer(Some(ByteLevel::new(false, false, true)))
                .build()
                .unwrap();
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(699)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        theirs.train(&mut trainer, texts.iter()).unwrap();
        let theirs = serde_json::to_value(theirs.get_model()).unwrap();
        let ours: serde_json::Value = serde_json::from_slice(&bpe.to_json()).unwrap();
        let merges = |model: &serde_json::Value| -> Vec<String> {
            let pair = |m: &serde_json::Value| match m.as_array() {
                Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
                None => m.as_str().unwrap().to_owned(),
            };
            model["merges"].as_array().unwrap().iter().map(pair).collect()
        };
        assert_eq!(merges(&ours["model"]), merges(&theirs));
        assert_eq!(bpe.tokens().len(), 257 + merges(&theirs).len());
    }

    #[test]
    fn a_word_without_end_is_counted_in_pieces() {
        let (spaces, hanzi) = (" ".repeat(300_000), "\u{4f60}\u{597d}".repeat(50_000));
        let sentence = &hanzi[..900];
        let counts = count_words([TEXT, sentence, &spaces, &hanzi].into_iter()).unwrap();
        let bytes: usize = counts.iter().map(|(word, count)| word.len() * *count as usize).sum();
        assert_eq!(bytes, TEXT.len() + sentence.len() + spaces.len() + hanzi.len());
        assert!(counts.keys().all(|word| word.len() <= LONGEST_WORD));
        assert_eq!((counts[sentence], counts[&spaces[..1024]]), (1, 300_000 / 1024));
    }

    #[test]
    fn order_and_threads_do_not_matter() {
        let texts: Vec<String> =
            (0..2000u32).map(|i| format!("{} tell {} a story {}", i % 83, i % 31, i % 7)).collect();
        let once = |texts: Vec<&str>, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| train(texts.into_iter(), 500)).unwrap().to_json()
        };
        let forward = once(texts.iter().map(String::as_str).collect(), 1);
        assert!(forward == once(texts.iter().map(String::as_str).collect(), 4));
        assert!(forward == once(texts.iter().rev().map(String::as_str).collect(), 3));
    }

    #[test]
    fn a_text_with_few_pairs_gives_fewer_ids() {
        let bpe = train(["abab abab"].into_iter(), 5000).unwrap();
        // ab, abab, " abab".
        assert_eq!(bpe.tokens().len(), 257 + 3);
    }

    #[test]
    fn too_few_ids_and_no_text_are_refused() {
        let exit = |result: Result<ByteBpe>| {
            let error = result.err().unwrap();
            error.downcast_ref::<crate::runtime::error::Failure>().unwrap().exit
        };
        assert_eq!(exit(train(["a"].into_iter(), 256)), Exit::Config);
        assert_eq!(exit(train(["", ""].into_iter(), 300)), Exit::Data);
    }
}
