//! Headers of `.npy` and llm.c `.bin` files: the first two bytes choose the claimed file size, the rest is the file's beginning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llama_lite::corpus::npy::header::{MAX_HEADER, TokenLayout};

fuzz_target!(|input: &[u8]| {
    let Some((claim, head)) = input.split_first_chunk::<2>() else { return };
    let real = head.len() as u64;
    let size = if claim[0] % 2 == 0 { real } else { u64::from(claim[1]) << (claim[0] / 4) };
    let head = &head[..head.len().min(12 + MAX_HEADER)];
    if let Ok(layout) = TokenLayout::parse(head, size) {
        assert_eq!(layout.offset + layout.len * layout.dtype.width() as u64, size);
    }
});
