//! From a configuration to rows: files, records, conversations, the split, examples, rows.

use super::mask::{Encoder, Example, TrainOn};
use super::pack::PackedRows;
use super::proof::Proof;
use super::records::{Conversation, Format};
use super::template::{choose, input_mark};
use crate::config::Config;
use crate::data::chat::{ChatTemplate, Message};
use crate::data::prepare::{Found as Files, expand, left_out};
use crate::data::table;
use crate::data::tokenizer::Tokenizer;
use crate::runtime::error::{Exit, fail, note};
use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Records that are looked at to find out their format.
const SNIFFED: usize = 1000;

/// A record that nothing is learned from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bad {
    /// Its file.
    pub file: String,
    /// Its line, element or row, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub what: String,
}

/// A held-out prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Up to where the answer begins.
    pub prompt: Vec<u32>,
    /// What is asked.
    pub question: String,
}

/// The data of a fine-tuning run.
#[derive(Clone)]
pub struct Tuning {
    /// What is trained on.
    pub train: Arc<PackedRows>,
    /// Held-out examples; none if nothing is held out.
    pub val: Option<PackedRows>,
    /// What was found out about them.
    pub proof: Proof,
    /// Records that were left out.
    pub bad: Vec<Bad>,
    /// Prompts to be answered along the way.
    pub judged: Vec<Judged>,
    /// How turns are written.
    pub template: ChatTemplate,
    /// What a template writes between turns: no answer holds it.
    pub markers: Vec<String>,
    /// The tokenizer, which knows the template and the end of a turn.
    pub tokenizer: Tokenizer,
}

/// A conversation and where it came from.
struct Found {
    file: Arc<str>,
    line: u64,
    conversation: Conversation,
}

/// The data of `config`; `resumed` is the checkpoint's tokenizer, which knows the template that the run began with.
///
/// # Errors
/// Those of the files; [`Exit::Data`] if no record can be learned from.
pub fn open(config: &Config, resumed: Option<Tokenizer>) -> Result<Tuning> {
    let base = Path::new(config.sft.base.as_deref().unwrap_or_default());
    let tokenizer = resumed.clone().map_or_else(|| Tokenizer::from_dir(base), Ok)?;
    let known = resumed.as_ref().and_then(Tokenizer::chat_template);
    let (template, said) = match known {
        Some(source) => (ChatTemplate::new(source.to_owned(), &tokenizer)?, None),
        None => choose(&config.sft, base, &tokenizer)?,
    };
    let mut bad = Vec::new();
    let (format, found) = read(config, &config.data.train, None, &mut bad)?;
    let records = found.len() + bad.len();
    let (train, mut held_out) = split(found, if config.data.val.is_empty() { config.data.val_fraction } else { 0.0 });
    if !config.data.val.is_empty() {
        held_out = read(config, &config.data.val, Some(format), &mut bad)?.1;
    }
    let encoder = Encoder {
        tokenizer: &tokenizer,
        template: &template,
        train_on: TrainOn::named(&config.sft.train_on),
        longest: config.train.sequence_length + 1,
    };
    let judged = judged(config, &encoder, &held_out);
    let examples = encode(&encoder, train, &mut bad);
    let val = encode(&encoder, held_out, &mut bad);
    let mut proof = Proof::new(config, format, said, (records, bad.len()), &examples);
    let usable = |examples: Vec<Example>| -> Vec<Example> {
        examples.into_iter().filter(|example| example.trained_tokens() > 0).collect()
    };
    let (examples, val) = (usable(examples), within(usable(val), config.eval.val_tokens));
    if examples.is_empty() {
        return Err(nothing(&bad, records, &proof).into());
    }
    let filler = tokenizer.eos_id().unwrap_or(0);
    let rows =
        |examples: &[Example]| PackedRows::new(examples, config.train.sequence_length, config.sft.packing, filler);
    let (train, val) = (rows(&examples), (!val.is_empty()).then(|| rows(&val)));
    proof.packed(&train, val.as_ref(), examples);
    let tokenizer = tokenizer.for_chat(template.source(), proof.end_of_turn());
    let markers = markers(&template, &tokenizer);
    Ok(Tuning { train: Arc::new(train), val, proof, bad, judged, template, markers, tokenizer })
}

fn nothing(bad: &[Bad], records: usize, proof: &Proof) -> crate::runtime::error::Failure {
    if proof.dropped > 0 {
        let what = format!("of {} conversations nothing to train is left at {} tokens", proof.dropped, proof.length);
        return fail(Exit::Data, format!("the questions are too long: {what}"))
            .hint("raise train.sequence_length, or choose an sft.template that writes less before the question");
    }
    let first = bad.first().map_or_else(String::new, |b| format!("; the first, {}:{}: {}", b.file, b.line, b.what));
    fail(Exit::Data, format!("none of the {records} records can be learned from{first}"))
        .hint("see `llama-lite sft --help` for the formats, or name one: --set sft.format=...")
}

/// The conversations in the files of `patterns`; records without one go to `bad`.
fn read(
    config: &Config,
    patterns: &[String],
    format: Option<Format>,
    bad: &mut Vec<Bad>,
) -> Result<(Format, Vec<Found>)> {
    let Files { files: paths, left_out } = expand(patterns)?;
    left_out::note(&left_out).iter().for_each(|line| note(line));
    let mut rows = Vec::new();
    for path in &paths {
        let file: Arc<str> = path.display().to_string().into();
        rows.extend(table::rows(path)?.into_iter().map(|row| (file.clone(), row)));
    }
    let named = format.or_else(|| Format::named(&config.sft.format));
    let format = named.or_else(|| sniff(rows.iter().take(SNIFFED).filter_map(|(_, row)| row.value.as_ref().ok())));
    let Some(format) = format else {
        let fields = rows.iter().find_map(|(_, row)| row.value.as_ref().ok()?.as_object().cloned());
        let fields = fields.map_or_else(|| "none".into(), |f| f.keys().cloned().collect::<Vec<_>>().join(", "));
        let files: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        return Err(fail(
            Exit::Data,
            format!("{}: no format that is known; the first record's fields are {fields}", files.join(", ")),
        )
        .hint("records have instruction and output, or conversations, or messages, or prompt and completion")
        .into());
    };
    let mark = input_mark(&config.sft, format);
    let read: Vec<_> = rows
        .into_par_iter()
        .map(|(file, row)| (file, row.line, row.value.and_then(|value| format.read(&value, mark))))
        .collect();
    let mut found = Vec::new();
    for (file, line, conversation) in read {
        match conversation {
            Ok(conversation) => found.push(Found { file, line, conversation }),
            Err(what) => bad.push(Bad { file: file.to_string(), line, what }),
        }
    }
    Ok((format, found))
}

/// The format of most of `records`.
fn sniff<'a>(records: impl Iterator<Item = &'a serde_json::Value>) -> Option<Format> {
    let mut counts: BTreeMap<&str, (usize, Format)> = BTreeMap::new();
    for format in records.filter_map(Format::of) {
        counts.entry(format.name()).or_insert((0, format)).0 += 1;
    }
    counts.into_values().max_by_key(|(count, _)| *count).map(|(_, format)| format)
}

/// Training and held-out conversations. A hash of what is asked decides: equal questions stay together, and more data move none.
fn split(found: Vec<Found>, fraction: f64) -> (Vec<Found>, Vec<Found>) {
    let place = |f: &Found| {
        let hash = blake3::derive_key("llama-lite held-out conversations v1", f.conversation.opening().as_bytes());
        u64::from_le_bytes(hash[..8].try_into().unwrap_or_default())
    };
    if fraction == 0.0 || found.len() < 2 {
        return (found, Vec::new());
    }
    let places: Vec<u64> = found.par_iter().map(place).collect();
    let least = places.iter().min().copied().unwrap_or(0);
    // Of few conversations at least one is held out.
    let limit = ((fraction * 2f64.powi(64)) as u64).max(least.saturating_add(1));
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for (found, place) in found.into_iter().zip(places) {
        if place < limit { held_out.push(found) } else { train.push(found) }
    }
    (train, held_out)
}

fn encode(encoder: &Encoder, found: Vec<Found>, bad: &mut Vec<Bad>) -> Vec<Example> {
    let made: Vec<_> = found.par_iter().map(|found| encoder.encode(&found.conversation)).collect();
    let mut examples = Vec::with_capacity(made.len());
    for (found, made) in found.iter().zip(made) {
        match made {
            Ok(example) => examples.push(example),
            // Whatever a template does not take is a record that cannot be learned from.
            Err(error) => {
                bad.push(Bad { file: found.file.to_string(), line: found.line, what: format!("{error:#}") });
            }
        }
    }
    examples
}

/// As many of the first examples as have at most `limit` trained tokens together; at least one.
fn within(mut examples: Vec<Example>, limit: u64) -> Vec<Example> {
    let mut tokens = 0;
    let fits = examples.iter().take_while(|example| {
        tokens += example.trained_tokens() as u64;
        tokens <= limit
    });
    let count = fits.count().max(1);
    examples.truncate(count);
    examples
}

fn judged(config: &Config, encoder: &Encoder, held_out: &[Found]) -> Vec<Judged> {
    let mut judged = Vec::new();
    for found in held_out {
        if judged.len() == config.sft.judged_prompts {
            break;
        }
        // A record that the template refuses is counted elsewhere.
        let Ok(prompt) = encoder.prompt(&found.conversation) else { continue };
        if prompt.len() <= config.model.max_position_embeddings * 3 / 4 {
            judged.push(Judged { prompt, question: found.conversation.opening().to_owned() });
        }
    }
    judged
}

/// What the template writes between a question and its answer, and between that and the next question.
fn markers(template: &ChatTemplate, tokenizer: &Tokenizer) -> Vec<String> {
    let said = [("user", "QQQQ"), ("assistant", "AAAA"), ("user", "RRRR")].map(|(role, text)| Message::new(role, text));
    let Ok(text) = template.render(&said, false) else { return Vec::new() };
    let between = |a: &str, b: &str| Some(text.split_once(a)?.1.split_once(b)?.0.to_owned());
    let name = |id: Option<u32>| id.and_then(|id| tokenizer.decode(&[id], false).ok()).unwrap_or_default();
    let special: Vec<String> = [tokenizer.bos_id(), tokenizer.eos_id()].map(name).into();
    let mut markers = Vec::new();
    for piece in [between("QQQQ", "AAAA"), between("AAAA", "RRRR")].into_iter().flatten() {
        let bare = special.iter().filter(|s| !s.is_empty()).fold(piece, |piece, special| piece.replace(special, ""));
        if !bare.trim().is_empty() {
            markers.push(bare.trim().to_owned());
        }
    }
    markers
}
