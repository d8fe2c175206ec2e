//! `tokenizer.json`: what is accepted encodes to ids of its vocabulary, or fails with a reason.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;
use llama_lite::tokenizer::Tokenizer;

const TEXTS: [&str; 3] = ["One day, a dog ran 12 miles.\n", "<s>\u{e9}\u{1f600}</s><|endoftext|>", "  \t\u{0}a a a"];

fuzz_target!(init: shared::let_panics_be_caught(), |input: &[u8]| {
    let (_dir, path) = shared::file("tokenizer.json", input);
    let tokenizer = match Tokenizer::from_file(&path) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return shared::assert_refusal(&error),
    };
    for text in TEXTS {
        for ids in [tokenizer.encode(text), tokenizer.encode_ordinary(text)] {
            match ids {
                Ok(ids) => {
                    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                    tokenizer.decode(&ids, true).unwrap_or_else(|error| {
                        shared::assert_refusal(&error);
                        String::new()
                    });
                }
                Err(error) => shared::assert_refusal(&error),
            }
        }
    }
});
