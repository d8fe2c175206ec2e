//! Long texts for Hugging Face's crate, which needs about 160 bytes of memory for each byte of a text. They are cut into parts
//! where the encodings of the parts, joined, are that of the whole. Where the rules in the file do not guarantee that, a text
//! stays whole up to a limit, and is refused beyond it.

use std::ops::Range;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::runtime::error::{Exit, Failure, fail};
use crate::tokenizer::pretokenize::splits::KnownSplit;
use crate::tokenizer::pretokenize::{CharClass, Pretokenizer};

/// Parts are at most this long where the text can be cut.
pub(super) const PART: usize = 64 << 10;

/// Longer parts are encoded one at a time, across all threads, so that their memory does not add up.
const LARGE: usize = 1 << 20;

const LONGEST: usize = 16 << 20;

/// Bytes of memory for each byte of a part.
const MEMORY_PER_BYTE: usize = 163;

/// Where a tokenizer's texts can be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CutRule {
    /// Behind a letter or digit, before a character of another class.
    Words,
    /// Between a letter or digit and a space. The space is left out: every text begins with one.
    Spaces,
    /// Nowhere: the rules of the file are not known.
    Unknown,
}

/// Cuts the texts of one tokenizer.
pub(super) struct TextParts {
    rule: CutRule,
    /// Strings of added tokens, which must not be cut.
    added: Vec<String>,
    pretokenizer: LazyLock<Option<Pretokenizer>>,
}

/// Held while a large part is encoded; none for others.
pub(super) type Turn = Option<MutexGuard<'static, ()>>;

impl TextParts {
    /// The cuts of the `tokenizer.json` parsed as `root`.
    pub(super) fn new(root: &Value) -> Self {
        let tokens = root["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
        let added = tokens.iter().filter_map(|token| Some(token["content"].as_str()?.to_owned())).collect();
        let are_plain = tokens.iter().all(|token| {
            let reaches_out = ["single_word", "lstrip", "rstrip"].iter().any(|key| token[key] == true);
            !reaches_out && (token["normalized"] != true || root["normalizer"].is_null() || token["special"] == true)
        });
        let rule = if are_plain { cut_rule(root) } else { CutRule::Unknown };
        Self { rule, added, pretokenizer: LazyLock::new(|| Pretokenizer::new().ok()) }
    }

    /// Parts of `text` whose encodings, joined, are that of `text`.
    ///
    /// # Errors
    /// [`Exit::Data`] for a text that would take too much memory.
    pub(super) fn divide(&self, text: &str) -> Result<Vec<Range<usize>>, Failure> {
        let mut parts = Vec::new();
        let mut start = 0;
        while text.len() - start > PART {
            let Some(end) = self.cut(text, start) else { break };
            parts.push(start..end);
            start = end + usize::from(self.rule == CutRule::Spaces);
        }
        parts.push(start..text.len());
        match parts.iter().map(Range::len).max() {
            Some(length) if length > LONGEST => Err(too_long(length)),
            _ => Ok(parts),
        }
    }

    /// Waits until a part of `length` bytes may be encoded.
    pub(super) fn wait_for_turn(length: usize) -> Turn {
        static LARGE_ONES: Mutex<()> = Mutex::new(());
        (length > LARGE).then(|| LARGE_ONES.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The end of a part that begins at `start`: the last place within [`PART`], or the first beyond.
    fn cut(&self, text: &str, start: usize) -> Option<usize> {
        let pretokenizer = self.pretokenizer.as_ref().filter(|_| self.rule != CutRule::Unknown)?;
        let mut within = start + 1..start + PART + 1;
        let mut beyond = start + PART + 1..text.len();
        let last_within = within.rfind(|at| self.may_cut(pretokenizer, text, *at));
        last_within.or_else(|| beyond.find(|at| self.may_cut(pretokenizer, text, *at)))
    }

    fn may_cut(&self, pretokenizer: &Pretokenizer, text: &str, at: usize) -> bool {
        if !text.is_char_boundary(at) {
            return false;
        }
        let (before, after) = text.split_at(at);
        let mut after = after.chars();
        let (Some(left), Some(right)) = (before.chars().next_back(), after.next()) else { return false };
        let may = match self.rule {
            CutRule::Words => {
                let left = pretokenizer.class_of(left);
                let in_word = matches!(left, CharClass::Letter | CharClass::Digit);
                in_word && left != pretokenizer.class_of(right) && stands_alone(right)
            }
            CutRule::Spaces => {
                let next_is_word = after.next().is_some_and(|c| c.is_ascii_alphanumeric());
                left.is_ascii_alphanumeric() && right == ' ' && next_is_word
            }
            CutRule::Unknown => false,
        };
        may && !self.is_inside_added(text, at)
    }

    /// Whether an added token's string covers or touches the byte `at`.
    fn is_inside_added(&self, text: &str, at: usize) -> bool {
        let bytes = text.as_bytes();
        self.added.iter().map(String::as_bytes).any(|token| {
            let from = at.saturating_sub(token.len());
            let to = bytes.len().min(at + 1 + token.len());
            bytes[from..to].windows(token.len().max(1)).any(|window| window == token)
        })
    }
}

/// Whether no normalizer and no split joins `c` with the character before it: ASCII other than the apostrophe, and the
/// punctuation of languages that have no spaces.
fn stands_alone(c: char) -> bool {
    let foreign = matches!(c, '\u{3000}'..='\u{3029}' | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff1f}' | '\u{964}');
    foreign || (c.is_ascii() && c != '\'')
}

fn cut_rule(root: &Value) -> CutRule {
    let normalizer = &root["normalizer"];
    let pre = &root["pre_tokenizer"];
    if begins_with_a_space(normalizer, pre) && keeps_spaces_first(&root["model"]) {
        return CutRule::Spaces;
    }
    let steps = if pre["type"] == "Sequence" { &pre["pretokenizers"] } else { pre };
    let steps = steps.as_array().map_or(std::slice::from_ref(steps), Vec::as_slice);
    let inert = normalizer.is_null() || normalizer["type"] == "NFC";
    let known = steps.iter().all(|step| splits_words(step) || splits_no_word(step));
    if inert && known && steps.iter().any(splits_words) { CutRule::Words } else { CutRule::Unknown }
}

/// Whether a step splits by a known rule.
fn splits_words(step: &Value) -> bool {
    KnownSplit::of_step(step).is_some()
}

/// Whether a step does nothing that depends on more than one character, or on two digits.
fn splits_no_word(step: &Value) -> bool {
    step["type"] == "Digits"
        || (step["type"] == "ByteLevel" && step["use_regex"] == false && step["add_prefix_space"] == false)
}

/// Whether spaces become `▁` and every text begins with one, as in Llama 2.
fn begins_with_a_space(normalizer: &Value, pre: &Value) -> bool {
    let steps = normalizer["normalizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    match steps {
        [prepend, replace] => {
            let prepends = prepend["type"] == "Prepend" && prepend["prepend"] == "\u{2581}";
            let spaces = replace["pattern"]["String"] == " " && replace["content"] == "\u{2581}";
            pre.is_null() && prepends && replace["type"] == "Replace" && spaces
        }
        _ => {
            let prepends = pre["prepend_scheme"] == "first" || pre["prepend_scheme"] == "always";
            let metaspace = pre["type"] == "Metaspace" && pre["replacement"] == "\u{2581}";
            normalizer.is_null() && metaspace && prepends
        }
    }
}

/// Whether a BPE model merges no `▁` with a letter or digit before it, and has a token for each of these characters.
fn keeps_spaces_first(model: &Value) -> bool {
    let Some(vocab) = model["vocab"].as_object().filter(|_| model["type"] == "BPE") else { return false };
    let mut alphabet = ('0'..='9').chain('a'..='z').chain('A'..='Z').chain(['\u{2581}']);
    let joins = vocab.keys().any(|token| token.trim_start_matches('\u{2581}').contains('\u{2581}'));
    alphabet.all(|c| vocab.contains_key(c.to_string().as_str())) && !joins
}

fn too_long(length: usize) -> Failure {
    let mb = length as f64 / 1e6;
    let gb = (length * MEMORY_PER_BYTE) as f64 / 1e9;
    let what = format!(
        "a text has {mb:.1} MB with no place where this tokenizer is sure to divide it, and would take about {gb:.1} GB of memory"
    );
    fail(Exit::Data, what).hint(format!("divide such texts into documents of at most {} MiB", LONGEST >> 20))
}

#[cfg(test)]
mod tests;
