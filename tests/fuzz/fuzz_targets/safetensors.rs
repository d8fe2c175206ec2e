//! safetensors files. The first byte says what is fuzzed: the file as it is, or a header whose length is made right, with as many bytes
//! of data as the second byte says.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;
use llama_lite::checkpoint::tensors::TensorFile;
use std::fs::File;

fuzz_target!(|input: &[u8]| {
    let Some((&[kind, size], rest)) = input.split_first_chunk::<2>() else { return };
    let bytes = match kind % 2 {
        0 => rest.to_vec(),
        _ => [&(rest.len() as u64).to_le_bytes(), rest, &vec![1; size.into()]].concat(),
    };
    let (_dir, path) = shared::file("x.safetensors", &bytes);
    let opened = TensorFile::open(File::open(&path).expect("memory"), bytes.len() as u64, &path);
    let file = match opened {
        Ok(file) => file,
        Err(error) => return shared::assert_refusal(&error),
    };
    for name in file.names() {
        match file.read(&name) {
            Ok((shape, values)) => {
                assert_eq!(file.shape(&name), Some(shape.as_slice()));
                assert_eq!(shape.iter().product::<usize>(), values.len());
            }
            Err(error) => shared::assert_refusal(&error),
        }
    }
});
