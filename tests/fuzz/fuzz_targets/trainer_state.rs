//! `trainer_state.json`, read as a resume reads it.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;
use llama_lite::config::Config;
use llama_lite::train::trainer_state::TrainerStateFile;

fuzz_target!(|input: &[u8]| {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(input) else { return };
    let chain = value["chain"].as_str().map(str::to_lowercase);
    let Ok(saved) = serde_json::from_value::<TrainerStateFile>(value) else { return };
    assert_eq!(Some(saved.state.data_hash.to_string()), chain);
    for update in [0, 1, saved.state.step, u64::MAX - 1] {
        saved.state.schedule.lr(update);
    }
    if let Err(error) = Config::from_toml_str(&saved.config, "the checkpoint's config") {
        shared::assert_refusal(&error);
    }
    let text = serde_json::to_vec(&saved).expect("it can be written");
    let again: TrainerStateFile = serde_json::from_slice(&text).expect("what was written is read");
    assert_eq!(serde_json::to_vec(&again).expect("it can be written"), text);
});
