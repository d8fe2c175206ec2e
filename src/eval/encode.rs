//! A context and its continuation as tokens, as the harness's Hugging Face backend makes them.

use super::engine::LikelihoodRequest;
use super::python::rstrip;
use crate::runtime::error::{Exit, fail};
use crate::tokenizer::Tokenizer;
use anyhow::Result;

/// Encodes requests for one model.
pub struct RequestEncoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Longest input of the model.
    context: usize,
    /// What stands before a text that has nothing before it.
    prefix: u32,
}

impl<'a> RequestEncoder<'a> {
    /// For a model that sees `context` tokens.
    ///
    /// # Errors
    /// [`Exit::Data`] if the tokenizer has neither a beginning nor an end of text.
    pub fn new(tokenizer: &'a Tokenizer, context: usize) -> Result<Self> {
        let prefix = tokenizer.bos_id().or(tokenizer.eos_id()).ok_or_else(|| {
            fail(Exit::Data, "the tokenizer has neither a beginning nor an end of text")
                .hint("name one in tokenizer_config.json as bos_token or eos_token")
        })?;
        Ok(Self { tokenizer, context, prefix })
    }

    /// `continuation` after `context`. They are encoded together; what follows the tokens of the context alone is the continuation,
    /// with the context's trailing white space moved to it.
    ///
    /// # Errors
    /// Those of encoding; [`Exit::Data`] if nothing is left of the continuation or the model cannot see it whole.
    pub fn pair(&self, context: &str, continuation: &str) -> Result<LikelihoodRequest> {
        let (ids, target) = if context.is_empty() {
            self.alone(continuation)?
        } else {
            let stem = rstrip(context);
            let moved = format!("{}{continuation}", &context[stem.len()..]);
            let ids = self.tokenizer.encode(stem)?;
            let whole = self.tokenizer.encode(&format!("{stem}{moved}"))?;
            let target = whole.get(ids.len()..).unwrap_or_default().to_vec();
            // A context of white space alone has moved away whole.
            if ids.is_empty() { self.alone(&moved)? } else { (ids, target) }
        };
        self.request(ids, &target, continuation)
    }

    /// `continuation` after `context`, each encoded for itself: how the original project scored HellaSwag.
    ///
    /// # Errors
    /// As [`RequestEncoder::pair`].
    pub fn separately(&self, context: &str, continuation: &str) -> Result<LikelihoodRequest> {
        let ids = self.tokenizer.encode_ordinary(context)?;
        let target = self.tokenizer.encode_ordinary(continuation)?;
        if ids.is_empty() {
            return self.request(vec![self.prefix], &target, continuation);
        }
        self.request(ids, &target, continuation)
    }

    fn alone(&self, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let mut target = self.tokenizer.encode_ordinary(continuation)?;
        if target.first() == Some(&self.prefix) {
            // The prefix would otherwise stand there twice.
            target.remove(0);
        }
        Ok((vec![self.prefix], target))
    }

    fn request(&self, mut tokens: Vec<u32>, target: &[u32], continuation: &str) -> Result<LikelihoodRequest> {
        if target.is_empty() || target.len() > self.context {
            let n = target.len();
            let message = format!("{continuation:?} has {n} tokens of its own; the model sees {}", self.context);
            return Err(fail(Exit::Data, message)
                .hint("this document cannot be scored with this tokenizer and model")
                .into());
        }
        tokens.extend(target);
        // One more than the context, because the last token is predicted and never fed.
        let excess = tokens.len().saturating_sub(self.context + 1);
        tokens.drain(..excess);
        Ok(LikelihoodRequest { first: tokens.len() - target.len(), tokens, cut: excess })
    }

    /// A whole text, every token predicted exactly once: windows of the model's context, the last one as full as the text allows.
    ///
    /// # Errors
    /// Those of encoding.
    pub fn rolling(&self, text: &str) -> Result<Vec<LikelihoodRequest>> {
        let tokens = self.tokenizer.encode(text)?;
        let mut windows = Vec::new();
        let mut from = 0;
        while from < tokens.len() {
            let to = (from + self.context).min(tokens.len());
            let mut window = Vec::with_capacity(self.context + 1);
            if from == 0 {
                window.push(self.prefix);
                window.extend(&tokens[..to]);
            } else {
                // Counted back from its end, so that the last window has as much context as the others.
                window.extend(&tokens[to - self.context - 1..to]);
            }
            windows.push(LikelihoodRequest { first: window.len() - (to - from), tokens: window, cut: 0 });
            from = to;
        }
        Ok(windows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        tokenizer.decode(ids, false).unwrap()
    }

    #[test]
    fn white_space_moves_and_the_split_is_by_position() {
        let tokenizer = Tokenizer::gpt2().unwrap();
        let encoder = RequestEncoder::new(&tokenizer, 64).unwrap();
        for (context, continuation, stem, target) in [
            ("Question: a\nAnswer:", " b", "Question: a\nAnswer:", " b"),
            ("The stem ", " ends", "The stem", "  ends"),
            ("Two\n\n", " lines", "Two", "\n\n lines"),
            ("", " alone", "<|endoftext|>", " alone"),
            ("  ", "x", "<|endoftext|>", "  x"),
        ] {
            let request = encoder.pair(context, continuation).unwrap();
            let (a, b) = request.tokens.split_at(request.first);
            assert_eq!((decode(&tokenizer, a).as_str(), decode(&tokenizer, b).as_str()), (stem, target));
        }
        assert!(encoder.pair("a", "").is_err());
        assert!(encoder.pair("a", &" b".repeat(65)).is_err());
    }

    #[test]
    fn long_contexts_lose_their_beginning() {
        let tokenizer = Tokenizer::gpt2().unwrap();
        let encoder = RequestEncoder::new(&tokenizer, 8).unwrap();
        let request = encoder.pair(&" a".repeat(20), " b c").unwrap();
        assert_eq!((request.tokens.len(), request.first, request.cut), (9, 7, 13));
        assert_eq!(encoder.pair(" a", " b c").unwrap().cut, 0);
    }

    #[test]
    fn a_rolling_text_has_every_token_predicted_once() {
        let tokenizer = Tokenizer::gpt2().unwrap();
        let encoder = RequestEncoder::new(&tokenizer, 10).unwrap();
        for n in [1usize, 9, 10, 11, 19, 20, 21, 35] {
            let text = " word".repeat(n);
            let windows = encoder.rolling(&text).unwrap();
            let predicted: Vec<u32> = windows.iter().flat_map(|w| w.tokens[w.first..].to_vec()).collect();
            assert_eq!(predicted, tokenizer.encode(&text).unwrap());
            assert!(windows.iter().all(|w| w.tokens.len() <= 11));
            assert!(windows.iter().skip(1).all(|w| w.tokens.len() == 11), "later windows are full");
            assert_eq!(windows[0].tokens[0], tokenizer.eos_id().unwrap());
        }
        assert!(encoder.rolling("").unwrap().is_empty());
    }
}
