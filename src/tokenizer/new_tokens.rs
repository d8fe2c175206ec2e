//! Special tokens that a tokenizer gets after it was made, such as the marks of turns in ChatML.

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::special_tokens::SpecialTokens;
use super::{Engine, Tokenizer};
use crate::runtime::error::{Exit, Failure, fail};

impl Tokenizer {
    /// The same tokenizer with those of `tokens` that it lacks as special tokens, at the ids behind its largest one.
    ///
    /// # Errors
    /// [`Exit::Data`] for a vocabulary with gaps, in which Hugging Face's crate gives a new token another id.
    pub fn with_new_tokens(&self, tokens: &[String]) -> Result<Self> {
        let first = self.vocab_size() as u32;
        let missing = tokens.iter().filter(|token| self.id_of(token).is_none());
        let new: Vec<(u32, &str)> = (first..).zip(missing.map(String::as_str)).collect();
        if new.is_empty() {
            return Ok(self.clone());
        }
        let mut root: Value = serde_json::from_slice(self.json())?;
        if !root["added_tokens"].is_array() {
            root["added_tokens"] = json!([]);
        }
        if let Some(added) = root["added_tokens"].as_array_mut() {
            added.extend(new.iter().map(|(id, token)| added_token(*id, token)));
        }
        let engine = Engine::from_json(root.to_string().into_bytes(), &root).map_err(|why| unusable(&why))?;
        // The crate counts on from the number of tokens, whatever the file says.
        if let Some((id, token)) = new.iter().find(|(id, token)| engine.id_of(token) != Some(*id)) {
            let why = format!("{token:?} would not get the next id {id}, because the ids of the vocabulary have gaps");
            return Err(unusable(&why).into());
        }
        let special = self.inner.special_tokens.with_new_tokens(&root["added_tokens"], &new, &engine);
        Ok(Self::from_parts(engine, special))
    }
}

impl SpecialTokens {
    /// The settings of a tokenizer whose file lists the tokens `added`, the tokens `new` among them.
    fn with_new_tokens(&self, added: &Value, new: &[(u32, &str)], engine: &Engine) -> Self {
        let mut config = self.config.clone().unwrap_or_else(|| self.fresh_config(engine));
        for (key, id) in [("eos_token", self.eos), ("bos_token", self.bos)] {
            // Where nothing is said a token's usual name decides, and a new token may have one.
            if config.get(key).is_none_or(Value::is_null) {
                config.insert(key.into(), id.and_then(|id| engine.name_of(id)).into());
            }
        }
        // transformers takes this list for complete, so it gets every added token.
        let decoder = object(&mut config, "added_tokens_decoder");
        for token in added.as_array().into_iter().flatten() {
            let Some(content) = token["content"].as_str() else { continue };
            let Some(id) = engine.id_of(content) else { continue };
            decoder.entry(id.to_string()).or_insert_with(|| without_id(token));
        }
        let additional = config.entry("additional_special_tokens").or_insert(Value::Null);
        let mut names = additional.as_array().cloned().unwrap_or_default();
        names.extend(new.iter().map(|(_, token)| Value::from(*token)));
        *additional = names.into();
        Self { config: Some(config), ..self.clone() }
    }
}

/// The object under `key`, which is made if it is not there.
fn object<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = config.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was made one")
}

/// An entry of tokenizer.json's `added_tokens`.
fn added_token(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true})
}

/// The same token as an entry of tokenizer_config.json's `added_tokens_decoder`, whose key is the id.
fn without_id(token: &Value) -> Value {
    let mut token = token.clone();
    if let Some(fields) = token.as_object_mut() {
        fields.shift_remove("id");
    }
    token
}

fn unusable(why: &str) -> Failure {
    fail(Exit::Data, format!("sft.new_tokens cannot be added to the tokenizer: {why}")).hint(
        "leave sft.new_tokens out, or add the tokens with transformers (add_special_tokens, resize_token_embeddings)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::hf::tests::{llama2, llama3};

    const MARKS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

    fn marks() -> Vec<String> {
        MARKS.map(str::to_owned).to_vec()
    }

    /// A tokenizer written to files and read again, with its settings.
    fn reloaded(tokenizer: &Tokenizer) -> (Tokenizer, Value) {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in tokenizer.files(64).unwrap() {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let config = std::fs::read(dir.path().join("tokenizer_config.json")).unwrap();
        (Tokenizer::from_dir(dir.path()).unwrap(), serde_json::from_slice(&config).unwrap())
    }

    fn of_root(root: &Value, config: &Value) -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), root.to_string()).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        Tokenizer::from_dir(dir.path()).unwrap()
    }

    #[test]
    fn new_tokens_are_control_tokens_behind_all_others_in_both_engines() {
        let trained = Tokenizer::train(["a few words, a few more words"].into_iter(), 270).unwrap();
        let llama3 = of_root(&llama3(), &json!({"eos_token": "<|end_of_text|>"}));
        let llama2 = of_root(&llama2(), &json!({"eos_token": "</s>", "bos_token": "<s>"}));
        for old in [trained, llama3, llama2] {
            let first = old.vocab_size() as u32;
            let new = old.with_new_tokens(&marks()).unwrap();
            let (again, config) = reloaded(&new);
            for tokenizer in [&new, &again] {
                assert_eq!(tokenizer.vocab_size() as u32, first + 2);
                assert_eq!(MARKS.map(|mark| tokenizer.id_of(mark)), [Some(first), Some(first + 1)]);
                assert!(tokenizer.is_special(first) && tokenizer.is_special(first + 1));
                let text = "<|im_start|>few<|im_end|>";
                let ids = tokenizer.encode_rendered(text).unwrap();
                assert_eq!((ids[0], *ids.last().unwrap()), (first, first + 1));
                // Llama 2's tokens begin with a space behind a special one.
                assert_eq!(tokenizer.decode(&ids, false).unwrap().replace(' ', ""), text);
                // A document's text never gives them, and its ids are those of the old tokenizer.
                let document = tokenizer.encode_document(text).unwrap();
                assert_eq!(document, old.encode_document(text).unwrap());
                assert_eq!(tokenizer.control_string_in(text), Some("<|im_end|>"));
                assert_eq!(
                    (tokenizer.eos_id(), tokenizer.bos_id(), tokenizer.stop_ids()),
                    (old.eos_id(), old.bos_id(), old.stop_ids())
                );
            }
            assert_eq!(new.fingerprint(), again.fingerprint());
            assert_eq!(config["additional_special_tokens"], json!(MARKS));
            let entry = &config["added_tokens_decoder"][first.to_string()];
            assert_eq!((&entry["content"], &entry["special"]), (&json!(MARKS[0]), &json!(true)));
            let listed = config["added_tokens_decoder"].as_object().unwrap();
            let specials = (0..new.vocab_size() as u32).filter(|id| new.is_special(*id));
            assert!(specials.into_iter().all(|id| listed.contains_key(&id.to_string())));
        }
    }

    #[test]
    fn a_token_that_is_there_is_not_added_again() {
        let old = of_root(&llama3(), &json!({"eos_token": "<|eot_id|>", "additional_special_tokens": ["<|eot_id|>"]}));
        let first = old.vocab_size() as u32;
        let new = old.with_new_tokens(&["<|eot_id|>".to_owned(), MARKS[1].to_owned()]).unwrap();
        assert_eq!((new.id_of("<|eot_id|>"), new.id_of(MARKS[1])), (old.id_of("<|eot_id|>"), Some(first)));
        assert_eq!(reloaded(&new).1["additional_special_tokens"], json!(["<|eot_id|>", MARKS[1]]));
        assert_eq!(new.with_new_tokens(&marks()[1..]).unwrap().fingerprint(), new.fingerprint());
    }

    /// `<|im_end|>` is one of the usual names of an end of text.
    #[test]
    fn a_new_token_does_not_become_the_end_of_text() {
        let mut root = llama3();
        root["added_tokens"] = json!([]);
        root["post_processor"] = Value::Null;
        let old = of_root(&root, &json!({}));
        assert_eq!(old.eos_id(), None);
        assert_eq!(reloaded(&old.with_new_tokens(&marks()).unwrap()).0.eos_id(), None);
    }

    #[test]
    fn a_vocabulary_with_gaps_is_refused() {
        let mut root = llama2();
        root["model"]["vocab"]["zz"] = json!(900);
        let error = of_root(&root, &json!({})).with_new_tokens(&marks()).err().unwrap().downcast::<Failure>().unwrap();
        assert!(error.message.contains("have gaps"), "{}", error.message);
    }
}
