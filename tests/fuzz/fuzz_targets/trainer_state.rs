//! `trainer_state.json`, read as a resume reads it.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;
use llama_lite::config::Config;
use llama_lite::data::order::DataHash;
use llama_lite::train::state::Saved;

fuzz_target!(|input: &[u8]| {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(input) else { return };
    let Ok(saved) = serde_json::from_value::<Saved>(value) else { return };
    if let Ok(chain) = saved.counters.chain.parse::<DataHash>() {
        assert_eq!(chain.to_string(), saved.counters.chain.to_lowercase());
    }
    for update in [0, 1, saved.counters.step, u64::MAX - 1] {
        saved.schedule.lr(update);
    }
    if let Err(error) = Config::from_toml_str(&saved.config, "the checkpoint's config") {
        shared::assert_refusal(&error);
    }
    let text = serde_json::to_vec(&saved).expect("it can be written");
    let again: Saved = serde_json::from_slice(&text).expect("what was written is read");
    assert_eq!(serde_json::to_vec(&again).expect("it can be written"), text);
});
