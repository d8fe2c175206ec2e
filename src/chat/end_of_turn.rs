//! How a template ends an answer: a model that was tuned with it writes the same when it has finished.
//!
//! It may differ from the tokenizer's end of text: Llama 3's first instruction models name `<|end_of_text|>` and end their
//! turns with `<|eot_id|>` (vllm-project/vllm#4180).

use super::{ChatTemplate, Message};
use crate::tokenizer::Tokenizer;

/// What the template writes where an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndOfTurn {
    Token(u32),
    Text(String),
    /// Nothing, or the template refuses the conversations that were tried.
    Unknown,
}

// Contents of a conversation for trial: words that no template contains.
const QUESTION: &str = "Qquestion";
const ANSWER: &str = "Aanswer";
const NEXT: &str = "Nnext";

impl ChatTemplate {
    /// What ends an answer, found by rendering a conversation and looking behind its answer.
    pub fn end_of_turn(&self, tokenizer: &Tokenizer) -> EndOfTurn {
        // With and without a turn after it: what both have in common belongs to the answer.
        let last = self.behind_answer(&[]);
        let between = self.behind_answer(&[Message::new("user", NEXT)]);
        let Some(behind) = between.as_deref().or(last.as_deref()) else {
            return EndOfTurn::Unknown;
        };
        if let Some(id) = first_special(tokenizer, behind) {
            return EndOfTurn::Token(id);
        }
        // What the template writes whether or not a question follows belongs to the answer; if it writes nothing, the start of
        // the next turn ends the answer.
        let own = common(last.as_deref().unwrap_or_default(), behind).trim_end();
        let end = if own.is_empty() { behind.trim_end() } else { own };
        if end.is_empty() { EndOfTurn::Unknown } else { EndOfTurn::Text(end.to_owned()) }
    }

    /// The text behind an answer, up to the words that come after it.
    fn behind_answer(&self, more: &[Message]) -> Option<String> {
        let asked = [Message::new("user", QUESTION), Message::new("assistant", ANSWER)];
        let text = self.render(&[&asked, more].concat(), false).ok()?;
        let (_, behind) = text.rsplit_once(ANSWER)?;
        Some(behind.split(NEXT).next()?.to_owned())
    }
}

/// The special token with which `text` begins, but for white space.
fn first_special(tokenizer: &Tokenizer, text: &str) -> Option<u32> {
    let start = text.len() - text.trim_start().len();
    let places = tokenizer.encode_rendered_with_places(text).ok()?;
    // The token at the start of the text, or one in the white space before it that is special.
    let (id, is_end) = places.into_iter().find_map(|(id, bytes)| {
        let is_end = tokenizer.is_special(id) || tokenizer.stop_ids().contains(&id);
        (is_end || bytes.end > start).then_some((id, is_end))
    })?;
    is_end.then_some(id)
}

fn common<'a>(a: &str, b: &'a str) -> &'a str {
    let same = a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(c, _)| c.len_utf8()).sum();
    &b[..same]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(source: &str) -> EndOfTurn {
        let tokenizer = Tokenizer::gpt2().unwrap();
        ChatTemplate::new(source.to_owned(), &tokenizer).unwrap().end_of_turn(&tokenizer)
    }

    #[test]
    fn it_is_what_stands_behind_an_answer() {
        let turns = |between: &str| format!("{{% for m in messages %}}{between}{{% endfor %}}");
        let eos = EndOfTurn::Token(50256);
        assert_eq!(end(&turns("{{ m.role }}: {{ m.content }}{{ eos_token }}")), eos);
        assert_eq!(end(&turns("{{ m.role }}: {{ m.content }} {{ eos_token }}\n")), eos, "behind white space");
        let text = |text: &str| EndOfTurn::Text(text.into());
        assert_eq!(end(&turns("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n")), text("<|im_end|>"));
        assert_eq!(end(&turns("{{ m.role }}: {{ m.content }}\n")), text("\nuser:"));
        assert_eq!(end(&turns("{{ m.content }}\n")), EndOfTurn::Unknown);
        assert_eq!(end("{{ raise_exception('no') }}"), EndOfTurn::Unknown);
    }

    /// A template that takes a single exchange only still says how its answer ends.
    #[test]
    fn a_template_that_takes_one_exchange_is_asked_for_one() {
        let source = "{% if messages | length > 2 %}{{ raise_exception('one') }}{% endif %}{{ messages[0].content }} {{ messages[1].content }}{{ eos_token }}";
        assert_eq!(end(source), EndOfTurn::Token(50256));
    }
}
