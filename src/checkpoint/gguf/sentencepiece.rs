//! Tokenizers converted from SentencePiece: BPE over characters, with a token for each byte that the vocabulary has no character for.
//!
//! Hugging Face's files rank pairs of tokens; llama.cpp gives each token a score and merges any two neighbours whose text is a token,
//! the best score first. The two agree if the ranks come from scores, which is tested here and not assumed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::Value;

use super::refusal;

/// What a space is written as.
const SPACE: &str = "\u{2581}";

pub(super) struct Scores {
    /// The score of every token.
    pub(super) scores: Vec<f32>,
    /// Whether every text begins with a space.
    pub(super) begins_with_space: bool,
    /// Where llama.cpp gives other tokens all the same.
    pub(super) remark: Option<&'static str>,
}

/// Whether a space is put before a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begins {
    Never,
    /// Before the text, but not behind a special token in it.
    First,
    Always,
}

/// How a file treats spaces.
#[derive(Clone, Copy)]
struct Spaces {
    begins: Begins,
    /// Whether no token may have a space behind its first character.
    split: bool,
}

/// The byte that the token `<0x0A>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

/// The scores by which llama.cpp makes the tokens that the `tokenizer.json` parsed as `root` makes. `texts` and `types` are those of
/// all tokens; those of the type `normal` can be merged.
///
/// # Errors
/// [`Exit::Config`](crate::runtime::error::Exit::Config) if there are no such scores.
pub(super) fn scores(root: &Value, texts: &[String], types: &[i32], normal: i32) -> Result<Scores> {
    let spaces = spaces(root)?;
    let bytes: BTreeSet<u8> = texts.iter().filter_map(|text| byte_of(text)).collect();
    if bytes.len() < 256 {
        return Err(refusal("it lacks tokens for some bytes, which llama.cpp needs"));
    }
    let merges = merges(&root["model"])?;
    let ranks = ranks(&merges)?;
    let words: BTreeSet<&str> =
        texts.iter().zip(types).filter(|(_, kind)| **kind == normal).map(|(t, _)| t.as_str()).collect();
    refuse_unlisted_pairs(&words, &merges)?;
    if let Some(token) = ranks.keys().find(|token| spaces.split && token.trim_start_matches(SPACE).contains(SPACE)) {
        return Err(refusal(&format!("it merges {token:?}, but splits texts at spaces")));
    }
    // What no pair makes comes last.
    let ranks_of_all = texts.iter().map(|text| ranks.get(text).copied().unwrap_or(merges.len()));
    let scores = ranks_of_all.map(|rank| -(rank as f32)).collect();
    let remark = (spaces.begins == Begins::First).then_some(
        "behind a special token inside a text llama.cpp adds a space, and this tokenizer does not: some chat prompts get another token",
    );
    let begins_with_space = spaces.begins != Begins::Never;
    Ok(Scores { scores, begins_with_space, remark })
}

fn merges(model: &Value) -> Result<Vec<(&str, &str)>> {
    let listed = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pairs = listed.iter().map(|merge| match merge {
        Value::String(pair) => pair.split_once(' '),
        pair => pair[0].as_str().zip(pair[1].as_str()),
    });
    pairs.collect::<Option<_>>().ok_or_else(|| refusal("its merges are no pairs of tokens"))
}

/// The rank of every token that is merged: that of its first pair. All pairs of one token must stand together.
fn ranks(merges: &[(&str, &str)]) -> Result<BTreeMap<String, usize>> {
    let mut ranks = BTreeMap::new();
    let mut current = String::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        let merged = format!("{left}{right}");
        if merged != current && ranks.insert(merged.clone(), rank).is_some() {
            return Err(refusal(&format!("its pairs for {merged:?} have ranks apart, so that no score says the same")));
        }
        current = merged;
    }
    Ok(ranks)
}

/// llama.cpp would also merge two tokens that the file does not list as a pair.
fn refuse_unlisted_pairs(words: &BTreeSet<&str>, merges: &[(&str, &str)]) -> Result<()> {
    let listed: BTreeSet<(&str, &str)> = merges.iter().copied().collect();
    for word in words {
        for (at, _) in word.char_indices().skip(1) {
            let (left, right) = word.split_at(at);
            if words.contains(left) && words.contains(right) && !listed.contains(&(left, right)) {
                return Err(refusal(&format!("it does not merge {left:?} and {right:?}, which llama.cpp would")));
            }
        }
    }
    Ok(())
}

/// How the file treats spaces, if llama.cpp can do the same.
fn spaces(root: &Value) -> Result<Spaces> {
    let normalizer = &root["normalizer"];
    let pre = &root["pre_tokenizer"];
    let steps = normalizer["normalizers"].as_array().map_or(std::slice::from_ref(normalizer), Vec::as_slice);
    match steps {
        [prepend, replace] if pre.is_null() && prepends_space(prepend) && replaces_spaces(replace) => {
            return Ok(Spaces { begins: Begins::Always, split: false });
        }
        [replace] if pre.is_null() && replaces_spaces(replace) => {
            return Ok(Spaces { begins: Begins::Never, split: false });
        }
        [nothing] if nothing.is_null() && pre["type"] == "Metaspace" && pre["replacement"] == SPACE => {
            let begins = match pre["prepend_scheme"].as_str() {
                Some("first") => Begins::First,
                Some("never") => Begins::Never,
                // Older files.
                None if pre["add_prefix_space"] == false => Begins::Never,
                _ => Begins::Always,
            };
            return Ok(Spaces { begins, split: pre["split"] != false });
        }
        _ => {}
    }
    Err(refusal("it treats spaces as llama.cpp cannot: see its normalizer and pre_tokenizer"))
}

fn prepends_space(step: &Value) -> bool {
    step["type"] == "Prepend" && step["prepend"] == SPACE
}

fn replaces_spaces(step: &Value) -> bool {
    step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE
}
