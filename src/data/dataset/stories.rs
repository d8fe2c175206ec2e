//! The built-in corpus as a run's data: as many stories as the run reads tokens.

use super::text::append_encoded;
use super::{Dataset, boundary, make_tokenizer, separator};
use crate::config::Config;
use crate::data::Tokens;
use crate::data::boundary::Boundary;
use crate::data::eval_set::EvalSet;
use crate::data::loader::TokenSource;
use crate::stories::{Stories, Story, StorySplit, floor};
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::sync::Arc;

/// Stories that a tokenizer is trained on: about 2 MB. More would change no merge that matters.
const TOKENIZER_STORIES: u64 = 4096;

/// Stories tokenised at a time.
const STORY_BATCH: u64 = 4096;

/// Most tokens of stories that are made if no number is asked for: a longer run reads them again.
const MAX_STORY_TOKENS: u64 = 100_000_000;

pub(super) fn open(config: &Config, tokenizer: Option<Tokenizer>) -> Result<Dataset> {
    let stories = Stories::new(config.data.seed);
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer,
        None => {
            let texts: Vec<String> = (0..TOKENIZER_STORIES).map(|i| stories.story(StorySplit::Train, i).text).collect();
            make_tokenizer(config, texts.iter().map(String::as_str))?
        }
    };
    let separator = separator(&tokenizer)?;
    // One token more: the last window's last target.
    let wanted = config.train.steps.saturating_mul(config.train.tokens_per_step as u64).min(MAX_STORY_TOKENS) + 1;
    let mut ids = vec![];
    let mut count = 0u64;
    while config.data.stories.map_or((ids.len() as u64) < wanted, |n| count < n) {
        let batch = config.data.stories.map_or(STORY_BATCH, |n| STORY_BATCH.min(n - count));
        let texts: Vec<String> = (count..count + batch).map(|i| stories.story(StorySplit::Train, i).text).collect();
        append_encoded(&tokenizer, &texts, separator, &mut ids)?;
        count += batch;
    }
    let (val, encoded) = validation(config, &stories, &tokenizer)?;
    // Of the very stories that are scored, or the loss could not be compared with it.
    let floor = floor(val[..encoded.len()].iter());
    let mut rows = EvalSet::packed(&encoded, separator, config.train.sequence_length);
    rows.text_bytes = Some(floor.bytes as u64);
    rows.boundary = config.data.document_mask.then_some(Boundary { separator, after: false });
    let train = vec![TokenSource { name: "stories".into(), tokens: Tokens::Memory(Arc::new(ids)) }];
    Ok(Dataset {
        tokenizer,
        boundary: boundary(&train, separator),
        train,
        val: Some(rows),
        floor: Some(floor),
        stories: Some(count),
        conversations: None,
        base_val: None,
        notes: Vec::new(),
    })
}

/// The validation stories and their encodings: `data.val_stories`, or as many of them as are scored.
fn validation(config: &Config, stories: &Stories, tokenizer: &Tokenizer) -> Result<(Vec<Story>, Vec<Vec<u32>>)> {
    let wanted = config.data.val_stories;
    let most = config.eval.val_tokens;
    let mut val = Vec::<Story>::new();
    let mut encoded = Vec::<Vec<u32>>::new();
    while (val.len() as u64) < wanted && stories_within(&encoded, most) == encoded.len() {
        let from = val.len() as u64;
        val.extend((from..wanted.min(from + STORY_BATCH)).map(|i| stories.story(StorySplit::Val, i)));
        let texts: Vec<&str> = val[from as usize..].iter().map(|story| story.text.as_str()).collect();
        encoded.extend(tokenizer.encode_documents(&texts)?);
    }
    encoded.truncate(stories_within(&encoded, most));
    Ok((val, encoded))
}

/// How many of the first documents have at most `limit` targets together; at least one, if there is one.
fn stories_within(encoded: &[Vec<u32>], limit: u64) -> usize {
    let mut targets = 0;
    let fits = encoded.iter().take_while(|ids| {
        targets += ids.len() as u64 + 1;
        targets <= limit
    });
    fits.count().max(1).min(encoded.len())
}
