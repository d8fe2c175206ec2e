//! `shards.json`: what is accepted adds up and names plain files only.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llama_lite::corpus::shards::manifest::ShardManifest;

fuzz_target!(|input: &[u8]| {
    if let Ok(manifest) = ShardManifest::parse(input) {
        for entry in &manifest.shards {
            assert!(!entry.name.contains('/') && !entry.name.starts_with('.'));
            assert!(entry.documents <= entry.tokens);
        }
        let again = ShardManifest::parse(&manifest.to_bytes().expect("what was accepted can be written"));
        assert_eq!(again.as_ref(), Ok(&manifest));
    }
});
