//! From a configuration to rows: files, records, conversations, the split, examples, rows.

use super::load::{Bad, Found, Made, Tally};
use super::mask::Encoder;
use super::records::RecordReader;
use super::split::split;
use super::template::choose;
use crate::chat::{ChatTemplate, Message};
use crate::config::Config;
use crate::data::packed_rows::Example;
use crate::data::packed_rows::PackedRows;
use crate::sft::mask_report::MaskReport;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::path::Path;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Up to where the answer begins.
    pub prompt: Vec<u32>,
    pub question: String,
}

/// The data of a fine-tuning run.
#[derive(Clone)]
pub struct SftData {
    pub train: Arc<PackedRows>,
    /// Held-out examples; none if nothing is held out.
    pub val: Option<PackedRows>,
    /// What was found out about them.
    pub proof: MaskReport,
    /// Records that were left out.
    pub bad: Vec<Bad>,
    /// Prompts to be answered along the way.
    pub judged: Vec<Judged>,
    pub template: ChatTemplate,
    /// What a template writes between turns: no answer holds it.
    pub markers: Vec<String>,
    /// The tokenizer, which knows the template and the end of a turn.
    pub tokenizer: Tokenizer,
}

/// The data of `config`; `resumed` is the checkpoint's tokenizer, which knows the template that the run began with.
///
/// # Errors
/// Those of the files; [`Exit::Data`] if no record can be learned from.
pub fn open(config: &Config, resumed: Option<Tokenizer>) -> Result<SftData> {
    let base = Path::new(config.sft.base.as_deref().unwrap_or_default());
    let tokenizer = resumed.clone().map_or_else(|| Tokenizer::from_dir(base), Ok)?;
    let known = resumed.as_ref().and_then(Tokenizer::chat_template);
    let (template, said) = match known {
        Some(source) => (ChatTemplate::new(source.to_owned(), &tokenizer)?, None),
        None => choose(&config.sft, base, &tokenizer)?,
    };
    let reader = RecordReader::new(&config.sft);
    let mut tally = Tally::default();
    let found = tally.load(&reader, &config.data.train)?;
    let named = !config.data.val.is_empty();
    let mut split = split(found, if named { 0.0 } else { config.data.val_fraction });
    if named {
        split.held_out = tally.load(&reader, &config.data.val)?;
    }
    let encoder = Encoder {
        tokenizer: &tokenizer,
        template: &template,
        train_on: config.sft.train_on,
        longest: config.train.sequence_length + 1,
    };
    let judged = judged(config, &encoder, &split.held_out);
    let examples = tally.encode(&encoder, split.train);
    let val = tally.encode(&encoder, split.held_out);
    let said = said.into_iter().chain(split.said).collect();
    let mut proof = MaskReport::new(config, said, &tally, &examples, tokenizer.eos_id().is_some());
    let usable = |examples: Vec<Made>| -> Vec<Example> {
        examples.into_iter().map(|made| made.example).filter(|example| example.trained_tokens() > 0).collect()
    };
    let examples = usable(examples);
    let val = within(usable(val), config.eval.val_tokens);
    if examples.is_empty() {
        return Err(proof.nothing().into());
    }
    let filler = tokenizer.eos_id().unwrap_or(0);
    let rows =
        |examples: &[Example]| PackedRows::new(examples, config.train.sequence_length, config.sft.packing, filler);
    let train = rows(&examples);
    let val = (!val.is_empty()).then(|| rows(&val));
    proof.packed(&train, val.as_ref(), examples);
    let tokenizer = tokenizer.for_chat(template.source(), proof.end_of_turn());
    let markers = markers(&template, &tokenizer);
    Ok(SftData { train: Arc::new(train), val, proof, bad: tally.bad, judged, template, markers, tokenizer })
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
