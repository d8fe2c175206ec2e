//! The tokenizer as its callers use it: against tiktoken's and Hugging Face's encodings, saved, loaded, damaged.

use super::*;
use crate::runtime::tests::damage::{Damage, rounds};
use proptest::prelude::*;
use std::sync::LazyLock;

const STORY: &str = "Once upon a time, Tom's dog ran 12 miles. \u{1f600} d\u{e9}j\u{e0} vu\n\tThe end.  ";
static TRAINED: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::train([STORY; 3].into_iter(), 300).unwrap());
/// GPT-2's and a trained file as Hugging Face's crate runs them.
static THEIRS: LazyLock<[tokenizers::Tokenizer; 2]> = LazyLock::new(|| {
    [Tokenizer::gpt2().unwrap(), TRAINED.clone()].map(|t| tokenizers::Tokenizer::from_bytes(t.json()).unwrap())
});

fn save(tokenizer: &Tokenizer, dir: &Path) {
    for (name, bytes) in tokenizer.files(1024).unwrap() {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

#[test]
fn gpt2_is_tiktokens() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gpt2_tokens.json");
    let cases: Vec<(String, String, Vec<u32>)> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(cases.len() > 600);
    let gpt2 = Tokenizer::gpt2().unwrap();
    let texts: Vec<&str> = cases.iter().map(|(_, text, _)| text.as_str()).collect();
    let batch = gpt2.encode_documents(&texts).unwrap();
    for ((kind, text, ids), in_batch) in cases.iter().zip(&batch) {
        assert_eq!(&gpt2.encode_ordinary(text).unwrap(), ids, "{kind}: {text:?}");
        assert_eq!(in_batch, ids, "{kind}: {text:?}");
        assert_eq!(&gpt2.decode(ids, true).unwrap(), text);
        if kind != "special" {
            assert_eq!(&gpt2.encode(text).unwrap(), ids, "{kind}: {text:?}");
        }
        let theirs = THEIRS[0].encode_fast(text.as_str(), false).unwrap();
        assert!(kind == "special" || theirs.get_ids() == ids, "tokenizer.json differs for {kind}: {text:?}");
    }
}

#[test]
fn gpt2_ends_with_id_50256() {
    let gpt2 = Tokenizer::gpt2().unwrap();
    assert_eq!((gpt2.vocab_size(), gpt2.eos_id(), gpt2.bos_id()), (50257, Some(50256), Some(50256)));
    assert_eq!(gpt2.encode("Hi<|endoftext|>").unwrap(), [17250, 50256]);
    assert_eq!(gpt2.encode_ordinary("<|endoftext|>").unwrap(), [27, 91, 437, 1659, 5239, 91, 29]);
    assert_eq!(gpt2.decode(&[17250, 50256], true).unwrap(), "Hi");
    assert_eq!(gpt2.decode(&[17250, 50256, 50300], false).unwrap(), "Hi<|endoftext|>");
    assert_eq!(
        (gpt2.token_bytes(17250), gpt2.token_bytes(50256), gpt2.token_bytes(50257)),
        (Some(b"Hi".to_vec()), None, None)
    );
    assert_eq!(
        (gpt2.id_of("<|endoftext|>"), gpt2.id_of("\u{120}the"), gpt2.id_of(" the")),
        (Some(50256), Some(262), None)
    );
}

#[test]
fn saved_tokenizers_load_as_themselves() {
    for tokenizer in [Tokenizer::gpt2().unwrap(), TRAINED.clone()] {
        let dir = tempfile::tempdir().unwrap();
        save(&tokenizer, dir.path());
        for again in [Tokenizer::from_dir(dir.path()), Tokenizer::from_file(&dir.path().join("tokenizer.json"))] {
            let again = again.unwrap();
            assert!(matches!(*again.inner.engine, Engine::Byte(_)));
            assert_eq!(again.fingerprint(), tokenizer.fingerprint());
            assert_eq!((again.eos_id(), again.bos_id()), (tokenizer.eos_id(), tokenizer.bos_id()));
            assert_eq!(again.files(1024).unwrap(), tokenizer.files(1024).unwrap());
        }
    }
    assert_ne!(TRAINED.fingerprint(), Tokenizer::gpt2().unwrap().fingerprint());
}

#[test]
fn a_loaded_file_is_saved_as_it_was_with_its_settings() {
    let dir = tempfile::tempdir().unwrap();
    let text = serde_json::to_string_pretty(&hf::tests::llama3()).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), &text).unwrap();
    let settings = r#"{"chat_template": "x", "eos_token": "<|eot_id|>", "model_max_length": 9}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), settings).unwrap();
    let files = Tokenizer::from_dir(dir.path()).unwrap().files(77).unwrap();
    assert_eq!(files[0], ("tokenizer.json", text.into_bytes()));
    let kept: Value = serde_json::from_slice(&files[1].1).unwrap();
    assert_eq!(kept, serde_json::json!({"chat_template": "x", "eos_token": "<|eot_id|>", "model_max_length": 77}));
}

#[test]
fn files_that_are_missing_or_wrong_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let failure = |result: Result<Tokenizer>| result.err().unwrap().downcast::<Failure>().unwrap();
    for result in [Tokenizer::from_file(&path), Tokenizer::from_dir(dir.path())] {
        let failure = failure(result);
        assert_eq!(failure.exit, Exit::Io);
        assert!(failure.message.contains("tokenizer.json"));
    }
    for bytes in [&b"{"[..], b"[]", b"null", b"{\"model\":{}}", b"\xff\xfe", b""] {
        std::fs::write(&path, bytes).unwrap();
        let failure = failure(Tokenizer::from_file(&path));
        assert_eq!(failure.exit, Exit::Data, "{}", failure.message);
        assert!(failure.hint.is_some() && !failure.message.contains('\n'));
    }
    assert_eq!(failure(Tokenizer::from_file(dir.path())).exit, Exit::Data);
}

/// Any Unicode, but often the kinds of character at which the split into words turns.
fn text() -> impl Strategy<Value = String> {
    let turning = prop_oneof![Just(' '), Just('\n'), Just('\''), Just('s'), Just('1'), Just('\u{a0}'), Just('!')];
    proptest::collection::vec(prop_oneof![turning, any::<char>(), proptest::char::range('a', 'e')], 0..60)
        .prop_map(String::from_iter)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_comes_back_and_hugging_face_agrees(text in text()) {
        for (ours, theirs) in [Tokenizer::gpt2().unwrap(), TRAINED.clone()].iter().zip(THEIRS.iter()) {
            let ids = ours.encode_ordinary(&text).unwrap();
            prop_assert_eq!(&ours.decode(&ids, false).unwrap(), &text);
            let bytes: Vec<u8> = ids.iter().flat_map(|id| ours.token_bytes(*id).unwrap()).collect();
            prop_assert_eq!(bytes, text.as_bytes());
            let theirs = theirs.encode_fast(text.as_str(), true).unwrap();
            prop_assert_eq!(theirs.get_ids(), ids);
        }
    }
}

#[test]
fn damaged_files_are_refused_or_work() {
    let [llama2, llama3] = [hf::tests::llama2(), hf::tests::llama3()].map(|root| root.to_string().into_bytes());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut damage = Damage::new(1);
    for whole in [TRAINED.json().to_vec(), llama2, llama3] {
        for _ in 0..rounds(200) {
            std::fs::write(&path, damage.of(&whole)).unwrap();
            let tokenizer = match Tokenizer::from_file(&path) {
                Ok(tokenizer) => tokenizer,
                Err(error) => {
                    assert_eq!(error.downcast::<Failure>().unwrap().exit, Exit::Data);
                    continue;
                }
            };
            // Damage may show with some texts only, but then as an error.
            for text in [STORY, "<s><|eot_id|></s><|endoftext|>"] {
                let encoded = [tokenizer.encode(text), tokenizer.encode_ordinary(text)];
                for id in encoded.into_iter().flat_map(Result::unwrap_or_default) {
                    assert!((id as usize) < tokenizer.vocab_size(), "{id}");
                }
            }
        }
    }
}

/// The library numbers added tokens that the vocabulary lacks by itself, whatever the file says.
#[test]
fn an_added_token_under_a_wrong_id_is_still_in_the_vocabulary() {
    let mut root = hf::tests::words();
    root["added_tokens"][0]["content"] = "<new>".into();
    root["added_tokens"][0]["id"] = 1.into();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, root.to_string()).unwrap();
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    let ids = tokenizer.encode("<new>").unwrap();
    assert_eq!((ids.as_slice(), tokenizer.vocab_size()), (&[4][..], 5));
    assert_eq!(tokenizer.id_of("<new>"), Some(4));
}
