//! A first pass over the start of the corpus, to choose its validation split.

use anyhow::Result;

use crate::corpus::options::{Encode, Inputs, PrepareOptions};
use crate::corpus::shards::manifest::ValSplit;
use crate::corpus::source::{Content, Reader};
use crate::corpus::split::SplitRule;
use crate::runtime::error::{Exit, fail};

/// Text encoded to estimate how many tokens the corpus has.
const SAMPLE_BYTES: usize = 4 << 20;

/// The rule that makes the validation split asked for. Depends on the options and the corpus alone.
pub(super) fn choose_rule(opts: &PrepareOptions, inputs: &Inputs, tok: &dyn Encode) -> Result<SplitRule> {
    let fraction = match opts.val {
        ValSplit::None => return Ok(SplitRule::None),
        ValSplit::FirstShard => return Ok(SplitRule::FirstShard),
        ValSplit::Fraction(fraction) => fraction,
        ValSplit::Tokens(tokens) => {
            let total = estimate_tokens(opts, inputs, tok)?;
            if tokens as f64 > total / 2.0 {
                let message =
                    format!("a validation split of {tokens} tokens is more than half of the corpus (about {total:.0})");
                return Err(fail(Exit::Config, message).hint("ask for fewer, or for a fraction").into());
            }
            tokens as f64 / total
        }
    };
    SplitRule::choose_for_texts(Texts::new(opts, inputs), fraction, opts.dedup)
}

/// Tokens of the corpus, were all of it like its beginning.
fn estimate_tokens(opts: &PrepareOptions, inputs: &Inputs, tok: &dyn Encode) -> Result<f64> {
    let mut texts = Texts::new(opts, inputs);
    let mut tokens = 0u64;
    let mut bytes = 0;
    let mut whole = true;
    for text in texts.by_ref() {
        let text = text?;
        tokens += tok.encode_ordinary_batch(&[&text])?.iter().map(|ids| ids.len() as u64 + 1).sum::<u64>();
        bytes += text.len();
        if bytes >= SAMPLE_BYTES {
            whole = false;
            break;
        }
    }
    let total: u64 = inputs.list.iter().map(|input| input.bytes).sum();
    let scale = if whole { 1.0 } else { total as f64 / texts.bytes_read().max(1) as f64 };
    Ok(tokens as f64 * scale.max(1.0))
}

/// The texts of the corpus that are long enough, from its start. Bad records are skipped.
struct Texts<'a> {
    opts: &'a PrepareOptions,
    inputs: &'a Inputs,
    /// The file to be opened next.
    file: usize,
    reader: Option<Reader>,
    /// Bytes of the files before the open one.
    before: u64,
}

impl<'a> Texts<'a> {
    fn new(opts: &'a PrepareOptions, inputs: &'a Inputs) -> Self {
        Self { opts, inputs, file: 0, reader: None, before: 0 }
    }

    fn bytes_read(&self) -> u64 {
        self.before + self.reader.as_ref().map_or(0, Reader::file_bytes)
    }

    fn next_text(&mut self) -> Result<Option<String>> {
        loop {
            let Some(reader) = &mut self.reader else {
                if self.file == self.inputs.list.len() {
                    return Ok(None);
                }
                let path = (self.inputs.fetch)(self.file)?;
                self.reader = Some(Reader::open(&path, &self.opts.read, Default::default())?);
                self.file += 1;
                continue;
            };
            match reader.next().transpose()?.map(|raw| raw.parse(&self.opts.read.text_field).content) {
                Some(Content::Text(text)) if !is_short(&text, self.opts.min_chars) => return Ok(Some(text)),
                Some(_) => {}
                None => {
                    self.reader = None;
                    self.before += self.inputs.list[self.file - 1].bytes;
                }
            }
        }
    }
}

impl Iterator for Texts<'_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_text().transpose()
    }
}

/// Whether `text` has fewer than `min_chars` characters.
pub(super) fn is_short(text: &str, min_chars: u64) -> bool {
    (text.len() as u64) < min_chars
        || (min_chars > 0 && (text.chars().take(min_chars as usize).count() as u64) < min_chars)
}
