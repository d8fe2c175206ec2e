//! Documents in Hugging Face's crate: whatever a document says, it does not encode to a control id (an end or a beginning of
//! text).
//!
//! The crate can ignore the strings of special added tokens, which is not enough: a file may list its end of text as an added
//! token that is not special, and a model may have the string as a word of its vocabulary.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, Model, SplitDelimiterBehavior, Tokenizer};

/// A tokenizer for text in which nothing is special.
pub(super) struct Ordinary {
    tokenizer: Tokenizer,
    /// The same, with cuts inside each string of a control id, so that the model cannot merge it. Used only for texts that need
    /// it, because a cut also changes the tokens around it.
    cutting: Option<Tokenizer>,
    /// Ids that no text may give, ascending.
    control: Vec<u32>,
}

impl Ordinary {
    /// `tokenizer` for documents, which must not encode to an id of `control` (ascending).
    pub(super) fn new(tokenizer: &Tokenizer, control: &[u32]) -> tokenizers::Result<Self> {
        let mut ordinary = tokenizer.clone();
        let added = ordinary.get_added_tokens_decoder();
        let not_special = control.iter().filter_map(|id| added.get(id)).filter(|token| !token.special);
        let marked: Vec<AddedToken> = not_special.map(|token| token.clone().special(true)).collect();
        ordinary.add_special_tokens(marked)?;
        // Their strings are then encoded like any other text.
        ordinary.set_encode_special_tokens(true);
        let cutting = cutting(&ordinary, control)?;
        Ok(Self { tokenizer: ordinary, cutting, control: control.to_vec() })
    }

    /// The ids of `text`. They contain a control id only where the model gives it for something other than its string, such
    /// as an unknown character.
    pub(super) fn encode(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false)?;
        let ids = encoding.get_ids();
        match &self.cutting {
            Some(cutting) if ids.iter().any(|id| self.control.binary_search(id).is_ok()) => {
                Ok(cutting.encode_fast(text, false)?.get_ids().to_vec())
            }
            _ => Ok(ids.to_vec()),
        }
    }
}

/// `tokenizer` with cuts behind the first character of each control string in its model's vocabulary; none if there is no
/// such string.
fn cutting(tokenizer: &Tokenizer, control: &[u32]) -> tokenizers::Result<Option<Tokenizer>> {
    let model = tokenizer.get_model();
    let known = control.iter().filter_map(|id| model.id_to_token(*id));
    let patterns: Vec<String> = known.filter_map(|string| pattern(&string)).collect();
    if patterns.is_empty() {
        return Ok(None);
    }
    let cut = Split::new(SplitPattern::Regex(patterns.join("|")), SplitDelimiterBehavior::MergedWithPrevious, false)?;
    let steps: Vec<PreTokenizerWrapper> =
        tokenizer.get_pre_tokenizer().cloned().into_iter().chain([cut.into()]).collect();
    let mut cutting = tokenizer.clone();
    cutting.with_pre_tokenizer(Some(Sequence::new(steps)));
    Ok(Some(cutting))
}

/// Matches the first character of `string` where the others follow; nothing can be cut inside a single one.
fn pattern(string: &str) -> Option<String> {
    let mut rest = string.chars();
    let first = rest.next()?.to_string();
    let first = regex_syntax::escape(&first);
    let rest = regex_syntax::escape(rest.as_str());
    (!rest.is_empty()).then(|| format!("{first}(?={rest})"))
}
