//! Text to ids in Hugging Face's crate: prompts, rendered conversations and documents, long ones in parts.

use std::ops::Range;
use std::sync::OnceLock;

use anyhow::Result;

use super::ordinary::Ordinary;
use super::parts::{PART, TextParts};
use super::{HfTokenizer, catch_errors, failed};

impl HfTokenizer {
    /// Makes those of `ids` that are added tokens control ids, beside the special ones.
    pub(in super::super) fn add_control(&mut self, ids: impl Iterator<Item = u32>) {
        let added = self.tokenizer.get_added_tokens_decoder();
        let before = self.control.len();
        self.control.extend(ids.filter(|id| added.contains_key(id)));
        self.control.sort_unstable();
        self.control.dedup();
        if self.control.len() > before {
            // It was made for fewer control ids.
            self.ordinary = OnceLock::new();
        }
    }

    /// Ids that no document may give, ascending.
    pub(in super::super) fn control(&self) -> &[u32] {
        &self.control
    }

    pub(in super::super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        // A short text is not cut, so the crate can add what the file says by itself.
        if text.len() <= PART {
            return catch_errors(|| self.run(text)).map_err(failed);
        }
        let Some([before, after]) = catch_errors(|| self.added_around()).map_err(failed)? else {
            return Err(failed("the file's post_processor changes the text's own tokens".into()));
        };
        Ok([before, self.encode_rendered(text)?, after].concat())
    }

    pub(in super::super) fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        self.in_parts(text, |part, _| Ok(self.tokenizer.encode_fast(part, false)?.get_ids().to_vec()))
    }

    pub(in super::super) fn encode_rendered_with_places(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        self.in_parts(text, |part, at| {
            let encoding = self.tokenizer.encode(part, false)?;
            let places = encoding.get_offsets().iter().map(|(start, end)| at + start..at + end);
            Ok(encoding.get_ids().iter().copied().zip(places).collect())
        })
    }

    pub(in super::super) fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        self.in_parts(text, |part, _| self.run_ordinary(part))
    }

    /// The results of `encode` for each part of `text`, in order; it gets the part and the byte at which the part begins.
    fn in_parts<T>(&self, text: &str, encode: impl Fn(&str, usize) -> tokenizers::Result<Vec<T>>) -> Result<Vec<T>> {
        let mut all = Vec::new();
        for part in self.parts.divide(text)? {
            let _turn = TextParts::wait_for_turn(part.len());
            all.extend(catch_errors(|| encode(&text[part.clone()], part.start)).map_err(failed)?);
        }
        Ok(all)
    }

    /// The ids that the file adds before and behind any text; none if it changes the text in another way.
    fn added_around(&self) -> tokenizers::Result<Option<[Vec<u32>; 2]>> {
        // Found by trial, because a post-processor may be of many kinds.
        let bare = self.tokenizer.encode_fast("a", false)?;
        let bare = bare.get_ids();
        let whole = self.run("a")?;
        let place = (0..=whole.len().saturating_sub(bare.len())).find(|at| whole[*at..].starts_with(bare));
        Ok(place.map(|at| [whole[..at].to_vec(), whole[at + bare.len()..].to_vec()]))
    }

    pub(super) fn run(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        Ok(self.tokenizer.encode_fast(text, true)?.get_ids().to_vec())
    }

    pub(super) fn run_ordinary(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let ordinary = match self.ordinary.get() {
            Some(ordinary) => ordinary,
            None => {
                let made = Ordinary::new(&self.tokenizer, &self.control)?;
                self.ordinary.get_or_init(|| made)
            }
        };
        ordinary.encode(text)
    }
}
