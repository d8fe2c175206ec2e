//! The splits of text into words that are known by their regular expressions, which `tokenizer.json` files repeat to the letter.

use std::sync::LazyLock;

use serde_json::Value;

/// GPT-2's split, which a ByteLevel step makes by itself.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const CONTRACTION: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";

/// Splits in which no match contains a letter or digit followed by a character of another class (other than an apostrophe or
/// a mark), and no match depends on what stands before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KnownSplit {
    Gpt2,
    /// The split of GPT-4, which Llama 3 has as well.
    Gpt4,
    Qwen2,
    Gpt4o,
    MistralNemo,
}

static REGEXES: LazyLock<[(KnownSplit, String); 5]> = LazyLock::new(|| {
    [
        (KnownSplit::Gpt2, GPT2.to_owned()),
        (KnownSplit::Gpt4, gpt4(r"\p{N}{1,3}")),
        (KnownSplit::Qwen2, gpt4(r"\p{N}")),
        (KnownSplit::Gpt4o, gpt4o(&format!("{CONTRACTION}?"), r"\p{N}{1,3}")),
        (KnownSplit::MistralNemo, gpt4o("", r"\p{N}")),
    ]
});

impl KnownSplit {
    /// The split that a step of a `pre_tokenizer` makes, if it keeps all of the text and the split is known.
    pub(crate) fn of_step(step: &Value) -> Option<Self> {
        if step["type"] == "ByteLevel" {
            let splits = step["use_regex"] != false && step["add_prefix_space"] == false;
            return splits.then_some(Self::Gpt2);
        }
        let whole = (step["behavior"] == "Isolated" && step["invert"] == false)
            || (step["behavior"] == "Removed" && step["invert"] == true);
        let regex = step["pattern"]["Regex"].as_str().filter(|_| whole && step["type"] == "Split")?;
        REGEXES.iter().find(|(_, known)| known == regex).map(|(split, _)| *split)
    }

    #[cfg(test)]
    pub(crate) fn regex(self) -> &'static str {
        REGEXES.iter().find(|(split, _)| *split == self).map_or("", |(_, regex)| regex)
    }
}

/// GPT-4's split, with `digits` for numbers.
fn gpt4(digits: &str) -> String {
    format!(
        r"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// GPT-4o's split, with `suffix` behind a word and `digits` for numbers.
fn gpt4o(suffix: &str, digits: &str) -> String {
    let upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]";
    let lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]";
    let before = r"[^\r\n\p{L}\p{N}]?";
    format!(
        r"{before}{upper}*{lower}+{suffix}|{before}{upper}+{lower}*{suffix}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}
