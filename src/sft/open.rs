//! From a configuration to rows: files, records, conversations, the split, examples, rows.

use super::load::{BadRecord, EncodedExample, LoadedConversation, Tally};
use super::mask::MaskEncoder;
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

/// A held-out question that the model answers during the run, to see how it learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalPrompt {
    /// Ids up to where the answer begins.
    pub prompt: Vec<u32>,
    pub question: String,
}

/// The data of a fine-tuning run.
#[derive(Clone)]
pub struct SftData {
    pub train: Arc<PackedRows>,
    /// Held-out examples; none if nothing is held out.
    pub val: Option<PackedRows>,
    pub mask_report: MaskReport,
    /// Records that are left out.
    pub bad: Vec<BadRecord>,
    pub eval_prompts: Vec<EvalPrompt>,
    pub template: ChatTemplate,
    /// What the template writes between turns: a good answer does not contain it.
    pub markers: Vec<String>,
    /// The tokenizer of the base model, with the template and the end of a turn added.
    pub tokenizer: Tokenizer,
}

/// The data of `config`; `resumed` is the checkpoint's tokenizer, which holds the template that the run started with.
///
/// # Errors
/// Those of the files; [`Exit::Data`] if no record can be trained on.
pub fn open(config: &Config, resumed: Option<Tokenizer>) -> Result<SftData> {
    let base = Path::new(config.sft.base.as_deref().unwrap_or_default());
    let (tokenizer, new_tokens_note) = match &resumed {
        // It has the new tokens already.
        Some(tokenizer) => (tokenizer.clone(), None),
        None => with_new_tokens(&Tokenizer::from_dir(base)?, &config.sft.new_tokens)?,
    };
    let (template, template_note) = match resumed.as_ref().and_then(Tokenizer::chat_template) {
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
    let encoder = MaskEncoder {
        tokenizer: &tokenizer,
        template: &template,
        train_on: config.sft.train_on,
        // One more id than a row has positions: the last one is only predicted.
        longest: config.train.sequence_length + 1,
    };
    let eval_prompts = eval_prompts(config, &encoder, &split.held_out);
    let examples = tally.encode(&encoder, split.train);
    let val = tally.encode(&encoder, split.held_out);
    let notes = new_tokens_note.into_iter().chain(template_note).chain(split.note).collect();
    let mut mask_report = MaskReport::new(config, notes, &tally, &examples, tokenizer.eos_id().is_some());
    let examples = with_trained_tokens(examples);
    let val = limit_tokens(with_trained_tokens(val), config.eval.val_tokens);
    if examples.is_empty() {
        return Err(mask_report.no_examples().into());
    }
    let length = config.train.sequence_length;
    let packing = config.sft.packing;
    // Any id would do: filler is neither trained nor seen by an example.
    let filler = tokenizer.eos_id().unwrap_or(0);
    let train = PackedRows::new(&examples, length, packing, filler);
    let val = (!val.is_empty()).then(|| PackedRows::new(&val, length, packing, filler));
    mask_report.add_packed(&train, val.as_ref(), examples);
    let tokenizer = tokenizer.for_chat(template.source(), mask_report.end_of_turn());
    let markers = markers(&template, &tokenizer);
    Ok(SftData { train: Arc::new(train), val, mask_report, bad: tally.bad, eval_prompts, template, markers, tokenizer })
}

/// `base` with `tokens`, and a note that says which of them are new.
fn with_new_tokens(base: &Tokenizer, tokens: &[String]) -> Result<(Tokenizer, Option<String>)> {
    let tokenizer = base.with_new_tokens(tokens)?;
    let described = tokens.iter().filter_map(|token| {
        let id = tokenizer.id_of(token)?;
        Some(match base.id_of(token) {
            None => format!("{token} is new (id {id})"),
            Some(_) if base.is_special(id) => format!("{token} is there already (id {id})"),
            Some(_) => format!("{token} is there already, as a token of ordinary text (id {id})"),
        })
    });
    let described: Vec<String> = described.collect();
    let note = (!described.is_empty()).then(|| format!("note: sft.new_tokens: {}", described.join(", ")));
    Ok((tokenizer, note))
}

fn with_trained_tokens(examples: Vec<EncodedExample>) -> Vec<Example> {
    examples.into_iter().map(|made| made.example).filter(|example| example.trained_tokens() > 0).collect()
}

/// As many of the first examples as have at most `limit` trained tokens together; at least one.
fn limit_tokens(mut examples: Vec<Example>, limit: u64) -> Vec<Example> {
    let mut tokens = 0;
    let fits = examples.iter().take_while(|example| {
        tokens += example.trained_tokens() as u64;
        tokens <= limit
    });
    let count = fits.count().max(1);
    examples.truncate(count);
    examples
}

fn eval_prompts(config: &Config, encoder: &MaskEncoder, held_out: &[LoadedConversation]) -> Vec<EvalPrompt> {
    let mut prompts = Vec::new();
    for found in held_out {
        if prompts.len() == config.sft.judged_prompts {
            break;
        }
        // A record that the template refuses is counted by `Tally::encode`.
        let Ok(prompt) = encoder.prompt(&found.conversation) else { continue };
        // Leaves at least a quarter of the context for the answer.
        if prompt.len() <= config.model.max_position_embeddings * 3 / 4 {
            prompts.push(EvalPrompt { prompt, question: found.conversation.opening().to_owned() });
        }
    }
    prompts
}

/// What the template writes between a question and its answer, and between that and the next question.
fn markers(template: &ChatTemplate, tokenizer: &Tokenizer) -> Vec<String> {
    fn between(text: &str, a: &str, b: &str) -> Option<String> {
        Some(text.split_once(a)?.1.split_once(b)?.0.to_owned())
    }
    // Texts that no template contains.
    let turns =
        [("user", "QQQQ"), ("assistant", "AAAA"), ("user", "RRRR")].map(|(role, text)| Message::new(role, text));
    let Ok(text) = template.render(&turns, false) else { return Vec::new() };
    let special = [tokenizer.bos_id(), tokenizer.eos_id()].into_iter().flatten();
    let special: Vec<String> = special.filter_map(|id| tokenizer.decode(&[id], false).ok()).collect();
    let mut markers = Vec::new();
    for piece in [between(&text, "QQQQ", "AAAA"), between(&text, "AAAA", "RRRR")].into_iter().flatten() {
        let bare = special.iter().filter(|s| !s.is_empty()).fold(piece, |piece, special| piece.replace(special, ""));
        if !bare.trim().is_empty() {
            markers.push(bare.trim().to_owned());
        }
    }
    markers
}
