//! Raw text as a run's data: read and tokenised when the program starts, held in memory.

use super::{Dataset, boundary, groups, make_tokenizer, named_val, separator, val_rows};
use crate::config::{Config, DataConfig};
use crate::corpus::source::ReadOptions;
use crate::corpus::split::SplitRule;
use crate::corpus::{ExpandedFiles, documents, expand, left_out};
use crate::data::Tokens;
use crate::data::loader::TokenSource;
use crate::runtime::error::{Exit, fail};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::PathBuf;
use std::sync::Arc;

/// Raw text beyond this is refused: tokenise it once with `data prepare` instead of at every start.
const MAX_RAW_BYTES: u64 = 4 << 30;

pub(super) fn open(config: &Config, tokenizer: Option<Tokenizer>) -> Result<Dataset> {
    let mut notes = Vec::new();
    let TextSplit { train, held_out } = divide(config, &mut notes)?;
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer,
        None => make_tokenizer(config, train.iter().flatten().map(String::as_str))?,
    };
    let separator = separator(&tokenizer)?;
    let train = train.iter().zip(groups(config)).map(|(texts, names)| {
        let mut ids = Vec::new();
        append_encoded(&tokenizer, texts, separator, &mut ids)?;
        anyhow::Ok(TokenSource { name: names.join(" "), tokens: Tokens::Memory(Arc::new(ids)) })
    });
    let train = train.collect::<Result<Vec<_>>>()?;
    let val = if config.data.val.is_empty() {
        let mut ids = Vec::new();
        append_encoded(&tokenizer, &held_out, separator, &mut ids)?;
        // A single token has nothing before it to be predicted from.
        (ids.len() > 1).then(|| Tokens::Memory(Arc::new(ids)))
    } else {
        Some(named_val(config, &tokenizer, &mut notes)?)
    };
    let val = val.map(|tokens| val_rows(config, tokens, separator)).transpose()?;
    Ok(Dataset {
        boundary: boundary(&train, separator),
        tokenizer,
        train,
        val,
        floor: None,
        stories: None,
        conversations: None,
        base_val: None,
        notes,
    })
}

/// Where `data` says the text is in its files.
pub(super) fn read_options(data: &DataConfig) -> ReadOptions {
    ReadOptions {
        text_field: data.text_field.clone(),
        text_separator: data.text_separator.clone(),
        field_option: Some("--set data.text_field=NAME"),
    }
}

/// The documents of a run.
struct TextSplit {
    /// For each source, the documents that are trained on.
    train: Vec<Vec<String>>,
    /// Documents held out for validation.
    held_out: Vec<String>,
}

fn divide(config: &Config, notes: &mut Vec<String>) -> Result<TextSplit> {
    let data = &config.data;
    let groups = groups(config).into_iter().map(|patterns| files(patterns, notes)).collect::<Result<Vec<_>>>()?;
    let fraction = if data.val.is_empty() { data.val_fraction } else { 0.0 };
    let options = read_options(data);
    let mut rule = SplitRule::choose(&groups.concat(), &options, fraction)?;
    let mut divided = TextSplit { train: Vec::new(), held_out: Vec::new() };
    for paths in groups {
        let mut train = Vec::new();
        for document in documents(&paths, &options) {
            let text = document?.text;
            let (for_train, for_val) = rule.divide(&text);
            for (part, list) in [(for_train, &mut train), (for_val, &mut divided.held_out)] {
                if !part.is_empty() {
                    list.push(part.to_string());
                }
            }
        }
        divided.train.push(train);
    }
    Ok(divided)
}

/// The text files that `patterns` stand for, if they are small enough to be held in memory. A note about files that are
/// left out is added to `notes`.
pub(super) fn files(patterns: &[String], notes: &mut Vec<String>) -> Result<Vec<PathBuf>> {
    let ExpandedFiles { files: paths, left_out } = expand(patterns)?;
    notes.extend(left_out::note(&left_out));
    let bytes: u64 = paths.iter().filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum();
    if bytes > MAX_RAW_BYTES {
        let message = format!("the text files hold {:.1} GB, too much to tokenise at every start", bytes as f64 / 1e9);
        return Err(fail(Exit::Config, message).hint("make shards once with `data prepare` and train on them").into());
    }
    Ok(paths)
}

/// The documents of `paths` as tokens, each after a separator and one more at the end; and their UTF-8 bytes.
///
/// # Errors
/// Those of reading and encoding.
pub fn tokenize_text(tokenizer: &Tokenizer, paths: &[PathBuf], options: &ReadOptions) -> Result<(Tokens, u64)> {
    let texts = documents(paths, options).map(|d| Ok(d?.text)).collect::<Result<Vec<String>>>()?;
    let separator = separator(tokenizer)?;
    let mut ids = Vec::new();
    append_encoded(tokenizer, &texts, separator, &mut ids)?;
    ids.push(separator);
    Ok((Tokens::Memory(Arc::new(ids)), texts.iter().map(|t| t.len() as u64).sum()))
}

pub(super) fn append_encoded<S: AsRef<str>>(
    tokenizer: &Tokenizer,
    texts: &[S],
    separator: u32,
    ids: &mut Vec<u32>,
) -> Result<()> {
    let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    for document in tokenizer.encode_documents(&texts)? {
        ids.push(separator);
        ids.extend(document);
    }
    Ok(())
}
