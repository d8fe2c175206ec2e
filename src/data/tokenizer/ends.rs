//! Which ids end and begin a text, and the settings that travel with a tokenizer.
//!
//! Hugging Face keeps them in up to four files beside `tokenizer.json`, as strings, objects or ids, and the files of
//! real models disagree. The tokenizer's own files are believed before the model's: exports often carry the ids of the
//! first Llama (1 and 2) whatever their vocabulary.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::byte_bpe::END_OF_TEXT;
use super::{Engine, read_capped, wrong_file};

/// Ends of text by name, for files that say nothing.
const USUAL_EOS: [&str; 5] = [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>"];
/// Beginnings of text by name.
const USUAL_BOS: [&str; 4] = ["<|begin_of_text|>", "<s>", "<bos>", END_OF_TEXT];

/// The ids that end and begin a text, and the `tokenizer_config.json` they came with.
#[derive(Clone, Default)]
pub(super) struct Ends {
    pub(super) eos: Option<u32>,
    pub(super) bos: Option<u32>,
    /// All ids that end a generated text, `eos` first.
    pub(super) stops: Vec<u32>,
    pub(super) config: Option<Map<String, Value>>,
    /// How conversations are written, if that is not what `config` says.
    pub(super) chat_template: Option<String>,
}

impl Ends {
    /// The ends of a vocabulary of which nothing is known but its special tokens.
    pub(super) fn usual(engine: &Engine) -> Self {
        let special = |token: &&str| engine.id_of(token).filter(|id| engine.is_special(*id));
        let eos = USUAL_EOS.iter().find_map(special);
        let bos = USUAL_BOS.iter().find_map(special);
        Self { eos, bos, stops: eos.into_iter().collect(), config: None, chat_template: None }
    }

    /// The ends named by the files in `dir`: the tokenizer's, and if `of_model` also those of the model's settings.
    /// Names and ids outside the vocabulary are passed over.
    pub(super) fn read(dir: &Path, of_model: bool, engine: &Engine) -> Result<Self> {
        let config = read_object(&dir.join("tokenizer_config.json"))?;
        let map = read_object(&dir.join("special_tokens_map.json"))?;
        let model = |name: &str| if of_model { read_object(&dir.join(name)) } else { Ok(None) };
        let (generation, model) = (model("generation_config.json")?, model("config.json")?);

        let by_name = |key: &str| {
            let named = [&config, &map].into_iter().flatten().filter_map(|file| token_name(file.get(key)?));
            named.filter_map(|token| engine.id_of(token)).next()
        };
        let by_id = |key: &str| -> Vec<u32> {
            let files = [&generation, &model].into_iter().flatten();
            let ids = files.filter_map(|file| file.get(key)).map(|ids| token_ids(ids, engine.vocab_size()));
            ids.into_iter().find(|ids| !ids.is_empty()).unwrap_or_default()
        };
        let usual = Self::usual(engine);
        let listed = by_id("eos_token_id");
        let eos = by_name("eos_token").or(listed.first().copied()).or(usual.eos);
        let bos = by_name("bos_token").or(by_id("bos_token_id").first().copied()).or(usual.bos);
        let mut stops: Vec<u32> = eos.into_iter().collect();
        // A list of several is deliberate (chat models); a single id that contradicts the tokenizer is a leftover.
        if listed.len() > 1 {
            stops.extend(listed.into_iter().filter(|id| Some(*id) != eos));
        }
        Ok(Self { eos, bos, stops, config, chat_template: None })
    }

    /// The bytes of `tokenizer_config.json` for a model of `max_length` positions. `token_of` gives an id's text.
    pub(super) fn config_json(&self, max_length: usize, engine: &Engine) -> Result<Vec<u8>> {
        let mut config = match &self.config {
            Some(config) => config.clone(),
            None => {
                let name = |id: Option<u32>| engine.name_of(id?);
                let (bos, eos) = (name(self.bos), name(self.eos));
                // The class that takes tokenizer.json as it is, in transformers 4 and 5 alike.
                let fresh = json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos,
                    "unk_token": eos, "clean_up_tokenization_spaces": false});
                fresh.as_object().cloned().unwrap_or_default()
            }
        };
        config.insert("model_max_length".into(), max_length.into());
        if let Some(template) = &self.chat_template {
            config.insert("chat_template".into(), template.as_str().into());
        }
        Ok(serde_json::to_vec_pretty(&config)?)
    }
}

/// The JSON object in the file at `path`, if there is a file.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_capped(path)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(wrong_file(path, "it is not a JSON object").into()),
        Err(error) => Err(wrong_file(path, error).into()),
    }
}

/// A token named by a string or by an object with its `content`.
fn token_name(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// Token ids given as a number or a list of numbers.
fn token_ids(value: &Value, vocab_size: usize) -> Vec<u32> {
    let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let known = |id: &u32| (*id as usize) < vocab_size;
    values.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).filter(known).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Tokenizer, hub};
    use serde_json::{Value, json};

    /// The (eos, bos, stops) of a directory with Llama 3's vocabulary and these files.
    fn ends(files: &[(&str, Value)]) -> (Option<u32>, Option<u32>, Vec<u32>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), hub::tests::llama3().to_string()).unwrap();
        for (name, value) in files {
            std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        (tokenizer.eos_id(), tokenizer.bos_id(), tokenizer.stop_ids().to_vec())
    }

    #[test]
    fn the_tokenizers_word_goes_before_the_models() {
        let name = |eos: Value| ("tokenizer_config.json", json!({"eos_token": eos, "bos_token": null}));
        let wrong = ("config.json", json!({"eos_token_id": 2, "bos_token_id": 1}));
        assert_eq!(ends(&[]), (Some(261), Some(260), vec![261]));
        assert_eq!(ends(std::slice::from_ref(&wrong)), (Some(2), Some(1), vec![2]));
        assert_eq!(ends(&[name(json!("<|eot_id|>")), wrong.clone()]), (Some(262), Some(1), vec![262]));
        assert_eq!(ends(&[name(json!({"content": "<|eot_id|>"})), wrong.clone()]), (Some(262), Some(1), vec![262]));
        assert_eq!(ends(&[name(json!("<|absent|>"))]), (Some(261), Some(260), vec![261]));
        let map = ("special_tokens_map.json", json!({"eos_token": "<|eot_id|>"}));
        assert_eq!(ends(&[name(Value::Null), map, wrong]).0, Some(262));
    }

    #[test]
    fn generation_settings_may_name_several_ends() {
        let listed = ("generation_config.json", json!({"eos_token_id": [261, 262, 99_999], "bos_token_id": 260}));
        let named = ("tokenizer_config.json", json!({"eos_token": "<|eot_id|>"}));
        let model = ("config.json", json!({"eos_token_id": 7}));
        assert_eq!(ends(&[listed.clone(), model]), (Some(261), Some(260), vec![261, 262]));
        assert_eq!(ends(&[listed, named]), (Some(262), Some(260), vec![262, 261]));
    }

    #[test]
    fn settings_that_are_no_settings_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), hub::tests::llama3().to_string()).unwrap();
        std::fs::write(dir.path().join("generation_config.json"), "[1]").unwrap();
        let error = Tokenizer::from_dir(dir.path()).err().unwrap().to_string();
        assert!(error.contains("generation_config.json"), "{error}");
    }
}
