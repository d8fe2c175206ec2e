//! `metrics.jsonl` as a resume finds it: the first byte is the checkpoint's step. Every line is kept or moved away, and those that are
//! kept are objects of steps up to it.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;
use llama_lite::metrics::{Cut, MetricsLog, read};

fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|&b| b == b'\n').collect()
}

fuzz_target!(|input: &[u8]| {
    let Some((&resume, bytes)) = input.split_first() else { return };
    let (dir, path) = shared::file("metrics.jsonl", bytes);
    read(&path).expect("any log can be read");
    let cut = MetricsLog::open(dir.path(), Some(resume.into())).expect("any log can be opened").cut;
    let kept = std::fs::read(&path).expect("memory");
    let tail = cut.kept_in.map(|path| std::fs::read(path).expect("memory")).unwrap_or_default();
    for line in lines(&kept) {
        let value: serde_json::Value = serde_json::from_slice(line).expect("what is kept is JSON");
        assert!(value.is_object() && value["step"].as_u64().is_none_or(|step| step <= resume.into()));
    }
    assert_eq!(lines(&tail).len(), cut.lines + cut.unreadable);
    let (mut before, mut after) = (lines(bytes), [lines(&kept), lines(&tail)].concat());
    before.sort();
    after.sort();
    assert_eq!(before, after);
    let again = MetricsLog::open(dir.path(), Some(resume.into())).expect("it was just opened");
    assert_eq!(again.cut, Cut::default());
});
