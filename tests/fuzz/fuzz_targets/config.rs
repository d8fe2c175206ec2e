//! Configurations: the first byte chooses the format, then comes the file, and behind every zero byte one `--set`. What is accepted
//! loads back to itself.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;
use llama_lite::config::{Config, print_config};

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    let mut parts = rest.split(|&b| b == 0);
    let text = parts.next().unwrap_or_default();
    let sets: Vec<String> = parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    let (_dir, path) = shared::file(if kind % 2 == 0 { "x.toml" } else { "x.json" }, text);
    match Config::load(&path, &sets) {
        Ok(mut config) => {
            assert_eq!(Config::from_toml_str(&config.to_toml(), "again").expect("it loads back"), config);
            assert!(print_config(&config).contains("# parameters: "));
            assert!(config.apply(&[]).expect("nothing is changed").is_empty());
        }
        Err(error) => shared::assert_refusal(&error),
    }
});
