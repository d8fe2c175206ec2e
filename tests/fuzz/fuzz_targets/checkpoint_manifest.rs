//! `manifest.json` of a checkpoint. The input is what comes before the checksum, which is made to match: otherwise it would be all that
//! is ever tried.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llama_lite::checkpoint::manifest::{Manifest, valid_name};

fuzz_target!(|body: &[u8]| {
    let checksum = blake3::hash(body).to_hex();
    let text = [body, format!("  \"checksum\": \"{checksum}\"\n}}\n").as_bytes()].concat();
    if let Ok(manifest) = Manifest::parse(&text) {
        assert!(manifest.files.iter().all(|entry| valid_name(&entry.name)));
        let again = Manifest::parse(manifest.render().expect("it can be written").as_bytes());
        assert_eq!(again.expect("what was written is read"), manifest);
    }
});
