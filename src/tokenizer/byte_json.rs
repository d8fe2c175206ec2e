//! Byte-level BPE vocabularies as Hugging Face's `tokenizer.json`, written and read.
//!
//! Written by hand rather than by the tokenizers crate: the same vocabulary gives the same bytes (so their hash identifies
//! it), and no second encoder has to be built to save a checkpoint.

use serde_json::{Value, json};

use super::byte_alphabet::{bytes_of, char_of};
use super::byte_bpe::{ByteBpe, Merge, recover_merges};

impl ByteBpe {
    /// The vocabulary as the text of a Hugging Face `tokenizer.json`: the same bytes for the same vocabulary.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let written: Vec<String> = self.tokens().iter().map(|t| t.iter().map(|b| char_of(*b)).collect()).collect();
        let mut vocab = serde_json::Map::with_capacity(self.tokens().len());
        let mut specials = self.specials().iter().peekable();
        for (id, token) in written.iter().enumerate() {
            let special = specials.next_if(|(special, _)| *special as usize == id);
            vocab.insert(special.map_or(token, |(_, text)| text).clone(), id.into());
        }
        // "a b" rather than ["a", "b"]: releases of transformers before 4.45 read nothing else.
        let merges: Vec<String> = recover_merges(self.tokens(), self.specials())
            .expect("tried by `new`, and for GPT-2 by a test")
            .iter()
            .map(|m| format!("{} {}", written[m.left as usize], written[m.right as usize]))
            .collect();
        let added: Vec<Value> = self
            .specials()
            .iter()
            .map(|(id, text)| {
                json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true})
            })
            .collect();
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true});
        let root = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": merges,
            },
        });
        root.to_string().into_bytes()
    }

    /// The vocabulary of a parsed `tokenizer.json`, or none if the file needs more than this module does (another split, a
    /// normalizer, added text, merges that do not follow from the vocabulary).
    pub(super) fn from_json(root: &Value) -> Option<Self> {
        let pre = &root["pre_tokenizer"];
        let model = &root["model"];
        let gpt2_split = pre["type"] == "ByteLevel" && pre["add_prefix_space"] == false && pre["use_regex"] != false;
        let adds_nothing = root["post_processor"].is_null() || root["post_processor"]["type"] == "ByteLevel";
        let plain_bpe = model["type"] == "BPE"
            && model["byte_fallback"] != true
            && ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]
                .iter()
                .all(|key| model[key].is_null() || model[key] == "");
        let byte_decoder = root["decoder"]["type"] == "ByteLevel";
        if !(root["normalizer"].is_null() && gpt2_split && adds_nothing && plain_bpe && byte_decoder) {
            return None;
        }
        let specials = read_specials(&root["added_tokens"])?;
        let tokens = read_tokens(&model["vocab"], &specials)?;
        let merges = recover_merges(&tokens, &specials).ok()?;
        let listed = model["merges"].as_array()?;
        // Ours follow from the vocabulary; a file that lists others would encode text differently.
        let agree = listed.len() == merges.len()
            && merges.iter().zip(listed).all(|(merge, listed)| is_listed(*merge, listed, &tokens).unwrap_or(false));
        agree.then(|| Self::new(tokens, specials).ok())?
    }
}

/// Whether `listed`, an entry of the file's list of merges, is `merge`.
fn is_listed(merge: Merge, listed: &Value, tokens: &[Vec<u8>]) -> Option<bool> {
    let (left, right) = match listed {
        Value::String(pair) => pair.split_once(' ')?,
        pair => (pair[0].as_str()?, pair[1].as_str()?),
    };
    Some(bytes_of(left)? == tokens[merge.left as usize] && bytes_of(right)? == tokens[merge.right as usize])
}

/// The special tokens of a `tokenizer.json` by ascending id; nothing if any added token has rules of its own.
fn read_specials(added: &Value) -> Option<Vec<(u32, String)>> {
    let mut specials = Vec::new();
    for token in added.as_array()? {
        let plain =
            token["special"] == true && ["single_word", "lstrip", "rstrip"].iter().all(|key| token[key] != true);
        let text = token["content"].as_str().filter(|text| plain && !text.is_empty())?;
        specials.push((u32::try_from(token["id"].as_u64()?).ok()?, text.to_owned()));
    }
    specials.sort();
    Some(specials)
}

/// The bytes of all tokens in id order; nothing if ids are missing or taken twice.
fn read_tokens(vocab: &Value, specials: &[(u32, String)]) -> Option<Vec<Vec<u8>>> {
    let vocab = vocab.as_object()?;
    let mut slots: Vec<Option<Vec<u8>>> = vec![None; vocab.len() + specials.len()];
    for (id, text) in specials {
        let slot = slots.get_mut(*id as usize)?;
        if slot.replace(text.clone().into_bytes()).is_some() {
            return None;
        }
    }
    for (text, id) in vocab {
        let id = id.as_u64()?;
        let special = specials.binary_search_by_key(&id, |(special, _)| u64::from(*special));
        match special.ok().map(|at| &specials[at].1) {
            Some(special) if special == text => {}
            Some(_) => return None,
            None => {
                let slot = slots.get_mut(usize::try_from(id).ok()?)?;
                if slot.replace(bytes_of(text)?).is_some() {
                    return None;
                }
            }
        }
    }
    let used = slots.iter().rposition(Option::is_some)? + 1;
    slots.into_iter().take(used).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> ByteBpe {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        tokens.extend([b" a".to_vec(), b"<end>".to_vec(), b" ab".to_vec()]);
        ByteBpe::new(tokens, vec![(257, "<end>".into())]).unwrap()
    }

    #[test]
    fn the_alphabet_is_hugging_faces() {
        let alphabet: String = (0..=255).map(char_of).collect();
        assert_eq!(bytes_of(&alphabet).unwrap(), (0..=255).collect::<Vec<u8>>());
        let theirs = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert!(alphabet.chars().all(|c| theirs.contains(&c)) && theirs.len() == 256);
        assert_eq!((char_of(b' '), char_of(b'\n'), char_of(b'a')), ('\u{120}', '\u{10a}', 'a'));
        assert_eq!((bytes_of("a b"), bytes_of("\u{144}"), bytes_of("\u{2581}")), (None, None, None));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let json = small().to_json();
        let again = ByteBpe::from_json(&serde_json::from_slice(&json).unwrap()).unwrap();
        assert_eq!(again.tokens(), small().tokens());
        assert_eq!(again.specials(), small().specials());
        assert_eq!(again.to_json(), json);
    }

    #[test]
    fn merges_may_be_written_as_pairs() {
        let mut root: Value = serde_json::from_slice(&small().to_json()).unwrap();
        root["model"]["merges"] = json!([["\u{120}", "a"], ["\u{120}a", "b"]]);
        assert_eq!(ByteBpe::from_json(&root).unwrap().to_json(), small().to_json());
    }

    #[test]
    fn files_that_ask_for_more_are_left_to_hugging_face() {
        let root: Value = serde_json::from_slice(&small().to_json()).unwrap();
        let changes: [(&str, Value); 12] = [
            ("/normalizer", json!({"type": "NFC"})),
            ("/pre_tokenizer/add_prefix_space", json!(true)),
            ("/pre_tokenizer/use_regex", json!(false)),
            ("/pre_tokenizer", json!({"type": "Whitespace"})),
            ("/post_processor", json!({"type": "TemplateProcessing"})),
            ("/decoder", Value::Null),
            ("/model/type", json!("WordPiece")),
            ("/model/dropout", json!(0.1)),
            ("/model/merges", json!(["\u{120} a"])),
            ("/model/merges", json!(["\u{120}a b", "\u{120} a"])),
            ("/added_tokens/0/lstrip", json!(true)),
            ("/added_tokens/0/id", json!(3)),
        ];
        for (place, value) in changes {
            let mut changed = root.clone();
            *changed.pointer_mut(place).unwrap() = value;
            assert!(ByteBpe::from_json(&changed).is_none(), "{place} = {:?}", changed.pointer(place));
        }
        assert!(ByteBpe::from_json(&json!({})).is_none());
    }
}
