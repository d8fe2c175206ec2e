//! Byte-level BPE with GPT-2's split of text into words: GPT-2's own vocabulary and the ones trained here.
//!
//! A vocabulary of this kind is fully given by the bytes of its tokens in id order: the merge that makes a token is
//! the last one that byte-pair encoding of the token's own bytes needs, using only lower ids. [`recover_merges`] finds
//! it, and fails if there is none, so a [`ByteBpe`] exists only for vocabularies for which "merge the pair whose joined
//! bytes are the token of lowest id" (tiktoken's rule) and "merge the pair of lowest rank" (Hugging Face's rule) are
//! the same function. The encoder follows the second rule, which needs no bytes once a word is split into them.

use anyhow::{Context, Result, bail};

use super::byte_alphabet::{bytes_of, char_of};
use super::encoder::Encoder;
pub(super) use super::merges::Merge;
use super::merges::Pairs;

/// The separator of documents in GPT-2's and in our own vocabularies.
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";

/// OpenAI's `r50k_base`: the bytes of the ids 0 to 255, then the two parts of each of the 50,000 merges in rank order
/// as u16, little-endian. The tests build these bytes from tiktoken's ranks.
const GPT2: &[u8] = include_bytes!("gpt2.merges");

/// Bound on the squares of the lengths of all tokens together; GPT-2's come to 3 million.
const MOST_STEPS: u64 = 1 << 33;

/// A byte-level BPE vocabulary and its encoder.
pub(super) struct ByteBpe {
    /// Bytes of each id; a special token's text.
    tokens: Vec<Vec<u8>>,
    /// Special tokens by ascending id.
    specials: Vec<(u32, String)>,
    encoder: Encoder,
}

impl ByteBpe {
    /// GPT-2's vocabulary of 50,257 ids.
    pub(super) fn gpt2() -> Result<Self> {
        let (bytes, pairs) = GPT2.split_at(256);
        let mut tokens: Vec<Vec<u8>> = bytes.iter().map(|byte| vec![*byte]).collect();
        let mut merges = Vec::with_capacity(pairs.len() / 4);
        for (id, pair) in (256..).zip(pairs.as_chunks::<4>().0) {
            let left = u16::from_le_bytes([pair[0], pair[1]]);
            let right = u16::from_le_bytes([pair[2], pair[3]]);
            tokens.push([&*tokens[usize::from(left)], &*tokens[usize::from(right)]].concat());
            merges.push(Merge { left: left.into(), right: right.into(), id });
        }
        let specials = vec![(tokens.len() as u32, END_OF_TEXT.to_owned())];
        tokens.push(END_OF_TEXT.into());
        Self::with_merges(tokens, specials, &merges)
    }

    /// A vocabulary from the bytes of its tokens in id order, special tokens among them.
    ///
    /// Fails if the ordinary tokens are not all 256 bytes plus the products of one merge each, in merge order.
    pub(super) fn new(tokens: Vec<Vec<u8>>, specials: Vec<(u32, String)>) -> Result<Self> {
        let merges = recover_merges(&tokens, &specials)?;
        Self::with_merges(tokens, specials, &merges)
    }

    fn with_merges(tokens: Vec<Vec<u8>>, specials: Vec<(u32, String)>, merges: &[Merge]) -> Result<Self> {
        let encoder = Encoder::new(byte_ids(&tokens, &specials)?, merges)?;
        Ok(Self { tokens, specials, encoder })
    }

    /// Bytes of each token in id order; a special token's text.
    pub(super) fn tokens(&self) -> &[Vec<u8>] {
        &self.tokens
    }

    /// Special tokens by ascending id.
    pub(super) fn specials(&self) -> &[(u32, String)] {
        &self.specials
    }

    /// The id of the token written `token` in tokenizer.json.
    pub(super) fn id_of(&self, token: &str) -> Option<u32> {
        if let Some((id, _)) = self.specials.iter().find(|(_, text)| text == token) {
            return Some(*id);
        }
        let bytes = bytes_of(token)?;
        ordinary(&self.tokens, &self.specials).find(|(_, token)| *token == bytes).map(|(id, _)| id)
    }

    /// The token `id` as tokenizer.json writes it.
    pub(super) fn name_of(&self, id: u32) -> Option<String> {
        if let Ok(at) = self.specials.binary_search_by_key(&id, |(special, _)| *special) {
            return Some(self.specials[at].1.clone());
        }
        self.tokens.get(id as usize).map(|token| token.iter().map(|byte| char_of(*byte)).collect())
    }

    /// Whether `id` is a special token.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.specials.binary_search_by_key(&id, |(special, _)| *special).is_ok()
    }

    /// The encoding of `text`, in which no string is special.
    pub(super) fn encode_ordinary(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encoder.encode(text, &mut ids);
        ids
    }

    /// The encoding of `text`, in which the special tokens' strings stand for their ids.
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        // The next place of each special token; it is searched for again only once it has been passed.
        let mut next: Vec<Option<usize>> = self.specials.iter().map(|(_, s)| text.find(s)).collect();
        let mut ids = Vec::new();
        let mut done = 0;
        loop {
            for (at, (_, s)) in next.iter_mut().zip(&self.specials) {
                if at.is_some_and(|at| at < done) {
                    *at = text[done..].find(s).map(|found| done + found);
                }
            }
            // The first to come; of several at one place the longest.
            let found = next.iter().zip(&self.specials).filter_map(|(at, special)| Some(((*at)?, special)));
            let Some((at, (id, s))) = found.min_by_key(|(at, (_, s))| (*at, usize::MAX - s.len())) else {
                break;
            };
            self.encoder.encode(&text[done..at], &mut ids);
            ids.push(*id);
            done = at + s.len();
        }
        self.encoder.encode(&text[done..], &mut ids);
        ids
    }
}

/// Ids and bytes of the tokens that are not special.
fn ordinary<'a>(tokens: &'a [Vec<u8>], specials: &'a [(u32, String)]) -> impl Iterator<Item = (u32, &'a [u8])> {
    let mut special = specials.iter().peekable();
    (0..).zip(tokens).filter_map(move |(id, token)| {
        special.next_if(|(special, _)| *special == id).is_none().then_some((id, token.as_slice()))
    })
}

/// The id of each byte.
fn byte_ids(tokens: &[Vec<u8>], specials: &[(u32, String)]) -> Result<[u32; 256]> {
    let mut ids = [None; 256];
    for (id, token) in ordinary(tokens, specials) {
        match *token {
            [] => bail!("token {id} is empty"),
            [byte] if ids[usize::from(byte)].replace(id).is_some() => bail!("byte {byte} has two tokens"),
            _ => {}
        }
    }
    let ids: Vec<u32> = ids.into_iter().collect::<Option<_>>().context("a byte has no token")?;
    ids.try_into().ok().context("a byte has no token")
}

/// The merge that makes each ordinary token of two or more bytes, in id order, which is their rank.
///
/// Byte-pair encoding of a token by the merges before its own must end in two parts that no earlier merge joins. This
/// is enough for the same to hold inside any text: as long as the token's ends are borders between parts, nothing
/// outside it takes part in the merges inside.
///
/// Takes time by the square of each token's length, so files with very long tokens are left to another engine.
pub(super) fn recover_merges(tokens: &[Vec<u8>], specials: &[(u32, String)]) -> Result<Vec<Merge>> {
    let byte_ids = byte_ids(tokens, specials)?;
    let steps = ordinary(tokens, specials).map(|(_, token)| (token.len() as u64).saturating_pow(2));
    if steps.fold(0, u64::saturating_add) > MOST_STEPS {
        bail!("its tokens are too long");
    }
    let mut merges = Vec::with_capacity(tokens.len().saturating_sub(256));
    let mut made = Pairs::with_capacity(tokens.len());
    let mut parts = Vec::new();
    for (id, token) in ordinary(tokens, specials).filter(|(_, token)| token.len() > 1) {
        parts.clear();
        parts.extend(token.iter().map(|byte| byte_ids[usize::from(*byte)]));
        loop {
            let pairs = parts.windows(2).enumerate();
            let first = pairs.filter_map(|(at, pair)| Some((made.get(pair[0], pair[1])?, at))).min();
            let Some((joined, at)) = first else { break };
            parts[at] = joined;
            parts.remove(at + 1);
        }
        let [left, right] = parts[..] else { bail!("token {id} is not one merge of earlier tokens") };
        let merge = Merge { left, right, id };
        made.insert(merge);
        merges.push(merge);
    }
    Ok(merges)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GPT-2's published merge list, vocab.bpe, by its BLAKE3.
    const VOCAB_BPE: &str = "0362ae9e4f1b1f4ca16fdaa6699ecac71e4096b4261197681cd7d9e7b6eff70d";

    /// The 256 bytes, then `more`.
    fn with_bytes(more: &[&str]) -> Vec<Vec<u8>> {
        (0..=255).map(|byte| vec![byte]).chain(more.iter().map(|token| token.as_bytes().to_vec())).collect()
    }

    #[test]
    fn the_file_of_gpt2_holds_the_merges_of_tiktokens_ranks() {
        let ranks = tiktoken_rs::r50k_base().unwrap();
        let tokens: Vec<Vec<u8>> = (0..50256).map(|id| ranks.decode_bytes(&[id]).unwrap()).collect();
        let mut file: Vec<u8> = tokens[..256].concat();
        for merge in recover_merges(&tokens, &[]).unwrap() {
            file.extend([merge.left, merge.right].iter().flat_map(|&id| (id as u16).to_le_bytes()));
        }
        assert!(file == GPT2);
        let gpt2 = ByteBpe::gpt2().unwrap();
        assert!(gpt2.tokens()[..50256] == tokens && gpt2.specials() == [(50256, END_OF_TEXT.to_owned())]);
    }

    #[test]
    fn the_merges_of_gpt2_are_the_published_ones() {
        let gpt2 = ByteBpe::gpt2().unwrap();
        let name = |id| gpt2.name_of(id).unwrap();
        let mut text = String::from("#version: 0.2\n");
        for merge in recover_merges(gpt2.tokens(), gpt2.specials()).unwrap() {
            text.push_str(&format!("{} {}\n", name(merge.left), name(merge.right)));
        }
        assert_eq!(blake3::hash(text.as_bytes()).to_hex().as_str(), VOCAB_BPE);
    }

    #[test]
    fn a_merge_is_the_last_step_of_its_own_token() {
        let merges = recover_merges(&with_bytes(&["bc", "ab", "abc", "aa", "aaa"]), &[]).unwrap();
        let (a, b, c) = (97, 98, 99);
        let pairs: Vec<_> = merges.iter().map(|m| (m.left, m.right)).collect();
        // "abc" is a + bc, since bc comes first; "aaa" joins its first two.
        assert_eq!(pairs, [(b, c), (a, b), (a, 256), (a, a), (259, a)]);
    }

    #[test]
    fn what_is_no_vocabulary_of_merges_is_refused() {
        let message = |tokens: Vec<Vec<u8>>| recover_merges(&tokens, &[]).unwrap_err().to_string();
        assert_eq!(message(with_bytes(&["ab", "abcd"])), "token 257 is not one merge of earlier tokens");
        assert_eq!(message(with_bytes(&["ab", "ab"])), "token 257 is not one merge of earlier tokens");
        assert_eq!(message(with_bytes(&["a"])), "byte 97 has two tokens");
        assert_eq!(message(with_bytes(&[""])), "token 256 is empty");
        let long = "ab".repeat(50_000);
        assert_eq!(message(with_bytes(&["ab", &long])), "its tokens are too long");
        assert_eq!(message((1..=255).map(|byte| vec![byte]).collect()), "a byte has no token");
    }

    #[test]
    fn the_special_token_that_comes_first_wins_then_the_longest() {
        let tokens = with_bytes(&["<s>", "<s>x", "xy"]);
        let specials = vec![(256, "<s>".to_owned()), (257, "<s>x".to_owned())];
        let bpe = ByteBpe::new(tokens, specials).unwrap();
        assert_eq!(bpe.encode("xy<s>xy<s>y<s><s>x"), [258, 257, 121, 256, 121, 256, 257]);
        assert_eq!(bpe.encode_ordinary("<s>xy"), [60, 115, 62, 258]);
    }
}
