//! `model.safetensors.index.json` beside the three files that it is about.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;
use llama_lite::checkpoint::{Opened, names};
use std::os::unix::fs::symlink;
use std::path::Path;

const FILES: [&str; 4] = [
    "config.json",
    "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
];

fuzz_target!(|input: &[u8]| {
    let (dir, _) = shared::file(names::INDEX, input);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/llama/gqa");
    for name in FILES {
        symlink(model.join(name), dir.path().join(name)).expect("memory");
    }
    match Opened::open(dir.path()) {
        Ok(opened) => opened.read_weights(&mut |_, _, _| Ok(())).expect("what was checked can be read"),
        Err(error) => shared::assert_refusal(&error),
    }
});
