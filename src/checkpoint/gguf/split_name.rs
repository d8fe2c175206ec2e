//! Which of the splits that llama.cpp knows by name a byte-level tokenizer makes. The name is chosen by what `tokenizer.json` says,
//! never by what the model is called, because a wrong split gives wrong tokens without any error.

use anyhow::Result;
use serde_json::Value;

use super::refusal;
use crate::runtime::format::shortened;
use crate::tokenizer::pretokenize::splits::KnownSplit;

/// What llama.cpp does under a name of `tokenizer.ggml.pre`.
struct NamedSplit {
    /// Whether every digit is cut off first.
    digits: bool,
    split: KnownSplit,
    /// Whether a word that is a token is that token, whatever the merges would make of it.
    ignores_merges: bool,
    name: &'static str,
}

const NAMES: [NamedSplit; 7] = [
    NamedSplit { digits: false, split: KnownSplit::Gpt2, ignores_merges: false, name: "gpt-2" },
    NamedSplit { digits: true, split: KnownSplit::Gpt2, ignores_merges: false, name: "smollm" },
    NamedSplit { digits: false, split: KnownSplit::Gpt4, ignores_merges: true, name: "llama-bpe" },
    NamedSplit { digits: false, split: KnownSplit::Gpt4, ignores_merges: false, name: "dbrx" },
    NamedSplit { digits: false, split: KnownSplit::Qwen2, ignores_merges: false, name: "qwen2" },
    NamedSplit { digits: false, split: KnownSplit::Gpt4o, ignores_merges: false, name: "gpt-4o" },
    NamedSplit { digits: false, split: KnownSplit::MistralNemo, ignores_merges: true, name: "tekken" },
];

/// llama.cpp's name of the split that the `tokenizer.json` parsed as `root` makes.
///
/// # Errors
/// [`Exit::Config`](crate::runtime::error::Exit::Config), naming the step, if llama.cpp has none.
pub(super) fn split_name(root: &Value) -> Result<&'static str> {
    let normalizer = &root["normalizer"];
    // The caller remarks on NFC: llama.cpp does not compose characters, but text nearly always is composed already.
    if !(normalizer.is_null() || normalizer["type"] == "NFC") {
        return Err(refusal(&format!("its normalizer {} is none that llama.cpp has", shown(normalizer))));
    }
    let pre = &root["pre_tokenizer"];
    let steps = if pre["type"] == "Sequence" { &pre["pretokenizers"] } else { pre };
    let steps = steps.as_array().map_or(std::slice::from_ref(steps), Vec::as_slice);
    let mut digits = false;
    let mut split = None;
    for step in steps {
        let known = KnownSplit::of_step(step);
        if split.is_none() && known.is_some() {
            split = known;
        } else if split.is_none() && step["type"] == "Digits" && step["individual_digits"] == true {
            digits = true;
        } else if !only_maps_bytes(step) {
            return Err(refusal(&format!(
                "its pre_tokenizer has the step {}, which llama.cpp does not have",
                shown(step)
            )));
        }
    }
    let maps_bytes = steps.last().is_some_and(|step| step["type"] == "ByteLevel");
    let ignores_merges = root["model"]["ignore_merges"] == true;
    let named = NAMES.iter().find(|named| {
        maps_bytes && named.digits == digits && Some(named.split) == split && named.ignores_merges == ignores_merges
    });
    named.map(|named| named.name).ok_or_else(|| {
        let with = if ignores_merges { "with" } else { "without" };
        refusal(&format!("llama.cpp has no name for its pre_tokenizer {} {with} ignore_merges", shown(pre)))
    })
}

/// Whether a step writes bytes as letters, and splits nothing.
fn only_maps_bytes(step: &Value) -> bool {
    step["type"] == "ByteLevel" && step["use_regex"] == false && step["add_prefix_space"] == false
}

/// A part of a `tokenizer.json` for a message of one line.
fn shown(part: &Value) -> String {
    shortened(&part.to_string(), 120)
}
