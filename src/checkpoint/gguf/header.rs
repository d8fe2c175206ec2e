//! What stands before the tensors in a GGUF file, version 3: metadata, then the name, shape, type and place of every tensor.
//!
//! Written by hand rather than by candle, whose writer wants every tensor in memory at once. candle's reader, which is
//! independent of this code, reads the files in the tests.

use anyhow::{Context, Result};

use crate::checkpoint::dtype::Dtype;

/// Every tensor begins at a multiple of this; so does the first, counted from the beginning of the file.
pub(super) const ALIGNMENT: usize = 32;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;

/// The format's numbers for the types of values.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Elements of a block of q8_0, and the bytes that a block takes: a scale in f16, then the integers.
pub(super) const BLOCK: usize = 32;
const BLOCK_BYTES: usize = 2 + BLOCK;

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    Plain(Dtype),
    Q8_0,
}

impl Storage {
    /// The format's number for it.
    fn number(self) -> u32 {
        match self {
            Storage::Plain(Dtype::F32) => 0,
            Storage::Plain(Dtype::F16) => 1,
            Storage::Q8_0 => 8,
            Storage::Plain(Dtype::Bf16) => 30,
        }
    }

    /// Bytes of so many elements; of q8_0 a multiple of [`BLOCK`].
    pub(super) fn bytes_of(self, elements: usize) -> Option<usize> {
        match self {
            Storage::Plain(dtype) => elements.checked_mul(dtype.size()),
            Storage::Q8_0 => (elements / BLOCK).checked_mul(BLOCK_BYTES),
        }
    }
}

/// The beginning of a file, as it grows.
#[derive(Default)]
pub(super) struct GgufHeader {
    metadata: Vec<u8>,
    keys: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    /// Where the next tensor begins, counted from the first.
    next: usize,
}

impl GgufHeader {
    pub(super) fn string(&mut self, key: &str, value: &str) {
        self.key(key, STRING);
        push_string(&mut self.metadata, value);
    }

    pub(super) fn number(&mut self, key: &str, value: u32) {
        self.key(key, U32);
        self.metadata.extend(value.to_le_bytes());
    }

    pub(super) fn float(&mut self, key: &str, value: f32) {
        self.key(key, F32);
        self.metadata.extend(value.to_le_bytes());
    }

    pub(super) fn flag(&mut self, key: &str, value: bool) {
        self.key(key, BOOL);
        self.metadata.push(value.into());
    }

    pub(super) fn strings(&mut self, key: &str, values: &[String]) {
        self.array(key, STRING, values.len());
        for value in values {
            push_string(&mut self.metadata, value);
        }
    }

    pub(super) fn integers(&mut self, key: &str, values: &[i32]) {
        self.array(key, I32, values.len());
        self.metadata.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub(super) fn floats(&mut self, key: &str, values: &[f32]) {
        self.array(key, F32, values.len());
        self.metadata.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// Announces the next tensor; the tensors follow the header in this order, each padded to [`ALIGNMENT`]. The last
    /// dimension of `shape` is the contiguous one.
    ///
    /// # Errors
    /// If the file would be too large.
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize], storage: Storage) -> Result<()> {
        push_string(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        // The format lists the contiguous dimension first.
        self.tensors.extend(shape.iter().rev().flat_map(|&n| (n as u64).to_le_bytes()));
        self.tensors.extend(storage.number().to_le_bytes());
        self.tensors.extend((self.next as u64).to_le_bytes());
        self.tensor_count += 1;
        let elements = shape.iter().try_fold(1_usize, |product, &n| product.checked_mul(n));
        let bytes = elements.and_then(|elements| storage.bytes_of(elements)?.checked_next_multiple_of(ALIGNMENT));
        let next = bytes.and_then(|bytes| self.next.checked_add(bytes));
        self.next = next.with_context(|| format!("{name} makes the file too large"))?;
        Ok(())
    }

    /// Bytes of all tensors announced.
    pub(super) fn tensor_bytes(&self) -> usize {
        self.next
    }

    /// All of it, up to where the first tensor begins.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.keys.to_le_bytes());
        bytes.extend(self.metadata);
        bytes.extend(self.tensors);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn key(&mut self, key: &str, kind: u32) {
        push_string(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        self.keys += 1;
    }

    fn array(&mut self, key: &str, kind: u32, length: usize) {
        self.key(key, ARRAY);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend((length as u64).to_le_bytes());
    }
}

fn push_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}
