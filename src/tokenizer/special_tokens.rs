//! Which ids end and begin a text, and the other settings of a tokenizer.
//!
//! Hugging Face stores them in up to four files beside `tokenizer.json`, as strings, objects or ids, and the files of
//! real models disagree. The tokenizer's own files go before the model's, also where they say that there is no such token:
//! `config.json` often has the ids of the first Llama (1 and 2, transformers' defaults) though they are ordinary tokens of
//! the vocabulary (huggingface/transformers#48592).

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::byte_bpe::END_OF_TEXT;
use super::{Engine, read_capped, wrong_file};

/// Names of the end of text, for files that do not name it.
const USUAL_EOS: [&str; 5] = [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>"];
/// Names of the beginning of text, likewise.
const USUAL_BOS: [&str; 4] = ["<|begin_of_text|>", "<s>", "<bos>", END_OF_TEXT];

/// The beginning of text that each of transformers' classes has by default, and that `tokenizer_config.json` then leaves out.
const CLASS_BOS: [(&str, Option<&str>); 8] = [
    ("PreTrainedTokenizer", None),
    ("TokenizersBackend", None),
    ("Qwen2Tokenizer", None),
    ("LlamaTokenizer", Some("<s>")),
    ("CodeLlamaTokenizer", Some("<s>")),
    ("GemmaTokenizer", Some("<bos>")),
    ("GPT2Tokenizer", Some(END_OF_TEXT)),
    ("GPTNeoXTokenizer", Some(END_OF_TEXT)),
];

/// What a tokenizer's files say about one of its special tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NamedToken {
    Id(u32),
    /// There is no such token.
    Nothing,
    Unsaid,
}

/// The special tokens that are put around a prompt, where `tokenizer_config.json` says so itself.
#[derive(Clone, Copy)]
pub(super) struct Added {
    pub(super) bos: bool,
    pub(super) eos: bool,
}

/// The ids that end and begin a text, and the `tokenizer_config.json` they came with.
#[derive(Clone, Default)]
pub(super) struct SpecialTokens {
    pub(super) eos: Option<u32>,
    pub(super) bos: Option<u32>,
    /// All ids that end a generated text, `eos` first.
    pub(super) stops: Vec<u32>,
    pub(super) config: Option<Map<String, Value>>,
    /// The chat template, if it is not the one in `config`.
    pub(super) chat_template: Option<String>,
    /// The tokens around a prompt, if they are not those that `tokenizer.json` says.
    pub(super) added: Option<Added>,
}

impl SpecialTokens {
    /// The special tokens of a vocabulary without settings, by their usual names.
    pub(super) fn usual(engine: &Engine) -> Self {
        let [eos, bos] = [&USUAL_EOS[..], &USUAL_BOS[..]]
            .map(|names| names.iter().find_map(|name| engine.id_of(name).filter(|id| engine.is_special(*id))));
        Self { eos, bos, stops: eos.into_iter().collect(), ..Self::default() }
    }

    /// The special tokens that the files in `dir` name: the tokenizer's, and if `of_model` also the model's settings.
    /// Names and ids outside the vocabulary are ignored.
    pub(super) fn read(dir: &Path, of_model: bool, engine: &Engine) -> Result<Self> {
        let config = read_object(&dir.join("tokenizer_config.json"))?;
        let map = read_object(&dir.join("special_tokens_map.json"))?;
        let mut settings = Vec::new();
        if of_model {
            settings.extend(read_object(&dir.join("generation_config.json"))?);
            settings.extend(read_object(&dir.join("config.json"))?);
        }

        let own = TokenizerFiles { config: config.as_ref(), map: map.as_ref(), engine };
        let usual = Self::usual(engine);
        let listed = model_ids(&settings, "eos_token_id", engine, &USUAL_EOS);
        let eos = match own.named("eos_token") {
            NamedToken::Id(id) => Some(id),
            NamedToken::Nothing => None,
            NamedToken::Unsaid => listed.first().copied().or(usual.eos),
        };
        let bos = match own.named_or_default("bos_token", &CLASS_BOS) {
            NamedToken::Id(id) => Some(id),
            NamedToken::Nothing => None,
            NamedToken::Unsaid => {
                model_ids(&settings, "bos_token_id", engine, &USUAL_BOS).first().copied().or(usual.bos)
            }
        };
        let mut stops: Vec<u32> = eos.into_iter().collect();
        stops.extend(listed.into_iter().filter(|id| Some(*id) != eos));
        let added = own.added();
        Ok(Self { eos, bos, stops, config, chat_template: None, added })
    }

    /// The bytes of `tokenizer_config.json` for a model of `max_length` positions.
    pub(super) fn config_json(&self, max_length: usize, engine: &Engine) -> Result<Vec<u8>> {
        let mut config = match &self.config {
            Some(config) => config.clone(),
            None => self.fresh_config(engine),
        };
        make_portable(&mut config);
        config.insert("model_max_length".into(), max_length.into());
        if let Some(template) = &self.chat_template {
            config.insert("chat_template".into(), template.as_str().into());
        }
        Ok(serde_json::to_vec_pretty(&config)?)
    }

    /// The settings of a tokenizer that came without any.
    pub(super) fn fresh_config(&self, engine: &Engine) -> Map<String, Value> {
        let bos = self.bos.and_then(|id| engine.name_of(id));
        let eos = self.eos.and_then(|id| engine.name_of(id));
        // The class that takes tokenizer.json as it is, in transformers 4 and 5 alike.
        let fresh = json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos,
            "unk_token": eos, "clean_up_tokenization_spaces": false});
        fresh.as_object().cloned().unwrap_or_default()
    }
}

/// The tokenizer's own settings, as opposed to the model's.
struct TokenizerFiles<'a> {
    /// `tokenizer_config.json`.
    config: Option<&'a Map<String, Value>>,
    /// `special_tokens_map.json`.
    map: Option<&'a Map<String, Value>>,
    engine: &'a Engine,
}

impl TokenizerFiles<'_> {
    fn id_in(&self, file: Option<&Map<String, Value>>, key: &str) -> Option<u32> {
        self.engine.id_of(token_name(file?.get(key)?)?)
    }

    fn named(&self, key: &str) -> NamedToken {
        let Some(config) = self.config else {
            return self.id_in(self.map, key).map_or(NamedToken::Unsaid, NamedToken::Id);
        };
        if let Some(id) = self.id_in(self.config, key) {
            return NamedToken::Id(id);
        }
        // Files with this list are complete; older ones leave tokens to the other file.
        let complete = config.contains_key("added_tokens_decoder");
        match self.id_in(self.map.filter(|_| !complete), key) {
            Some(id) => NamedToken::Id(id),
            None if config.get(key).is_some_and(Value::is_null) => NamedToken::Nothing,
            None => NamedToken::Unsaid,
        }
    }

    /// [`named`](Self::named), or the default of the tokenizer's class if the key is absent.
    fn named_or_default(&self, key: &str, classes: &[(&str, Option<&str>)]) -> NamedToken {
        let named = self.named(key);
        let config = self.config.filter(|config| named == NamedToken::Unsaid && !config.contains_key(key));
        let class = config.and_then(|config| config.get("tokenizer_class")?.as_str());
        let class = class.map(|class| class.strip_suffix("Fast").unwrap_or(class));
        let default = classes.iter().find(|(name, _)| Some(*name) == class);
        match default {
            Some((_, None)) => NamedToken::Nothing,
            Some((_, Some(token))) => self.engine.id_of(token).map_or(named, NamedToken::Id),
            None => named,
        }
    }

    /// As transformers does: either key makes both of them decide, and `tokenizer.json` no longer.
    fn added(&self) -> Option<Added> {
        let config = self.config?;
        let bos = config.get("add_bos_token").and_then(Value::as_bool);
        let eos = config.get("add_eos_token").and_then(Value::as_bool);
        (bos.is_some() || eos.is_some()).then(|| Added { bos: bos == Some(true), eos: eos == Some(true) })
    }
}

/// The ids of `key` in the first of the model's settings that is credible: a list of several is deliberate (chat models), and
/// so is a token that is special or has a usual name. A single ordinary token is left over from another vocabulary.
fn model_ids(settings: &[Map<String, Value>], key: &str, engine: &Engine, usual: &[&str]) -> Vec<u32> {
    let mut found = settings.iter().filter_map(|file| file.get(key)).map(|ids| token_ids(ids, engine.vocab_size()));
    let credible = found.find(|ids| {
        let names = ids.iter().filter_map(|id| engine.name_of(*id));
        ids.len() > 1
            || ids.iter().any(|id| engine.is_special(*id))
            || names.into_iter().any(|name| usual.contains(&name.as_str()))
    });
    credible.unwrap_or_default()
}

/// Rewrites settings of transformers 5 that transformers 4 refuses, so that both read them; whether there were any.
fn make_portable(config: &mut Map<String, Value>) -> bool {
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    // The generic classes of transformers 5. Their tokenizer is in tokenizer.json, which the class below takes as it is.
    let of_five = class.ends_with("Backend");
    if of_five {
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    }
    // A list in 5, where 4 has a list of this name and wants an object of the other; 5 takes both.
    let Some(Value::Array(extra)) = config.get("extra_special_tokens").cloned() else { return of_five };
    config.shift_remove("extra_special_tokens");
    let additional = config.entry("additional_special_tokens").or_insert_with(|| json!([]));
    match additional {
        Value::Array(list) => list.extend(extra.into_iter().filter(|token| !list.contains(token)).collect::<Vec<_>>()),
        other => *other = extra.into(),
    }
    true
}

/// The bytes of a `tokenizer_config.json` that transformers 4 and 5 read, if `bytes` are not.
pub(crate) fn portable_config(bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    let Ok(Value::Object(mut config)) = serde_json::from_slice(bytes) else { return Ok(None) };
    Ok(if make_portable(&mut config) { Some(serde_json::to_vec_pretty(&config)?) } else { None })
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
    let ids = values.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok());
    ids.filter(|id| (*id as usize) < vocab_size).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use crate::tokenizer::hf;
    use serde_json::{Value, json};

    /// The (eos, bos, stops) of a directory with Llama 3's vocabulary and these files.
    fn ends(files: &[(&str, Value)]) -> (Option<u32>, Option<u32>, Vec<u32>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), hf::tests::llama3().to_string()).unwrap();
        for (name, value) in files {
            std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        (tokenizer.eos_id(), tokenizer.bos_id(), tokenizer.stop_ids().to_vec())
    }

    #[test]
    fn the_tokenizers_word_goes_before_the_models() {
        let name = |eos: Value| ("tokenizer_config.json", json!({"eos_token": eos}));
        let leftover = ("config.json", json!({"eos_token_id": 2, "bos_token_id": 1}));
        assert_eq!(ends(&[]), (Some(261), Some(260), vec![261]));
        assert_eq!(ends(std::slice::from_ref(&leftover)), (Some(261), Some(260), vec![261]));
        assert_eq!(ends(&[name(json!("<|eot_id|>")), leftover.clone()]), (Some(262), Some(260), vec![262]));
        assert_eq!(
            ends(&[name(json!({"content": "<|eot_id|>"})), leftover.clone()]),
            (Some(262), Some(260), vec![262])
        );
        assert_eq!(ends(&[name(json!("<|absent|>"))]), (Some(261), Some(260), vec![261]));
        let map = ("special_tokens_map.json", json!({"eos_token": "<|eot_id|>"}));
        assert_eq!(
            ends(&[name(Value::Null), map.clone(), leftover.clone()]).0,
            Some(262),
            "an old file leaves it to the map"
        );
        let complete = json!({"eos_token": null, "bos_token": null, "added_tokens_decoder": {}});
        assert_eq!(ends(&[("tokenizer_config.json", complete), map, leftover]), (None, None, vec![]));
    }

    #[test]
    fn a_token_that_is_said_not_to_exist_does_not() {
        let config = |value: Value| ("tokenizer_config.json", value);
        let model = ("config.json", json!({"eos_token_id": 261, "bos_token_id": 260}));
        let without = |value: Value| ends(&[config(value), model.clone()]);
        assert_eq!(without(json!({"bos_token": null})), (Some(261), None, vec![261]));
        // What ends generation is the model's to say; there is no end of text to put between documents.
        assert_eq!(without(json!({"eos_token": null})), (None, Some(260), vec![261]));
        for class in ["PreTrainedTokenizerFast", "TokenizersBackend", "Qwen2TokenizerFast"] {
            assert_eq!(without(json!({"tokenizer_class": class})).1, None, "{class}");
        }
        for class in ["LlamaTokenizerFast", "Unheard"] {
            assert_eq!(without(json!({"tokenizer_class": class})).1, Some(260), "{class}");
        }
    }

    #[test]
    fn a_single_end_of_the_model_is_believed_if_it_is_special() {
        let named = ("tokenizer_config.json", json!({"eos_token": "<|end_of_text|>"}));
        let generation = |id: u32| ("generation_config.json", json!({"eos_token_id": id}));
        assert_eq!(ends(&[named.clone(), generation(262)]).2, [261, 262]);
        assert_eq!(ends(&[named, generation(7)]).2, [261]);
    }

    #[test]
    fn what_is_put_around_a_prompt_is_tokenizer_configs_to_say() {
        let encoded = |value: Value| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("tokenizer.json"), hf::tests::llama3().to_string()).unwrap();
            std::fs::write(dir.path().join("tokenizer_config.json"), value.to_string()).unwrap();
            Tokenizer::from_dir(dir.path()).unwrap().encode("a").unwrap()
        };
        let letter = *encoded(json!({})).last().unwrap();
        assert_eq!(encoded(json!({})), [260, letter]);
        assert_eq!(encoded(json!({"add_bos_token": false})), [letter]);
        assert_eq!(encoded(json!({"add_eos_token": true, "eos_token": "<|end_of_text|>"})), [letter, 261]);
        assert_eq!(encoded(json!({"add_bos_token": true, "add_eos_token": true})), [260, letter, 261]);
        assert_eq!(encoded(json!({"add_bos_token": true, "bos_token": null})), [letter]);
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
    fn settings_of_transformers_5_are_written_for_4_as_well() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), hf::tests::llama3().to_string()).unwrap();
        let write =
            |config: Value| std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let written = || -> Value {
            let files = Tokenizer::from_dir(dir.path()).unwrap().files(77).unwrap();
            serde_json::from_slice(&files.iter().find(|(name, _)| *name == "tokenizer_config.json").unwrap().1).unwrap()
        };
        write(json!({"backend": "tokenizers", "tokenizer_class": "TokenizersBackend", "eos_token": "<|eot_id|>",
            "extra_special_tokens": ["<|a|>", "<|b|>"], "additional_special_tokens": ["<|b|>"]}));
        let config = written();
        assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
        assert_eq!(config["additional_special_tokens"], json!(["<|b|>", "<|a|>"]));
        assert!(config.get("extra_special_tokens").is_none());
        assert_eq!((&config["model_max_length"], &config["eos_token"]), (&json!(77), &json!("<|eot_id|>")));
        // What 4 reads stays as it is, an object of named tokens too.
        let four = json!({"tokenizer_class": "LlamaTokenizerFast", "extra_special_tokens": {"image_token": "<|a|>"}, "model_max_length": 77});
        write(four.clone());
        assert_eq!(written(), four);
        assert!(super::portable_config(four.to_string().as_bytes()).unwrap().is_none());
    }

    #[test]
    fn settings_that_are_no_settings_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), hf::tests::llama3().to_string()).unwrap();
        std::fs::write(dir.path().join("generation_config.json"), "[1]").unwrap();
        let error = Tokenizer::from_dir(dir.path()).err().unwrap().to_string();
        assert!(error.contains("generation_config.json"), "{error}");
    }
}
