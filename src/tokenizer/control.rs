//! Control ids (ends and beginnings of text, marks of turns), and the texts that must not encode to them.

use anyhow::Result;
use rayon::prelude::*;

use super::{Engine, Tokenizer};
use crate::runtime::error::{Exit, Failure, fail};

/// Special tokens that stand for text and are no control tokens.
const UNKNOWN: [&str; 2] = ["<unk>", "[UNK]"];

impl Tokenizer {
    /// [`encode_ordinary`](Self::encode_ordinary) of a document. The end of text separates documents, so the ids must not
    /// contain it.
    ///
    /// # Errors
    /// Those of encoding; [`Exit::Data`] for a tokenizer that encodes ordinary text to its end of text.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_ordinary(text)?;
        match self.eos_id().filter(|eos| ids.contains(eos)) {
            Some(eos) => Err(self.ambiguous_end(eos).into()),
            None => Ok(ids),
        }
    }

    /// [`encode_document`](Self::encode_document) of each text, on all cores.
    pub fn encode_documents(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode_document(text)).collect()
    }

    fn ambiguous_end(&self, eos: u32) -> Failure {
        let name = self.inner.engine.name_of(eos).unwrap_or_default();
        let what = format!("text gives the tokenizer's end of text, id {eos} ({name:?}), which separates documents");
        fail(Exit::Data, what)
            .hint("name a token that no text gives as eos_token in the tokenizer_config.json beside the tokenizer.json")
    }

    /// A string in `text` that [`encode_rendered`](Self::encode_rendered) would encode as a control token.
    pub fn control_string_in(&self, text: &str) -> Option<&str> {
        let strings = self.inner.control.get_or_init(|| self.control_strings());
        // Few texts hold one, and most do not even hold the character that the strings begin with.
        let mut absent = None;
        let held = strings.iter().find(|string| {
            let first = string.chars().next();
            if first == absent {
                return false;
            }
            let held = text.contains(string.as_str());
            if !held && first.is_some_and(|first| !text.contains(first)) {
                absent = first;
            }
            held
        });
        held.map(String::as_str)
    }

    fn control_strings(&self) -> Vec<String> {
        let engine = &self.inner.engine;
        let mut strings: Vec<String> = engine.control_ids().iter().filter_map(|id| engine.name_of(*id)).collect();
        strings.retain(|string| !string.is_empty() && !UNKNOWN.contains(&string.as_str()));
        strings.sort_unstable();
        strings
    }
}

impl Engine {
    /// Special tokens, and added ones that end or begin a text, ascending.
    fn control_ids(&self) -> Vec<u32> {
        match self {
            Engine::Byte(engine) => engine.specials().iter().map(|(id, _)| *id).collect(),
            Engine::Hf(engine) => engine.control().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::hf::tests::{llama3, words};
    use serde_json::{Value, json};

    /// The tokenizer of `root`, with `eos` as its end of text.
    fn tokenizer(root: &Value, eos: &str) -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), root.to_string()).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), json!({"eos_token": eos}).to_string()).unwrap();
        Tokenizer::from_dir(dir.path()).unwrap()
    }

    #[test]
    fn an_added_end_of_text_that_is_not_special_is_plain_text_in_a_document() {
        let mut root = llama3();
        root["added_tokens"][1]["special"] = json!(false);
        let tokenizer = tokenizer(&root, "<|end_of_text|>");
        let eos = tokenizer.eos_id().unwrap();
        let text = "a <|end_of_text|> b";
        assert!(tokenizer.encode(text).unwrap().contains(&eos), "a prompt may mean it");
        let ids = tokenizer.encode_document(text).unwrap();
        assert!(!ids.contains(&eos));
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        // Another added token that is not special stays a token: it says nothing about where texts end.
        root["added_tokens"][2]["special"] = json!(false);
        let again = self::tokenizer(&root, "<|end_of_text|>");
        assert!(again.encode_document("<|eot_id|>").unwrap().contains(&again.id_of("<|eot_id|>").unwrap()));
    }

    /// Merges of a Llama 2 file that make its end of text out of characters.
    #[test]
    fn an_end_of_text_that_the_model_joins_is_cut() {
        let mut root = crate::tokenizer::hf::tests::llama2();
        for (token, id) in [("<", 300), ("/", 301), (">", 302), ("</", 303), ("</s", 304)] {
            root["model"]["vocab"][token] = json!(id);
        }
        root["model"]["merges"] = json!(["< /", "</ s", "</s >", "h e"]);
        let tokenizer = tokenizer(&root, "</s>");
        let ids = tokenizer.encode_document("the </s> he").unwrap();
        assert!(!ids.contains(&2), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "the </s> he");
        let he = tokenizer.id_of("he").unwrap();
        assert_eq!(ids.iter().filter(|id| **id == he).count(), 2, "the rest is encoded as ever");
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        // Unknown words become the end of text.
        let mut root = words();
        root["model"]["unk_token"] = json!("<eos>");
        root["model"]["vocab"] = json!({"a": 1, "b": 2, "<eos>": 3, "c": 0});
        let tokenizer = tokenizer(&root, "<eos>");
        assert_eq!(tokenizer.encode_document("a b").unwrap(), [1, 2]);
        let error = tokenizer.encode_document("a zebra").unwrap_err().downcast::<Failure>().unwrap();
        assert_eq!(error.exit, Exit::Data);
        assert!(error.message.contains("<eos>") && error.hint.unwrap().contains("eos_token"));
    }

    #[test]
    fn strings_of_control_tokens_are_found_in_texts() {
        let gpt2 = Tokenizer::gpt2().unwrap();
        assert_eq!(gpt2.control_string_in("a <|endoftext|>b"), Some("<|endoftext|>"));
        assert_eq!(gpt2.control_string_in("a <|endoftext| >b"), None);
        let llama2 = tokenizer(&crate::tokenizer::hf::tests::llama2(), "</s>");
        assert_eq!(llama2.control_string_in("struck: <s>out</s>"), Some("</s>"));
        assert_eq!(llama2.control_string_in("a rare <unk> word"), None);
    }
}
