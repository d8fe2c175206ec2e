//! Readers of `data prepare`: the first byte chooses the format, the rest is the file. Records come in order, lie in the file, and a
//! reader opened behind any record gives the same ones again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llama_lite::corpus::source::{Position, ReadOptions, Reader};

const NAMES: [&str; 6] = ["x.jsonl", "x.json", "x.txt", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"];

fuzz_target!(init: {
    // libFuzzer's own hook ends the process at any panic, also at those of the Parquet library, which are caught. One that is not caught
    // still ends it.
    std::panic::set_hook(Box::new(|_| ()));
}, |input: &[u8]| {
    let Some((&kind, bytes)) = input.split_first() else { return };
    let dir = tempfile::tempdir_in("/dev/shm").expect("memory");
    let path = dir.path().join(NAMES[kind as usize % NAMES.len()]);
    std::fs::write(&path, bytes).expect("memory");
    let options = ReadOptions { text_separator: (kind >= 128).then(|| "||".into()), ..ReadOptions::default() };
    let Ok(reader) = Reader::open(&path, &options, Position::default()) else { return };
    let (mut last, mut middle, mut count) = (0, None, 0u64);
    for raw in reader {
        let Ok(raw) = raw else { return };
        assert!(raw.offset >= last);
        last = raw.offset;
        count += 1;
        if count == 2 {
            middle = Some(raw.next);
        }
        let record = raw.parse("text");
        assert_eq!(record.offset, last);
    }
    if let Some(from) = middle {
        let rest = Reader::open(&path, &options, from).expect("it opened before");
        assert_eq!(rest.map_while(Result::ok).count() as u64, count - 2);
    }
});
