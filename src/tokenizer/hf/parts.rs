//! Long texts for Hugging Face's crate, which takes about 160 bytes of memory for each byte of a text: they are cut into parts
//! where the encoding of the whole is that of the parts one after the other. Where the file's own rules do not prove that, a
//! text stays whole up to a limit, and is refused beyond it.

use std::ops::Range;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::runtime::error::{Exit, Failure, fail};
use crate::tokenizer::pretokenize::{Class, Words};

/// Parts are at most this long where the text can be cut.
pub(super) const PART: usize = 64 << 10;

/// Parts beyond this are encoded one at a time, on whatever thread, so that their memory does not add up.
const LARGE: usize = 1 << 20;

const LONGEST: usize = 16 << 20;

/// Bytes of memory for each byte of a part.
const MEMORY_PER_BYTE: usize = 163;

/// GPT-2's split, which a ByteLevel step makes by itself.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Splits of which no match holds a letter or digit with a character of another class behind it (but an apostrophe or a mark),
/// and of which no match depends on what stands before it: of GPT-2; GPT-4 and Llama 3; Qwen 2; GPT-4o; Mistral Nemo.
static KNOWN: LazyLock<[String; 5]> = LazyLock::new(|| {
    let contraction = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
    let gpt4 = |digits: &str| {
        format!(
            r"{contraction}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    let gpt4o = |suffix: &str, digits: &str| {
        let upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]";
        let lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]";
        let before = r"[^\r\n\p{L}\p{N}]?";
        format!(
            r"{before}{upper}*{lower}+{suffix}|{before}{upper}+{lower}*{suffix}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    [
        GPT2.to_owned(),
        gpt4(r"\p{N}{1,3}"),
        gpt4(r"\p{N}"),
        gpt4o(&format!("{contraction}?"), r"\p{N}{1,3}"),
        gpt4o("", r"\p{N}"),
    ]
});

/// How a tokenizer's texts can be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// Behind a letter or digit, before a character of another class.
    Words,
    /// Between a letter or digit and a space. The space is left out: every text begins with one.
    Spaces,
    Unknown,
}

/// Cuts the texts of one tokenizer.
pub(super) struct Parts {
    form: Form,
    /// Strings that must not be cut.
    added: Vec<String>,
    words: LazyLock<Option<Words>>,
}

/// The right to encode a part; large ones wait for each other.
pub(super) type Turn = Option<MutexGuard<'static, ()>>;

impl Parts {
    /// The cuts of the `tokenizer.json` parsed as `root`.
    pub(super) fn new(root: &Value) -> Self {
        let tokens = root["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
        let added = tokens.iter().filter_map(|token| Some(token["content"].as_str()?.to_owned())).collect();
        let plain = |token: &Value| {
            let reaches_out = ["single_word", "lstrip", "rstrip"].iter().any(|key| token[key] == true);
            !reaches_out && (token["normalized"] != true || root["normalizer"].is_null() || token["special"] == true)
        };
        let form = if tokens.iter().all(plain) { form(root) } else { Form::Unknown };
        Self { form, added, words: LazyLock::new(|| Words::new().ok()) }
    }

    /// Parts of `text` whose encodings, one after the other, are that of `text`.
    ///
    /// # Errors
    /// [`Exit::Data`] for a text that would take too much memory.
    pub(super) fn of(&self, text: &str) -> Result<Vec<Range<usize>>, Failure> {
        let mut parts = Vec::new();
        let mut start = 0;
        while text.len() - start > PART {
            let Some(end) = self.cut(text, start) else { break };
            parts.push(start..end);
            start = end + usize::from(self.form == Form::Spaces);
        }
        parts.push(start..text.len());
        match parts.iter().map(Range::len).max() {
            Some(length) if length > LONGEST => Err(too_long(length)),
            _ => Ok(parts),
        }
    }

    /// Waits until a part of `length` bytes may be encoded.
    pub(super) fn turn(length: usize) -> Turn {
        static LARGE_ONES: Mutex<()> = Mutex::new(());
        (length > LARGE).then(|| LARGE_ONES.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The end of a part that begins at `start`: the last place within [`PART`], or the first beyond.
    fn cut(&self, text: &str, start: usize) -> Option<usize> {
        let words = self.words.as_ref().filter(|_| self.form != Form::Unknown)?;
        let here = |at: &usize| self.may_cut(words, text, *at);
        let within = start + 1..start + PART + 1;
        let beyond = start + PART + 1..text.len();
        within.rev().find(here).or_else(|| beyond.into_iter().find(here))
    }

    fn may_cut(&self, words: &Words, text: &str, at: usize) -> bool {
        if !text.is_char_boundary(at) {
            return false;
        }
        let (before, after) = text.split_at(at);
        let mut after = after.chars();
        let (Some(left), Some(right)) = (before.chars().next_back(), after.next()) else { return false };
        let class = |c: char| words.class_of(c);
        let may = match self.form {
            Form::Words => {
                let in_word = matches!(class(left), Class::Letter | Class::Digit);
                in_word && class(left) != class(right) && stands_alone(right)
            }
            Form::Spaces => {
                let next_is_word = after.next().is_some_and(|c| c.is_ascii_alphanumeric());
                left.is_ascii_alphanumeric() && right == ' ' && next_is_word
            }
            Form::Unknown => false,
        };
        may && !self.is_inside_added(text, at)
    }

    /// Whether an added token's string lies over the place or touches it.
    fn is_inside_added(&self, text: &str, at: usize) -> bool {
        let bytes = text.as_bytes();
        self.added.iter().map(String::as_bytes).any(|token| {
            let from = at.saturating_sub(token.len());
            let to = bytes.len().min(at + 1 + token.len());
            bytes[from..to].windows(token.len().max(1)).any(|window| window == token)
        })
    }
}

/// Whether no normalizer joins `c` with what stands before it, nor any split: ASCII but the apostrophe, and the punctuation of
/// languages that have no spaces.
fn stands_alone(c: char) -> bool {
    let foreign = matches!(c, '\u{3000}'..='\u{3029}' | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff1f}' | '\u{964}');
    foreign || (c.is_ascii() && c != '\'')
}

fn form(root: &Value) -> Form {
    let normalizer = &root["normalizer"];
    let pre = &root["pre_tokenizer"];
    if begins_with_a_space(normalizer, pre) && keeps_spaces_first(&root["model"]) {
        return Form::Spaces;
    }
    let steps = if pre["type"] == "Sequence" { &pre["pretokenizers"] } else { pre };
    let steps = steps.as_array().map_or(std::slice::from_ref(steps), Vec::as_slice);
    let inert = normalizer.is_null() || normalizer["type"] == "NFC";
    let known = steps.iter().all(|step| splits_words(step) || splits_no_word(step));
    if inert && known && steps.iter().any(splits_words) { Form::Words } else { Form::Unknown }
}

/// Whether a step splits by a known rule.
fn splits_words(step: &Value) -> bool {
    let whole = (step["behavior"] == "Isolated" && step["invert"] == false)
        || (step["behavior"] == "Removed" && step["invert"] == true);
    let known = step["pattern"]["Regex"].as_str().is_some_and(|regex| KNOWN.iter().any(|known| known == regex));
    let byte_level = step["type"] == "ByteLevel" && step["use_regex"] != false && step["add_prefix_space"] == false;
    byte_level || (step["type"] == "Split" && whole && known)
}

/// Whether a step does nothing that depends on more than one character, or on two digits.
fn splits_no_word(step: &Value) -> bool {
    step["type"] == "Digits"
        || (step["type"] == "ByteLevel" && step["use_regex"] == false && step["add_prefix_space"] == false)
}

/// Whether spaces become `▁` and every text begins with one, as in Llama 2.
fn begins_with_a_space(normalizer: &Value, pre: &Value) -> bool {
    let steps = normalizer["normalizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let legacy = |prepend: &Value, replace: &Value| {
        let prepends = prepend["type"] == "Prepend" && prepend["prepend"] == "\u{2581}";
        let spaces = replace["pattern"]["String"] == " " && replace["content"] == "\u{2581}";
        prepends && replace["type"] == "Replace" && spaces
    };
    match steps {
        [prepend, replace] => pre.is_null() && legacy(prepend, replace),
        _ => {
            let prepends = pre["prepend_scheme"] == "first" || pre["prepend_scheme"] == "always";
            let metaspace = pre["type"] == "Metaspace" && pre["replacement"] == "\u{2581}";
            normalizer.is_null() && metaspace && prepends
        }
    }
}

/// Whether a BPE model joins no `▁` to a letter or digit before it, all of which it knows.
fn keeps_spaces_first(model: &Value) -> bool {
    let Some(vocab) = model["vocab"].as_object().filter(|_| model["type"] == "BPE") else { return false };
    let joins = |token: &String| {
        let mut chars = token.chars().skip_while(|c| *c == '\u{2581}');
        chars.any(|c| c == '\u{2581}')
    };
    let alphabet = ('0'..='9').chain('a'..='z').chain('A'..='Z').chain(['\u{2581}']);
    alphabet.into_iter().all(|c| vocab.contains_key(c.to_string().as_str())) && !vocab.keys().any(joins)
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
