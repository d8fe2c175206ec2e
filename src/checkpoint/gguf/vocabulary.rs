//! The tokenizer in a GGUF file: tokens and their types, merges or scores, and the ids that begin and end a text.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;

use super::header::GgufHeader;
use super::refusal;
use super::sentencepiece::{self, Scores};
use super::split_name::split_name;
use crate::runtime::error::{Exit, fail};
use crate::tokenizer::Tokenizer;

/// The format's numbers for types of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

const NOT_COMPOSED: &str =
    "llama.cpp does not compose characters as this tokenizer does (NFC): text with separate accents gets other tokens";

/// Writes the keys of `tokenizer` for a model with `rows` rows in its embedding; returns where llama.cpp gives other tokens all the same.
///
/// # Errors
/// [`Exit::Config`] if the tokenizer does what llama.cpp cannot, naming it.
pub(super) fn describe(
    header: &mut GgufHeader,
    tokenizer: &Tokenizer,
    chat_template: Option<&str>,
    rows: usize,
) -> Result<Option<&'static str>> {
    let root: Value = serde_json::from_slice(tokenizer.json())?;
    refuse_other_models(&root["model"])?;
    let (texts, types) = tokens(&root, tokenizer, rows)?;
    let remark = if root["model"]["byte_fallback"] == true {
        let Scores { scores, begins_with_space, remark } = sentencepiece::scores(&root, &texts, &types, NORMAL)?;
        header.string("tokenizer.ggml.model", "llama");
        header.string("tokenizer.ggml.pre", "default");
        header.floats("tokenizer.ggml.scores", &scores);
        header.flag("tokenizer.ggml.add_space_prefix", begins_with_space);
        if let Some(unknown) = root["model"]["unk_token"].as_str().and_then(|token| tokenizer.id_of(token)) {
            header.number("tokenizer.ggml.unknown_token_id", unknown);
        }
        remark
    } else {
        header.string("tokenizer.ggml.model", "gpt2");
        header.string("tokenizer.ggml.pre", split_name(&root)?);
        header.strings("tokenizer.ggml.merges", &merges(&root["model"])?);
        (root["normalizer"]["type"] == "NFC").then_some(NOT_COMPOSED)
    };
    header.strings("tokenizer.ggml.tokens", &texts);
    header.integers("tokenizer.ggml.token_type", &types);
    describe_special(header, tokenizer)?;
    if let Some(source) = chat_template {
        header.string("tokenizer.chat_template", source);
    }
    Ok(remark)
}

fn refuse_other_models(model: &Value) -> Result<()> {
    if model["type"] != "BPE" {
        return Err(refusal(&format!("its model is {}, and only BPE can be written", model["type"])));
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if !(model[key].is_null() || model[key] == "") {
            return Err(refusal(&format!("its model has a {key}, which llama.cpp does not have")));
        }
    }
    Ok(())
}

/// Text and type of every row of the embedding. Rows beyond the tokenizer's ids get a name, because llama.cpp counts its rows by this
/// list and refuses one that has a text twice.
fn tokens(root: &Value, tokenizer: &Tokenizer, rows: usize) -> Result<(Vec<String>, Vec<i32>)> {
    if tokenizer.vocab_size() > rows {
        let message = format!("the tokenizer has {} ids, but the model has {rows} rows", tokenizer.vocab_size());
        return Err(fail(Exit::Config, message)
            .hint("the tokenizer does not fit the model: check the directory")
            .into());
    }
    let mut named: Vec<Option<(String, i32)>> = vec![None; rows];
    let unknown = root["model"]["unk_token"].as_str();
    let falls_back = root["model"]["byte_fallback"] == true;
    for (text, id) in root["model"]["vocab"].as_object().into_iter().flatten() {
        let kind = match () {
            () if falls_back && Some(text.as_str()) == unknown => UNKNOWN,
            () if falls_back && sentencepiece::byte_of(text).is_some() => BYTE,
            () => NORMAL,
        };
        name_token(&mut named, id.as_u64(), text, kind);
    }
    for token in root["added_tokens"].as_array().into_iter().flatten() {
        let Some(text) = token["content"].as_str() else { continue };
        if let Some(rule) = ["single_word", "lstrip", "rstrip"].iter().find(|rule| token[**rule] == true) {
            return Err(refusal(&format!("its added token {text:?} has {rule} = true, which llama.cpp does not have")));
        }
        // By its text: the file's own id is not always the one that the tokenizer gives.
        let Some(id) = tokenizer.id_of(text) else { continue };
        let ends_text = tokenizer.stop_ids().contains(&id) || tokenizer.bos_id() == Some(id);
        let kind = match () {
            () if falls_back && Some(text) == unknown => UNKNOWN,
            () if token["special"] == true || ends_text => CONTROL,
            () => USER_DEFINED,
        };
        name_token(&mut named, Some(id.into()), text, kind);
    }
    let taken: BTreeSet<String> = named.iter().flatten().map(|(text, _)| text.clone()).collect();
    let named = named.into_iter().enumerate();
    Ok(named.map(|(id, token)| token.unwrap_or_else(|| (padding_name(id, &taken), UNUSED))).unzip())
}

fn name_token(named: &mut [Option<(String, i32)>], id: Option<u64>, text: &str, kind: i32) {
    if let Some(slot) = id.and_then(|id| named.get_mut(usize::try_from(id).ok()?)) {
        *slot = Some((text.to_owned(), kind));
    }
}

/// A name for the row `id`, which no text gives, in the form that llama.cpp's own converter uses.
fn padding_name(id: usize, taken: &BTreeSet<String>) -> String {
    let mut name = format!("[PAD{id}]");
    while taken.contains(&name) {
        name.push('_');
    }
    name
}

/// The merges in the order of their ranks, each with a space between its two tokens.
fn merges(model: &Value) -> Result<Vec<String>> {
    let mut written = Vec::new();
    for merge in model["merges"].as_array().into_iter().flatten() {
        let pair = match merge {
            Value::String(pair) => pair.split_once(' '),
            pair => pair[0].as_str().zip(pair[1].as_str()),
        };
        let Some((left, right)) = pair.filter(|(left, right)| !left.contains(' ') && !right.contains(' ')) else {
            return Err(refusal(&format!("its merge {merge} has a space in a token, which llama.cpp cannot read")));
        };
        written.push(format!("{left} {right}"));
    }
    Ok(written)
}

/// Writes which ids begin and end a text, and what is put around a prompt.
fn describe_special(header: &mut GgufHeader, tokenizer: &Tokenizer) -> Result<()> {
    let stops = tokenizer.stop_ids();
    let Some(&end) = stops.first() else {
        // Without the key llama.cpp would end every text at id 11 or 2, whatever that is.
        return Err(fail(Exit::Config, "the tokenizer has no end of text, which a GGUF file must name")
            .hint("name its eos_token in tokenizer_config.json")
            .into());
    };
    const KEYS: [&str; 3] = ["eos", "eot", "eom"];
    if stops.len() > KEYS.len() {
        let message = format!("{} ids end a text, and a GGUF file can name {}", stops.len(), KEYS.len());
        return Err(fail(Exit::Config, message).hint("list fewer in generation_config.json").into());
    }
    for (key, id) in KEYS.iter().zip(stops) {
        header.number(&format!("tokenizer.ggml.{key}_token_id"), *id);
    }
    // The same trap: without a beginning of text the key names the end, which is not put before a text.
    header.number("tokenizer.ggml.bos_token_id", tokenizer.bos_id().unwrap_or(end));
    if let Some(padding) = padding_id(tokenizer)? {
        header.number("tokenizer.ggml.padding_token_id", padding);
    }
    let (begins, ends) = added_around(tokenizer)?;
    header.flag("tokenizer.ggml.add_bos_token", begins);
    header.flag("tokenizer.ggml.add_eos_token", ends);
    Ok(())
}

/// Whether the tokenizer puts its beginning before a prompt and its end behind it.
fn added_around(tokenizer: &Tokenizer) -> Result<(bool, bool)> {
    // By trial, because several files may decide it.
    let bare = tokenizer.encode_rendered("a")?;
    let whole = tokenizer.encode("a")?;
    let begin = tokenizer.bos_id().into_iter().collect::<Vec<u32>>();
    let end = tokenizer.eos_id().into_iter().collect::<Vec<u32>>();
    for (begins, ends) in [(false, false), (true, false), (false, true), (true, true)] {
        let before = if begins { begin.as_slice() } else { &[] };
        let after = if ends { end.as_slice() } else { &[] };
        if whole == [before, &bare, after].concat() {
            return Ok((begins, ends));
        }
    }
    Err(refusal("it puts other tokens around a text than its beginning and its end"))
}

/// The id of `pad_token` in tokenizer_config.json.
fn padding_id(tokenizer: &Tokenizer) -> Result<Option<u32>> {
    let files = tokenizer.files(0)?;
    let Some((_, bytes)) = files.iter().find(|(name, _)| *name == "tokenizer_config.json") else { return Ok(None) };
    let config: Value = serde_json::from_slice(bytes)?;
    let token = &config["pad_token"];
    Ok(token.as_str().or(token["content"].as_str()).and_then(|token| tokenizer.id_of(token)))
}
